//! A whole layer with random weights: the same numbers for the oracle and for a device.

use fused_moe::config::{MoeConfig, SharedExpertConfig, WeightLayout};
use fused_moe::layer::{LayerOptions, MoeLayer, Routing};
use fused_moe::reference::{self, Experts, Linear};
use fused_moe::weights::{ExpertWeights, LatentWeights, MoeWeights, RouterWeights, SharedWeights};
use fused_moe::workspace::Workspace;
use fused_moe::{DType, Device, Result, Tensor};
use rand::rngs::StdRng;

use super::values::{Floats, download, garbage, rng};

/// What a layer is, beside its configuration.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What the layer is.
    pub config: MoeConfig,
    /// Of all weights but biases.
    pub weight: DType,
    /// Of hidden states and output.
    pub io: DType,
    /// Hidden states that the weights' type can hold: a backend may round them to it, and the bound is on what comes
    /// after that.
    pub rounded_inputs: bool,
    /// Whether router, experts and projections have biases.
    pub biases: bool,
    /// Range of the selection bias, where there is one.
    pub selection_bias: Option<f32>,
    /// Of the random numbers.
    pub seed: u64,
}

/// A layer's weights on the host.
#[derive(Clone, Debug)]
pub struct Model {
    /// What the layer is.
    pub spec: Spec,
    router_hidden: Option<Projection>,
    router: Projection,
    selection_bias: Option<Floats>,
    experts: Stack,
    shared: Option<(Stack, Option<Floats>)>,
    latent: Option<(Projection, Projection)>,
}

#[derive(Clone, Debug)]
struct Projection {
    weight: Floats,
    bias: Option<Floats>,
}

#[derive(Clone, Debug)]
struct Stack {
    gate_up: Projection,
    down: Projection,
}

/// The sizes of a [`Stack`].
struct StackSizes {
    num_experts: usize,
    hidden_size: usize,
    gate_up_size: usize,
    intermediate_size: usize,
    weight_layout: WeightLayout,
}

impl StackSizes {
    fn routed(config: &MoeConfig) -> Self {
        Self {
            num_experts: config.num_experts,
            hidden_size: config.expert_hidden_size(),
            gate_up_size: config.gate_up_size(),
            intermediate_size: config.intermediate_size,
            weight_layout: config.weight_layout,
        }
    }

    fn shared(config: &MoeConfig, shared: &SharedExpertConfig) -> Self {
        Self {
            num_experts: 1,
            hidden_size: config.hidden_size,
            gate_up_size: shared.gate_up_size(),
            intermediate_size: shared.intermediate_size,
            weight_layout: shared.weight_layout,
        }
    }
}

impl Projection {
    /// `count` matrices `[n, k]`, scaled so that inputs of order 1 give outputs of order 1.
    fn random(rng: &mut StdRng, spec: &Spec, count: usize, n: usize, k: usize) -> Self {
        let scale = (5.0 / k as f32).sqrt();
        Self {
            weight: Floats::random(rng, spec.weight, count * n * k, scale),
            bias: spec.biases.then(|| Floats::random(rng, DType::F32, count * n, 0.5)),
        }
    }

    fn linear(&self) -> Linear {
        Linear { weight: self.weight.wide(), bias: self.bias.as_ref().map(Floats::wide) }
    }
}

impl Stack {
    fn random(rng: &mut StdRng, spec: &Spec, sizes: &StackSizes) -> Self {
        let &StackSizes { num_experts, hidden_size, gate_up_size, intermediate_size, .. } = sizes;
        Self {
            gate_up: Projection::random(rng, spec, num_experts, gate_up_size, hidden_size),
            down: Projection::random(rng, spec, num_experts, hidden_size, intermediate_size),
        }
    }

    fn oracle(&self) -> Experts {
        Experts { gate_up_proj: self.gate_up.linear(), down_proj: self.down.linear() }
    }

    fn upload(&self, device: &Device, sizes: &StackSizes) -> Result<ExpertWeights> {
        let &StackSizes { num_experts, hidden_size, gate_up_size, intermediate_size, weight_layout } = sizes;
        let bias = |bias: &Option<Floats>, n: usize| upload(bias, device, [num_experts, n]);
        let gate_up_shape = weight_layout.shape(num_experts, gate_up_size, hidden_size);
        let down_shape = weight_layout.shape(num_experts, hidden_size, intermediate_size);
        Ok(ExpertWeights {
            gate_up_proj: self.gate_up.weight.upload(device, gate_up_shape)?,
            gate_up_bias: bias(&self.gate_up.bias, gate_up_size)?,
            down_proj: self.down.weight.upload(device, down_shape)?,
            down_bias: bias(&self.down.bias, hidden_size)?,
        })
    }
}

fn upload<const N: usize>(values: &Option<Floats>, device: &Device, shape: [usize; N]) -> Result<Option<Tensor>> {
    values.as_ref().map(|values| values.upload(device, shape)).transpose()
}

/// The width of what the router's last projection sees.
fn router_width(config: &MoeConfig) -> usize {
    config.router.hidden_size.unwrap_or(config.hidden_size)
}

