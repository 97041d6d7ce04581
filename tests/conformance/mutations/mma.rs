//! Bugs of grouped_gemm_sm80.cu and what it is made of.

use super::{Bug, bug};

pub(super) const MMA: &[Bug] = &[
    bug(
        "one group of copies too few is waited for",
        "grouped_gemm_sm80",
        "common/mma_tile.cuh",
        "ptx::cp_async_wait<STAGES - 2>();",
        "ptx::cp_async_wait<STAGES - 1>();",
    ),
    bug(
        "no barrier behind the wait",
        "grouped_gemm_sm80",
        "common/mma_tile.cuh",
        "__syncthreads();\n      copy_stage(i + STAGES - 1);",
        "copy_stage(i + STAGES - 1);",
    ),
    bug(
        "no barrier before the epilogue",
        "grouped_gemm_sm80",
        "common/mma_tile.cuh",
        "ptx::cp_async_wait<0>();\n    __syncthreads();",
        "ptx::cp_async_wait<0>();",
    ),
    bug(
        "A's fragments 1 and 2 swapped",
        "grouped_gemm_sm80",
        "ptx/mma.cuh",
        "\"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2])",
        "\"r\"(a[0]), \"r\"(a[2]), \"r\"(a[1])",
    ),
    bug(
        "ldmatrix transposed",
        "grouped_gemm_sm80",
        "ptx/ldmatrix.cuh",
        "m8n8.x4.shared.b16",
        "m8n8.x4.trans.shared.b16",
    ),
    bug(
        "copies swizzled otherwise than loads",
        "grouped_gemm_sm80",
        "common/mma_tile.cuh",
        "copy_chunk(stage + swizzle_64(index / 4, index % 4)",
        "copy_chunk(stage + swizzle_64(index / 4, index % 4 ^ 1)",
    ),
    bug(
        "the tail of K is not filled with zeros",
        "grouped_gemm_sm80",
        "common/mma_stage.cuh",
        "count == 0 ? 0 : 16",
        "16",
    ),
    bug(
        "rows past the expert's last are written",
        "grouped_gemm_sm80",
        "common/mma_tile.cuh",
        "min(16u, tile.row_end - row)",
        "16u",
    ),
    bug(
        "no __syncwarp before the epilogue reads",
        "grouped_gemm_sm80",
        "common/mma_tile.cuh",
        "__syncwarp();\n      if (row < tile.row_end)",
        "if (row < tile.row_end)",
    ),
    bug(
        "a tile starts at the one before",
        "grouped_gemm_sm80",
        "common/tiles.cuh",
        "(group + in_group % height) * rows",
        "group * rows",
    ),
];
