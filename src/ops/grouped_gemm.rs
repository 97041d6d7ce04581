//! `grouped_gemm`: each row times its expert's matrix, with bias and activation on the way out.

use super::{Expect, dims};
use crate::backend::Device;
use crate::config::{Activation, GateUpLayout, WeightLayout};
use crate::error::{Error, Result};
use crate::plan::Slots;
use crate::tensor::{DType, FLOATS, TensorView, TensorViewMut};

/// Arguments of [`grouped_gemm`].
#[derive(Debug)]
pub struct GroupedGemmArgs<'a> {
    /// `[M, K]` f32, bf16 or f16.
    pub input: TensorView<'a>,
    /// Which row of `input` each row of the output reads.
    pub rows: InputRows<'a>,
    /// `[E + 1]` u32: the rows of expert `e` are `expert_offsets[e]..expert_offsets[e + 1]`, ascending and within the
    /// output. `None`: one expert takes all rows.
    pub expert_offsets: Option<TensorView<'a>>,
    /// `[E, N, K]` or `[E, K, N]`, f32, bf16 or f16.
    pub weight: TensorView<'a>,
    /// Which of the two.
    pub weight_layout: WeightLayout,
    /// `[E, N]` f32.
    pub bias: Option<TensorView<'a>>,
    /// What happens to `input · weight + bias`.
    pub epilogue: Epilogue,
    /// `[R, N]`, or `[R, N/2]` where the epilogue joins gate and up; f32, bf16 or f16. Rows from
    /// `expert_offsets[E]` on are not written.
    pub output: TensorViewMut<'a>,
    /// A row's result is the same, bit for bit, however many other rows there are. Costs speed.
    pub batch_invariant: bool,
}

/// Which row of its input each row of a grouped GEMM reads.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::large_enum_variant, reason = "one value per call, on the stack")]
pub enum InputRows<'a> {
    /// Row `r` reads row `r`.
    Same,
    /// Row `r` reads the token of slot `permuted_idx[r]`: the gather of the permutation, without a permuted copy.
    Gathered {
        /// `[R]` u32, row → slot.
        permuted_idx: TensorView<'a>,
        /// Slot → token.
        slots: Slots<'a>,
        /// `[S]` f32: scales the row by its slot's weight on the way in (Llama 4).
        slot_scale: Option<TensorView<'a>>,
    },
}

/// What happens to `y = input · weight + bias` before it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// `act(y)`.
    Activation(Activation),
    /// `act(gate) · up`, with gate and up as `layout` says among the N columns.
    Gated {
        /// The nonlinearity.
        activation: Activation,
        /// Which columns are gate, which up.
        layout: GateUpLayout,
    },
}

impl Epilogue {
    /// The epilogue of an expert's first projection.
    pub fn of(activation: Activation, gate_up_layout: Option<GateUpLayout>) -> Self {
        match gate_up_layout {
            Some(layout) => Self::Gated { activation, layout },
            None => Self::Activation(activation),
        }
    }

    /// Output columns for N columns of the product.
    pub fn output_size(self, n: usize) -> usize {
        match self {
            Self::Gated { .. } => n / 2,
            Self::None | Self::Activation(_) => n,
        }
    }
}

/// `output[r] = epilogue(input[row(r)] · weight[e]ᵀ + bias[e])` for the rows `r` of each expert `e`.
///
/// Accumulates in f32. With bf16 weights the input may be rounded to bf16 first.
///
/// # Errors
/// [`Error::InvalidArgument`] if a shape, type or memory does not fit.
pub fn grouped_gemm(device: &Device, args: GroupedGemmArgs<'_>) -> Result<()> {
    check(device, &args)?;
    device.backend().grouped_gemm(args)
}

pub(super) fn check(device: &Device, args: &GroupedGemmArgs<'_>) -> Result<()> {
    let expect = Expect::on(device);
    let [input_rows, k] = dims("input", args.input)?;
    let [num_experts, d1, d2] = dims("weight", args.weight)?;
    let n = if args.weight_layout == WeightLayout::Nk { d1 } else { d2 };
    expect.elements("input", args.input, FLOATS)?;
    expect.tensor("weight", args.weight, args.weight_layout.shape(num_experts, n, k), FLOATS)?;
    match args.expert_offsets {
        Some(offsets) => expect.tensor("expert_offsets", offsets, [num_experts + 1], &[DType::U32])?,
        None if num_experts != 1 => {
            return Err(Error::invalid("weight", "one expert without expert_offsets", num_experts));
        }
        None => {}
    }
    if let Some(bias) = args.bias {
        expect.tensor("bias", bias, [num_experts, n], &[DType::F32])?;
    }
    if matches!(args.epilogue, Epilogue::Gated { .. }) && !n.is_multiple_of(2) {
        return Err(Error::invalid("weight", "an even N for gate and up", n));
    }
    let [rows, _] = dims("output", args.output.as_view())?;
    expect.tensor("output", args.output.as_view(), [rows, args.epilogue.output_size(n)], FLOATS)?;
    match args.rows {
        InputRows::Same if rows > input_rows => {
            return Err(Error::invalid("input", format!("at least {rows} rows"), input_rows));
        }
        InputRows::Same => {}
        InputRows::Gathered { permuted_idx, slots, slot_scale } => {
            let num_slots = expect.slots(slots, input_rows)?;
            expect.tensor("permuted_idx", permuted_idx, [num_slots], &[DType::U32])?;
            if rows < num_slots {
                return Err(Error::invalid("output", format!("at least {num_slots} rows"), rows));
            }
            if let Some(scale) = slot_scale {
                expect.tensor("slot_scale", scale, [num_slots], &[DType::F32])?;
            }
        }
    }
    Ok(())
}
