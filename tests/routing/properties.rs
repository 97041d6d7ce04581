//! Properties over random rules, sizes and logits, on the CPU (which other tests hold to the oracle).

use fused_moe::Device;
use fused_moe::routing::{
    Capacity, CapacityLimit, CapacityOrder, MASKED, Overflow, Renormalize, RouterConfig, ScoreFunction,
};
use proptest::prelude::*;

use crate::support::{Case, Routed};

fn orders() -> impl Strategy<Value = CapacityOrder> {
    prop_oneof![
        Just(CapacityOrder::FirstChoices),
        Just(CapacityOrder::BatchPriority),
        Just(CapacityOrder::Tokens),
        Just(CapacityOrder::Scores),
    ]
}

fn scores() -> impl Strategy<Value = ScoreFunction> {
    prop_oneof![Just(ScoreFunction::Softmax), Just(ScoreFunction::Sigmoid), Just(ScoreFunction::SqrtSoftplus)]
}

/// k of E experts for T tokens by a score, renormalised or not.
fn top_k_case() -> impl Strategy<Value = Case> {
    let sizes = (1usize..40, any::<prop::sample::Index>(), 0usize..70);
    (sizes, scores(), any::<bool>(), any::<u64>()).prop_map(|((num_experts, top_k, num_tokens), score, norm, seed)| {
        let renormalize = norm.then(Renormalize::default);
        let config = RouterConfig::softmax_top_k(1 + top_k.index(num_experts));
        Case::random(RouterConfig { score, renormalize, ..config }, num_tokens, num_experts, seed)
    })
}

fn capacity_case() -> impl Strategy<Value = Case> {
    (top_k_case(), 0usize..12, orders(), any::<bool>()).prop_map(|(case, limit, order, next_best)| {
        let next_best = next_best && order != CapacityOrder::Scores;
        let overflow = if next_best { Overflow::NextBest } else { Overflow::Drop };
        let capacity = Capacity { order, overflow, ..Capacity::new(CapacityLimit::Absolute(limit)) };
        Case { config: RouterConfig { capacity: Some(capacity), ..case.config }, ..case }
    })
}

fn route(case: &Case) -> Routed {
    case.route_on(&Device::cpu()).expect("a valid case")
}

fn limit_of(case: &Case) -> usize {
    case.config.capacity.expect("a case with capacity").limit.slots(
        case.num_tokens(),
        case.config.top_k,
        case.num_choices,
    )
}

fn score(case: &Case, token: usize, expert: u32) -> f32 {
    route(&Case {
        config: RouterConfig { score: case.config.score, ..RouterConfig::soft(case.num_choices) },
        ..case.clone()
    })
    .sorted(token)[expert as usize]
        .1
}

