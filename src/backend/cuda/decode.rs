//! Few rows per expert on CUDA: grids of decode.cu, and the second grouped GEMM with `combine` in one launch.

use super::driver::{Kernel, LaunchConfig};
use super::params::{DecodeCombineParams, GroupedGemmParams};
use super::queue::Queue;
use super::tile::{GemmPath, choose};
use super::{combine, grouped_gemm};
use crate::error::Result;
use crate::ops::{Epilogue, GroupedGemmCombineArgs};
use crate::tensor::DType;

/// Columns of the product that a block of decode.cu does, and its threads; of `[E, K, N]` weights.
const COLUMNS: u32 = 16;
const THREADS: u32 = 128;
const KN_COLUMNS: u32 = 64;
const KN_THREADS: u32 = 256;

/// What a warp takes of K at a time.
const K_STEP: u32 = 256;

/// Blocks an SM that keep its memory busy.
const BLOCKS_PER_SM: u32 = 4;

/// Of decode_combine.cu: threads, most rows, columns of a block.
const COMBINE_THREADS: u32 = 256;
const COMBINE_ROWS: u32 = 128;
const COMBINE_COLUMNS: u32 = 8;

/// How many warps share K: more where there are too few columns for the device.
fn parts_of_k(params: &GroupedGemmParams, num_sms: u32) -> u32 {
    let wanted = u64::from(BLOCKS_PER_SM * num_sms);
    let enough = |&parts: &u32| {
        let blocks = u64::from(params.n.div_ceil(COLUMNS / parts)) * u64::from(params.num_rows);
        blocks >= wanted || params.k.div_ceil(K_STEP) < 4 * parts
    };
    [1, 2].into_iter().find(enough).unwrap_or(4)
}

pub(super) fn gemm(queue: &Queue<'_>, kernel: Kernel, params: &GroupedGemmParams) -> Result<()> {
    let config = if params.kn != 0 {
        LaunchConfig::new([params.n.div_ceil(KN_COLUMNS), params.num_rows, 1], KN_THREADS)
    } else {
        let parts = parts_of_k(params, queue.driver.num_sms());
        let grid = [params.n.div_ceil(COLUMNS / parts), params.num_rows, 1];
        LaunchConfig { block: [THREADS / parts, parts, 1], ..LaunchConfig::new(grid, THREADS) }
    };
    // SAFETY: the kernels take this struct, and stay within the shapes that `ops` has checked against the memory;
    // ascending offsets, and slots in `permuted_idx`, are the caller's promise.
    unsafe { queue.launch(kernel, config, params) }
}

/// Both in one launch, where that is the way; `false` where it is not.
pub(super) fn gemm_combine(queue: &mut Queue<'_>, args: &mut GroupedGemmCombineArgs<'_>) -> Result<bool> {
    let (gemm, sum) = (&mut args.gemm, &mut args.combine);
    let params = grouped_gemm::params(gemm)?;
    let few = matches!(choose(&grouped_gemm::shape(gemm, &params, queue)), GemmPath::Decode(_));
    let plain = gemm.epilogue == Epilogue::None && params.permuted_idx == 0 && params.expert_offsets != 0;
    if !few || !plain || params.num_rows > COMBINE_ROWS {
        return Ok(false);
    }
    let name = match (gemm.weight.dtype(), params.kn != 0) {
        (DType::BF16, false) => "decode_combine_bf16",
        (DType::BF16, true) => "decode_combine_kn_bf16",
        (DType::F16, false) => "decode_combine_f16",
        (DType::F16, true) => "decode_combine_kn_f16",
        (_, false) => "decode_combine_f32",
        (_, true) => "decode_combine_kn_f32",
    };
    let combine = combine::params(&mut sum.of(gemm.output.as_view()))?;
    let (columns, k_step) = slab(&params, queue.driver.num_sms());
    let blocks = if combine.num_tokens == 0 { 0 } else { params.n.div_ceil(columns) };
    // Parts of K are so many that all of them together have no more than 32 rows.
    let shared_bytes = 4 * columns * params.num_rows.max(32);
    let config = LaunchConfig::linear(blocks, COMBINE_THREADS).shared(shared_bytes);
    let params = DecodeCombineParams { gemm: params, combine, columns, k_step };
    // SAFETY: as above; rows in `inv_permuted_idx` are the caller's promise.
    unsafe { queue.launch(Kernel { file: "decode_combine", name }, config, &params)? };
    Ok(true)
}

/// Columns of a block, and where K may be cut. Of `[E, K, N]` weights as many columns as leave every SM a block, for their
/// rows are read in runs of that.
fn slab(params: &GroupedGemmParams, num_sms: u32) -> (u32, u32) {
    if params.kn == 0 {
        return (COMBINE_COLUMNS, K_STEP);
    }
    let columns = [64, 32].into_iter().find(|columns| params.n / columns >= num_sms).unwrap_or(16);
    (columns, 32 / (columns / 8) * 8)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    #[test]
    fn k_is_shared_where_columns_are_few() {
        let parts =
            |n, num_rows, k| parts_of_k(&GroupedGemmParams { n, num_rows, k, ..GroupedGemmParams::zeroed() }, 132);
        // Qwen3-30B-A3B's gate and up of one token, and a shared expert's second projection.
        assert_eq!(parts(1536, 8, 2048), 1);
        assert_eq!(parts(2048, 1, 1408), 2);
        assert_eq!(parts(2048, 1, 5632), 4);
        // No part has less than two steps.
        assert_eq!(parts(16, 1, 256), 1);
        assert_eq!(parts(0, 0, 4096), 4);
    }

    #[test]
    fn slabs_leave_no_sm_without_a_block() {
        let columns = |n, kn| slab(&GroupedGemmParams { n, kn, ..GroupedGemmParams::zeroed() }, 132);
        assert_eq!(columns(2048, 0), (8, 256));
        assert_eq!(columns(2880, 1), (16, 128));
        assert_eq!(columns(5120, 1), (32, 64));
        assert_eq!(columns(16384, 1), (64, 32));
    }
}
