//! Expert choice on CUDA: tokens are ranked, experts take theirs, slots are put in the order of tokens and weighed.

use super::driver::{Kernel, LaunchConfig};
use super::memory::address_mut;
use super::params::{ExpertChoiceParams, RouteParams, count};
use super::queue::Queue;
use super::route::{Parts, pick, weigh};
use crate::error::{Error, Result};
use crate::ops::RouteArgs;
use crate::routing::CapacityLimit;

const fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "route_expert_choice", name }
}

const THRESHOLDS: Kernel = kernel("choice_thresholds");
const COUNT: Kernel = kernel("choice_count");
const SCAN: Kernel = kernel("choice_scan");
const PLACE: Kernel = kernel("choice_place");

/// Threads of a block that has a token each, and the most of one that has all tokens.
const TOKEN_THREADS: u32 = 128;
const MAX_THREADS: u32 = 1024;

pub(super) fn choose(
    queue: &Queue<'_>,
    args: &mut RouteArgs<'_>,
    limit: CapacityLimit,
    params: &RouteParams,
    parts: &Parts,
) -> Result<()> {
    let Some(ragged) = &mut args.ragged else {
        return Err(Error::invalid("ragged", "some, as experts choose", "none"));
    };
    let RouteParams { num_tokens, num_choices, top_k, topk_ids, .. } = *params;
    let token_offsets = address_mut(&mut ragged.token_offsets)?;
    let params = RouteParams { choice_keys: parts.choice_keys, token_offsets, ..*params };
    let tokens_per_expert = limit.slots(num_tokens as usize, top_k as usize, num_choices as usize);
    let threads = num_tokens.next_multiple_of(32).clamp(32, MAX_THREADS);
    let choice = ExpertChoiceParams {
        choice_keys: parts.choice_keys,
        thresholds: parts.thresholds,
        token_offsets,
        topk_ids,
        slot_tokens: address_mut(&mut ragged.slot_tokens)?,
        num_tokens,
        num_choices,
        tokens_per_expert: count("tokens per expert", tokens_per_expert)?,
        tokens_per_thread: num_tokens.div_ceil(threads),
    };
    let each_token = LaunchConfig::linear(num_tokens.div_ceil(TOKEN_THREADS), TOKEN_THREADS);
    // Each writes all k slots of a token, and here picks none.
    pick(queue, &RouteParams { top_k: 0, ..params })?;
    for (kernel, config) in [
        (THRESHOLDS, LaunchConfig::linear(num_choices, threads)),
        (COUNT, each_token),
        (SCAN, LaunchConfig::linear(1, threads)),
        (PLACE, each_token),
    ] {
        // SAFETY: the kernels take this struct, and stay within the shapes that `ops` has checked against the memory,
        // and within the parts of the scratch memory.
        unsafe { queue.launch(kernel, config, &choice)? };
    }
    weigh(queue, &params)
}
