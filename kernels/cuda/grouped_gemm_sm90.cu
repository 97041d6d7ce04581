// grouped_gemm on the tensor cores of sm_90a, where operands are multiplied out of shared memory by whole warpgroups.
//
//   output[r] = epilogue(slot_scale * input[row(r)] · weight[e] + bias[e])   for the rows r of each expert e
//
//   weight [E, N, K] and input [M, K]: both bf16 or both f16, rows of 16-byte multiples; sums are f32
//   output [R, n_out]: f32, bf16 or f16, n_out a multiple of 8
// Weights [E, K, N], other types and odd sizes run in grouped_gemm_sm80.cu.
//
// Grid: persistent, one block per SM, tiles numbered over experts from offsets on the device (common/tiles.cuh).
// Tiles (rows x columns of the product), stages of 64 along K, and what each consumer multiplies:
//   128x256  4 stages of 48 KiB   64x256: 128 sums a thread   clusters of 2
//   128x128  6 stages of 32 KiB   64x128: 64 sums
//    64x256  5 stages of 40 KiB   64x128: 64 sums
// Blocks of a cluster take tiles of the same columns and neighbouring rows: each has the copy engine fetch half of the
// weights and write them to both. Where an expert's rows leave one tile over, they take two tiles of columns of it.
//
// Few rows waste products but not time: a stage of 64x256 is 512 cycles of the tensor cores, and memory takes four times
// as long to bring its weights. So there is no smaller tile. Every sum runs along K in the same order in each of them, so that results do not depend on which is chosen.
//
// Thread roles, one warpgroup each: a producer (40 registers) fills stages, two consumers (232) multiply them.
//   producer   gathers the tile's rows through the plan, 16 bytes a thread and cp.async; its first thread has the copy
//              engine fetch weights: boxes of 64 along K out of one 4-D tensor map, the expert a coordinate, gate and up
//              another. Rows past the expert's last and columns past K become zeros; nothing is padded in memory.
//   consumers  wgmma on stage i while stage i - 1's products finish, then the epilogue out of registers.
// With a gate, a consumer's columns are half gate, half up projection of the same outputs: one thread has both.
//
// A stage has two barriers. `full` takes an arrival of each producer thread when its copies have landed, one with the
// number of bytes that the copy engine brings, and those bytes. `empty` takes one of each consumer warp of the cluster. A
// thread that waits for the n-th filling waits for parity n % 2. What cp.async wrote is of the generic proxy, what wgmma reads of the
// async one: consumers fence between.
//
// Shared memory (dynamic): stages, each rows [BM][64] and weights [BN][64] in rows of 128 bytes whose chunks of 16 are
// swizzled (chunk c of row r lies at c ^ r % 8); full and empty barriers; tiles before each expert [E + 1] u32.
//
// A 128x256 stage is 2 * 128 * 256 * 64 = 4.2 MFLOP, 1024 cycles of an SM's tensor cores (4096 FLOP a cycle), and 32 KiB
// from the L2, 32 bytes a cycle (48 without the cluster). Registers: 384 threads at 168, a whole SM. Predicted for qwen3-30b-a3b (E 128, k 8, H
// 2048, I 768) at T = 8192, 512 rows an expert: 412 + 206 GFLOP, 0.77 ms at the 798 TFLOP/s of a dense product; with the
// epilogue's 5 to 10 % and the last rows' tiles half empty (a ninth of all), 0.95 ms.
#include "common/tiles.cuh"
#include "common/wgmma_epilogue.cuh"
#include "ptx/cluster.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

namespace {

constexpr uint32_t DEPTH = 64, WARPGROUP = 128, CONSUMERS = 2;

extern __shared__ __align__(1024) uint8_t shared[];

// A place in the ring of stages, and the parity of its filling.
template <uint32_t STAGES>
struct Position {
  uint32_t stage = 0, parity = 0;

  __device__ __forceinline__ void advance() {
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    parity ^= stage == 0;
  }
};

template <typename T, uint32_t BM, uint32_t BN, uint32_t STAGES, uint32_t CLUSTER>
struct Wgmma {
  static constexpr uint32_t ROW_BYTES = BM * DEPTH * 2, STAGE_BYTES = ROW_BYTES + BN * DEPTH * 2;
  // Consumers lie side by side where a tile has rows for one only.
  static constexpr uint32_t CONSUMERS_M = BM / 64, CONSUMERS_N = CONSUMERS / CONSUMERS_M, WN = BN / CONSUMERS_N;
  // Boxes of weights: for each consumer side by side gate and up, or the two halves of its columns.
  static constexpr uint32_t BOXES = 2 * CONSUMERS_N, BOX_ROWS = WN / 2, BOX_BYTES = BOX_ROWS * DEPTH * 2;
  static constexpr uint32_t COPIES = BM * DEPTH * 2 / 16 / WARPGROUP;
  using Ring = Position<STAGES>;
  static_assert(CLUSTER == 1 || CLUSTER == BOXES, "each block of a cluster fetches one box for all");

