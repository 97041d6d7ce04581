//! Selections other than top-k, noise, expert states and maps: the CPU is the oracle, and both are the definition.

use fused_moe::routing::noise::{self, Stream};
use fused_moe::routing::{
    Capacity, CapacityLimit, CapacityOrder, ExpertState, GroupLimit, GroupScore, MASKED, Noise, NoiseKind, Renormalize,
    RouterConfig, ScoreFunction, Selection, WeightFunction,
};

use crate::support::{Case, random};

#[test]
fn expert_choice() {
    for (num_tokens, num_experts, factor) in [(0, 4, 1.0), (1, 3, 2.0), (40, 7, 2.0), (333, 64, 1.5), (20, 5, 0.0)] {
        for score in [ScoreFunction::Softmax, ScoreFunction::Sigmoid, ScoreFunction::Logit] {
            let config = RouterConfig { score, ..RouterConfig::expert_choice(factor) };
            let limit = CapacityLimit::Factor(factor).slots(num_tokens, 1, num_experts);
            let case = Case::random(config, num_tokens, num_experts, 3);
            for case in [case.clone(), case.with_bias(9)] {
                let routed = case.checked();
                assert!(routed.figures.tokens_per_expert.iter().all(|&n| n as usize == limit), "every expert is full");
            }
        }
    }
}

#[test]
fn expert_choice_by_hand() {
    let config = RouterConfig {
        selection: Selection::ExpertChoice { limit: CapacityLimit::Absolute(2) },
        score: ScoreFunction::Logit,
        ..RouterConfig::softmax_top_k(1)
    };
    // Both experts want token 2; expert 0 then token 0, expert 1 the lower of tokens 1 and 3, which tie.
    let routed = Case::new(config, vec![3., 0., 1., 2., 4., 5., 0., 2.], 2).checked();
    assert_eq!(routed.offsets, [0, 1, 2, 4, 4]);
    assert_eq!(routed.ids, [0, 1, 0, 1]);
    assert_eq!(routed.weights, [3., 2., 4., 5.]);
    assert_eq!(routed.figures.fraction_dropped, 0.25);
}

#[test]
fn sinkhorn_balances() {
    let selection = Selection::Sinkhorn { tolerance: 1e-5, max_iterations: 200 };
    // Three experts of 16 that everyone likes.
    let mut logits = random(600 * 16, 1.0, 4);
    logits.chunks_exact_mut(16).for_each(|row| row[..3].iter_mut().for_each(|x| *x += 4.0));
    let greedy = Case::new(RouterConfig::softmax_top_k(1), logits.clone(), 16).checked();
    let config = RouterConfig { selection, ..RouterConfig::softmax_top_k(1) };
    let balanced = Case::new(config, logits, 16).checked();
    assert!(greedy.figures.max_over_mean > 4.0);
    assert!(balanced.figures.max_over_mean < 1.6, "{}", balanced.figures.max_over_mean);
}

#[test]
fn hash_draws_by_token_id_alone() {
    let config = RouterConfig { selection: Selection::Hash { seed: 5 }, ..RouterConfig::softmax_top_k(3) };
    let mut case = Case::random(config, 400, 10, 1);
    case.token_ids = Some((0..400).map(|t| t % 100).collect());
    let routed = case.checked();
    assert_eq!(routed.ids[..300], routed.ids[300..600]);
    assert!(routed.figures.max_over_mean < 1.3, "every expert gets its share");
    case.hash_table = Some((0..300).map(|i| if i == 7 { 99 } else { i % 10 }).collect());
    case.token_ids.as_mut().expect("some")[0] = 1_000_000;
    let routed = case.checked();
    assert_eq!(routed.token(0).0, [MASKED; 3], "beyond the table");
    assert_eq!(routed.token(2).0, [6, MASKED, 8], "no such expert");
    assert_eq!(routed.token(103).0, [9, 0, 1]);
}

#[test]
fn hash_with_weights_of_one() {
    let config = RouterConfig {
        selection: Selection::Hash { seed: 5 },
        weight: WeightFunction::One,
        capacity: Some(Capacity::new(CapacityLimit::Factor(0.5))),
        ..RouterConfig::softmax_top_k(1)
    };
    let mut case = Case::random(config, 64, 8, 1);
    case.token_ids = Some((0..64).collect());
    let routed = case.checked();
    assert!(routed.weights.iter().all(|&w| w == 0.0 || w == 1.0));
    assert!(routed.figures.fraction_dropped >= 0.5);
}

