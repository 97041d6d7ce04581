//! Faults of `combine`.

use fused_moe::backend::Backend;
use fused_moe::ops::{CombineArgs, SharedOutput, ZeroExperts};
use fused_moe::routing::MASKED;
use fused_moe::{DType, Result};
use half::bf16;

use super::{f32s_mut, restore_last_row};
use crate::harness::host_copy::HostCopy;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The last token's row is not written.
    StaleRow,
    /// The sum is added to what was there.
    Accumulates,
    /// Each slot has the weight of the next.
    NextWeight,
    /// Every weight is 1.
    NoWeights,
    /// A masked slot adds row 0.
    MaskedAdds,
    /// No zero experts.
    NoZeroExperts,
    /// One zero expert too few.
    OneZeroExpertLess,
    /// No shared expert.
    NoShared,
    /// The shared expert's gate is open.
    NoGate,
    /// The shared expert is not scaled.
    NoSharedScale,
    /// Sums rounded to bf16.
    Rounded,
}

impl Fault {
    /// Every fault.
    pub const ALL: &[Self] = &[
        Self::StaleRow,
        Self::Accumulates,
        Self::NextWeight,
        Self::NoWeights,
        Self::MaskedAdds,
        Self::NoZeroExperts,
        Self::OneZeroExpertLess,
        Self::NoShared,
        Self::NoGate,
        Self::NoSharedScale,
        Self::Rounded,
    ];
}

/// The op with `fault`.
pub fn run(fault: Fault, oracle: &dyn Backend, mut args: CombineArgs<'_>) -> Result<()> {
    let num_tokens = args.output.dims()[0];
    let before = HostCopy::of(args.output.as_view());
    run_with_wrong_inputs(fault, oracle, &mut args)?;
    match fault {
        Fault::StaleRow => restore_last_row(&mut args.output, num_tokens, &before),
        Fault::Accumulates if args.output.dtype() == DType::F32 => {
            let before: &[f32] = bytemuck::cast_slice(before.bytes());
            f32s_mut(&mut args.output).iter_mut().zip(before).for_each(|(x, before)| *x += before);
        }
        Fault::Rounded => f32s_mut(&mut args.output).iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        _ => {}
    }
    Ok(())
}

fn run_with_wrong_inputs(fault: Fault, oracle: &dyn Backend, args: &mut CombineArgs<'_>) -> Result<()> {
    let mut weights = args.topk_weights.map(HostCopy::of);
    let mut inverse = args.inv_permuted_idx.map(HostCopy::of);
    if let (Fault::NextWeight, Some(weights)) = (fault, &mut weights)
        && !weights.bytes().is_empty()
    {
        weights.f32s_mut().rotate_left(1);
    }
    if let (Fault::MaskedAdds, Some(inverse)) = (fault, &mut inverse) {
        let rows: &mut [u32] = bytemuck::cast_slice_mut(inverse.bytes_mut());
        rows.iter_mut().filter(|row| **row == MASKED).for_each(|row| *row = 0);
    }
    let shared = args.shared.filter(|_| fault != Fault::NoShared).map(|shared| SharedOutput {
        gate_logits: shared.gate_logits.filter(|_| fault != Fault::NoGate),
        scale: if fault == Fault::NoSharedScale { 1.0 } else { shared.scale },
        ..shared
    });
    let zero_experts = args.zero_experts.filter(|_| fault != Fault::NoZeroExperts).map(|zero| ZeroExperts {
        count: if fault == Fault::OneZeroExpertLess { zero.count - 1 } else { zero.count },
        ..zero
    });
    oracle.combine(CombineArgs {
        expert_out: args.expert_out,
        inv_permuted_idx: inverse.as_ref().map(HostCopy::view),
        topk_weights: weights.as_ref().filter(|_| fault != Fault::NoWeights).map(HostCopy::view),
        slots: args.slots,
        zero_experts,
        shared,
        output: args.output.reborrow(),
    })
}
