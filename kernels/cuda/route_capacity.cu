// route, expert capacity: after route_pick, slots are given to experts in the rule's order, and an expert that is full
// takes no more.
//
//   picked_ids, score_keys [T, k], choice_keys [T, E] u32  ->  topk_ids [T, k] u32, MASKED where a slot was dropped
//
//   capacity_order  finds the place of each token or slot in the queue, where the queue is by score: a thread each
//   capacity_give   goes through the queue of a sequence, a warp each: 32 slots at a time where a slot of a full expert
//                   is dropped, one at a time where it goes to the next best, for that depends on all slots before it
//
// Shared memory (dynamic): capacity_give, slots given to each expert [E] u32.
#include "common/order.cuh"
#include "common/params.cuh"

namespace {

enum Order : uint32_t { FIRST_CHOICES = 0, BATCH_PRIORITY = 1, TOKENS = 2, SCORES = 3 };

extern __shared__ uint32_t given[];

// What the queue is ordered by: tokens by their best choice's score, or slots by their own.
__device__ __forceinline__ uint32_t priority(const CapacityParams& p, uint32_t i) {
  return at<const uint32_t>(p.score_keys)[p.order == BATCH_PRIORITY ? i * p.top_k : i];
}

// The slot at a place of a sequence's queue.
__device__ __forceinline__ uint32_t slot_at(const CapacityParams& p, uint32_t first_token, uint32_t place) {
  const uint32_t* queue = at<const uint32_t>(p.queue);
  if (p.order == TOKENS) return first_token * p.top_k + place;
  if (p.order == SCORES) return queue[first_token * p.top_k + place];
  const uint32_t at_token = first_token + place % p.tokens_per_sequence;
  const uint32_t token = p.order == BATCH_PRIORITY ? queue[at_token] : at_token;
  return token * p.top_k + place / p.tokens_per_sequence;
}

__device__ __forceinline__ bool has_room(const CapacityParams& p, uint32_t expert) {
  return expert >= p.num_experts || given[expert] < p.limit;
}

__device__ __forceinline__ void drop_slots(const CapacityParams& p, uint32_t first_token) {
  const uint32_t num_slots = p.tokens_per_sequence * p.top_k, lanes_before = (1u << lane_id()) - 1;
  for (uint32_t start = 0; start < num_slots; start += 32) {
    const uint32_t place = start + lane_id();
    const uint32_t slot = place < num_slots ? slot_at(p, first_token, place) : 0;
    const uint32_t expert = place < num_slots ? at<const uint32_t>(p.picked_ids)[slot] : MASKED;
    const uint32_t peers = __match_any_sync(ALL_LANES, expert);
    const uint32_t rank = __popc(peers & lanes_before);
    const uint32_t before = expert != MASKED ? given[expert] : 0;
    const bool kept = expert != MASKED && (expert >= p.num_experts || before + rank < p.limit);
    if (place < num_slots) at<uint32_t>(p.topk_ids)[slot] = kept ? expert : MASKED;
    __syncwarp();
    // Dropped slots count too: a full expert stays full.
    if (expert != MASKED && rank == 0) given[expert] = before + __popc(peers);
    __syncwarp();
  }
}

// Whether an earlier slot of the token has the expert.
__device__ __forceinline__ bool is_taken(const CapacityParams& p, uint32_t slot, uint32_t expert) {
  for (uint32_t earlier = slot / p.top_k * p.top_k; earlier < slot; earlier++) {
    if (at<const uint32_t>(p.topk_ids)[earlier] == expert) return true;
  }
  return false;
}

__device__ __forceinline__ void give_next_best(const CapacityParams& p, uint32_t first_token) {
  for (uint32_t place = 0; place < p.tokens_per_sequence * p.top_k; place++) {
    const uint32_t slot = slot_at(p, first_token, place);
    const uint32_t* keys = at<const uint32_t>(p.choice_keys) + static_cast<uint64_t>(slot / p.top_k) * p.num_choices;
    Best mine = {0, MASKED};
    for (uint32_t e = lane_id(); e < p.num_choices; e += 32) {
      if (keys[e] > mine.key && has_room(p, e) && !is_taken(p, slot, e)) mine = {keys[e], e};
    }
    const uint32_t best = warp_best(mine);
    __syncwarp();
    if (lane_id() == 0) {
      at<uint32_t>(p.topk_ids)[slot] = best;
      if (best != MASKED) given[best]++;
    }
    __syncwarp();
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) capacity_order(const __grid_constant__ CapacityParams p) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  const uint32_t per_token = p.order == BATCH_PRIORITY ? 1 : p.top_k, per_sequence = p.tokens_per_sequence * per_token;
  if (i >= p.num_tokens * per_token) return;
  const uint32_t first = i / per_sequence * per_sequence, mine = priority(p, i);
  uint32_t place = first;
  for (uint32_t other = first; other < first + per_sequence; other++) {
    const uint32_t theirs = priority(p, other);
    place += theirs > mine || (theirs == mine && other < i);
  }
  at<uint32_t>(p.queue)[place] = i;
}

extern "C" __global__ void __launch_bounds__(32) capacity_give(const __grid_constant__ CapacityParams p) {
  for (uint32_t e = lane_id(); e < p.num_choices; e += 32) given[e] = 0;
  __syncwarp();
  const uint32_t first_token = blockIdx.x * p.tokens_per_sequence;
  p.next_best ? give_next_best(p, first_token) : drop_slots(p, first_token);
}
