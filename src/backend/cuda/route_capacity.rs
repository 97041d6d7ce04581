//! Routing with expert capacity on CUDA: picks, keeps or drops or gives on, weighs, one launch each.

use super::driver::{Kernel, LaunchConfig};
use super::params::{CapacityParams, RouteParams, count};
use super::queue::{Queue, unsupported};
use super::route::{Parts, SHARED_BYTES, pick, weigh};
use crate::error::Result;
use crate::ops::RouteArgs;
use crate::routing::{Capacity, CapacityOrder, Overflow};

const ORDER: Kernel = Kernel { file: "route_capacity", name: "capacity_order" };
const GIVE: Kernel = Kernel { file: "route_capacity", name: "capacity_give" };

const ORDER_THREADS: u32 = 128;

pub(super) fn route(
    queue: &Queue<'_>,
    args: &RouteArgs<'_>,
    capacity: &Capacity,
    params: &RouteParams,
    parts: &Parts,
) -> Result<()> {
    let Parts { picked_ids, score_keys, choice_keys, .. } = *parts;
    // Which experts make weights comparable: those picked, or those kept.
    let basis_ids = if capacity.normalize_before_dropping { parts.basis_ids } else { 0 };
    let params = RouteParams { picked_ids, score_keys, choice_keys, basis_ids, ..*params };
    let give = give(args, capacity, &params, parts.queue)?;
    let sequences = params.num_tokens.checked_div(give.tokens_per_sequence).unwrap_or(0);
    let ordered = match capacity.order {
        CapacityOrder::FirstChoices | CapacityOrder::Tokens => 0,
        CapacityOrder::BatchPriority => u64::from(params.num_tokens),
        CapacityOrder::Scores => u64::from(params.num_tokens) * u64::from(params.top_k),
    };
    let order_blocks = ordered.div_ceil(u64::from(ORDER_THREADS)) as u32;
    pick(queue, &params)?;
    // SAFETY: the kernels take this struct, and stay within the shapes that `ops` has checked against the memory, and
    // within the parts of the scratch memory.
    unsafe {
        queue.launch(ORDER, LaunchConfig::linear(order_blocks, ORDER_THREADS), &give)?;
        queue.launch(GIVE, LaunchConfig::linear(sequences, 32).shared(4 * params.num_choices), &give)?;
    }
    weigh(queue, &params)
}

fn give(args: &RouteArgs<'_>, capacity: &Capacity, pick: &RouteParams, queue: u64) -> Result<CapacityParams> {
    if 4 * pick.num_choices as usize > SHARED_BYTES {
        return Err(unsupported(format!("capacity of {} experts", pick.num_choices)));
    }
    let num_tokens = pick.num_tokens as usize;
    let per_sequence = args.inputs.tokens_per_sequence.filter(|_| capacity.per_sequence).unwrap_or(num_tokens);
    let num_experts = pick.num_choices as usize - args.config.num_zero_experts;
    Ok(CapacityParams {
        picked_ids: pick.picked_ids,
        score_keys: pick.score_keys,
        choice_keys: pick.choice_keys,
        queue,
        topk_ids: pick.topk_ids,
        num_tokens: pick.num_tokens,
        num_choices: pick.num_choices,
        num_experts: count("num_experts", num_experts)?,
        top_k: pick.top_k,
        tokens_per_sequence: count("tokens_per_sequence", per_sequence)?,
        limit: count("capacity", capacity.limit.slots(per_sequence, args.config.top_k, num_experts))?,
        order: match capacity.order {
            CapacityOrder::FirstChoices => 0,
            CapacityOrder::BatchPriority => 1,
            CapacityOrder::Tokens => 2,
            CapacityOrder::Scores => 3,
        },
        next_best: (capacity.overflow == Overflow::NextBest).into(),
    })
}
