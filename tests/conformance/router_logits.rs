//! `router_logits` against the oracle.

use fused_moe::ops::{self, RouterLogitsArgs};
use fused_moe::tensor::AsView;
use fused_moe::{DType, Device, Tensor, reference};

use crate::harness::values::{FLOATS, Floats, download, garbage, rng};
use crate::harness::{Failure, Log, Problem, Test, compare};

pub const TESTS: &[Test] = &[
    Test { op: "router_logits", name: "tokens", body: tokens },
    Test { op: "router_logits", name: "experts", body: experts },
    Test { op: "router_logits", name: "hidden_sizes", body: hidden_sizes },
    Test { op: "router_logits", name: "types", body: types },
    Test { op: "router_logits", name: "hidden_layer", body: hidden_layer },
    Test { op: "router_logits", name: "neighbours", body: neighbours },
    Test { op: "router_logits", name: "non_finite", body: non_finite },
];

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    num_tokens: usize,
    num_experts: usize,
    hidden_size: usize,
    hidden_states: DType,
    weight: DType,
    bias: bool,
    tanh: bool,
}

const BASE: Case = Case {
    seed: 1,
    num_tokens: 5,
    num_experts: 12,
    hidden_size: 40,
    hidden_states: DType::F32,
    weight: DType::F32,
    bias: true,
    tanh: false,
};

struct Inputs {
    hidden_states: Floats,
    weight: Floats,
    bias: Option<Floats>,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut rng = rng(case.seed);
        Self {
            hidden_states: Floats::random(&mut rng, case.hidden_states, case.num_tokens * case.hidden_size, 1.0),
            weight: Floats::random(&mut rng, case.weight, case.num_experts * case.hidden_size, 1.0),
            bias: case.bias.then(|| Floats::random(&mut rng, DType::F32, case.num_experts, 1.0)),
        }
    }

    fn expected(&self, case: &Case) -> Vec<f64> {
        let bias = self.bias.as_ref().map(Floats::wide);
        let logits = reference::router_logits(
            &self.hidden_states.wide(),
            &self.weight.wide(),
            bias.as_deref(),
            case.hidden_size,
        );
        if case.tanh { logits.into_iter().map(f64::tanh).collect() } else { logits }
    }

    fn run(&self, device: &Device, case: &Case) -> Result<Vec<f64>, Problem> {
        let hidden_states = self.hidden_states.upload(device, [case.num_tokens, case.hidden_size])?;
        let weight = self.weight.upload(device, [case.num_experts, case.hidden_size])?;
        let bias = self.bias.as_ref().map(|bias| bias.upload(device, [case.num_experts])).transpose()?;
        let mut output = garbage(device, DType::F32, [case.num_tokens, case.num_experts])?;
        let args = RouterLogitsArgs {
            hidden_states: hidden_states.view(),
            weight: weight.view(),
            bias: bias.as_ref().map(Tensor::as_view),
            tanh: case.tanh,
            output: output.view_mut()?,
        };
        ops::router_logits(device, args)?;
        Ok(download(device, output.view())?)
    }
}

/// Products and sums are f32 whatever the inputs are, so the bound is that of f32.
fn check(device: &Device, case: &Case) -> Result<(), Problem> {
    let inputs = Inputs::new(case);
    compare::floats("output", &inputs.run(device, case)?, &inputs.expected(case), case.num_experts, 1e-5)
}

fn tokens(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129, 257] {
        log.case(device, &Case { seed: num_tokens as u64, num_tokens, ..BASE }, check)?;
    }
    Ok(())
}

fn experts(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_experts in [1, 2, 6, 7, 12, 15, 16, 17, 60, 64, 65, 160, 257] {
        for bias in [false, true] {
            log.case(device, &Case { seed: num_experts as u64, num_experts, bias, ..BASE }, check)?;
        }
    }
    Ok(())
}

fn hidden_sizes(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for hidden_size in [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 72, 127, 128, 129, 255, 257, 1031] {
        for dtype in FLOATS {
            let case = Case { seed: hidden_size as u64, hidden_size, hidden_states: dtype, weight: dtype, ..BASE };
            log.case(device, &case, check)?;
        }
    }
    Ok(())
}

fn types(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for hidden_states in FLOATS {
        for weight in FLOATS {
            for (num_tokens, hidden_size) in [(1, 33), (5, 64), (37, 72)] {
                log.case(device, &Case { num_tokens, hidden_size, hidden_states, weight, ..BASE }, check)?;
            }
        }
    }
    Ok(())
}

/// The hidden layer of a router that has one: the same, through a tanh.
fn hidden_layer(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [1, 8, 33] {
        for bias in [false, true] {
            log.case(device, &Case { num_tokens, bias, tanh: true, ..BASE }, check)?;
        }
    }
    Ok(())
}

/// A token's logits do not depend on the tokens beside it, bit for bit.
fn neighbours(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in FLOATS {
        let case = Case { num_tokens: 67, hidden_size: 129, hidden_states: dtype, weight: dtype, ..BASE };
        log.case(device, &case, |device, case| {
            let inputs = Inputs::new(case);
            let together = inputs.run(device, case)?;
            for (first, count) in [(0, 1), (66, 1), (31, 2), (8, 8), (1, 33)] {
                let rows = &inputs.hidden_states.values[first * case.hidden_size..][..count * case.hidden_size];
                let part = Inputs {
                    hidden_states: Floats::new(case.hidden_states, rows.iter().copied()),
                    weight: inputs.weight.clone(),
                    bias: inputs.bias.clone(),
                };
                let alone = part.run(device, &Case { num_tokens: count, ..case.clone() })?;
                let expected = &together[first * case.num_experts..][..count * case.num_experts];
                compare::bits(&format!("output of tokens {first}..{}", first + count), &alone, expected)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// NaN and infinity of one token stay its own.
fn non_finite(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in FLOATS {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let case = Case { num_tokens: 9, hidden_size: 33, hidden_states: dtype, weight: dtype, ..BASE };
            log.case(device, &case, |device, case| {
                let mut inputs = Inputs::new(case);
                inputs.hidden_states.values[4 * case.hidden_size + 32] = value;
                compare::floats("output", &inputs.run(device, case)?, &inputs.expected(case), case.num_experts, 1e-5)
            })?;
        }
    }
    Ok(())
}
