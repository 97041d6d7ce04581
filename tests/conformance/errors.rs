//! What a caller can get wrong, and the name under which each op and the layer says so.

mod layer;
mod ops;
mod tensor;

use fused_moe::tensor::Shape;
use fused_moe::{DType, Device, Error, Result, Tensor};

use crate::harness::remote::Remote;
use crate::harness::{Problem, Test};

pub const TESTS: &[Test] = &[
    Test { op: "errors", name: "router_logits", body: ops::router_logits },
    Test { op: "errors", name: "route", body: ops::route },
    Test { op: "errors", name: "permute", body: ops::permute },
    Test { op: "errors", name: "grouped_gemm", body: ops::grouped_gemm },
    Test { op: "errors", name: "combine", body: ops::combine },
    Test { op: "errors", name: "contents", body: ops::contents },
    Test { op: "errors", name: "config", body: layer::config },
    Test { op: "errors", name: "weights", body: layer::weights },
    Test { op: "errors", name: "presence", body: layer::presence },
    Test { op: "errors", name: "forward", body: layer::forward },
    Test { op: "errors", name: "forward_routed", body: layer::forward_routed },
    Test { op: "errors", name: "tensor", body: tensor::tensor },
    Test { op: "errors", name: "backends", body: tensor::backends },
];

/// How a tensor is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// One too many along the last dimension.
    Last,
    /// One too few along the first.
    First,
    /// One dimension too many.
    Rank,
    /// A float for an integer, or the other way round.
    Type,
    /// On another device.
    Elsewhere,
}

/// Makes the tensors of a call, one of them wrong.
#[derive(Clone, Copy, Debug)]
struct Maker<'d> {
    device: &'d Device,
    /// The one that is wrong.
    field: &'static str,
    wrong: Wrong,
}

impl Maker<'_> {
    fn make<const N: usize>(&self, field: &str, dtype: DType, shape: [usize; N]) -> Result<Tensor> {
        if field == self.field { self.spoiled(dtype, &shape) } else { Tensor::zeros(self.device, dtype, shape) }
    }

    /// A tensor that is not quite as asked.
    fn spoiled(&self, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        let mut dims = dims.to_vec();
        match self.wrong {
            Wrong::Last => *dims.last_mut().expect("tensors have a rank") += 1,
            Wrong::First => dims[0] -= 1,
            Wrong::Rank if dims.len() == 3 => drop(dims.pop()),
            Wrong::Rank => dims.push(1),
            Wrong::Type | Wrong::Elsewhere => {}
        }
        let dtype = match (self.wrong, dtype) {
            (Wrong::Type, DType::U32) => DType::F32,
            (Wrong::Type, _) => DType::U32,
            (_, dtype) => dtype,
        };
        // Another value of it is another device, to itself too.
        let elsewhere = Device::new(Remote::default());
        let device = if self.wrong == Wrong::Elsewhere { &elsewhere } else { self.device };
        Tensor::zeros(device, dtype, shape(&dims))
    }
}

fn shape(dims: &[usize]) -> Shape {
    match *dims {
        [a] => [a].into(),
        [a, b] => [a, b].into(),
        [a, b, c] => [a, b, c].into(),
        _ => unreachable!("rank 1 to 3"),
    }
}

/// `outcome` is `InvalidArgument` about `expected`, and says what it wanted and what came.
pub fn names<T>(outcome: Result<T>, expected: &str) -> Result<(), Problem> {
    let got = match outcome {
        Err(Error::InvalidArgument { argument, expected: wanted, actual }) if argument == expected => {
            let silent = wanted.is_empty() || actual.is_empty() || wanted == actual;
            if !silent {
                return Ok(());
            }
            format!("InvalidArgument about {argument} that expects {wanted:?} and got {actual:?}")
        }
        Err(error) => format!("{error:?}"),
        Ok(_) => "Ok".into(),
    };
    Err(Problem::Wrong(format!("got {got}, expected InvalidArgument about {expected}")))
}
