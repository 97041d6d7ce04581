//! How tokens choose experts: every rule as plain data.
//!
//! [`RouterConfig`] is one pipeline, and each system of the literature is a setting of it. Per token, in f32 (f64 in
//! the reference):
//!
//! 1. `logits` = `router_logits`, ±inf brought to ±`f32::MAX`, then [`logit_clip`](RouterConfig::logit_clip) and
//!    [`logit_softcap`](RouterConfig::logit_softcap), then [`noise`](RouterConfig::noise) where the rule adds it to the
//!    logits; a [disabled](ExpertState::Disabled) expert's is NaN;
//! 2. `scores` = [`score`](RouterConfig::score)`(logits)` over all experts, zero experts included; a NaN scores 0;
//! 3. `choice = scores + selection_bias`: the bias picks and never weighs (DeepSeek-V3). A NaN is below everything.
//!    Without a bias the choice is made on the logits themselves, as every score grows with its logit;
//! 4. with [`groups`](RouterConfig::groups), every expert outside the best groups leaves the choice; disabled experts
//!    are never in it;
//! 5. [`selection`](RouterConfig::selection) picks `top_k` experts: the largest of `choice`, largest first, ties to
//!    the lowest id, or by a rule of its own;
//! 6. [`capacity`](RouterConfig::capacity) drops slots or sends them on; a dropped slot has the id [`MASKED`] and the
//!    weight 0;
//! 7. [`weight`](RouterConfig::weight) weighs the picked experts, from scores or from their logits;
//! 8. [`renormalize`](RouterConfig::renormalize) divides by the token's sum, then `scaling_factor` multiplies. A
//!    weight that is not finite becomes 0;
//! 9. [`expert_map`](RouterConfig::expert_map) turns ids into those of this rank, or masks them.

mod capacity;
mod figures;
pub mod noise;
pub mod presets;
mod rules;
mod validate;

pub use capacity::{Capacity, CapacityLimit, CapacityOrder, Overflow};
pub use figures::{Figures, NUM_SCALARS};
pub use noise::{Noise, NoiseKind};
pub use rules::{
    ExpertState, GroupLimit, GroupScore, Renormalize, ScoreFunction, Selection, WeightFunction, WeightsOn,
};

use serde::{Deserialize, Serialize};

/// The id of a slot that no expert takes: masked by the caller, dropped for capacity, or on another rank.
pub const MASKED: u32 = u32::MAX;

/// How tokens choose experts.
///
/// As JSON, only `top_k` and `score` must be there; unknown fields are refused:
///
/// ```
/// let config: fused_moe::routing::RouterConfig = serde_json::from_str(r#"{
///     "top_k": 8,
///     "score": "sigmoid",
///     "groups": { "num_groups": 8, "topk_groups": 4, "score": "sum_top2" },
///     "renormalize": { "add": 1e-20 },
///     "scaling_factor": 2.5
/// }"#).unwrap();
/// assert!(config.validate(256).is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterConfig {
    /// k: experts per token.
    pub top_k: usize,
    /// R: the width of the router's own hidden layer, behind a tanh (LLaMA-MoE `gate_network`); most have none.
    #[serde(default)]
    pub hidden_size: Option<usize>,
    /// Logits to scores, by which experts are chosen.
    pub score: ScoreFunction,
    /// Where the weights of the chosen experts come from.
    #[serde(default)]
    pub weight: WeightFunction,
    /// Clamps the logits to `±logit_clip` (ST-MoE, appendix: clipping as a way to stability).
    #[serde(default)]
    pub logit_clip: Option<f32>,
    /// `c·tanh(logit / c)` (Laguna `moe_router_logit_softcapping`).
    #[serde(default)]
    pub logit_softcap: Option<f32>,
    /// Restricts a token to its best groups of experts (DeepSeek-V2/V3).
    #[serde(default)]
    pub groups: Option<GroupLimit>,
    /// Makes a token's weights sum to 1 (`norm_topk_prob`).
    #[serde(default)]
    pub renormalize: Option<Renormalize>,
    /// Multiplies the weights last (`routed_scaling_factor`).
    #[serde(default = "one")]
    pub scaling_factor: f32,
    /// Whether a weight scales its expert's output or its input.
    #[serde(default)]
    pub weights_on: WeightsOn,
    /// Identity experts after the real ones: ids `E..E + num_zero_experts` return the token itself (LongCat-Flash).
    #[serde(default)]
    pub num_zero_experts: usize,
    /// The way the k experts are picked.
    #[serde(default)]
    pub selection: Selection,
    /// How many slots an expert takes, and what becomes of the others.
    #[serde(default)]
    pub capacity: Option<Capacity>,
    /// Noise on logits, inputs or choices; none at inference, by default.
    #[serde(default)]
    pub noise: Option<Noise>,
    /// What may be done with each expert, zero experts included; empty: all are active.
    #[serde(default)]
    pub expert_states: Vec<ExpertState>,
    /// Expert parallelism: the id on this rank of each expert that can be chosen, zero experts included, `null` where
    /// it is on another rank. Empty: all are here, under their own ids.
    #[serde(default)]
    pub expert_map: Vec<Option<u32>>,
}

fn one() -> f32 {
    1.0
}

impl RouterConfig {
    /// Softmax top-k without renormalisation, the start of most routers.
    pub fn softmax_top_k(top_k: usize) -> Self {
        Self {
            top_k,
            hidden_size: None,
            score: ScoreFunction::Softmax,
            weight: WeightFunction::Score,
            logit_clip: None,
            logit_softcap: None,
            groups: None,
            renormalize: None,
            scaling_factor: 1.0,
            weights_on: WeightsOn::Output,
            num_zero_experts: 0,
            selection: Selection::TopK,
            capacity: None,
            noise: None,
            expert_states: Vec::new(),
            expert_map: Vec::new(),
        }
    }

    /// How many experts a token can choose from, zero experts included, where `num_experts` with weights are here.
    pub fn num_choices(&self, num_experts: usize) -> usize {
        if self.expert_map.is_empty() { num_experts + self.num_zero_experts } else { self.expert_map.len() }
    }

    /// Columns of `router_logits`: one per choice, behind those of the groups where the selection is hierarchical.
    pub fn num_logits(&self, num_experts: usize) -> usize {
        self.num_group_logits() + self.num_choices(num_experts)
    }

    /// Whether tokens have different numbers of slots.
    pub fn is_ragged(&self) -> bool {
        matches!(self.selection, Selection::ExpertChoice { .. })
    }

    /// The slots that `num_tokens` tokens take among `num_choices` experts; `None` where it overflows.
    pub fn num_slots(&self, num_tokens: usize, num_choices: usize) -> Option<usize> {
        match self.selection {
            Selection::ExpertChoice { limit } => {
                let takers = (0..num_choices).filter(|&e| !self.is_disabled(e)).count();
                takers.checked_mul(limit.slots(num_tokens, self.top_k, num_choices))
            }
            _ => num_tokens.checked_mul(self.top_k),
        }
    }

    /// Whether an expert may never be chosen.
    pub fn is_disabled(&self, expert: usize) -> bool {
        self.expert_states.get(expert) == Some(&ExpertState::Disabled)
    }

    pub(crate) fn num_group_logits(&self) -> usize {
        match self.selection {
            Selection::Hierarchical { num_groups, .. } => num_groups,
            _ => 0,
        }
    }
}
