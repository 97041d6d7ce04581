//! The router rules under test.

use fused_moe::routing::{
    Capacity, CapacityLimit, CapacityOrder, GroupLimit, GroupScore, Overflow, Renormalize, RouterConfig, ScoreFunction,
    Selection, WeightFunction,
};

pub fn softmax(top_k: usize) -> RouterConfig {
    RouterConfig::softmax_top_k(top_k)
}

pub fn logit(top_k: usize) -> RouterConfig {
    RouterConfig { score: ScoreFunction::Logit, weight: WeightFunction::SoftmaxOverSelected, ..softmax(top_k) }
}

/// Sigmoid scores, groups by the sum of their two best, renormalised and scaled.
pub fn deepseek_v3(top_k: usize, num_groups: usize, topk_groups: usize) -> RouterConfig {
    RouterConfig {
        score: ScoreFunction::Sigmoid,
        groups: Some(GroupLimit { num_groups, topk_groups, score: GroupScore::SumTop2 }),
        renormalize: Some(Renormalize { add: 1e-20, ..Renormalize::default() }),
        scaling_factor: 2.5,
        ..softmax(top_k)
    }
}

/// Softmax scores, groups by their best.
pub fn deepseek_v2(top_k: usize, num_groups: usize, topk_groups: usize) -> RouterConfig {
    RouterConfig {
        groups: Some(GroupLimit { num_groups, topk_groups, score: GroupScore::Max }),
        scaling_factor: 16.0,
        ..softmax(top_k)
    }
}

/// Every score with every weight that reads it, renormalised or not; then the rules of their own.
pub fn all(top_k: usize) -> Vec<RouterConfig> {
    use ScoreFunction::{Logit, Sigmoid, Softmax, SqrtSoftplus};
    let mut rules = Vec::new();
    for score in [Logit, Softmax, Sigmoid, SqrtSoftplus] {
        for weight in
            [WeightFunction::Score, WeightFunction::SoftmaxOverSelected, WeightFunction::Sigmoid, WeightFunction::One]
        {
            // Logits as weights can sum to nothing, and squares of unbounded weights to infinity: no model does either.
            let by_score = weight == WeightFunction::Score;
            let divides = |rule: &Renormalize| match score {
                Logit => !by_score,
                SqrtSoftplus => !by_score || rule.p == 1.0,
                Softmax | Sigmoid => true,
            };
            for renormalize in renormalizations().into_iter().filter(|rule| rule.as_ref().is_none_or(divides)) {
                let scaling_factor = if renormalize.is_some() { 2.5 } else { 1.0 };
                rules.push(RouterConfig { score, weight, renormalize, scaling_factor, ..softmax(top_k) });
            }
        }
        rules.push(RouterConfig { logit_clip: Some(1.5), score, ..softmax(top_k) });
        rules.push(RouterConfig { logit_softcap: Some(3.0), score, ..softmax(top_k) });
    }
    // Jitters that no quotient of two logits on the grid is twice of.
    rules.push(RouterConfig { selection: Selection::SparseMixer { jitter: 0.010_371 }, ..softmax(2) });
    rules.push(RouterConfig { selection: Selection::SparseMixer { jitter: 0.310_271 }, ..softmax(2) });
    rules
}

fn renormalizations() -> [Option<Renormalize>; 4] {
    let sum = Renormalize::default();
    [
        None,
        Some(Renormalize { add: 1e-20, ..sum }),
        Some(Renormalize { min: 0.5, ..sum }),
        Some(Renormalize { p: 2.0, ..sum }),
    ]
}

/// Every limit, order and overflow that go together.
pub fn capacities() -> Vec<Capacity> {
    let limits = [
        CapacityLimit::Absolute(0),
        CapacityLimit::Absolute(2),
        CapacityLimit::Factor(0.75),
        CapacityLimit::TokenFraction(0.25),
        CapacityLimit::TokensPerExpert(1),
    ];
    let orders =
        [CapacityOrder::FirstChoices, CapacityOrder::BatchPriority, CapacityOrder::Tokens, CapacityOrder::Scores];
    let mut all = Vec::new();
    for limit in limits {
        for order in orders {
            for overflow in [Overflow::Drop, Overflow::NextBest] {
                let capacity = Capacity { order, overflow, ..Capacity::new(limit) };
                if overflow == Overflow::Drop || order != CapacityOrder::Scores {
                    all.push(capacity);
                    all.push(Capacity { per_sequence: true, normalize_before_dropping: true, ..capacity });
                }
            }
        }
    }
    all
}
