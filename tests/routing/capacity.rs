//! Expert capacity: its policies by hand, then by their properties.

use fused_moe::routing::{
    Capacity, CapacityLimit, CapacityOrder, MASKED, Overflow, Renormalize, RouterConfig, WeightFunction,
};

use crate::support::Case;

const NONE: u32 = MASKED;

fn config(top_k: usize, capacity: Capacity) -> RouterConfig {
    RouterConfig { capacity: Some(capacity), ..RouterConfig::softmax_top_k(top_k) }
}

/// Three experts; tokens want (0, 1), (0, 1), (0, 2), (1, 0), the later the surer.
const LOGITS: [f32; 12] = [3., 2., 1., 4., 2., 1., 5., 1., 2., 2., 6., 1.];

fn ids(top_k: usize, capacity: Capacity) -> Vec<u32> {
    Case::new(config(top_k, capacity), LOGITS.to_vec(), 3).checked().ids
}

#[test]
fn policies_by_hand() {
    let two = Capacity::new(CapacityLimit::Absolute(2));
    assert_eq!(ids(1, two), [0, 0, NONE, 1]);
    assert_eq!(ids(2, two), [0, 1, 0, NONE, NONE, 2, 1, NONE], "first choices first");
    assert_eq!(ids(2, Capacity { order: CapacityOrder::Tokens, ..two }), [0, 1, 0, 1, NONE, 2, NONE, NONE]);
    assert_eq!(ids(1, Capacity { order: CapacityOrder::BatchPriority, ..two }), [NONE, 0, 0, 1]);
    assert_eq!(ids(2, Capacity { order: CapacityOrder::Scores, ..two }), [NONE, 1, 0, NONE, 0, 2, 1, NONE]);
    let next = Capacity { overflow: Overflow::NextBest, ..two };
    assert_eq!(ids(1, next), [0, 0, 2, 1]);
    assert_eq!(ids(2, next), [0, 1, 0, 2, 2, NONE, 1, NONE]);
    assert_eq!(ids(1, Capacity::new(CapacityLimit::Absolute(0))), [NONE; 4]);
}

#[test]
fn each_sequence_has_its_own() {
    let capacity = Capacity { per_sequence: true, ..Capacity::new(CapacityLimit::Absolute(1)) };
    let mut case = Case::new(config(1, capacity), LOGITS.to_vec(), 3);
    assert_eq!(case.checked().ids, [0, NONE, NONE, 1]);
    case.tokens_per_sequence = Some(2);
    assert_eq!(case.checked().ids, [0, NONE, 0, 1]);
    case.config.capacity = Some(Capacity { per_sequence: false, ..capacity });
    assert_eq!(case.checked().ids, [0, NONE, NONE, 1]);
}

#[test]
fn limits() {
    assert_eq!(CapacityLimit::Factor(1.25).slots(64, 2, 8), 20);
    assert_eq!(CapacityLimit::Factor(1.0).slots(10, 1, 3), 4);
    assert_eq!(CapacityLimit::TokenFraction(0.1).slots(10, 2, 3), 1);
    assert_eq!(CapacityLimit::TokensPerExpert(2).slots(10, 2, 3), 8);
    assert_eq!(CapacityLimit::Factor(100.0).slots(10, 2, 3), 10);
    assert_eq!(CapacityLimit::Factor(f64::MAX).slots(10, 2, 3), 10);
    assert_eq!(CapacityLimit::Absolute(3).slots(0, 2, 3), 0);
}

#[test]
fn weights_before_and_after_dropping() {
    let capacity = Capacity::new(CapacityLimit::Absolute(2));
    for weight in [WeightFunction::Score, WeightFunction::SoftmaxOverSelected] {
        let config = RouterConfig { renormalize: Some(Renormalize::default()), weight, ..config(2, capacity) };
        let mut case = Case::new(config, LOGITS.to_vec(), 3);
        let after = case.checked();
        // Token 1 keeps its first choice only.
        assert_eq!(after.ids[2..4], [0, NONE]);
        assert!((after.weights[2] - 1.0).abs() < 1e-6);
        case.config.capacity = Some(Capacity { normalize_before_dropping: true, ..capacity });
        let before = case.checked();
        assert_eq!(before.ids, after.ids);
        assert!((before.weights[2] - 1.0 / (1.0 + (-2.0f32).exp())).abs() < 1e-6);
    }
}

#[test]
fn zero_experts_are_never_full() {
    let config = RouterConfig { num_zero_experts: 1, ..config(1, Capacity::new(CapacityLimit::Absolute(1))) };
    let logits = [0.0, 0.0, 1.0].repeat(5);
    assert_eq!(Case::new(config, logits, 3).checked().ids, [2; 5]);
}

#[test]
fn every_policy_is_the_oracles() {
    let orders =
        [CapacityOrder::FirstChoices, CapacityOrder::BatchPriority, CapacityOrder::Tokens, CapacityOrder::Scores];
    for order in orders {
        for overflow in [Overflow::Drop, Overflow::NextBest] {
            if order == CapacityOrder::Scores && overflow == Overflow::NextBest {
                continue;
            }
            for normalize_before_dropping in [false, true] {
                let limit = CapacityLimit::Factor(0.9);
                let per_sequence = true;
                let capacity = Capacity { limit, order, overflow, per_sequence, normalize_before_dropping };
                let config = RouterConfig { renormalize: Some(Renormalize::default()), ..config(3, capacity) };
                for (num_tokens, num_choices) in [(0, 5), (1, 7), (60, 12), (1100, 33)] {
                    let mut case = Case::random(config.clone(), num_tokens, num_choices, 5).with_bias(3);
                    case.checked();
                    case.bias = None;
                    case.tokens_per_sequence = (num_tokens > 1).then_some(num_tokens / 2);
                    case.checked();
                }
            }
        }
    }
}