proptest! {
    #![proptest_config(crate::support::cases(128))]

    #[test]
    fn renormalised_weights_sum_to_one(case in top_k_case()) {
        let routed = route(&case);
        for token in 0..case.num_tokens() {
            let sum: f32 = routed.token(token).1.iter().sum();
            if case.config.renormalize.is_some() {
                prop_assert!((sum - 1.0).abs() < 1e-5);
            } else if case.config.score == ScoreFunction::Softmax {
                prop_assert!(sum < 1.0 + 1e-5);
            }
        }
    }

    #[test]
    fn no_expert_is_over_capacity(case in capacity_case()) {
        let routed = route(&case);
        let limit = limit_of(&case);
        prop_assert!(routed.figures.tokens_per_expert.iter().all(|&n| n as usize <= limit));
    }

    /// Whoever could have taken a dropped slot is full: its expert, or with overflow all that the token does not hold.
    #[test]
    fn nothing_is_dropped_needlessly(case in capacity_case()) {
        let routed = route(&case);
        let free = route(&Case { config: RouterConfig { capacity: None, ..case.config.clone() }, ..case.clone() });
        let limit = limit_of(&case);
        let next_best = case.config.capacity.is_some_and(|capacity| capacity.overflow == Overflow::NextBest);
        for (slot, _) in routed.ids.iter().enumerate().filter(|&(_, &id)| id == MASKED) {
            let (held, _) = routed.token(slot / case.config.top_k);
            let could_take = |&e: &u32| if next_best { !held.contains(&e) } else { e == free.ids[slot] };
            for e in (0..case.num_choices as u32).filter(could_take) {
                prop_assert_eq!(routed.figures.tokens_per_expert[e as usize] as usize, limit, "slot {} expert {}", slot, e);
            }
        }
    }

    /// Of two tokens with the same expert as the same choice, the surer one is never dropped for the other.
    #[test]
    fn batch_priority_keeps_the_higher_score(mut case in capacity_case()) {
        let limit = CapacityLimit::Absolute(limit_of(&case));
        case.config.capacity = Some(Capacity { order: CapacityOrder::BatchPriority, ..Capacity::new(limit) });
        let routed = route(&case);
        let free = route(&Case { config: RouterConfig { capacity: None, ..case.config.clone() }, ..case.clone() });
        let top_k = case.config.top_k;
        for choice in 0..top_k {
            for kept in (0..case.num_tokens()).filter(|t| routed.ids[t * top_k + choice] != MASKED) {
                for dropped in (0..case.num_tokens()).filter(|t| routed.ids[t * top_k + choice] == MASKED) {
                    if free.ids[kept * top_k + choice] == free.ids[dropped * top_k + choice] {
                        let best = |t: usize| score(&case, t, free.ids[t * top_k]);
                        prop_assert!(best(kept) >= best(dropped));
                    }
                }
            }
            if case.num_tokens() > 12 { break; }
        }
    }

    /// By score, no expert keeps a lower score while it drops a higher one.
    #[test]
    fn scores_order_keeps_the_highest(mut case in capacity_case()) {
        let limit = CapacityLimit::Absolute(limit_of(&case));
        case.config.capacity = Some(Capacity { order: CapacityOrder::Scores, ..Capacity::new(limit) });
        case.config.renormalize = None;
        let routed = route(&case);
        let free = route(&Case { config: RouterConfig { capacity: None, ..case.config.clone() }, ..case.clone() });
        for e in 0..case.num_choices as u32 {
            let of = |kept: bool| {
                let slots = routed.ids.iter().zip(&free.ids).zip(&free.weights);
                slots.filter(move |((id, wanted), _)| **wanted == e && (**id != MASKED) == kept).map(|(_, &w)| w)
            };
            let lowest_kept = of(true).fold(f32::INFINITY, f32::min);
            prop_assert!(of(false).all(|w| w <= lowest_kept));
        }
    }

    /// With overflow, an expert that a token passes over for a worse one is full.
    #[test]
    fn overflow_never_skips_a_better_expert_with_room(mut case in capacity_case()) {
        let capacity = Capacity { overflow: Overflow::NextBest, ..Capacity::new(CapacityLimit::Absolute(limit_of(&case))) };
        case.config.capacity = Some(capacity);
        let routed = route(&case);
        let limit = limit_of(&case);
        for token in 0..case.num_tokens() {
            let (ids, _) = routed.token(token);
            let logit = |e: usize| case.logits[token * case.num_choices + e];
            let worst = ids.iter().map(|&id| if id == MASKED { f32::NEG_INFINITY } else { logit(id as usize) }).fold(f32::INFINITY, f32::min);
            for e in (0..case.num_choices).filter(|&e| logit(e) > worst && !ids.contains(&(e as u32))) {
                prop_assert_eq!(routed.figures.tokens_per_expert[e] as usize, limit);
            }
        }
    }

    #[test]
    fn expert_choice_fills_every_expert(case in top_k_case(), limit in 0usize..20) {
        let selection = fused_moe::routing::Selection::ExpertChoice { limit: CapacityLimit::Absolute(limit) };
        let case = Case { config: RouterConfig { selection, ..RouterConfig::softmax_top_k(1) }, ..case };
        let routed = route(&case);
        prop_assert!(routed.figures.tokens_per_expert.iter().all(|&n| n as usize == limit.min(case.num_tokens())));
    }

    #[test]
    fn permuting_tokens_permutes_results(case in top_k_case(), rotate in 0usize..70) {
        let num_tokens = case.num_tokens();
        let rotate = if num_tokens == 0 { 0 } else { rotate % num_tokens };
        let mut moved = case.clone();
        moved.logits.rotate_left(rotate * case.num_choices);
        let (routed, moved) = (route(&case), route(&moved));
        for token in 0..num_tokens {
            prop_assert_eq!(routed.token((token + rotate) % num_tokens), moved.token(token));
        }
    }

    #[test]
    fn threads_do_not_matter(case in capacity_case()) {
        // Enough tokens for several tasks.
        let mut case = case;
        case.logits = case.logits.repeat(1 + 40_000 / case.logits.len().max(1));
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| route(&case))
        };
        let one = on(1);
        prop_assert_eq!(&one, &on(3));
    }
}
