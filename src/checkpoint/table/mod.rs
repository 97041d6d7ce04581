//! The architectures. To add one: an entry, which names what differs from [`BASE`].
//!
//! Defaults of keys are those of transformers 5.23's configuration classes, and what a key means is what its modelling
//! code makes of it: `norm_topk_prob` does nothing in deepseek_v2, say.

mod own;
mod sigmoid;
mod softmax;

use super::LayerStack;
use super::architecture::{Architecture, Experts, Get, Shared, StackNames};
use super::error::Result;
use super::json::Keys;
use crate::config::{GateUpLayout, WeightLayout};
use crate::routing::{Renormalize, RouterConfig, ScoreFunction, WeightFunction};

/// All architectures.
pub(super) fn architectures() -> impl Iterator<Item = &'static Architecture> {
    softmax::TABLE.iter().chain(sigmoid::TABLE).chain(own::TABLE)
}

/// The architecture of a `model_type`, and of the `model_type` inside its `text_config`.
pub(super) fn find(outer: &str, inner: Option<&str>) -> Option<&'static Architecture> {
    architectures()
        .find(|architecture| architecture.model_type == inner.unwrap_or(outer))
        .or_else(|| architectures().find(|architecture| architecture.wrappers.contains(&outer)))
}

/// What most architectures have.
const BASE: Architecture = Architecture {
    model_type: "",
    wrappers: &[],
    stacks: &[StackNames {
        stack: LayerStack::Only,
        layer: "model.layers.{l}.|layers.{l}.|language_model.model.layers.{l}.|model.language_model.layers.{l}.\
                |language_model.layers.{l}.",
    }],
    num_layers: |c| c.layers("num_hidden_layers", 32),
    has_experts: |_| Ok(true),
    hidden_size: |c| c.size("hidden_size", 4096),
    num_experts: |c| c.size("num_experts|num_local_experts", 8),
    intermediate_size: |c| c.size("moe_intermediate_size", 1408),
    activation: |c| c.activation("hidden_act", "silu"),
    router: |c| Ok(RouterConfig::softmax_top_k(c.size("num_experts_per_tok", 2)?)),
    block: "mlp.",
    router_weight: "gate.weight",
    router_hidden: None,
    router_bias: |_| Ok(false),
    selection_bias: None,
    has_selection_bias: |_| Ok(true),
    experts: &[PROJ, FUSED],
    shared: None,
    latent: None,
    only: &[],
};

/// Llama's names.
const PROJ: Experts = Experts::PerExpert {
    gate: Some("experts.{e}.gate_proj.weight"),
    up: "experts.{e}.up_proj.weight",
    down: "experts.{e}.down_proj.weight",
    bias: false,
};

/// Mixtral's names.
const W132: Experts = Experts::PerExpert {
    gate: Some("experts.{e}.w1.weight"),
    up: "experts.{e}.w3.weight",
    down: "experts.{e}.w2.weight",
    bias: false,
};

/// As transformers 5 holds experts in memory, and saves them on request.
const FUSED: Experts = stacked("experts.gate_up_proj", "experts.down_proj", WeightLayout::Nk);

const fn stacked(gate_up: &'static str, down: &'static str, weight_layout: WeightLayout) -> Experts {
    let gate_up_layout = Some(GateUpLayout::GateThenUp);
    Experts::Stacked { gate_up, down, gate_up_layout, weight_layout, bias: false }
}

/// A shared SwiGLU without biases, of the width given.
const fn shared(name: &'static str, intermediate_size: Get<usize>) -> Shared {
    Shared {
        name,
        intermediate_size,
        activation: |c| c.activation("hidden_act", "silu"),
        gated: true,
        bias: |_| Ok(false),
        sigmoid_gate: None,
        scale: |_| Ok(1.0),
    }
}

/// `count` experts of `moe_intermediate_size` make one shared expert.
fn shared_width(c: Keys<'_>, count_key: &str, count: usize, intermediate_size: usize) -> Result<usize> {
    let width = c.size("moe_intermediate_size", intermediate_size)?;
    c.product(count_key, width, c.size(count_key, count)?)
}

/// Softmax over all experts; the chosen weights divided by their sum.
fn softmax_renormalized(top_k: usize) -> RouterConfig {
    RouterConfig { renormalize: Some(Renormalize::default()), ..RouterConfig::softmax_top_k(top_k) }
}

/// Softmax over all experts; the chosen weights divided by their sum where `norm_topk_prob` says so.
fn softmax_norm_topk(c: Keys<'_>, top_k: usize, norm_topk_prob: bool) -> Result<RouterConfig> {
    let top_k = c.size("num_experts_per_tok", top_k)?;
    Ok(if c.flag("norm_topk_prob", norm_topk_prob)? {
        softmax_renormalized(top_k)
    } else {
        RouterConfig::softmax_top_k(top_k)
    })
}

/// The largest logits; softmax over those.
fn softmax_over_selected(top_k: usize) -> RouterConfig {
    RouterConfig {
        score: ScoreFunction::Logit,
        weight: WeightFunction::SoftmaxOverSelected,
        ..RouterConfig::softmax_top_k(top_k)
    }
}
