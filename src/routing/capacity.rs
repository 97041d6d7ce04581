//! Expert capacity: how many slots an expert takes, and what becomes of the others.

use serde::{Deserialize, Serialize};

/// How many slots an expert takes, and what becomes of the others.
///
/// Slots are given to experts one after another in [`order`](Self::order), and an expert that is full takes no more.
/// Zero experts cost nothing and are never full.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Slots per expert.
    pub limit: CapacityLimit,
    /// Which slots come first.
    #[serde(default)]
    pub order: CapacityOrder,
    /// What becomes of a slot whose expert is full.
    #[serde(default)]
    pub overflow: Overflow,
    /// Whether each sequence of the batch has capacity of its own (Switch in transformers), rather than the batch.
    #[serde(default)]
    pub per_sequence: bool,
    /// Whether weights are made for all picked experts before slots are dropped (NLLB
    /// `normalize_router_prob_before_dropping`), rather than for those that are left.
    #[serde(default)]
    pub normalize_before_dropping: bool,
}

/// Slots per expert, computed in f64 (as Python would), for T tokens (of the batch, or of a sequence), k experts per token and E experts with weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CapacityLimit {
    /// `ceil(factor · T · k / E)`.
    Factor(f64),
    /// `ceil(fraction · T)` (NLLB `moe_eval_capacity_token_fraction`).
    TokenFraction(f64),
    /// `n · ceil(T / E)` (NLLB's default, with n = 2).
    TokensPerExpert(usize),
    /// This many.
    Absolute(usize),
}

/// Which slots are given to experts first. Ties go to the lowest token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CapacityOrder {
    /// All first choices in token order, then all second choices, … (GShard, Switch, NLLB).
    #[default]
    FirstChoices,
    /// As `first_choices`, with the tokens sorted by their best choice's score, highest first (V-MoE's batch
    /// prioritized routing).
    BatchPriority,
    /// Token by token, each with all its choices (Megatron's `position`).
    Tokens,
    /// All slots by their expert's score, highest first (Megatron's `probs`).
    Scores,
}

/// What becomes of a slot whose expert is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// It adds nothing; the caller's residual carries the token.
    #[default]
    Drop,
    /// It goes to the token's best expert that has room and that the token does not have yet; dropped if none has.
    /// Every slot, full expert or not, goes to the best expert that is left for its token when its turn comes.
    NextBest,
}

impl CapacityLimit {
    /// Slots per expert; never more than `num_tokens`, as a token takes an expert at most once.
    pub fn slots(self, num_tokens: usize, top_k: usize, num_experts: usize) -> usize {
        let slots = match self {
            Self::Factor(factor) => {
                (factor * num_tokens as f64 * top_k as f64 / num_experts.max(1) as f64).ceil() as usize
            }
            Self::TokenFraction(fraction) => (fraction * num_tokens as f64).ceil() as usize,
            Self::TokensPerExpert(n) => n.saturating_mul(num_tokens.div_ceil(num_experts.max(1))),
            Self::Absolute(n) => n,
        };
        slots.min(num_tokens)
    }
}

impl Capacity {
    /// Dropping above `limit`, first choices first.
    pub fn new(limit: CapacityLimit) -> Self {
        Self {
            limit,
            order: CapacityOrder::FirstChoices,
            overflow: Overflow::Drop,
            per_sequence: false,
            normalize_before_dropping: false,
        }
    }
}
