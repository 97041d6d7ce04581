// The one argument of each kernel. src/backend/cuda/params.rs mirrors these structs, and a test compares the two field
// by field. Addresses are 64-bit numbers; 0 where an optional tensor is not there.
#pragma once
#include <cstdint>

struct RouterLogitsParams {
  uint64_t hidden_states;  // [T, H]
  uint64_t weight;         // [E, H]
  uint64_t bias;           // [E] f32, optional
  uint64_t output;         // [T, E] f32
  uint32_t num_tokens;
  uint32_t num_experts;
  uint32_t hidden_size;
  uint32_t hidden_states_dtype;
  uint32_t weight_dtype;
  uint32_t tanh;  // whether the output goes through it
};
static_assert(sizeof(RouterLogitsParams) == 56, "as in params.rs");

struct RouteParams {
  uint64_t router_logits;   // [T, E] f32
  uint64_t selection_bias;  // [E] f32, optional: added to what experts are chosen by; of sinkhorn, its offsets
  uint64_t token_ids;       // [T] u32, selection hash
  uint64_t hash_table;      // [V, k] u32, optional
  uint64_t noise_logits;    // [T, E] f32, optional
  uint64_t topk_ids;        // [T, k] u32
  uint64_t topk_weights;    // [T, k] f32
  uint64_t score_keys;      // [T, k] u32, route_pick only
  uint64_t choice_keys;     // [T, E] u32, route_pick only; [E, T] where experts choose
  uint64_t picked_ids;      // [T, k] u32, route_pick only
  uint64_t basis_ids;       // [T, k] u32, optional: route_pick puts there what it picks before it drops any by chance,
                            // and route_weigh makes weights comparable over it
  uint64_t token_offsets;   // [T + 1] u32, route_weigh only, where tokens have different numbers of slots
  uint64_t cost;            // [T, E] f32, sinkhorn_cost only
  uint64_t probabilities;   // [T, E + 2] f32, route_probabilities only
  uint64_t hash_seed;       // of selection hash
  uint64_t noise_seed;
  uint32_t num_tokens;
  uint32_t num_choices;  // E, zero experts included
  uint32_t top_k;
  uint32_t max_slots;   // of a token: k, or E where experts choose
  uint32_t num_groups;  // 0: no groups
  uint32_t topk_groups;
  uint32_t hash_rows;  // V
  uint32_t score;
  uint32_t weight;
  uint32_t selection;
  uint32_t by_score;  // whether experts are chosen by their scores, not by their logits
  uint32_t group_score;
  uint32_t noise;
  uint32_t renormalize;
  float logit_clip;     // the largest float: none
  float logit_softcap;  // 0: none
  float renormalize_add;
  float renormalize_min;
  float renormalize_p;
  float scaling_factor;
  float jitter;           // of sparse_mixer
  float noise_scale;      // standard deviation, or scale of random_second
  uint32_t renormalize_levels;  // of selection hierarchical
  uint32_t has_disabled;        // whether a bit of `disabled` is set
  uint32_t in_lanes;            // whether the rule is one of those of route_lanes.cuh
  uint32_t lanes_per_group;     // there, where there are groups: a power of two
  uint32_t disabled[32];        // bit e of word e / 32: expert e is never chosen
};
static_assert(sizeof(RouteParams) == 360, "as in params.rs");

struct CapacityParams {
  uint64_t picked_ids;   // [T, k] u32: the experts picked
  uint64_t score_keys;   // [T, k] u32: their scores, as integers of the same order
  uint64_t choice_keys;  // [T, E] u32: what experts are chosen by, likewise; 0 where an expert may not be chosen
  uint64_t queue;        // [T, k] u32: the tokens or slots of a sequence, first in the queue first
  uint64_t topk_ids;     // [T, k] u32
  uint32_t num_tokens;
  uint32_t num_choices;
  uint32_t num_experts;  // with capacity: those after them are zero experts
  uint32_t top_k;
  uint32_t tokens_per_sequence;
  uint32_t limit;  // slots that an expert takes
  uint32_t order;
  uint32_t next_best;  // whether a slot of a full expert goes to the next best
};
static_assert(sizeof(CapacityParams) == 72, "as in params.rs");

struct ExpertChoiceParams {
  uint64_t choice_keys;    // [E, T] u32: what an expert takes tokens by; 0 where it takes none
  uint64_t thresholds;     // [E, 2] u32: the lowest key taken, and the end of the tokens taken with that very key
  uint64_t token_offsets;  // [T + 1] u32
  uint64_t topk_ids;       // [S] u32
  uint64_t slot_tokens;    // [S] u32
  uint32_t num_tokens;
  uint32_t num_choices;
  uint32_t tokens_per_expert;  // that an expert takes
  uint32_t tokens_per_thread;  // neighbours, of a block that goes through all of them
};
static_assert(sizeof(ExpertChoiceParams) == 56, "as in params.rs");

struct SinkhornParams {
  uint64_t cost;     // [T, E] f32: e^logits, each row up to a factor
  uint64_t offsets;  // [E] f32
  uint32_t num_tokens;
  uint32_t num_experts;
  uint32_t max_iterations;
  float tolerance;
};
static_assert(sizeof(SinkhornParams) == 32, "as in params.rs");

