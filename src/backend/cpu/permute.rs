//! `permute` on the CPU: a counting sort. One pass to count, one to place; sequential, for it is memory traffic of 12
//! bytes a slot beside GEMMs of megabytes.

use crate::backend::host::{slice, slice_mut};
use crate::error::Result;
use crate::ops::PermuteArgs;
use crate::routing::MASKED;

pub(super) fn permute(mut args: PermuteArgs<'_>) -> Result<()> {
    permute_slots(
        slice("topk_ids", args.topk_ids)?,
        slice_mut("expert_offsets", &mut args.plan.expert_offsets)?,
        slice_mut("permuted_idx", &mut args.plan.permuted_idx)?,
        slice_mut("inv_permuted_idx", &mut args.plan.inv_permuted_idx)?,
    );
    Ok(())
}

/// `offsets` serves as counters, then as cursors, and ends as what it is for, so that no scratch is needed.
fn permute_slots(topk_ids: &[u32], offsets: &mut [u32], permuted_idx: &mut [u32], inv_permuted_idx: &mut [u32]) {
    let num_experts = offsets.len() - 1;
    offsets.fill(0);
    for &id in topk_ids {
        if (id as usize) < num_experts {
            offsets[id as usize] += 1;
        }
    }
    let mut rows = 0;
    for offset in offsets.iter_mut() {
        rows += std::mem::replace(offset, rows);
    }
    for (slot, (&id, row_of_slot)) in topk_ids.iter().zip(inv_permuted_idx).enumerate() {
        *row_of_slot = MASKED;
        if (id as usize) < num_experts {
            let cursor = &mut offsets[id as usize];
            permuted_idx[*cursor as usize] = slot as u32;
            *row_of_slot = *cursor;
            *cursor += 1;
        }
    }
    permuted_idx[rows as usize..].fill(MASKED);
    // Each cursor stands where the next expert starts.
    offsets.copy_within(..num_experts, 1);
    offsets[0] = 0;
}
