//! The oracle of the whole layer: a sum per token, with no permutation in it.

use super::{GroupedGemm, Route, Routing, grouped_gemm, jitter, route, router_logits};
use crate::config::{MoeConfig, WeightLayout};
use crate::ops::Epilogue;
use crate::routing::{Noise, NoiseKind, WeightsOn};

/// A linear projection, `[N, K]` row-major with an optional bias `[N]`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The matrix.
    pub weight: Vec<f64>,
    /// Added to the product.
    pub bias: Option<Vec<f64>>,
}

/// The projections of the experts, stacked; layouts as the configuration says.
#[derive(Clone, Debug)]
pub struct Experts {
    /// `[E, 2I, H]`, or `[E, I, H]` without a gate.
    pub gate_up_proj: Linear,
    /// `[E, H, I]`.
    pub down_proj: Linear,
}

/// The dense expert and the gate on its output.
#[derive(Clone, Debug)]
pub struct SharedExpert {
    /// A stack of one.
    pub experts: Experts,
    /// `[1, H]`.
    pub gate: Option<Vec<f64>>,
}

/// A layer's weights in f64.
#[derive(Clone, Debug)]
pub struct Layer<'a> {
    /// What the layer is.
    pub config: &'a MoeConfig,
    /// `[R, H]`: the router's own hidden layer.
    pub router_hidden: Option<Vec<f64>>,
    /// `[E, H]`; `[E, R]` behind a hidden layer.
    pub router: Linear,
    /// `[E]`.
    pub selection_bias: Option<Vec<f64>>,
    /// The routed experts.
    pub experts: Experts,
    /// The shared expert.
    pub shared: Option<SharedExpert>,
    /// `[L, H]` and `[H, L]`.
    pub latent: Option<(Linear, Linear)>,
}

/// What [`moe_layer`] returns.
#[derive(Clone, Debug)]
pub struct LayerOutput {
    /// `[T, H]`.
    pub output: Vec<f64>,
    /// Who went where.
    pub routing: Routing,
}

/// The layer, token by token, expert by expert. `routing` overrides the router's own choice.
pub fn moe_layer(layer: &Layer<'_>, hidden_states: &[f64], routing: Option<Routing>) -> LayerOutput {
    let config = layer.config;
    let routing = routing.unwrap_or_else(|| route_layer(layer, hidden_states));
    let num_tokens = hidden_states.len() / config.hidden_size;
    let k = config.router.top_k as u32;
    let offsets = routing.token_offsets.clone().unwrap_or_else(|| (0..=num_tokens as u32).map(|t| t * k).collect());
    let mut output = Vec::new();
    for (token, slots) in hidden_states.chunks_exact(config.hidden_size).zip(offsets.windows(2)) {
        let slots = slots[0] as usize..slots[1] as usize;
        let mut sum = routed(layer, token, &routing.topk_ids[slots.clone()], &routing.topk_weights[slots]);
        if let Some(shared) = &layer.shared {
            for (s, y) in sum.iter_mut().zip(shared_output(config, shared, token)) {
                *s += y;
            }
        }
        output.extend(sum);
    }
    LayerOutput { output, routing }
}

fn route_layer(layer: &Layer<'_>, hidden_states: &[f64]) -> Routing {
    let config = layer.config;
    let input = match config.router.noise {
        Some(Noise { seed, kind: NoiseKind::InputJitter { epsilon } }) => {
            &jitter(hidden_states, config.hidden_size, seed, epsilon)
        }
        _ => hidden_states,
    };
    let hidden = layer.router_hidden.as_ref().map(|weight| {
        let logits = router_logits(input, weight, None, config.hidden_size);
        logits.into_iter().map(f64::tanh).collect::<Vec<_>>()
    });
    let width = config.router.hidden_size.unwrap_or(config.hidden_size);
    let input = hidden.as_deref().unwrap_or(input);
    let logits = router_logits(input, &layer.router.weight, layer.router.bias.as_deref(), width);
    let num_choices = config.router.num_choices(config.num_experts);
    route(&Route {
        selection_bias: layer.selection_bias.as_deref(),
        ..Route::new(&config.router, &logits, num_choices)
    })
}

fn routed(layer: &Layer<'_>, token: &[f64], ids: &[u32], weights: &[f64]) -> Vec<f64> {
    let config = layer.config;
    let project = |linear: &Linear, x: &[f64]| router_logits(x, &linear.weight, linear.bias.as_deref(), x.len());
    let input = layer.latent.as_ref().map_or_else(|| token.to_vec(), |(down, _)| project(down, token));
    let mut sum = vec![0.0; input.len()];
    for (&id, &weight) in ids.iter().zip(weights) {
        let id = id as usize;
        let (input_scale, output_scale) = match config.router.weights_on {
            WeightsOn::Input => (weight, 1.0),
            WeightsOn::Output => (1.0, weight),
        };
        let scaled: Vec<f64> = input.iter().map(|x| x * input_scale).collect();
        let result = if id < config.num_experts {
            expert(config, &layer.experts, id, &scaled)
        } else if id < config.num_experts + config.router.num_zero_experts {
            scaled
        } else {
            continue;
        };
        sum.iter_mut().zip(result).for_each(|(s, y)| *s += output_scale * y);
    }
    layer.latent.as_ref().map_or(sum.clone(), |(_, up)| project(up, &sum))
}

fn expert(config: &MoeConfig, experts: &Experts, id: usize, x: &[f64]) -> Vec<f64> {
    let epilogue = Epilogue::of(config.activation, config.gate_up_layout);
    let act = project(&experts.gate_up_proj, id, config.gate_up_size(), config.weight_layout, epilogue, x);
    project(&experts.down_proj, id, x.len(), config.weight_layout, Epilogue::None, &act)
}

fn shared_output(config: &MoeConfig, shared: &SharedExpert, x: &[f64]) -> Vec<f64> {
    let Some(of) = &config.shared else { return vec![0.0; x.len()] };
    let epilogue = Epilogue::of(of.activation, of.gate_up_layout);
    let n = of.intermediate_size * if of.gate_up_layout.is_some() { 2 } else { 1 };
    let act = project(&shared.experts.gate_up_proj, 0, n, of.weight_layout, epilogue, x);
    let output = project(&shared.experts.down_proj, 0, x.len(), of.weight_layout, Epilogue::None, &act);
    let scale = shared.gate.as_ref().map_or(1.0, |gate| {
        let logit: f64 = gate.iter().zip(x).map(|(w, x)| w * x).sum();
        1.0 / (1.0 + (-logit).exp())
    });
    output.into_iter().map(|y| y * scale * f64::from(of.output_scale)).collect()
}

/// One row through one matrix of a stack.
fn project(
    linear: &Linear,
    id: usize,
    n: usize,
    weight_layout: WeightLayout,
    epilogue: Epilogue,
    x: &[f64],
) -> Vec<f64> {
    let k = x.len();
    grouped_gemm(&GroupedGemm {
        input: x,
        k,
        n,
        expert_offsets: &[0, 1],
        weight: &linear.weight[id * n * k..][..n * k],
        weight_layout,
        bias: linear.bias.as_ref().map(|bias| &bias[id * n..][..n]),
        epilogue,
    })
}
