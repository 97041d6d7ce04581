// route's figures, behind everything but the expert map.
//
//   logits, ids, weights  ->  tokens_per_expert [E] u32, importance [E] f32, scalars [8] f32
//
//   route_probabilities  each token's probabilities, its share of the z-loss, its entropy; a warp is a token
//   figures_sum          their sums, and what went to each expert, over a chunk of tokens  -> partials [chunks, 5, E + 2]
//   figures_write        one block: the chunks' sums, then the scalars
//
// Thread roles of figures_sum: a block is 32 columns (x) of a chunk of tokens (y), a lane a column, a warp every eighth
// token. No atomics: sums are the same in every run.
//
// Shared memory: route_probabilities, see common/route_rule.cuh; figures_sum, [8 warps][5][32] words; figures_write
// (dynamic), totals [5][E + 2] words.
#include "common/block.cuh"
#include "common/route_token.cuh"

namespace {

// What is summed of a column: an expert, or one of the two behind them.
enum Row : uint32_t { PROBABILITY = 0, WEIGHT = 1, LOAD = 2, PICKED = 3, FIRST = 4, ROWS = 5 };

constexpr uint32_t SUM_WARPS = 8;

extern __shared__ uint32_t shared[];

// 0 where there is nothing to divide by.
__device__ __forceinline__ float ratio(float a, float b) { return b == 0.f ? 0.f : a / b; }

// One token's row of probabilities.
struct TokenRow {
  const Token& t;
  float* out;
  float entropy;  // this lane's

  __device__ __forceinline__ void write(uint32_t expert, float p) {
    out[expert] = p;
    // Where p is no normal number, p ln p is nothing.
    if (p >= 1.2e-38f) entropy -= p * logf(p);
  }

  // `scale` times the softmax of experts `first..first + count`.
  __device__ __forceinline__ void write_softmax(uint32_t first, uint32_t count, float scale) {
    const Softmax over = softmax_over(count, [&](uint32_t e) { return t.logits[first + e]; });
    for (uint32_t e = first + lane_id(); e < first + count; e += 32) write(e, scale * probability(over, t.logits[e]));
  }

  // Scores over their sum.
  __device__ __forceinline__ void write_scores() {
    const Softmax none = {0.f, 1.f};
    float sum = 0.f;
    for (uint32_t e = lane_id(); e < t.p.num_choices; e += 32) sum += t.score(t.logits[e], none);
    sum = warp_sum(sum);
    for (uint32_t e = lane_id(); e < t.p.num_choices; e += 32) write(e, ratio(t.score(t.logits[e], none), sum));
  }

  __device__ __forceinline__ void write_levels() {
    const uint32_t size = t.p.num_choices / t.p.num_groups;
    const Softmax over_groups = softmax_over(t.p.num_groups, [&](uint32_t g) { return group_logit(t, g); });
    for (uint32_t g = 0; g < t.p.num_groups; g++) {
      write_softmax(g * size, size, probability(over_groups, group_logit(t, g)));
    }
  }
};

__device__ __forceinline__ uint32_t first_slot(const FiguresParams& p, uint32_t token) {
  return p.token_offsets != 0 ? at<const uint32_t>(p.token_offsets)[token] : token * p.top_k;
}

// The sums of a column over the tokens and slots that are this warp's.
__device__ __forceinline__ void sum_column(const FiguresParams& p, uint32_t column, uint32_t (&sums)[ROWS]) {
  const uint32_t columns = p.num_choices + 2, first_token = blockIdx.y * p.tokens_per_chunk;
  const uint32_t end = min(first_token + p.tokens_per_chunk, p.num_tokens);
  float probability = 0.f, weight = 0.f;
  for (uint32_t token = first_token + warp_id(); token < end; token += SUM_WARPS) {
    if (column < columns) probability += at<const float>(p.probabilities)[static_cast<uint64_t>(token) * columns + column];
    const uint32_t slot = first_slot(p, token);
    if (slot < first_slot(p, token + 1)) sums[FIRST] += at<const uint32_t>(p.picked_ids)[slot] == column;
  }
  const uint32_t end_slot = first_slot(p, end);
  for (uint32_t slot = first_slot(p, first_token) + warp_id(); slot < end_slot; slot += SUM_WARPS) {
    const bool is_taken = at<const uint32_t>(p.topk_ids)[slot] == column;
    const float slot_weight = at<const float>(p.topk_weights)[slot];
    sums[LOAD] += is_taken;
    weight += is_taken ? slot_weight : 0.f;
    sums[PICKED] += at<const uint32_t>(p.picked_ids)[slot] == column;
  }
  sums[PROBABILITY] = __float_as_uint(probability);
  sums[WEIGHT] = __float_as_uint(weight);
}

__device__ __forceinline__ bool is_float(uint32_t row) { return row <= WEIGHT; }

// Adds what `words` have of one row: f32 or u32.
__device__ __forceinline__ uint32_t add(uint32_t row, uint32_t sum, uint32_t word) {
  return is_float(row) ? __float_as_uint(__uint_as_float(sum) + __uint_as_float(word)) : sum + word;
}

// The totals over all chunks, of which the scalars are made.
struct Totals {
  const FiguresParams& p;
  const uint32_t* words;
  float* warps;

  // Of a column, as a number; of probabilities the mean.
  __device__ __forceinline__ float value(uint32_t row, uint32_t column) const {
    const uint32_t word = words[row * (p.num_choices + 2) + column];
    const float x = is_float(row) ? __uint_as_float(word) : static_cast<float>(word);
    return row == PROBABILITY ? ratio(x, static_cast<float>(p.num_tokens)) : x;
  }

