//! `permute` on CUDA: a counting sort, in one launch for few slots and in three for many.

use super::driver::{Kernel, LaunchConfig};
use super::memory::{address, address_mut};
use super::params::{PermuteParams, count};
use super::queue::{Queue, unsupported};
use crate::error::Result;
use crate::ops::PermuteArgs;
use crate::plan::PermutePlanMut;

const SMALL_KERNEL: Kernel = Kernel { file: "permute", name: "permute_small" };
const COUNT: Kernel = Kernel { file: "permute", name: "permute_count" };
const SCAN: Kernel = Kernel { file: "permute", name: "permute_scan" };
const PLACE: Kernel = Kernel { file: "permute", name: "permute_place" };

/// Slots that a warp takes at a time.
pub(super) const LANES: usize = 32;

/// Shared memory that a block has on every device without asking for more.
const SHARED_BYTES: usize = 48 << 10;

/// Slots up to which one block is faster than three launches.
const SMALL: usize = 8192;

/// Slots of a chunk, where there are not too many chunks.
const CHUNK: usize = 1024;

/// Most chunks that slots are cut into: what the scan goes through per expert.
const MAX_CHUNKS: usize = 2048;

/// How slots are cut into chunks, one for each warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    pub(super) num_chunks: usize,
    slots_per_chunk: usize,
    /// Chunks, and so warps, of a block; all of them where one launch does everything.
    per_block: usize,
    pub(super) one_launch: bool,
}

impl Chunks {
    /// `None` where the counters of so many experts have no room.
    pub(super) fn of(num_slots: usize, num_experts: usize) -> Option<Self> {
        // Warps whose counters, and sums of the scan, have room in shared memory.
        let room = SHARED_BYTES / (4 * (num_experts + LANES));
        if room == 0 {
            return None;
        }
        if num_slots <= SMALL && room >= num_slots.div_ceil(CHUNK) {
            let num_chunks = num_slots.div_ceil(LANES).clamp(1, room.min(32));
            let slots_per_chunk = num_slots.div_ceil(num_chunks).next_multiple_of(LANES);
            return Some(Self { num_chunks, slots_per_chunk, per_block: num_chunks, one_launch: true });
        }
        let slots_per_chunk = num_slots.div_ceil(MAX_CHUNKS).next_multiple_of(LANES).max(CHUNK);
        let num_chunks = num_slots.div_ceil(slots_per_chunk);
        Some(Self { num_chunks, slots_per_chunk, per_block: room.min(8), one_launch: false })
    }
}

pub(super) fn permute(queue: &mut Queue<'_>, mut args: PermuteArgs<'_>) -> Result<()> {
    let num_slots = args.topk_ids.shape().numel();
    let num_experts = args.plan.expert_offsets.dims()[0] - 1;
    let chunks =
        Chunks::of(num_slots, num_experts).ok_or_else(|| unsupported(format!("permute over {num_experts} experts")))?;
    let mut params = params(address(args.topk_ids)?, &mut args.plan, num_slots, &chunks)?;
    let counters = |warps: usize| (4 * warps * num_experts) as u32;
    let sums = |warps: usize| (4 * warps * LANES) as u32;
    let threads = |warps: usize| (warps * LANES) as u32;
    let warps = chunks.per_block;
    if chunks.one_launch {
        let config = LaunchConfig::linear(1, threads(warps)).shared(counters(warps) + sums(warps));
        // SAFETY: the kernels take this struct, and stay within the shapes that `ops` has checked against the memory.
        return unsafe { queue.launch(SMALL_KERNEL, config, &params) };
    }
    params.chunk_rows = queue.scratch(chunks.num_chunks * num_experts * size_of::<u32>())?;
    let each = LaunchConfig::linear(chunks.num_chunks.div_ceil(warps) as u32, threads(warps)).shared(counters(warps));
    let scan = LaunchConfig::linear(1, threads(32)).shared(sums(32));
    for (kernel, config) in [(COUNT, each), (SCAN, scan), (PLACE, each)] {
        // SAFETY: as above; `chunk_rows` is scratch of [chunks, E].
        unsafe { queue.launch(kernel, config, &params)? };
    }
    Ok(())
}

/// All but `chunk_rows`, which one launch does without.
pub(super) fn params(
    topk_ids: u64,
    plan: &mut PermutePlanMut<'_>,
    num_slots: usize,
    chunks: &Chunks,
) -> Result<PermuteParams> {
    Ok(PermuteParams {
        topk_ids,
        expert_offsets: address_mut(&mut plan.expert_offsets)?,
        permuted_idx: address_mut(&mut plan.permuted_idx)?,
        inv_permuted_idx: address_mut(&mut plan.inv_permuted_idx)?,
        chunk_rows: 0,
        num_slots: count("num_slots", num_slots)?,
        num_experts: count("num_experts", plan.expert_offsets.shape().numel() - 1)?,
        num_chunks: count("chunks", chunks.num_chunks)?,
        slots_per_chunk: count("slots of a chunk", chunks.slots_per_chunk)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_slots_and_counters_fit() {
        for num_experts in [1, 7, 256, 1025, 12000] {
            for num_slots in [0, 1, 31, 33, 1023, SMALL, SMALL + 1, 65536 * 8, 1 << 31] {
                let chunks = Chunks::of(num_slots, num_experts).unwrap();
                let Chunks { num_chunks, slots_per_chunk, per_block, one_launch } = chunks;
                assert!(num_chunks * slots_per_chunk >= num_slots, "{chunks:?}");
                assert!(slots_per_chunk.is_multiple_of(LANES) && num_chunks <= MAX_CHUNKS && per_block <= 32);
                assert!(4 * per_block * (num_experts + LANES) <= SHARED_BYTES, "{chunks:?}");
                assert!(!one_launch || per_block == num_chunks);
                // The last chunk ends where 32 bits still count.
                assert!(num_chunks * slots_per_chunk < 1 << 32);
            }
        }
        assert_eq!(Chunks::of(1, 20_000), None);
    }
}
