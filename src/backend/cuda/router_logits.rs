//! `router_logits` on CUDA: one kernel for every number of tokens.

use super::driver::{Kernel, LaunchConfig};
use super::memory::{address, address_mut, optional_address};
use super::params::{RouterLogitsParams, count, is_aligned};
use super::queue::Queue;
use crate::backend::kernel_args::dtype_code;
use crate::error::Result;
use crate::ops::RouterLogitsArgs;

const WIDE: Kernel = Kernel { file: "router_logits", name: "router_logits" };
const COLUMNS: Kernel = Kernel { file: "router_logits", name: "router_logits_columns" };

/// Threads of a block, and the experts and tokens that it does at a time.
const THREADS: u32 = 128;
const EXPERTS: u32 = 16;
const TOKENS: u32 = 4;

/// Blocks along the tokens: enough for every device, as blocks go on from token to token.
const MAX_TOKEN_BLOCKS: u32 = 4096;

pub(super) fn router_logits(queue: &mut Queue<'_>, mut args: RouterLogitsArgs<'_>) -> Result<()> {
    let [num_tokens, num_experts] = [args.output.dims()[0], args.output.dims()[1]];
    let hidden_size = args.weight.dims()[1];
    let params = RouterLogitsParams {
        hidden_states: address(args.hidden_states)?,
        weight: address(args.weight)?,
        bias: optional_address(args.bias)?,
        output: address_mut(&mut args.output)?,
        num_tokens: count("num_tokens", num_tokens)?,
        num_experts: count("num_experts", num_experts)?,
        hidden_size: count("hidden_size", hidden_size)?,
        hidden_states_dtype: dtype_code(args.hidden_states.dtype()),
        weight_dtype: dtype_code(args.weight.dtype()),
        tanh: args.tanh.into(),
    };
    let wide = is_aligned(params.hidden_states, args.hidden_states.dtype(), hidden_size)
        && is_aligned(params.weight, args.weight.dtype(), hidden_size)
        // Eight f32 are two of the 16 bytes.
        && hidden_size.is_multiple_of(8);
    let token_blocks = params.num_tokens.div_ceil(TOKENS).min(MAX_TOKEN_BLOCKS);
    let config = LaunchConfig::new([params.num_experts.div_ceil(EXPERTS), token_blocks, 1], THREADS);
    // SAFETY: the kernels take this struct, and stay within the shapes that `ops` has checked against the memory.
    unsafe { queue.launch(if wide { WIDE } else { COLUMNS }, config, &params) }
}