impl Model {
    /// Random weights.
    pub fn new(spec: &Spec) -> Self {
        let rng = &mut rng(spec.seed);
        let config = &spec.config;
        let choices = config.router.num_choices(config.num_experts);
        let shared = config.shared.as_ref().map(|shared| {
            let gate = Floats::random(rng, spec.weight, config.hidden_size, 0.5);
            (Stack::random(rng, spec, &StackSizes::shared(config, shared)), shared.sigmoid_gate.then_some(gate))
        });
        let latent = config.latent_size.map(|size| {
            let down = Projection::random(rng, spec, 1, size, config.hidden_size);
            (down, Projection::random(rng, spec, 1, config.hidden_size, size))
        });
        Self {
            router_hidden: config.router.hidden_size.map(|n| Projection::random(rng, spec, 1, n, config.hidden_size)),
            router: Projection::random(
                rng,
                spec,
                1,
                config.router.num_logits(config.num_experts),
                router_width(config),
            ),
            selection_bias: spec.selection_bias.map(|scale| Floats::random(rng, DType::F32, choices, scale)),
            experts: Stack::random(rng, spec, &StackSizes::routed(config)),
            shared,
            latent,
            spec: spec.clone(),
        }
    }

    /// Random hidden states `[T, H]`.
    pub fn hidden_states(&self, num_tokens: usize) -> Floats {
        let numel = num_tokens * self.spec.config.hidden_size;
        let dtype = if self.spec.rounded_inputs { self.spec.weight } else { self.spec.io };
        Floats::new(self.spec.io, Floats::random(&mut rng(self.spec.seed + 1000), dtype, numel, 1.7).values)
    }

    /// Multiplies the routed experts' weights: how far their activations and outputs reach.
    pub fn scale_experts(&mut self, gate_up: f32, down: f32) {
        for (projection, factor) in [(&mut self.experts.gate_up, gate_up), (&mut self.experts.down, down)] {
            let scaled = projection.weight.values.iter().map(|weight| weight * factor);
            projection.weight = Floats::new(projection.weight.dtype, scaled);
        }
    }

    /// The layer in f64.
    pub fn oracle(&self) -> reference::Layer<'_> {
        reference::Layer {
            config: &self.spec.config,
            router_hidden: self.router_hidden.as_ref().map(|hidden| hidden.weight.wide()),
            router: self.router.linear(),
            selection_bias: self.selection_bias.as_ref().map(Floats::wide),
            experts: self.experts.oracle(),
            shared: self.shared.as_ref().map(|(stack, gate)| reference::SharedExpert {
                experts: stack.oracle(),
                gate: gate.as_ref().map(Floats::wide),
            }),
            latent: self.latent.as_ref().map(|(down, up)| (down.linear(), up.linear())),
        }
    }

    /// The weights on a device.
    pub fn upload(&self, device: &Device) -> Result<MoeWeights> {
        let config = &self.spec.config;
        let choices = config.router.num_choices(config.num_experts);
        let logits = config.router.num_logits(config.num_experts);
        let shared = self.shared.as_ref().zip(config.shared.as_ref()).map(|((stack, gate), shared)| -> Result<_> {
            Ok(SharedWeights {
                experts: stack.upload(device, &StackSizes::shared(config, shared))?,
                gate: upload(gate, device, [1, config.hidden_size])?,
            })
        });
        let latent = self.latent.as_ref().zip(config.latent_size).map(|((down, up), size)| -> Result<_> {
            Ok(LatentWeights {
                down: down.weight.upload(device, [1, size, config.hidden_size])?,
                down_bias: upload(&down.bias, device, [1, size])?,
                up: up.weight.upload(device, [1, config.hidden_size, size])?,
                up_bias: upload(&up.bias, device, [1, config.hidden_size])?,
            })
        });
        let hidden = self
            .router_hidden
            .as_ref()
            .map(|hidden| hidden.weight.upload(device, [router_width(config), config.hidden_size]));
        Ok(MoeWeights {
            router: Some(RouterWeights {
                hidden: hidden.transpose()?,
                weight: self.router.weight.upload(device, [logits, router_width(config)])?,
                bias: upload(&self.router.bias, device, [logits])?,
                selection_bias: upload(&self.selection_bias, device, [choices])?,
            }),
            experts: self.experts.upload(device, &StackSizes::routed(config))?,
            shared: shared.transpose()?,
            latent: latent.transpose()?,
        })
    }

    /// The layer on a device.
    pub fn layer(&self, device: &Device, options: LayerOptions) -> Result<MoeLayer> {
        Ok(MoeLayer::new(device, self.spec.config.clone(), self.upload(device)?)?.with_options(options))
    }
}

/// One call of a layer, from and to the host, into an output full of garbage.
pub fn forward(layer: &MoeLayer, hidden_states: &Floats, workspace: &mut Workspace) -> Result<Vec<f64>> {
    let device = layer.device();
    let shape = [hidden_states.values.len() / layer.config().hidden_size, layer.config().hidden_size];
    let input = hidden_states.upload(device, shape)?;
    let mut output = garbage(device, hidden_states.dtype, shape)?;
    layer.forward(input.view(), output.view_mut()?, workspace)?;
    download(device, output.view())
}

/// As [`forward`], with the routing given.
pub fn forward_routed(
    layer: &MoeLayer,
    hidden_states: &Floats,
    topk_ids: &[u32],
    topk_weights: &Floats,
    workspace: &mut Workspace,
) -> Result<Vec<f64>> {
    let (device, config) = (layer.device(), layer.config());
    let num_tokens = hidden_states.values.len() / config.hidden_size;
    let input = hidden_states.upload(device, [num_tokens, config.hidden_size])?;
    let slots = [num_tokens, config.router.top_k];
    let topk_ids = Tensor::from_slice(device, topk_ids, slots)?;
    let topk_weights = topk_weights.upload(device, slots)?;
    let mut output = garbage(device, hidden_states.dtype, [num_tokens, config.hidden_size])?;
    let routing = Routing::per_token(topk_ids.view(), topk_weights.view());
    layer.forward_routed(input.view(), routing, output.view_mut()?, workspace)?;
    download(device, output.view())
}
