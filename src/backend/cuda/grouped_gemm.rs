//! `grouped_gemm` on CUDA: parameters of every kernel for it, and which one runs.

use super::decode;
use super::driver::{LaunchConfig, TiledTensor};
use super::memory::{address, address_mut, optional_address};
use super::params::{GroupedGemmParams, GroupedGemmSm90Params, count, is_aligned};
use super::queue::{Queue, unsupported};
use super::tile::{GemmPath, GemmShape, choose, has_wgmma, num_blocks};
use crate::backend::kernel_args::{EpilogueCodes, Gather, dtype_code};
use crate::config::WeightLayout;
use crate::error::Result;
use crate::ops::GroupedGemmArgs;
use crate::tensor::DType;

/// The code of columns of gate and up that take turns.
const INTERLEAVED: u32 = 3;

/// Experts for which a kernel keeps counts in shared memory.
const MAX_EXPERTS: u32 = 4096;

pub(super) fn grouped_gemm(queue: &mut Queue<'_>, mut args: GroupedGemmArgs<'_>) -> Result<()> {
    let params = params(&mut args)?;
    let shape = shape(&args, &params, queue);
    match choose(&shape) {
        GemmPath::Decode(kernel) => decode::gemm(queue, kernel, &params),
        GemmPath::Tiled(_) if params.num_experts > MAX_EXPERTS => {
            Err(unsupported(format!("grouped_gemm over {} experts", params.num_experts)))
        }
        GemmPath::Tiled(path) => {
            let blocks = num_blocks(&params, &path, queue.driver.num_sms());
            let shared_bytes = path.shared_bytes + 4 * (params.num_experts + 1);
            let config = LaunchConfig::linear(blocks, path.threads).shared(shared_bytes);
            // SAFETY: the kernels take these structs, and stay within the shapes that `ops` has checked against the
            // memory; ascending offsets, and slots in `permuted_idx`, are the caller's promise.
            unsafe {
                if !path.tensor_maps {
                    return queue.launch(path.kernel, config, &params);
                }
                let weight_map = queue.driver.tensor_map(&weight_boxes(&params, shape.weight))?;
                let input_map = queue.driver.tensor_map(&input_boxes(&args, &params))?;
                queue.launch(path.kernel, config, &GroupedGemmSm90Params { weight_map, input_map, gemm: params })
            }
        }
    }
}

/// The weights as `[E, 2, n_out, K]` or `[E, 2, K, n_out]`, gate and up apart, or, without a gate, as `[E, 1, N, K]` or
/// `[E, 1, K, N]`. Columns of `[E, K, N]` that take turns cannot be told apart: they are `[E, 1, K, N]`.
fn weight_boxes(params: &GroupedGemmParams, dtype: DType) -> TiledTensor {
    let (kn, interleaved) = (params.kn != 0, params.gate == INTERLEAVED);
    let columns = if kn && interleaved { params.n } else { params.n_out };
    let [n, k, columns, halves] = [params.n, params.k, columns, params.n / columns].map(u64::from);
    let (dims, strides) = match (kn, interleaved) {
        (true, _) => ([columns, k], [n, columns]),
        (false, true) => ([k, columns], [2 * k, k]),
        (false, false) => ([k, columns], [k, columns * k]),
    };
    TiledTensor {
        dtype,
        address: params.weight,
        dims: [dims[0], dims[1], halves, params.num_experts.into()],
        strides: [strides[0], strides[1], n * k].map(|elements| elements * dtype.size() as u64),
        // As PART and DEPTH of wgmma_stage.cuh.
        boxes: [64, 64, 1, 1],
    }
}

/// The input, for products whose rows lie as the output's do.
fn input_boxes(args: &GroupedGemmArgs<'_>, params: &GroupedGemmParams) -> TiledTensor {
    let (dtype, num_rows) = (args.input.dtype(), args.input.dims()[0] as u64);
    let row = u64::from(params.k) * dtype.size() as u64;
    TiledTensor {
        dtype,
        address: params.input,
        dims: [params.k.into(), num_rows, 1, 1],
        strides: [row, row * num_rows, row * num_rows],
        // As DEPTH and ROW_BOX there.
        boxes: [64, 16, 1, 1],
    }
}

pub(super) fn shape(args: &GroupedGemmArgs<'_>, params: &GroupedGemmParams, queue: &Queue<'_>) -> GemmShape {
    let kn = params.kn != 0;
    let run = if kn { run(params) } else { params.k };
    // A column of [E, K, N] weights takes one element of the input at a time.
    let input = kn || params.input_aligned != 0;
    GemmShape {
        wgmma: has_wgmma(&**queue.driver),
        num_sms: queue.driver.num_sms(),
        capability: queue.driver.compute_capability(),
        rows: params.num_rows,
        n: params.n,
        k: params.k,
        num_experts: params.num_experts,
        input: args.input.dtype(),
        weight: args.weight.dtype(),
        kn,
        interleaved: params.gate == INTERLEAVED,
        input_eights: params.input_aligned != 0,
        eights: input && params.weight_aligned != 0 && run.is_multiple_of(8),
        output_eights: params.n_out.is_multiple_of(8) && params.output.is_multiple_of(16),
        batch_invariant: args.batch_invariant,
    }
}

/// How many weights lie side by side: along K, or, of `[E, K, N]`, a row of N, or the gate's or up projection's half.
fn run(params: &GroupedGemmParams) -> u32 {
    match (params.kn != 0, params.gate) {
        (false, _) => params.k,
        (true, 0 | INTERLEAVED) => params.n,
        (true, _) => params.n_out,
    }
}

pub(super) fn params(args: &mut GroupedGemmArgs<'_>) -> Result<GroupedGemmParams> {
    let [num_rows, n_out] = [args.output.dims()[0], args.output.dims()[1]];
    let [num_experts, k] = [args.weight.dims()[0], args.input.dims()[1]];
    let kn = args.weight_layout == WeightLayout::Kn;
    let n = args.weight.dims()[if kn { 2 } else { 1 }];
    let gather = Gather::of(args.rows);
    let epilogue = EpilogueCodes::of(args.epilogue);
    let (input, weight) = (address(args.input)?, address(args.weight)?);
    let mut params = GroupedGemmParams {
        input,
        weight,
        bias: optional_address(args.bias)?,
        output: address_mut(&mut args.output)?,
        expert_offsets: optional_address(args.expert_offsets)?,
        permuted_idx: optional_address(gather.permuted_idx)?,
        slot_tokens: optional_address(gather.slot_tokens)?,
        slot_scale: optional_address(gather.slot_scale)?,
        num_rows: count("rows", num_rows)?,
        num_experts: count("num_experts", num_experts)?,
        n: count("N", n)?,
        k: count("K", k)?,
        n_out: count("N", n_out)?,
        top_k: count("top_k", gather.top_k)?,
        input_dtype: dtype_code(args.input.dtype()),
        weight_dtype: dtype_code(args.weight.dtype()),
        output_dtype: dtype_code(args.output.dtype()),
        kn: kn.into(),
        gate: epilogue.gate,
        activation: epilogue.activation,
        alpha: epilogue.alpha,
        limit: epilogue.limit,
        input_aligned: is_aligned(input, args.input.dtype(), k).into(),
        weight_aligned: 0,
    };
    params.weight_aligned = is_aligned(weight, args.weight.dtype(), run(&params) as usize).into();
    Ok(params)
}
