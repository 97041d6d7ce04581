//! What an architecture is, as data: keys of `config.json`, names of tensors, layouts, the router's rule.

use std::fmt;

use super::error::Result;
use super::json::Keys;
use super::{LayerId, LayerStack};
use crate::config::{Activation, GateUpLayout, WeightLayout};
use crate::routing::RouterConfig;

/// Something that `config.json` says about a layer.
pub(super) type Get<T> = fn(Keys<'_>) -> Result<T>;

/// One architecture. Names of tensors may be given as `a|b`: whichever a file has.
pub(super) struct Architecture {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The `model_type` of multimodal checkpoints whose `text_config` may leave it out.
    pub wrappers: &'static [&'static str],
    /// Where layers are: the decoder's, or an encoder's and a decoder's.
    pub stacks: &'static [StackNames],
    /// Layers in a stack, with experts or without.
    pub num_layers: Get<usize>,
    /// Whether a layer has experts.
    pub has_experts: Get<bool>,
    /// H.
    pub hidden_size: Get<usize>,
    /// E.
    pub num_experts: Get<usize>,
    /// I.
    pub intermediate_size: Get<usize>,
    /// Of a routed expert.
    pub activation: Get<Activation>,
    /// How tokens choose experts.
    pub router: Get<RouterConfig>,
    /// The MoE block in its layer. All names below are inside it.
    pub block: &'static str,
    /// `[E, H]`.
    pub router_weight: &'static str,
    /// `[R, H]`, where the rule has a hidden size.
    pub router_hidden: Option<&'static str>,
    /// Beside the weight; only where `config.json` says so.
    pub router_bias: Get<bool>,
    /// `[E]`, added to the scores to choose by.
    pub selection_bias: Option<&'static str>,
    /// Whether a layer of this architecture has the selection bias.
    pub has_selection_bias: Get<bool>,
    /// The layouts in which the routed experts are found on disk.
    pub experts: &'static [Experts],
    /// The shared expert.
    pub shared: Option<Shared>,
    /// The latent space of the routed experts.
    pub latent: Option<Latent>,
    /// Keys that would change the block, and the values of them that do not.
    pub only: &'static [(&'static str, &'static [&'static str])],
}

/// A stack of layers: what `{l}` stands for in its names is the layer.
pub(super) struct StackNames {
    pub stack: LayerStack,
    pub layer: &'static str,
}

/// How the routed experts lie on disk; `{e}` in a name is the expert.
pub(super) enum Experts {
    /// A tensor `[N, K]` for each projection of each expert; no gate where it has none.
    PerExpert { gate: Option<&'static str>, up: &'static str, down: &'static str, bias: bool },
    /// A tensor for each projection, `[E, N, K]` or `[E, K, N]`; its bias is the name with `_bias`.
    Stacked {
        gate_up: &'static str,
        down: &'static str,
        gate_up_layout: Option<GateUpLayout>,
        weight_layout: WeightLayout,
        bias: bool,
    },
    /// A tensor `[E·I, H]` for each projection (DBRX).
    Rows { gate: &'static str, up: &'static str, down: &'static str },
    /// gpt-oss as published: `_blocks` `[E, N, K/32, 16]` and `_scales` `[E, N, K/32]` of 4-bit numbers.
    Mxfp4 { gate_up: &'static str, down: &'static str },
}

/// A dense expert: `{name}.gate_proj.weight`, `{name}.up_proj.weight`, `{name}.down_proj.weight`.
pub(super) struct Shared {
    pub name: &'static str,
    /// 0 where the layer has none.
    pub intermediate_size: Get<usize>,
    pub activation: Get<Activation>,
    /// Whether there is a gate half.
    pub gated: bool,
    pub bias: Get<bool>,
    /// `[1, H]`, whose sigmoid scales the output.
    pub sigmoid_gate: Option<&'static str>,
    /// Multiplies the output.
    pub scale: Get<f32>,
}

/// The projections around experts that work in a space of their own: `{name}.weight`.
pub(super) struct Latent {
    pub size: Get<Option<usize>>,
    pub down: &'static str,
    pub up: &'static str,
    pub bias: Get<bool>,
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Architecture").field(&self.model_type).finish()
    }
}

impl Architecture {
    /// The layer's names on disk, most likely first.
    pub fn layer_names(&self, layer: LayerId) -> Vec<String> {
        let stack = self.stacks.iter().find(|stack| stack.stack == layer.stack());
        let patterns = stack.map_or("", |stack| stack.layer).split('|');
        patterns.map(|pattern| pattern.replace("{l}", &layer.index().to_string())).collect()
    }
}

impl Experts {
    /// A tensor that a checkpoint of this layout has.
    pub fn first_tensor(&self) -> String {
        match self {
            Self::PerExpert { up, .. } => up.replace("{e}", "0"),
            Self::Stacked { gate_up, .. } => (*gate_up).to_owned(),
            Self::Rows { gate, .. } => (*gate).to_owned(),
            Self::Mxfp4 { gate_up, .. } => format!("{gate_up}_blocks"),
        }
    }

    /// How gate and up are stacked once loaded.
    pub fn gate_up_layout(&self) -> Option<GateUpLayout> {
        match self {
            Self::PerExpert { gate, .. } => gate.map(|_| GateUpLayout::GateThenUp),
            Self::Stacked { gate_up_layout, .. } => *gate_up_layout,
            Self::Rows { .. } => Some(GateUpLayout::GateThenUp),
            Self::Mxfp4 { .. } => Some(GateUpLayout::Interleaved),
        }
    }

    /// How a matrix lies in memory once loaded.
    pub fn weight_layout(&self) -> WeightLayout {
        match self {
            Self::Stacked { weight_layout, .. } => *weight_layout,
            _ => WeightLayout::Nk,
        }
    }
}
