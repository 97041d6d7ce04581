//! `combine` on CUDA: a thread sums eight columns of a token, or one.

use super::driver::{Kernel, LaunchConfig};
use super::memory::{address, address_mut, optional_address};
use super::params::{CombineParams, count, is_aligned};
use super::queue::Queue;
use crate::backend::kernel_args::{dtype_code, slots_of_tokens};
use crate::error::Result;
use crate::ops::CombineArgs;
use crate::tensor::{DType, TensorView};

const WIDE: Kernel = Kernel { file: "combine", name: "combine" };
const COLUMNS: Kernel = Kernel { file: "combine", name: "combine_columns" };

const THREADS: u32 = 128;

pub(super) fn combine(queue: &mut Queue<'_>, mut args: CombineArgs<'_>) -> Result<()> {
    let params = params(&mut args)?;
    let rows = [
        (params.expert_out, args.expert_out.dtype()),
        (params.hidden_states, args.zero_experts.map_or(DType::F32, |zero| zero.hidden_states.dtype())),
        (params.shared, args.shared.map_or(DType::F32, |shared| shared.output.dtype())),
        (params.output, args.output.dtype()),
    ];
    let hidden_size = params.hidden_size as usize;
    let wide = hidden_size.is_multiple_of(8) && rows.iter().all(|&(row, dtype)| is_aligned(row, dtype, hidden_size));
    let columns = params.hidden_size.div_ceil(if wide { 8 } else { 1 });
    // Narrow rows are not worth a full block.
    let threads = columns.next_multiple_of(32).min(THREADS);
    let config = LaunchConfig::new([params.num_tokens, columns.div_ceil(threads), 1], threads);
    // SAFETY: the kernels take this struct, and stay within the shapes that `ops` has checked against the memory; rows
    // in `inv_permuted_idx` are the caller's promise.
    unsafe { queue.launch(if wide { WIDE } else { COLUMNS }, config, &params) }
}

pub(super) fn params(args: &mut CombineArgs<'_>) -> Result<CombineParams> {
    let (top_k, token_offsets) = slots_of_tokens(args.slots);
    let (zero, shared) = (args.zero_experts, args.shared);
    let code = |view: Option<TensorView<'_>>| view.map_or(0, |view| dtype_code(view.dtype()));
    let hidden_states = zero.map(|zero| zero.hidden_states);
    let shared_output = shared.map(|shared| shared.output);
    Ok(CombineParams {
        expert_out: address(args.expert_out)?,
        inv_permuted_idx: optional_address(args.inv_permuted_idx)?,
        topk_weights: optional_address(args.topk_weights)?,
        token_offsets: optional_address(token_offsets)?,
        zero_ids: optional_address(zero.map(|zero| zero.topk_ids))?,
        zero_weights: optional_address(zero.map(|zero| zero.topk_weights))?,
        hidden_states: optional_address(hidden_states)?,
        shared: optional_address(shared_output)?,
        gate_logits: optional_address(shared.and_then(|shared| shared.gate_logits))?,
        output: address_mut(&mut args.output)?,
        num_tokens: count("num_tokens", args.output.dims()[0])?,
        hidden_size: count("hidden_size", args.output.dims()[1])?,
        top_k: count("top_k", top_k)?,
        first_zero_expert: zero.map_or(0, |zero| zero.first),
        num_zero_experts: zero.map_or(0, |zero| zero.count),
        expert_out_dtype: dtype_code(args.expert_out.dtype()),
        hidden_states_dtype: code(hidden_states),
        shared_dtype: code(shared_output),
        output_dtype: dtype_code(args.output.dtype()),
        shared_scale: shared.map_or(1.0, |shared| shared.scale),
    })
}
