//! `permute` on CUDA: a counting sort, in one launch for few slots and in two for many.

use super::driver::{Kernel, LaunchConfig};
use super::memory::{address, address_mut};
use super::params::{PermuteParams, count};
use super::queue::{Queue, unsupported};
use crate::error::Result;
use crate::ops::PermuteArgs;
use crate::plan::PermutePlanMut;

const SMALL_KERNEL: Kernel = Kernel { file: "permute", name: "permute_small" };
const COUNT: Kernel = Kernel { file: "permute", name: "permute_count" };
const PLACE: Kernel = Kernel { file: "permute", name: "permute_place" };

/// Slots that a warp takes at a time.
pub(super) const LANES: usize = 32;

/// Most warps of a block.
pub(super) const WARPS: usize = 32;

/// Shared memory that a block of every device from sm_80 on can have: sm_86 has the least.
pub(super) const SHARED_BYTES: usize = 96 << 10;

/// Slots up to which one block is faster than two launches.
pub(super) const SMALL: usize = 8192;

/// Slots of a chunk, where there are not too many chunks.
const CHUNK: usize = 1024;

/// Chunks that there are at most, as each block reads what every chunk has of each expert; more only of the largest.
const MAX_CHUNKS: usize = 256;

/// Slots of the largest chunk: they are counted in 16 bits.
pub(super) const MAX_CHUNK: usize = 1 << 15;

/// Bytes in which a chunk's slots of an expert are counted.
pub(super) const COUNT_BYTES: usize = size_of::<u16>();

/// How the slots of one block are cut into parts, one for each warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) slots: usize,
    slots_per_warp: usize,
    /// Warps that have slots.
    warps: usize,
    num_experts: usize,
}

impl Chunk {
    /// `None` where the counters of so many experts have no room beside `words_per_expert` more words an expert.
    pub(super) fn of(slots: usize, num_experts: usize, words_per_expert: usize) -> Option<Self> {
        let words = SHARED_BYTES / size_of::<u32>() - WARPS;
        let room = (words / num_experts.max(1)).checked_sub(words_per_expert).filter(|&room| room > 0)?;
        let slots = slots.max(1);
        let slots_per_warp = slots.div_ceil(room.min(WARPS)).next_multiple_of(LANES);
        Some(Self { slots, slots_per_warp, warps: slots.div_ceil(slots_per_warp), num_experts })
    }

    /// All slots in one block, where that is the way.
    pub(super) fn only(num_slots: usize, num_experts: usize) -> Option<Self> {
        Self::of(num_slots, num_experts, 0).filter(|_| num_slots <= SMALL)
    }

    /// Warps of a block that sorts it: a thread for each expert, as far as that goes.
    pub(super) fn block_warps(&self) -> usize {
        self.warps.max(self.num_experts.div_ceil(LANES)).min(WARPS)
    }

    /// Shared memory of a block that sorts it and keeps `words_per_expert` more words an expert.
    pub(super) fn shared_bytes(&self, words_per_expert: usize) -> usize {
        size_of::<u32>() * (WARPS + (self.warps + words_per_expert) * self.num_experts)
    }

    /// All but `chunk_slots`, which one launch does without.
    pub(super) fn params(
        &self,
        topk_ids: u64,
        plan: &mut PermutePlanMut<'_>,
        num_slots: usize,
    ) -> Result<PermuteParams> {
        Ok(PermuteParams {
            topk_ids,
            expert_offsets: address_mut(&mut plan.expert_offsets)?,
            permuted_idx: address_mut(&mut plan.permuted_idx)?,
            inv_permuted_idx: address_mut(&mut plan.inv_permuted_idx)?,
            chunk_slots: 0,
            num_slots: count("num_slots", num_slots)?,
            num_experts: count("num_experts", self.num_experts)?,
            slots_per_chunk: count("slots of a chunk", self.slots)?,
            slots_per_warp: count("slots of a warp", self.slots_per_warp)?,
        })
    }
}

/// The words an expert that `permute_place` keeps beside the counters.
const PLACE_WORDS: usize = 2;

/// The chunks of a sort in two launches; `None` where the counters of so many experts have no room.
pub(super) fn chunk_of_many(slots: usize, num_experts: usize) -> Option<Chunk> {
    Chunk::of(slots, num_experts, PLACE_WORDS)
}

pub(super) fn permute(queue: &mut Queue<'_>, mut args: PermuteArgs<'_>) -> Result<()> {
    let num_slots = args.topk_ids.shape().numel();
    let num_experts = args.plan.expert_offsets.dims()[0] - 1;
    let topk_ids = address(args.topk_ids)?;
    if let Some(chunk) = Chunk::only(num_slots, num_experts) {
        let params = chunk.params(topk_ids, &mut args.plan, num_slots)?;
        let config = LaunchConfig::linear(1, threads(chunk.block_warps())).shared(chunk.shared_bytes(0) as u32);
        // SAFETY: the kernels take this struct, and stay within the shapes that `ops` has checked against the memory.
        return unsafe { queue.launch(SMALL_KERNEL, config, &params) };
    }
    let slots = num_slots.div_ceil(MAX_CHUNKS).next_multiple_of(LANES).clamp(CHUNK, MAX_CHUNK);
    let chunk = chunk_of_many(slots, num_experts);
    let chunk = chunk.ok_or_else(|| unsupported(format!("permute over {num_experts} experts")))?;
    let num_chunks = num_slots.div_ceil(slots);
    let mut params = chunk.params(topk_ids, &mut args.plan, num_slots)?;
    params.chunk_slots = queue.scratch(num_chunks * num_experts * COUNT_BYTES)?;
    let config =
        LaunchConfig::linear(num_chunks as u32, threads(WARPS)).shared((num_experts * size_of::<u32>()) as u32);
    // SAFETY: as above; `chunk_slots` is scratch of [chunks, E].
    unsafe { queue.launch(COUNT, config, &params)? };
    launch_place(queue, num_chunks, &chunk, &params)
}

/// The second of two launches: gives out rows by what the first has counted of each chunk.
pub(super) fn launch_place(queue: &Queue<'_>, num_chunks: usize, chunk: &Chunk, params: &PermuteParams) -> Result<()> {
    let config = LaunchConfig::linear(num_chunks as u32, threads(WARPS)).shared(chunk.shared_bytes(PLACE_WORDS) as u32);
    // SAFETY: as in `permute`.
    unsafe { queue.launch(PLACE, config, params) }
}

pub(super) fn threads(warps: usize) -> u32 {
    (warps * LANES) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_slots_and_counters_fit() {
        for num_experts in [1, 7, 256, 1025, 8000] {
            for slots in [0, 1, 31, 33, 1023, SMALL, SMALL + 1, 1 << 23] {
                for words_per_expert in [0, PLACE_WORDS] {
                    let chunk = Chunk::of(slots, num_experts, words_per_expert).unwrap();
                    let Chunk { slots_per_warp, warps, .. } = chunk;
                    assert!(slots_per_warp.is_multiple_of(LANES), "{chunk:?}");
                    assert!(warps * slots_per_warp >= slots && (warps - 1) * slots_per_warp <= slots, "{chunk:?}");
                    assert!((warps..=WARPS).contains(&chunk.block_warps()), "{chunk:?}");
                    assert!(chunk.shared_bytes(words_per_expert) <= SHARED_BYTES, "{chunk:?}");
                }
            }
        }
        assert_eq!(Chunk::only(SMALL + 1, 8), None);
        assert_eq!((Chunk::of(1, 30_000, 0), Chunk::of(1, 10_000, PLACE_WORDS)), (None, None));
    }
}
