//! Faults of `grouped_gemm`.

use fused_moe::backend::Backend;
use fused_moe::config::{Activation, GateUpLayout, WeightLayout};
use fused_moe::ops::{Epilogue, GroupedGemmArgs, InputRows};
use fused_moe::{DType, Result, TensorViewMut};
use half::f16;

use super::{bytes_mut, drop_tail, f32s_mut, restore_last_row};
use crate::harness::host_copy::HostCopy;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The last row has the result of the first.
    WrongRow,
    /// The last row is not written.
    StaleRow,
    /// One row too many is written.
    PastTheEnd,
    /// Each expert uses the matrix of the next.
    NextExpert,
    /// Only whole vectors of K.
    NoTail,
    /// No bias.
    NoBias,
    /// No activation.
    NoActivation,
    /// Gate taken for up.
    GateForUp,
    /// `[E, N, K]` taken for `[E, K, N]`.
    Transposed,
    /// A gathered row is not scaled.
    NoSlotScale,
    /// Results of f16 weights pass through f16.
    F16Sums,
    /// A row's bits depend on how many rows there are.
    DependsOnBatch,
    /// The bits are not the same every time.
    Unrepeatable,
}

impl Fault {
    /// Every fault.
    pub const ALL: &[Self] = &[
        Self::WrongRow,
        Self::StaleRow,
        Self::PastTheEnd,
        Self::NextExpert,
        Self::NoTail,
        Self::NoBias,
        Self::NoActivation,
        Self::GateForUp,
        Self::Transposed,
        Self::NoSlotScale,
        Self::F16Sums,
        Self::DependsOnBatch,
        Self::Unrepeatable,
    ];
}

/// The op with `fault`, for the `call`th time.
pub fn run(fault: Fault, oracle: &dyn Backend, mut args: GroupedGemmArgs<'_>, call: usize) -> Result<()> {
    let [all_rows, row_len] = *args.output.dims() else { unreachable!("validated") };
    let rows = used_rows(&args, all_rows);
    let weight_dtype = args.weight.dtype();
    let before = HostCopy::of(args.output.as_view());
    run_with_wrong_inputs(fault, oracle, &mut args)?;
    let output = &mut args.output;
    let row_bytes = row_len * output.dtype().size();
    match fault {
        Fault::StaleRow => restore_last_row(output, rows, &before),
        Fault::WrongRow if rows > 0 => bytes_mut(output).copy_within(..row_bytes, (rows - 1) * row_bytes),
        Fault::PastTheEnd if rows < all_rows => bytes_mut(output)[rows * row_bytes..][..row_bytes].fill(0),
        Fault::F16Sums if weight_dtype == DType::F16 => {
            f32s_mut(output).iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
        }
        Fault::DependsOnBatch if rows % 2 == 1 => nudge(output, rows * row_len),
        Fault::Unrepeatable if call % 3 == 2 => nudge(output, rows * row_len),
        _ => {}
    }
    Ok(())
}

/// Moves the first `len` elements by the least possible.
fn nudge(output: &mut TensorViewMut<'_>, len: usize) {
    f32s_mut(output).iter_mut().take(len).for_each(|x| *x = x.next_up());
}

/// The rows that are to be written.
fn used_rows(args: &GroupedGemmArgs<'_>, all_rows: usize) -> usize {
    let offsets = args.expert_offsets.and_then(|offsets| offsets.as_slice::<u32>());
    offsets.and_then(|offsets| offsets.last()).map_or(all_rows, |&rows| rows as usize)
}

fn run_with_wrong_inputs(fault: Fault, oracle: &dyn Backend, args: &mut GroupedGemmArgs<'_>) -> Result<()> {
    let (mut input, mut weight) = (HostCopy::of(args.input), HostCopy::of(args.weight));
    let (mut rows, mut bias, mut epilogue, mut weight_layout) =
        (args.rows, args.bias, args.epilogue, args.weight_layout);
    match fault {
        Fault::NextExpert => {
            let matrix = weight.bytes().len() / args.weight.dims()[0];
            weight.bytes_mut().rotate_left(matrix);
        }
        Fault::NoTail => drop_tail(input.f32s_mut(), args.input.dims()[1]),
        Fault::NoBias => bias = None,
        Fault::NoActivation | Fault::GateForUp => epilogue = wrong_epilogue(fault, epilogue),
        Fault::Transposed => {
            weight_layout = if weight_layout == WeightLayout::Nk { WeightLayout::Kn } else { WeightLayout::Nk };
        }
        Fault::NoSlotScale => {
            if let InputRows::Gathered { slot_scale, .. } = &mut rows {
                *slot_scale = None;
            }
        }
        _ => {}
    }
    let [num_experts, d1, d2] = *args.weight.dims() else { unreachable!("validated") };
    let shape = if fault == Fault::Transposed { [num_experts, d2, d1] } else { [num_experts, d1, d2] };
    oracle.grouped_gemm(GroupedGemmArgs {
        input: input.view(),
        rows,
        expert_offsets: args.expert_offsets,
        weight: weight.view().reshape(shape)?,
        weight_layout,
        bias,
        epilogue,
        output: args.output.reborrow(),
        batch_invariant: args.batch_invariant,
    })
}

fn wrong_epilogue(fault: Fault, epilogue: Epilogue) -> Epilogue {
    match (fault, epilogue) {
        (Fault::NoActivation, Epilogue::Activation(_)) => Epilogue::None,
        (Fault::NoActivation, Epilogue::Gated { layout, .. }) => {
            Epilogue::Gated { activation: Activation::Relu, layout }
        }
        (Fault::GateForUp, Epilogue::Gated { activation, layout }) => {
            let layout = match layout {
                GateUpLayout::GateThenUp => GateUpLayout::UpThenGate,
                GateUpLayout::UpThenGate | GateUpLayout::Interleaved => GateUpLayout::GateThenUp,
            };
            Epilogue::Gated { activation, layout }
        }
        (_, epilogue) => epilogue,
    }
}