struct FiguresParams {
  uint64_t probabilities;      // [T, E + 2] f32: probabilities, z-loss, entropy
  uint64_t partials;           // [chunks, 5, E + 2]: sums over a chunk of tokens
  uint64_t picked_ids;         // as topk_ids, before capacity took any
  uint64_t topk_ids;           // [S] u32
  uint64_t topk_weights;       // [S] f32
  uint64_t token_offsets;      // [T + 1] u32; not there: every token has top_k slots
  uint64_t tokens_per_expert;  // [E] u32
  uint64_t importance;         // [E] f32
  uint64_t scalars;            // [8] f32
  uint32_t num_tokens;
  uint32_t num_choices;
  uint32_t top_k;
  uint32_t num_slots;
  uint32_t num_chunks;
  uint32_t tokens_per_chunk;
};
static_assert(sizeof(FiguresParams) == 96, "as in params.rs");

struct ExpertMapParams {
  uint64_t topk_ids;      // [S] u32
  uint64_t topk_weights;  // [S] f32
  uint32_t num_slots;
  uint32_t num_choices;
  uint16_t ids[1024];  // of each expert on this rank; 0xffff where it is on another
};
static_assert(sizeof(ExpertMapParams) == 2072, "as in params.rs");

struct PermuteParams {
  uint64_t topk_ids;          // [S] u32
  uint64_t expert_offsets;    // [E + 1] u32
  uint64_t permuted_idx;      // [S] u32
  uint64_t inv_permuted_idx;  // [S] u32
  uint64_t chunk_slots;       // [chunks, E] u16, workspace: how many of a chunk's slots each expert has
  uint32_t num_slots;
  uint32_t num_experts;
  uint32_t slots_per_chunk;  // all of them where one block does everything
  uint32_t slots_per_warp;   // of a chunk; a multiple of 32
};
static_assert(sizeof(PermuteParams) == 56, "as in params.rs");

struct GroupedGemmParams {
  uint64_t input;           // [M, K]
  uint64_t weight;          // [E, N, K] or [E, K, N]
  uint64_t bias;            // [E, N] f32, optional
  uint64_t output;          // [R, n_out]
  uint64_t expert_offsets;  // [E + 1] u32; not there: one expert takes all rows
  uint64_t permuted_idx;    // [R] u32; not there: row r reads row r of the input
  uint64_t slot_tokens;     // [S] u32; not there: the token of a slot is slot / top_k
  uint64_t slot_scale;      // [S] f32, optional
  uint32_t num_rows;        // R
  uint32_t num_experts;
  uint32_t n;
  uint32_t k;
  uint32_t n_out;  // n, or n / 2 with a gate
  uint32_t top_k;
  uint32_t input_dtype;
  uint32_t weight_dtype;
  uint32_t output_dtype;
  uint32_t kn;    // weight is [E, K, N]
  uint32_t gate;  // how gate and up lie along N
  uint32_t activation;
  float alpha;
  float limit;
  uint32_t input_aligned;   // rows of the input start on 16 bytes
  uint32_t weight_aligned;  // so do the contiguous runs of the weights that a kernel reads
};
static_assert(sizeof(GroupedGemmParams) == 128, "as in params.rs");

struct GroupedGemmSm90Params {
  alignas(64) uint64_t weight_map[16];  // a CUtensorMap of the weights as [E, 2 or 1, n_out, K] or [E, 2 or 1, K, n_out]
  alignas(64) uint64_t input_map[16];   // one of the input as [1, 1, M, K]
  GroupedGemmParams gemm;
};
static_assert(sizeof(GroupedGemmSm90Params) == 384, "as in params.rs");

struct CombineParams {
  uint64_t expert_out;        // [R, H]
  uint64_t inv_permuted_idx;  // [S] u32; not there: slot s is row s
  uint64_t topk_weights;      // [S] f32; not there: 1
  uint64_t token_offsets;     // [T + 1] u32; not there: every token has top_k slots
  uint64_t zero_ids;          // [S] u32; not there: no zero experts
  uint64_t zero_weights;      // [S] f32
  uint64_t hidden_states;     // [T, H], what zero experts return
  uint64_t shared;            // [T, H], optional
  uint64_t gate_logits;       // [T] f32, optional
  uint64_t output;            // [T, H]
  uint32_t num_tokens;
  uint32_t hidden_size;
  uint32_t top_k;
  uint32_t first_zero_expert;
  uint32_t num_zero_experts;
  uint32_t expert_out_dtype;
  uint32_t hidden_states_dtype;
  uint32_t shared_dtype;
  uint32_t output_dtype;
  float shared_scale;
};
static_assert(sizeof(CombineParams) == 120, "as in params.rs");

struct DecodeCombineParams {
  GroupedGemmParams gemm;
  CombineParams combine;  // of the gemm's output, which is nowhere else
  uint32_t columns;       // of a block
  uint32_t k_step;        // K is cut at multiples of it
};
static_assert(sizeof(DecodeCombineParams) == 256, "as in params.rs");

struct RoutePermuteParams {
  RouteParams route;
  PermuteParams permute;
  uint64_t ticket;  // u32, 0 between launches: the blocks that are done; not there where there is one block
  uint32_t tokens_per_block;
  uint32_t routing_warps;  // of a block
};
static_assert(sizeof(RoutePermuteParams) == 432, "as in params.rs");
