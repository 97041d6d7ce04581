//! `permute` on wgpu: a counting sort, in one launch for few slots and in three for many.

use super::bind::{Binding, check_disjoint, count};
use super::device::{Scratch, WgpuDevice};
use super::kernel::PERMUTE;
use super::params::PermuteParams;
use super::queue::{Launch, bytes_of};
use crate::error::Result;
use crate::ops::PermuteArgs;

/// Slots that a workgroup takes at a time.
const LANES: usize = 256;

/// Slots up to which one workgroup is faster than three launches.
const SMALL: usize = 2048;

/// Most blocks that slots are cut into: what one scan goes through per expert.
const MAX_BLOCKS: usize = 256;

/// How slots are cut into blocks, of `slots_per_block` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Blocks {
    num_blocks: usize,
    slots_per_block: usize,
}

impl Blocks {
    fn of(num_slots: usize) -> Self {
        if num_slots <= SMALL {
            return Self { num_blocks: 1, slots_per_block: num_slots.next_multiple_of(LANES) };
        }
        let slots_per_block = num_slots.div_ceil(MAX_BLOCKS).next_multiple_of(LANES);
        Self { num_blocks: num_slots.div_ceil(slots_per_block), slots_per_block }
    }
}

pub(super) fn permute(device: &WgpuDevice, args: PermuteArgs<'_>) -> Result<()> {
    let num_slots = args.topk_ids.shape().numel();
    let num_experts = args.plan.expert_offsets.dims()[0] - 1;
    let blocks = Blocks::of(num_slots);
    let topk_ids = device.bind_tensor("topk_ids", args.topk_ids)?;
    let expert_offsets = device.bind_tensor("expert_offsets", args.plan.expert_offsets.as_view())?;
    let permuted_idx = device.bind_tensor("permuted_idx", args.plan.permuted_idx.as_view())?;
    let inv_permuted_idx = device.bind_tensor("inv_permuted_idx", args.plan.inv_permuted_idx.as_view())?;
    for output in [&expert_offsets, &permuted_idx, &inv_permuted_idx] {
        check_disjoint(output, &[&topk_ids])?;
    }
    let block_rows = device.scratch(Scratch::BlockRows, (blocks.num_blocks * num_experts * size_of::<u32>()) as u64)?;
    let params = PermuteParams {
        num_slots: count("num_slots", num_slots)?,
        num_experts: count("num_experts", num_experts)?,
        num_blocks: blocks.num_blocks as u32,
        slots_per_block: blocks.slots_per_block as u32,
        topk_ids_at: topk_ids.at,
        expert_offsets_at: expert_offsets.at,
        permuted_idx_at: permuted_idx.at,
        inv_permuted_idx_at: inv_permuted_idx.at,
    };
    let bindings = [
        topk_ids.binding,
        expert_offsets.binding,
        permuted_idx.binding,
        inv_permuted_idx.binding,
        Binding::whole(&block_rows),
    ];
    let launch = |(entry, workgroups)| Launch {
        kernel: &PERMUTE,
        entry,
        constants: Vec::new(),
        params: bytes_of(&params),
        bindings: bindings.to_vec(),
        workgroups: [workgroups, 1, 1],
    };
    if blocks.num_blocks == 1 {
        return device.launch(launch(("small", 1)));
    }
    // In one go, for the scratch memory is every call's.
    device.launch_all([("count", params.num_blocks), ("scan", 1), ("place", params.num_blocks)].map(launch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_slots() {
        for num_slots in [0, 1, 255, 256, 257, SMALL, SMALL + 1, 65536 * 8, 1 << 31] {
            let Blocks { num_blocks, slots_per_block } = Blocks::of(num_slots);
            assert!(num_blocks * slots_per_block >= num_slots && (1..=MAX_BLOCKS).contains(&num_blocks));
            assert!(slots_per_block.is_multiple_of(LANES));
        }
    }
}