  // What a block does of a cluster's tile.
  struct Part : Tile {
    bool shares_weights;
  };

  const GroupedGemmSm90Params& params;
  const GroupedGemmParams& p;
  uint32_t stages, full, empty;

  __device__ __forceinline__ explicit Wgmma(const GroupedGemmSm90Params& all)
      : params(all), p(all.gemm), stages(ptx::shared_address(shared)) {
    full = stages + STAGES * STAGE_BYTES;
    empty = full + STAGES * 8;
  }

  // By one thread, before all others get there.
  __device__ __forceinline__ void init() const {
    for (uint32_t i = 0; i < STAGES; i++) {
      ptx::mbarrier_init(full + i * 8, WARPGROUP + 1);
      ptx::mbarrier_init(empty + i * 8, CLUSTER * CONSUMERS * WARPGROUP / 32);
    }
    ptx::fence_mbarrier_init();
    ptx::prefetch_tensor_map(params.weight_map);
  }

  // The rows that this thread copies a chunk of: number threadIdx.x / 8 of each 16.
  __device__ __forceinline__ void find_rows(uint32_t (&rows)[COPIES], const Tile& tile) const {
#pragma unroll
    for (uint32_t i = 0; i < COPIES; i++) {
      const uint32_t row = tile.row + i * 16 + threadIdx.x / 8;
      rows[i] = row < tile.row_end ? static_cast<uint32_t>(input_row(p, row).row) : MASKED;
    }
  }

  __device__ __forceinline__ void copy_rows(const uint32_t (&rows)[COPIES], uint32_t stage, uint32_t k) const {
    const uint32_t row = threadIdx.x / 8, chunk = threadIdx.x % 8, column = k + chunk * 8;
    const uint32_t target = stage + row * 128 + ((chunk ^ row % 8) << 4);
#pragma unroll
    for (uint32_t i = 0; i < COPIES; i++) {
      const bool there = rows[i] != MASKED && column < p.k;
      const T* source = at<const T>(p.input) + (there ? static_cast<uint64_t>(rows[i]) * p.k + column : 0);
      ptx::cp_async_16(target + i * 16 * 128, source, there ? 16 : 0);
    }
  }

  __device__ __forceinline__ void copy_box(const Part& tile, uint32_t box, uint32_t stage, uint32_t barrier,
                                           uint32_t k) const {
    const bool gated = p.gate != GATE_NONE;
    const uint32_t target = stage + ROW_BYTES + box * BOX_BYTES;
    const uint32_t column = tile.column_tile * (gated ? BN / 2 : BN) + (gated ? box / 2 : box) * BOX_ROWS;
    const uint32_t half = gated ? box % 2 ^ (p.gate == UP_THEN_GATE ? 1 : 0) : 0;
    if (tile.shares_weights) {
      constexpr uint16_t ALL = (1 << CLUSTER) - 1;
      ptx::tma_load_4d_multicast(target, params.weight_map, barrier, ALL, k, column, half, tile.expert);
    } else {
      ptx::tma_load_4d(target, params.weight_map, barrier, k, column, half, tile.expert);
    }
  }

  __device__ __forceinline__ void copy_weights(const Part& tile, uint32_t stage, uint32_t barrier, uint32_t k) const {
    ptx::mbarrier_arrive_expect_tx(barrier, BN * DEPTH * 2);
    if (tile.shares_weights) return copy_box(tile, ptx::cluster_rank(), stage, barrier, k);
#pragma unroll
    for (uint32_t box = 0; box < BOXES; box++) copy_box(tile, box, stage, barrier, k);
  }

  __device__ __forceinline__ void wait_until_empty(const Ring& at) const {
    // The first time round all stages are empty: they count as emptied before.
    const uint32_t barrier = empty + at.stage * 8, parity = at.parity ^ 1;
    if (CLUSTER == 1) return ptx::mbarrier_wait(barrier, parity);
    ptx::mbarrier_wait_cluster(barrier, parity);
  }

  __device__ __forceinline__ void produce(const Part& tile, Ring& at) const {
    uint32_t rows[COPIES];
    find_rows(rows, tile);
    for (uint32_t k = 0; k < p.k; k += DEPTH, at.advance()) {
      wait_until_empty(at);
      const uint32_t stage = stages + at.stage * STAGE_BYTES, barrier = full + at.stage * 8;
      if (threadIdx.x == 0) copy_weights(tile, stage, barrier, k);
      copy_rows(rows, stage, k);
      ptx::cp_async_mbarrier_arrive(barrier);
    }
  }

