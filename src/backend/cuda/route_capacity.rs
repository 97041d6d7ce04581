//! Routing with expert capacity on CUDA: picks, keeps or drops or gives on, weighs, one launch each.

use super::driver::{Kernel, LaunchConfig};
use super::params::{CapacityParams, RouteParams, count};
use super::queue::{Queue, unsupported};
use super::route::{SHARED_BYTES, per_token};
use crate::error::Result;
use crate::ops::RouteArgs;
use crate::routing::{Capacity, CapacityOrder, Overflow};

const PICK: Kernel = Kernel { file: "route", name: "route_pick" };
const ORDER: Kernel = Kernel { file: "route_capacity", name: "capacity_order" };
const GIVE: Kernel = Kernel { file: "route_capacity", name: "capacity_give" };
const WEIGH: Kernel = Kernel { file: "route", name: "route_weigh" };

const ORDER_THREADS: u32 = 128;

/// What the launches hand on to each other, in words from the start of the scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    score_keys: u64,
    queue: u64,
    choice_keys: u64,
    words: u64,
}

impl Parts {
    /// `picked_ids` [T, k] come first.
    fn of(num_slots: u64, num_choice_keys: u64) -> Self {
        let [score_keys, queue, choice_keys] = [num_slots, 2 * num_slots, 3 * num_slots];
        Self { score_keys, queue, choice_keys, words: choice_keys + num_choice_keys }
    }
}

pub(super) fn route(
    queue: &mut Queue<'_>,
    args: &RouteArgs<'_>,
    capacity: &Capacity,
    params: &RouteParams,
) -> Result<()> {
    let num_slots = u64::from(params.num_tokens) * u64::from(params.top_k);
    let parts = Parts::of(num_slots, u64::from(params.num_tokens) * u64::from(params.num_choices));
    let scratch = queue.scratch(4 * parts.words as usize)?;
    let at = |words: u64| scratch + 4 * words;
    let pick = RouteParams {
        picked_ids: scratch,
        score_keys: at(parts.score_keys),
        choice_keys: at(parts.choice_keys),
        ..*params
    };
    let give = give(args, capacity, &pick, at(parts.queue))?;
    // Which experts make weights comparable: those picked, or those kept.
    let picked_ids = if capacity.normalize_before_dropping { scratch } else { 0 };
    let weigh = RouteParams { picked_ids, ..*params };
    let sequences = params.num_tokens.checked_div(give.tokens_per_sequence).unwrap_or(0);
    let ordered = match capacity.order {
        CapacityOrder::FirstChoices | CapacityOrder::Tokens => 0,
        CapacityOrder::BatchPriority => u64::from(params.num_tokens),
        CapacityOrder::Scores => num_slots,
    };
    let order_blocks = ordered.div_ceil(u64::from(ORDER_THREADS)) as u32;
    let tokens = per_token(params)?;
    // SAFETY: the kernels take these structs, and stay within the shapes that `ops` has checked against the memory, and
    // within the parts of the scratch memory.
    unsafe {
        queue.launch(PICK, tokens, &pick)?;
        queue.launch(ORDER, LaunchConfig::linear(order_blocks, ORDER_THREADS), &give)?;
        queue.launch(GIVE, LaunchConfig::linear(sequences, 32).shared(4 * params.num_choices), &give)?;
        queue.launch(WEIGH, tokens, &weigh)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_side_by_side() {
        assert_eq!(Parts::of(12, 40), Parts { score_keys: 12, queue: 24, choice_keys: 36, words: 76 });
        // Beyond 32 bits.
        assert_eq!(Parts::of(1 << 31, 1 << 41).words, (3 << 31) + (1 << 41));
    }
}
