// What the kernels of permute share: see permute.cu.
#pragma once
#include "block.cuh"
#include "params.cuh"

// Consecutive slots.
struct Slots {
  uint32_t begin;
  uint32_t end;
};

__device__ __forceinline__ Slots chunk_of(const PermuteParams& p, uint32_t chunk) {
  const uint32_t begin = chunk * p.slots_per_chunk;
  return {begin, min(begin + p.slots_per_chunk, p.num_slots)};
}

// Warps of a block that have slots.
__device__ __forceinline__ uint32_t warps_of_chunk(const PermuteParams& p) {
  return (p.slots_per_chunk + p.slots_per_warp - 1) / p.slots_per_warp;
}

// This warp's part of a chunk.
__device__ __forceinline__ Slots warps_part(const PermuteParams& p, Slots chunk) {
  const uint32_t begin = min(chunk.begin + warp_id() * p.slots_per_warp, chunk.end);
  return {begin, min(begin + p.slots_per_warp, chunk.end)};
}

// MASKED of a slot that is none of `part` or has no expert.
__device__ __forceinline__ uint32_t expert_of(const PermuteParams& p, Slots part, uint32_t slot) {
  const uint32_t expert = slot < part.end ? at<const uint32_t>(p.topk_ids)[slot] : MASKED;
  return expert < p.num_experts ? expert : MASKED;
}

// Calls `place(slot, row)` for each slot of `part`, row MASKED where the slot has no expert; `counters` are this warp's.
template <typename Place>
__device__ __forceinline__ void walk(const PermuteParams& p, Slots part, uint32_t* counters, Place place) {
  const uint32_t lane = lane_id(), lanes_before = (1u << lane) - 1;
  // The ids of the next step are under way meanwhile.
  uint32_t next = expert_of(p, part, part.begin + lane);
  for (uint32_t start = part.begin; start < part.end; start += 32) {
    const uint32_t slot = start + lane, expert = next;
    next = expert_of(p, part, slot + 32);
    const uint32_t peers = __match_any_sync(ALL_LANES, expert);
    const uint32_t rank = __popc(peers & lanes_before);
    uint32_t before = 0;
    if (expert != MASKED) before = counters[expert];
    if (slot < part.end) place(slot, expert == MASKED ? MASKED : before + rank);
    __syncwarp();
    if (expert != MASKED && rank == 0) counters[expert] = before + __popc(peers);
    __syncwarp();
  }
}

// How many slots of `part` each expert has, to this warp's counters.
__device__ __forceinline__ void count(const PermuteParams& p, Slots part, uint32_t* counters) {
  for (uint32_t e = lane_id(); e < p.num_experts; e += 32) counters[e] = 0;
  __syncwarp();
  walk(p, part, counters, [](uint32_t, uint32_t) {});
}

// What the block has counted for the launch that places.
__device__ __forceinline__ void write_chunk_slots(const PermuteParams& p, uint32_t chunk, const uint32_t* slots) {
  uint16_t* chunk_slots = at<uint16_t>(p.chunk_slots) + static_cast<uint64_t>(chunk) * p.num_experts;
  for (uint32_t e = threadIdx.x; e < p.num_experts; e += blockDim.x) chunk_slots[e] = slots[e];
}

// How many slots an expert has in the chunks before this block's, and in all.
struct ExpertSlots {
  uint32_t before;
  uint32_t all;
};

// Counts of warps to the rows where each warp's slots of an expert start, in place: a thread is an expert. Returns the number
// of rows. `words` is shared memory of a word per warp.
template <typename SlotsOf>
__device__ __forceinline__ uint32_t scan(const PermuteParams& p, uint32_t* counters, uint32_t* words, bool writes_offsets,
                                         SlotsOf slots_of) {
  const uint32_t warps = warps_of_chunk(p);
  uint32_t* expert_offsets = at<uint32_t>(p.expert_offsets);
  uint32_t num_rows = 0;
  for (uint32_t first = 0; first < p.num_experts; first += blockDim.x) {
    const uint32_t e = first + threadIdx.x;
    const bool is_expert = e < p.num_experts;
    const ExpertSlots slots = is_expert ? slots_of(e) : ExpertSlots{0, 0};
    const InclusiveSum sum = block_inclusive_sum(slots.all, words);
    const uint32_t start = num_rows + sum.mine - slots.all;
    if (is_expert && writes_offsets) expert_offsets[e] = start;
    uint32_t row = start + slots.before;
    for (uint32_t w = 0; is_expert && w < warps; w++) {
      const uint32_t count = counters[w * p.num_experts + e];
      counters[w * p.num_experts + e] = row;
      row += count;
    }
    num_rows += sum.all;
  }
  if (threadIdx.x == 0 && writes_offsets) expert_offsets[p.num_experts] = num_rows;
  __syncthreads();
  return num_rows;
}

// Gives out the rows from this warp's `counters` on.
__device__ __forceinline__ void place(const PermuteParams& p, Slots part, uint32_t* counters, uint32_t num_rows) {
  uint32_t* permuted_idx = at<uint32_t>(p.permuted_idx);
  uint32_t* inv_permuted_idx = at<uint32_t>(p.inv_permuted_idx);
  walk(p, part, counters, [&](uint32_t slot, uint32_t row) {
    inv_permuted_idx[slot] = row;
    if (row != MASKED) permuted_idx[row] = slot;
    // What no row takes, at the end.
    if (slot >= num_rows) permuted_idx[slot] = MASKED;
  });
}

// One chunk, by the rows that `slots_of` leaves to it; counters are [warps that have slots][E] words, words one per warp.
template <typename SlotsOf>
__device__ __forceinline__ void sort_chunk(const PermuteParams& p, uint32_t chunk, uint32_t* counters, uint32_t* words,
                                           bool writes_offsets, SlotsOf slots_of) {
  const bool has_slots = warp_id() < warps_of_chunk(p);
  const Slots part = warps_part(p, chunk_of(p, chunk));
  uint32_t* mine = counters + warp_id() * p.num_experts;
  if (has_slots) count(p, part, mine);
  __syncthreads();
  const uint32_t num_rows = scan(p, counters, words, writes_offsets, slots_of);
  if (has_slots) place(p, part, mine, num_rows);
}

// All of it in one block; `shared` is [warps] and [warps that have slots][E] words.
__device__ __forceinline__ void permute_block(const PermuteParams& p, uint32_t* shared) {
  uint32_t* counters = shared + num_warps();
  sort_chunk(p, 0, counters, shared, true, [&](uint32_t e) {
    uint32_t all = 0;
    for (uint32_t w = 0; w < warps_of_chunk(p); w++) all += counters[w * p.num_experts + e];
    return ExpertSlots{0, all};
  });
}
