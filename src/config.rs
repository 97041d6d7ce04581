//! What a MoE layer is, as plain data: sizes, router, experts, shared experts.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::routing::RouterConfig;

/// A MoE layer: everything about it but its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// E: experts with weights (zero experts are the router's).
    pub num_experts: usize,
    /// H: features of a token, into and out of the layer.
    pub hidden_size: usize,
    /// I: features between the two projections of a routed expert.
    pub intermediate_size: usize,
    /// How tokens choose experts.
    pub router: RouterConfig,
    /// What a routed expert computes between its two projections.
    pub activation: Activation,
    /// How gate and up are stacked in `gate_up_proj`; `None` where the expert has no gate: `act(x·W)·V`.
    pub gate_up_layout: Option<GateUpLayout>,
    /// How one expert's matrix lies in memory.
    #[serde(default)]
    pub weight_layout: WeightLayout,
    /// The dense expert that every token passes through.
    #[serde(default)]
    pub shared: Option<SharedExpertConfig>,
    /// Width of the latent space in which the routed experts work, where it is not `hidden_size` (Nemotron-H
    /// `moe_latent_size`): projections before and after them, neither seen by the router or the shared expert.
    #[serde(default)]
    pub latent_size: Option<usize>,
}

/// A dense FFN beside the routed experts (several shared experts are one of their summed width).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedExpertConfig {
    /// Features between its two projections.
    pub intermediate_size: usize,
    /// Its activation.
    pub activation: Activation,
    /// How its gate and up are stacked; `None` without a gate.
    pub gate_up_layout: Option<GateUpLayout>,
    /// How its matrices lie in memory.
    #[serde(default)]
    pub weight_layout: WeightLayout,
    /// Whether its output is scaled by `sigmoid(x·w)` (Qwen2-MoE `shared_expert_gate`).
    #[serde(default)]
    pub sigmoid_gate: bool,
    /// Multiplies its output (Cohere2-MoE averages: 0.5 here and in the router's `scaling_factor`).
    #[serde(default = "one")]
    pub output_scale: f32,
}

fn one() -> f32 {
    1.0
}

/// The nonlinearity of an expert: applied to the gate half where there is one (`act(gate) · up`), else to the whole.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Activation {
    /// `x·sigmoid(x)`; gated it is SwiGLU.
    Silu,
    /// `x·Φ(x)`, by erf; gated it is GeGLU.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²` (Nemotron-H).
    ReluSquared,
    /// gpt-oss: gate clamped from above and up from both sides to `limit`; `(up + 1) · gate·sigmoid(alpha·gate)`.
    ClampedSwiglu {
        /// The factor inside the sigmoid (1.702).
        alpha: f32,
        /// The clamp (7.0).
        limit: f32,
    },
}

/// How the gate's and the up projection's rows are stacked along N in `gate_up_proj`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateUpLayout {
    /// All gate rows, then all up rows.
    GateThenUp,
    /// All up rows, then all gate rows.
    UpThenGate,
    /// gate 0, up 0, gate 1, up 1, … (gpt-oss).
    Interleaved,
}

impl GateUpLayout {
    /// Where along N the gate's and the up projection's column `i` lie, of `intermediate_size` each.
    pub fn columns(self, i: usize, intermediate_size: usize) -> (usize, usize) {
        match self {
            Self::GateThenUp => (i, intermediate_size + i),
            Self::UpThenGate => (intermediate_size + i, i),
            Self::Interleaved => (2 * i, 2 * i + 1),
        }
    }
}

/// How one expert's matrix lies in memory; N is its output width, K its input width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightLayout {
    /// `[E, N, K]`: an output's weights are contiguous (PyTorch's `Linear`; nearly all models).
    #[default]
    Nk,
    /// `[E, K, N]`: an input's weights are contiguous (gpt-oss, Llama 4).
    Kn,
}

impl WeightLayout {
    /// The shape of a stack of `num_experts` matrices from `k` to `n` features.
    pub fn shape(self, num_experts: usize, n: usize, k: usize) -> [usize; 3] {
        match self {
            Self::Nk => [num_experts, n, k],
            Self::Kn => [num_experts, k, n],
        }
    }
}

impl SharedExpertConfig {
    /// N of its `gate_up_proj`.
    pub fn gate_up_size(&self) -> usize {
        self.intermediate_size * if self.gate_up_layout.is_some() { 2 } else { 1 }
    }
}

impl MoeConfig {
    /// N of `gate_up_proj`: `2·I` with a gate, else `I`.
    pub fn gate_up_size(&self) -> usize {
        self.intermediate_size * if self.gate_up_layout.is_some() { 2 } else { 1 }
    }

    /// The width of the routed experts' input and output: `latent_size`, or `hidden_size` where there is none.
    pub fn expert_hidden_size(&self) -> usize {
        self.latent_size.unwrap_or(self.hidden_size)
    }

    /// Checks that the parts fit each other.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first field that does not.
    pub fn validate(&self) -> Result<()> {
        self.validate_with(true)
    }

    /// As [`MoeConfig::validate`]. Where the layer does not route, its experts may be the few of one rank: the rule is
    /// the caller's, and only what sizes the call is checked.
    pub(crate) fn validate_with(&self, layer_routes: bool) -> Result<()> {
        for (name, size) in [
            ("num_experts", self.num_experts),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("shared.intermediate_size", self.shared.as_ref().map_or(1, |s| s.intermediate_size)),
            ("latent_size", self.latent_size.unwrap_or(1)),
            ("router.hidden_size", self.router.hidden_size.unwrap_or(1)),
            ("router.top_k", self.router.top_k),
            ("router.num_zero_experts", self.router.num_zero_experts.max(1)),
        ] {
            // Far above any model, and low enough that products of two sizes cannot overflow.
            if !(1..=1 << 24).contains(&size) {
                return Err(Error::invalid(name, "1 to 2^24", size));
            }
        }
        check_activation("activation", self.activation, self.gate_up_layout)?;
        if let Some(shared) = &self.shared {
            check_activation("shared.activation", shared.activation, shared.gate_up_layout)?;
            if !shared.output_scale.is_finite() {
                return Err(Error::invalid("shared.output_scale", "a finite number", shared.output_scale));
            }
        }
        if layer_routes { self.router.validate(self.num_experts) } else { Ok(()) }
    }
}

fn check_activation(name: &str, activation: Activation, layout: Option<GateUpLayout>) -> Result<()> {
    match (activation, layout) {
        (Activation::ClampedSwiglu { .. }, None) => {
            Err(Error::invalid(name, "a gate_up_layout for clamped_swiglu", "none"))
        }
        (Activation::ClampedSwiglu { alpha, limit }, _) if !alpha.is_finite() || limit.is_nan() || limit <= 0.0 => {
            Err(Error::invalid(name, "finite alpha and limit > 0", format!("{activation:?}")))
        }
        _ => Ok(()),
    }
}