  template <typename Value>
  __device__ __forceinline__ float sum(Value of_expert) const {
    float mine = 0.f;
    for (uint32_t e = threadIdx.x; e < p.num_choices; e += blockDim.x) mine += of_expert(e);
    return block_sum(mine, warps);
  }

  __device__ __forceinline__ float total(uint32_t row) const {
    return sum([&](uint32_t e) { return value(row, e); });
  }

  // Variance over squared mean.
  __device__ __forceinline__ float cv2(uint32_t row) const {
    const float experts = static_cast<float>(p.num_choices), mean = total(row) / experts;
    const float squares = sum([&](uint32_t e) { return (value(row, e) - mean) * (value(row, e) - mean); });
    return ratio(squares / experts, mean * mean);
  }

  // The experts' shares times their mean probabilities.
  __device__ __forceinline__ float loss(uint32_t row) const {
    const float all = total(row);
    return sum([&](uint32_t e) { return ratio(value(row, e), all) * value(PROBABILITY, e); });
  }

  __device__ __forceinline__ float fullest() const {
    float most = 0.f;
    for (uint32_t e = lane_id(); e < p.num_choices; e += 32) most = fmaxf(most, value(LOAD, e));
    return warp_max(most);
  }

  // Of the slots, or, where tokens have different numbers of them, of the tokens.
  __device__ __forceinline__ float fraction_dropped(float taken) const {
    const float slots = static_cast<float>(p.num_slots);
    if (p.token_offsets == 0) return ratio(slots - taken, slots);
    float without = 0.f;
    for (uint32_t token = threadIdx.x; token < p.num_tokens; token += blockDim.x) {
      without += first_slot(p, token) == first_slot(p, token + 1) ? 1.f : 0.f;
    }
    return ratio(block_sum(without, warps), static_cast<float>(p.num_tokens));
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(128) route_probabilities(const __grid_constant__ RouteParams p) {
  const uint32_t token = blockIdx.x * num_warps() + warp_id();
  if (token >= p.num_tokens) return;
  Token t(p, token, shared + warp_id() * token_words(p));
  t.load_logits();
  TokenRow row = {t, at<float>(p.probabilities) + static_cast<uint64_t>(token) * (p.num_choices + 2), 0.f};
  if (p.selection == SELECT_LEVELS) {
    row.write_levels();
  } else if (p.score == SCORE_LOGIT || p.score == SCORE_SOFTMAX) {
    row.write_softmax(0, p.num_choices, 1.f);
  } else {
    row.write_scores();
  }
  const float entropy = warp_sum(row.entropy);
  const Softmax over_all = t.softmax_over_all();
  if (lane_id() != 0) return;
  // The sum is infinite in its inverse where no logit is a number.
  const float log_sum = over_all.inv_sum < 2.f ? over_all.top - logf(over_all.inv_sum) : 0.f;
  row.out[p.num_choices] = log_sum * log_sum;
  row.out[p.num_choices + 1] = entropy;
}

extern "C" __global__ void __launch_bounds__(SUM_WARPS * 32) figures_sum(const __grid_constant__ FiguresParams p) {
  __shared__ uint32_t words[SUM_WARPS][ROWS][32];
  const uint32_t column = blockIdx.x * 32 + lane_id();
  uint32_t sums[ROWS] = {};
  sum_column(p, column, sums);
#pragma unroll
  for (uint32_t row = 0; row < ROWS; row++) words[warp_id()][row][lane_id()] = sums[row];
  __syncthreads();
  if (warp_id() >= ROWS || column >= p.num_choices + 2) return;
  uint32_t sum = 0;
  for (uint32_t w = 0; w < SUM_WARPS; w++) sum = add(warp_id(), sum, words[w][warp_id()][lane_id()]);
  const uint64_t row = static_cast<uint64_t>(blockIdx.y) * ROWS + warp_id();
  at<uint32_t>(p.partials)[row * (p.num_choices + 2) + column] = sum;
}

extern "C" __global__ void __launch_bounds__(256) figures_write(const __grid_constant__ FiguresParams p) {
  __shared__ float warps[8];
  const uint32_t words = ROWS * (p.num_choices + 2);
  for (uint32_t i = threadIdx.x; i < words; i += blockDim.x) {
    const uint32_t row = i / (p.num_choices + 2), column = i % (p.num_choices + 2);
    uint32_t sum = 0;
    for (uint32_t c = 0; c < p.num_chunks; c++) sum = add(row, sum, at<const uint32_t>(p.partials)[c * words + i]);
    shared[i] = sum;
    if (column >= p.num_choices) continue;
    if (row == LOAD) at<uint32_t>(p.tokens_per_expert)[column] = sum;
    if (row == WEIGHT) at<float>(p.importance)[column] = __uint_as_float(sum);
  }
  __syncthreads();
  const Totals totals = {p, shared, warps};
  const float experts = static_cast<float>(p.num_choices), taken = totals.total(LOAD);
  // In the order of Figures' fields.
  const float scalars[8] = {
      totals.cv2(WEIGHT),
      totals.cv2(LOAD),
      experts * totals.loss(PICKED),
      totals.loss(FIRST) / experts,
      totals.value(PROBABILITY, p.num_choices),
      totals.fraction_dropped(taken),
      totals.value(PROBABILITY, p.num_choices + 1),
      ratio(totals.fullest() * experts, taken),
  };
  if (threadIdx.x != 0) return;
#pragma unroll
  for (uint32_t i = 0; i < 8; i++) at<float>(p.scalars)[i] = scalars[i];
}
