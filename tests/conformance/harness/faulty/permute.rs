//! Faults of `permute`.

use fused_moe::Result;
use fused_moe::backend::Backend;
use fused_moe::ops::PermuteArgs;
use fused_moe::plan::PermutePlanMut;

use crate::harness::host_copy::HostCopy;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Inside an expert, the last slot first; a permutation all the same.
    Unstable,
    /// One offset is one too low.
    WrongOffset,
    /// Rows past the end keep what was there.
    StaleTail,
    /// Masked slots go to the last expert.
    MaskedToLast,
    /// Two slots have each other's rows.
    SwappedRows,
    /// Every third call writes nothing.
    StaleCall,
}

impl Fault {
    /// Every fault.
    pub const ALL: &[Self] =
        &[Self::Unstable, Self::WrongOffset, Self::StaleTail, Self::MaskedToLast, Self::SwappedRows, Self::StaleCall];
}

/// The op with `fault`, for the `call`th time.
pub fn run(fault: Fault, oracle: &dyn Backend, args: PermuteArgs<'_>, call: usize) -> Result<()> {
    if fault == Fault::StaleCall && call % 3 == 2 {
        return Ok(());
    }
    let num_experts = args.plan.expert_offsets.dims()[0] - 1;
    let mut topk_ids = HostCopy::of(args.topk_ids);
    if fault == Fault::MaskedToLast {
        let ids: &mut [u32] = bytemuck::cast_slice_mut(topk_ids.bytes_mut());
        ids.iter_mut().for_each(|id| *id = (*id).min(num_experts as u32 - 1));
    }
    let PermutePlanMut { mut expert_offsets, mut permuted_idx, mut inv_permuted_idx } = args.plan;
    let before = HostCopy::of(permuted_idx.as_view());
    let plan = PermutePlanMut {
        expert_offsets: expert_offsets.reborrow(),
        permuted_idx: permuted_idx.reborrow(),
        inv_permuted_idx: inv_permuted_idx.reborrow(),
    };
    oracle.permute(PermuteArgs { topk_ids: topk_ids.view(), plan })?;
    let offsets: &mut [u32] = expert_offsets.as_mut_slice().unwrap_or_default();
    let permuted: &mut [u32] = permuted_idx.as_mut_slice().unwrap_or_default();
    let inverse: &mut [u32] = inv_permuted_idx.as_mut_slice().unwrap_or_default();
    let used = offsets[num_experts] as usize;
    match fault {
        Fault::Unstable => {
            offsets.windows(2).for_each(|rows| permuted[rows[0] as usize..rows[1] as usize].reverse());
            permuted[..used].iter().enumerate().for_each(|(row, slot)| inverse[*slot as usize] = row as u32);
        }
        Fault::WrongOffset if num_experts > 1 => offsets[1] = offsets[1].saturating_sub(1),
        Fault::StaleTail => permuted[used..].copy_from_slice(&bytemuck::cast_slice(before.bytes())[used..]),
        Fault::SwappedRows if inverse.len() > 1 => inverse.swap(0, 1),
        _ => {}
    }
    Ok(())
}
