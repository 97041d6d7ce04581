//! The figures of a routing on CUDA: probabilities by token, sums by expert over chunks of tokens, scalars.

use super::driver::{Kernel, LaunchConfig};
use super::memory::address_mut;
use super::params::{FiguresParams, RouteParams, count};
use super::queue::Queue;
use super::route::{Parts, launch_rule};
use crate::error::Result;
use crate::ops::RouteArgs;

const PROBABILITIES: Kernel = Kernel { file: "route_figures", name: "route_probabilities" };
const SUM: Kernel = Kernel { file: "route_figures", name: "figures_sum" };
const WRITE: Kernel = Kernel { file: "route_figures", name: "figures_write" };

/// What is summed of an expert, as in route_figures.cu.
pub(super) const ROWS: u64 = 5;

/// Columns of a block that sums, and its threads.
const COLUMNS: u32 = 32;
const THREADS: u32 = 256;

/// Tokens of a chunk, where there are not too many chunks.
const CHUNK: u32 = 256;
const MAX_CHUNKS: u32 = 64;

/// How many chunks tokens are cut into, and how many tokens each has.
pub(super) fn chunks(num_tokens: u32) -> (u32, u32) {
    let tokens = num_tokens.div_ceil(MAX_CHUNKS).max(CHUNK);
    (num_tokens.div_ceil(tokens), tokens)
}

pub(super) fn write(queue: &Queue<'_>, args: &mut RouteArgs<'_>, params: &RouteParams, parts: &Parts) -> Result<()> {
    let num_slots = count("slots", args.topk_ids.shape().numel())?;
    let token_offsets = args.ragged.as_mut().map_or(Ok(0), |ragged| address_mut(&mut ragged.token_offsets))?;
    let Some(figures) = &mut args.figures else { return Ok(()) };
    let (num_chunks, tokens_per_chunk) = chunks(params.num_tokens);
    let sums = FiguresParams {
        probabilities: parts.probabilities,
        partials: parts.partials,
        picked_ids: if args.config.capacity.is_some() { parts.picked_ids } else { params.topk_ids },
        topk_ids: params.topk_ids,
        topk_weights: params.topk_weights,
        token_offsets,
        tokens_per_expert: address_mut(&mut figures.tokens_per_expert)?,
        importance: address_mut(&mut figures.importance)?,
        scalars: address_mut(&mut figures.scalars)?,
        num_tokens: params.num_tokens,
        num_choices: params.num_choices,
        top_k: params.top_k,
        num_slots,
        num_chunks,
        tokens_per_chunk,
    };
    launch_rule(queue, PROBABILITIES, &RouteParams { probabilities: parts.probabilities, ..*params })?;
    let columns = params.num_choices + 2;
    let totals = 4 * ROWS as u32 * columns;
    // SAFETY: the kernels take this struct, and stay within the shapes that `ops` has checked against the memory, and
    // within the parts of the scratch memory.
    unsafe {
        queue.launch(SUM, LaunchConfig::new([columns.div_ceil(COLUMNS), num_chunks, 1], THREADS), &sums)?;
        queue.launch(WRITE, LaunchConfig::linear(1, THREADS).shared(totals), &sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_tokens() {
        for num_tokens in [0, 1, 256, 257, 16384, 16385, 1 << 31] {
            let (chunks, tokens) = chunks(num_tokens);
            assert!(chunks <= MAX_CHUNKS && u64::from(chunks) * u64::from(tokens) >= num_tokens.into());
            // None is empty.
            assert!(chunks == 0 || u64::from(chunks - 1) * u64::from(tokens) < num_tokens.into());
        }
    }
}
