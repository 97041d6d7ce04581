//! How tokens choose experts: every rule as plain data.
//!
//! [`RouterConfig`] is one pipeline, and each system of the literature is a setting of it. Per token, in f32 (f64 in
//! the reference):
//!
//! 1. `logits` = `router_logits`, ±inf brought to ±`f32::MAX`, then [`logit_clip`](RouterConfig::logit_clip) and
//!    [`logit_softcap`](RouterConfig::logit_softcap);
//! 2. `scores` = [`score`](RouterConfig::score)`(logits)` over all experts, zero experts included; a NaN scores 0;
//! 3. `choice = scores + selection_bias`: the bias picks and never weighs (DeepSeek-V3). A NaN is below everything.
//!    Without a bias the choice is made on the logits themselves, as every score grows with its logit;
//! 4. with [`groups`](RouterConfig::groups), every expert outside the best groups leaves the choice;
//! 5. [`selection`](RouterConfig::selection) picks `top_k` experts: the largest of `choice`, largest first, ties to
//!    the lowest id, or by a rule of its own;
//! 6. [`capacity`](RouterConfig::capacity) drops slots or sends them on; a dropped slot has the id [`MASKED`] and the
//!    weight 0;
//! 7. [`weight`](RouterConfig::weight) weighs the picked experts, from scores or from their logits;
//! 8. [`renormalize`](RouterConfig::renormalize) divides by the token's sum, then `scaling_factor` multiplies. A
//!    weight that is not finite becomes 0.

mod capacity;
mod rules;

pub use capacity::{Capacity, CapacityLimit, CapacityOrder, Overflow};
pub use rules::{GroupLimit, GroupScore, Renormalize, ScoreFunction, Selection, WeightFunction, WeightsOn};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

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
        }
    }

    /// Columns of `router_logits`: experts with weights, then zero experts.
    pub fn num_choices(&self, num_experts: usize) -> usize {
        num_experts + self.num_zero_experts
    }

    /// The most slots that `num_tokens` tokens can take.
    pub fn max_slots(&self, num_tokens: usize) -> usize {
        num_tokens * self.top_k
    }

    /// Checks that the rule can run over `num_experts` experts.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first field that does not fit.
    pub fn validate(&self, num_experts: usize) -> Result<()> {
        let choices = self.num_choices(num_experts);
        if self.top_k == 0 || self.top_k > choices {
            return Err(Error::invalid("router.top_k", format!("1 to {choices}"), self.top_k));
        }
        if !self.scaling_factor.is_finite() {
            return Err(Error::invalid("router.scaling_factor", "a finite number", self.scaling_factor));
        }
        for (name, limit) in [("logit_clip", self.logit_clip), ("logit_softcap", self.logit_softcap)] {
            if limit.is_some_and(|c| !(c.is_finite() && c > 0.0)) {
                return Err(Error::invalid(format!("router.{name}"), "a finite number > 0", format!("{limit:?}")));
            }
        }
        if let Some(groups) = &self.groups {
            groups.validate(self.top_k, choices)?;
        }
        if let Some(renormalize) = &self.renormalize {
            renormalize.validate()?;
        }
        self.validate_selection()?;
        self.capacity.as_ref().map_or(Ok(()), Capacity::validate)
    }

    fn validate_selection(&self) -> Result<()> {
        let Selection::SparseMixer { jitter } = self.selection else { return Ok(()) };
        if self.top_k != 2 {
            return Err(Error::invalid("router.top_k", "2 with selection sparse_mixer", self.top_k));
        }
        if self.groups.is_some() || self.capacity.is_some() {
            return Err(Error::invalid("router.selection", "no groups and no capacity with sparse_mixer", "both"));
        }
        if !(jitter.is_finite() && jitter >= 0.0) {
            return Err(Error::invalid("router.selection.sparse_mixer.jitter", "a finite number ≥ 0", jitter));
        }
        Ok(())
    }
}