  __device__ __forceinline__ void release(uint32_t stage) const {
    if (lane_id() >= CLUSTER) return;
    if (CLUSTER == 1) return ptx::mbarrier_arrive(empty + stage * 8);
    ptx::mbarrier_arrive_at(empty + stage * 8, lane_id());
  }

  __device__ __forceinline__ void multiply(float (&sums)[WN / 2], uint32_t consumer, Ring& at) const {
    const uint32_t rows = consumer % CONSUMERS_M * 64 * 128, weights = ROW_BYTES + consumer / CONSUMERS_M * WN * 128;
    uint32_t before = 0;
    for (uint32_t k = 0; k < p.k; k += DEPTH, at.advance()) {
      ptx::mbarrier_wait(full + at.stage * 8, at.parity);
      ptx::fence_proxy_async();
      const uint32_t stage = stages + at.stage * STAGE_BYTES;
      const uint64_t a = ptx::wgmma_operand(stage + rows), b = ptx::wgmma_operand(stage + weights);
      ptx::wgmma_fence();
#pragma unroll
      for (uint32_t step = 0; step < DEPTH / 16; step++) {
        ptx::wgmma(T(), sums, a + step * 2, b + step * 2, (k | step) != 0);
      }
      ptx::wgmma_commit();
      // All products but these are done: the stage before is free.
      ptx::wgmma_wait<1>();
      if (k != 0) release(before);
      before = at.stage;
    }
    ptx::wgmma_wait<0>();
    release(before);
  }

  __device__ __forceinline__ void consume(const Part& tile, uint32_t consumer, Ring& at) const {
    float sums[WN / 2];
    multiply(sums, consumer, at);
    const uint32_t first_row = tile.row + consumer % CONSUMERS_M * 64 + warp_id() % 4 * 16;
    if (first_row >= tile.row_end) return;
    // Behind the last column, too, nothing is written.
    const uint32_t column = tile.column_tile * BN + consumer / CONSUMERS_M * WN;
    const SumsPlace place = {tile.expert, first_row + lane_id() / 4, tile.row_end,
                             p.gate == GATE_NONE ? column : column / 2};
    write_sums(p, place, sums);
  }

  // Of the tile of CLUSTER * BM rows: this block's rows, or, of as few as one block's, this block's columns.
  __device__ __forceinline__ Part part_of(const Tile& tile) const {
    Part part = {tile, false};
    if (CLUSTER > 1 && tile.row_end - tile.row > BM) {
      part.row += ptx::cluster_rank() * BM;
      part.shares_weights = true;
    } else if (CLUSTER > 1) {
      part.column_tile = tile.column_tile * CLUSTER + ptx::cluster_rank();
    }
    return part;
  }

  // Calls `f` with this block's part of each of its cluster's tiles.
  template <typename F>
  __device__ __forceinline__ void each_tile(const Tiles<CLUSTER * BM>& tiles, F f) const {
    const uint32_t column_tiles = (p.n + BN - 1) / BN;
    for (uint64_t i = blockIdx.x / CLUSTER; i < tiles.count(); i += gridDim.x / CLUSTER) {
      const Part part = part_of(tiles.find(i));
      // All blocks of a cluster alike pass over a tile whose columns are done with another's.
      if (part.column_tile / CLUSTER * CLUSTER < column_tiles || part.shares_weights) f(part);
    }
  }

  __device__ __forceinline__ void run() const {
    if (threadIdx.x == 0) init();
    uint32_t* before = reinterpret_cast<uint32_t*>(shared + STAGES * (STAGE_BYTES + 16));
    const Tiles<CLUSTER * BM> tiles(p, before, (p.n + BN - 1) / BN);  // its barrier is for `init` too
    if (CLUSTER > 1) ptx::cluster_sync();
    Ring at;
    if (threadIdx.x < WARPGROUP) {
      ptx::shrink_registers<40>();
      each_tile(tiles, [&](const Part& part) { produce(part, at); });
    } else {
      ptx::grow_registers<232>();
      const uint32_t consumer = threadIdx.x / WARPGROUP - 1;
      each_tile(tiles, [&](const Part& part) { consume(part, consumer, at); });
    }
    // A block's barriers are there until no other arrives at them.
    if (CLUSTER > 1) ptx::cluster_sync();
  }
};

}  // namespace

#define KERNEL(NAME, T, BM, BN, STAGES, CLUSTER)                                                             \
  extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1) \
      grouped_gemm_sm90_##NAME##_##BM##x##BN(const __grid_constant__ GroupedGemmSm90Params p) {              \
    Wgmma<T, BM, BN, STAGES, CLUSTER>(p).run();                                                              \
  }

#define TILES(NAME, T)            \
  KERNEL(NAME, T, 128, 256, 4, 2) \
  KERNEL(NAME, T, 128, 128, 6, 1) \
  KERNEL(NAME, T, 64, 256, 5, 1)

TILES(bf16, bf16)
TILES(f16, f16)