#[test]
fn hierarchical_weights_are_products_of_both_levels() {
    for renormalize_levels in [false, true] {
        for (num_groups, topk_groups, top_k, num_experts) in [(1, 1, 3, 7), (4, 2, 4, 12), (8, 8, 16, 64), (5, 3, 3, 5)]
        {
            let selection = Selection::Hierarchical { num_groups, topk_groups, renormalize_levels };
            let config = RouterConfig { selection, ..RouterConfig::softmax_top_k(top_k) };
            let routed = Case::random(config, 50, num_experts, 2).checked();
            for token in 0..50 {
                let (ids, weights) = routed.token(token);
                assert!(weights.is_sorted_by(|a, b| a >= b));
                assert!(!renormalize_levels || (weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                let mut groups: Vec<_> = ids.iter().map(|&id| id as usize / (num_experts / num_groups)).collect();
                groups.sort_unstable();
                groups.dedup();
                assert_eq!(groups.len(), topk_groups);
            }
        }
    }
}

#[test]
fn all_groups_and_experts_of_a_hierarchy_sum_to_one() {
    let selection = Selection::Hierarchical { num_groups: 3, topk_groups: 3, renormalize_levels: false };
    let config = RouterConfig { selection, ..RouterConfig::softmax_top_k(12) };
    let routed = Case::random(config, 20, 12, 2).checked();
    (0..20).for_each(|t| assert!((routed.token(t).1.iter().sum::<f32>() - 1.0).abs() < 1e-5));
}

fn noisy(kind: NoiseKind, seed: u64, base: RouterConfig) -> Case {
    let mut case = Case::random(RouterConfig { noise: Some(Noise { seed, kind }), ..base }, 300, 9, 1);
    case.noise_logits = Some(random(300 * 9, 1.0, 2));
    case
}

#[test]
fn noise_is_keyed_and_is_added_where_it_says() {
    for kind in [NoiseKind::NormalSoftplus, NoiseKind::Normal { std: 0.5 }, NoiseKind::GumbelSecond] {
        let base = RouterConfig::shazeer2017(3);
        let routed = noisy(kind, 1, base.clone()).checked();
        assert_eq!(routed, noisy(kind, 1, base.clone()).checked(), "the same seed");
        assert_ne!(routed.ids, noisy(kind, 2, base.clone()).checked().ids, "another seed");
        assert_ne!(routed.ids, Case::random(base.clone(), 300, 9, 1).checked().ids, "no noise");
    }
    let still = noisy(NoiseKind::Normal { std: 0.0 }, 1, RouterConfig::shazeer2017(3)).checked();
    assert_eq!(still.ids, Case::random(RouterConfig::shazeer2017(3), 300, 9, 1).checked().ids);
}

#[test]
fn noisy_top_k_is_shazeers_formula() {
    let case = noisy(NoiseKind::NormalSoftplus, 77, RouterConfig::shazeer2017(2));
    let routed = case.checked();
    let noise_logits = case.noise_logits.expect("some");
    for t in 0..300 {
        let h: Vec<f64> = (0..9)
            .map(|e| {
                let n = f64::from(noise::normal(77, Stream::Logit, t as u32, e as u32));
                f64::from(case.logits[t * 9 + e]) + n * f64::from(noise_logits[t * 9 + e]).exp().ln_1p()
            })
            .collect();
        let mut order: Vec<usize> = (0..9).collect();
        order.sort_by(|&a, &b| h[b].total_cmp(&h[a]));
        let (ids, weights) = routed.token(t);
        assert_eq!(ids, [order[0] as u32, order[1] as u32]);
        let expected = 1.0 / (1.0 + (h[order[1]] - h[order[0]]).exp());
        assert!((f64::from(weights[0]) - expected).abs() < 1e-5);
    }
}

#[test]
fn gumbel_leaves_the_first_choice_and_the_weights_alone() {
    let base = RouterConfig::softmax_top_k(2);
    let clean = Case::random(base.clone(), 300, 9, 1).checked();
    let soft = Case::random(RouterConfig::soft(9), 300, 9, 1).checked().dense(9);
    let routed = noisy(NoiseKind::GumbelSecond, 3, base).checked();
    for t in 0..300 {
        let (ids, weights) = routed.token(t);
        assert_eq!(ids[0], clean.token(t).0[0]);
        for (&id, &w) in ids.iter().zip(weights) {
            assert!((w - soft[t * 9 + id as usize]).abs() < 1e-6);
        }
    }
}

#[test]
fn random_second_keeps_by_share() {
    let base = RouterConfig { renormalize: Some(Renormalize::default()), ..RouterConfig::softmax_top_k(2) };
    let clean = Case::random(base.clone(), 300, 9, 1).checked();
    let routed = noisy(NoiseKind::RandomSecond { scale: 2.0 }, 3, base.clone()).checked();
    let mut expected_kept = 0.0;
    let mut kept = 0;
    for t in 0..300 {
        assert_eq!(routed.token(t).0[0], clean.token(t).0[0]);
        expected_kept += 2.0 * clean.token(t).1[1];
        kept += usize::from(routed.token(t).0[1] != MASKED);
    }
    assert!((kept as f32 - expected_kept).abs() < 35.0, "{kept} of {expected_kept}: four standard deviations");
    assert!(noisy(NoiseKind::RandomSecond { scale: 0.0 }, 3, base).checked().figures.fraction_dropped == 0.5);
    let gshard = noisy(NoiseKind::RandomSecond { scale: 2.0 }, 3, RouterConfig::gshard()).checked();
    assert!(gshard.figures.fraction_dropped > 0.0);
}

#[test]
fn disabled_experts_are_never_chosen_and_have_no_share() {
    let mut states = vec![ExpertState::Active; 12];
    (states[0], states[5]) = (ExpertState::Disabled, ExpertState::Disabled);
    (states[1], states[11]) = (ExpertState::Frozen, ExpertState::Added);
    let groups = GroupLimit { num_groups: 3, topk_groups: 2, score: GroupScore::SumTop2 };
    let capacity = Capacity { order: CapacityOrder::Scores, ..Capacity::new(CapacityLimit::Factor(1.0)) };
    let bases = [
        RouterConfig::softmax_top_k(10),
        RouterConfig::shazeer2017(4),
        RouterConfig { groups: Some(groups), score: ScoreFunction::Sigmoid, ..RouterConfig::softmax_top_k(6) },
        RouterConfig { capacity: Some(capacity), ..RouterConfig::softmax_top_k(2) },
        RouterConfig::expert_choice(2.0),
        RouterConfig {
            selection: Selection::Sinkhorn { tolerance: 1e-4, max_iterations: 50 },
            ..RouterConfig::softmax_top_k(2)
        },
        RouterConfig { selection: Selection::Hash { seed: 0 }, ..RouterConfig::softmax_top_k(2) },
        RouterConfig::hierarchical(3, 2, 6),
        RouterConfig { selection: Selection::SparseMixer { jitter: 0.1 }, ..RouterConfig::softmax_top_k(2) },
    ];
    for base in bases {
        let mut case = Case::random(RouterConfig { expert_states: states.clone(), ..base }, 80, 12, 6);
        case.token_ids = Some((0..80).collect());
        let routed = case.checked();
        assert!(!routed.ids.contains(&0) && !routed.ids.contains(&5));
        assert!(routed.ids.contains(&1) && routed.ids.contains(&11), "frozen and added experts are chosen");
        // As if they were not there.
        if case.config.top_k == 10 {
            (0..80).for_each(|t| assert!((routed.token(t).1.iter().sum::<f32>() - 1.0).abs() < 1e-5));
        }
    }
}

#[test]
fn expert_map_keeps_this_ranks_experts() {
    let whole = Case::random(RouterConfig::mixtral(), 50, 6, 1).checked();
    let ranks = [vec![Some(0), Some(1), None, None, Some(2), None], vec![None, None, Some(1), Some(0), None, Some(2)]];
    let mut sum = vec![0.0; 50 * 6];
    for map in ranks {
        let config = RouterConfig { expert_map: map.clone(), ..RouterConfig::mixtral() };
        assert!(config.validate(3).is_ok() && config.validate(2).is_err());
        let routed = Case::random(config, 50, 6, 1).checked();
        for t in 0..50 {
            for (id, weight) in routed.sorted(t) {
                let global = map.iter().position(|local| *local == Some(id)).expect("an expert of this rank");
                sum[t * 6 + global] += weight;
            }
        }
        assert_eq!(routed.figures, whole.figures, "figures are of all ranks");
    }
    assert_eq!(sum, whole.dense(6), "the ranks' sums are the whole");
}
