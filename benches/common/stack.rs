//! Layers with weights, as many as it takes to keep them out of the caches, and the calls that rotate over them.

use std::cell::Cell;
use std::collections::BTreeSet;

use fused_moe::config::MoeConfig;
use fused_moe::layer::Routing;
use fused_moe::tensor::{Data, Element, Shape};
use fused_moe::weights::{ExpertWeights, RouterWeights, SharedWeights};
use fused_moe::{DType, Device, MoeLayer, MoeWeights, Tensor};
use half::{bf16, f16};

use super::data::{Part, Source, unit_scale};
use super::presets::Preset;
use super::routing::{self, Distribution, Uniform};
use super::{announce, machine, test_mode};

/// Chosen experts' logits; those of the others stay near 0.
const CHOSEN_LOGIT: f64 = 4.0;

/// The layers of one preset in rotation.
#[derive(Debug)]
pub struct Stack {
    pub preset: Preset,
    pub dtype: DType,
    pub layers: Vec<MoeLayer>,
}

/// One call's input.
#[derive(Debug)]
pub struct Call {
    pub layer: usize,
    /// `[T, H]`, made so that the layer's own router chooses `topk_ids`.
    pub hidden_states: Tensor,
    pub topk_ids: Tensor,
    pub topk_weights: Tensor,
}

/// What a call has to do at least.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Weights of the hit and the shared experts.
    pub bytes: f64,
    /// Multiplications and additions in the experts.
    pub flops: f64,
}

/// Calls that take turns.
#[derive(Debug)]
pub struct Calls {
    calls: Vec<Call>,
    next: Cell<usize>,
}

/// How many layers take turns.
pub fn num_layers(preset: &Preset, dtype: DType) -> usize {
    if test_mode() {
        return 2;
    }
    let bytes = preset.bytes(dtype);
    let room = (machine::weights_budget() / bytes).max(1);
    machine::rotation_bytes().div_ceil(bytes).min(room)
}

/// Layer and round of each call of a rotation: over all layers, and at T = 1 over all experts.
fn rotation(preset: &Preset, dtype: DType, num_tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let config = &preset.config;
    let rounds = if num_tokens == 1 { (config.num_experts / config.router.top_k).min(32) } else { 2 };
    let num_layers = num_layers(preset, dtype);
    (0..rounds).flat_map(move |round| (0..num_layers).map(move |layer| (layer, round)))
}

/// The mean work of a rotation's calls.
pub fn mean_work(preset: &Preset, dtype: DType, distribution: Distribution, num_tokens: usize) -> Work {
    let works: Vec<Work> = rotation(preset, dtype, num_tokens)
        .map(|(layer, round)| routing::draw(&preset.config, distribution, num_tokens, layer, round))
        .map(|topk_ids| work(preset, dtype, &topk_ids))
        .collect();
    let mean = |of: fn(&Work) -> f64| works.iter().map(of).sum::<f64>() / works.len() as f64;
    Work { bytes: mean(|w| w.bytes), flops: mean(|w| w.flops) }
}

/// The work of one call with this routing.
pub fn work(preset: &Preset, dtype: DType, topk_ids: &[u32]) -> Work {
    let config = &preset.config;
    let hit = routing::hit_experts(topk_ids, config.num_experts);
    let num_tokens = topk_ids.len() / config.router.top_k;
    let weights_used = topk_ids.len() * preset.expert_numel() + num_tokens * preset.shared_numel();
    Work {
        bytes: ((hit * preset.expert_numel() + preset.shared_numel()) * dtype.size()) as f64,
        flops: 2.0 * weights_used as f64,
    }
}

impl Stack {
    pub fn new(device: &Device, preset: &Preset, dtype: DType) -> Self {
        let source = Source::new();
        let layers = (0..num_layers(preset, dtype))
            .map(|layer| {
                let filler = Filler { device, source: &source, dtype, layer };
                let weights = filler.weights(preset);
                MoeLayer::new(device, preset.config.clone(), weights).expect("weights are made for the configuration")
            })
            .collect();
        Self { preset: preset.clone(), dtype, layers }
    }

    /// All experts' weights, as they lie in memory.
    pub fn memory(&self) -> Vec<&[u8]> {
        let experts = self.layers.iter().map(|layer| &layer.weights().experts);
        experts.flat_map(|experts| [bytes(&experts.gate_up_proj), bytes(&experts.down_proj)]).collect()
    }

    /// The weights that a call has to read: of the experts that it hits, and of the shared one.
    pub fn memory_of(&self, call: &Call) -> Vec<&[u8]> {
        let weights = self.layers[call.layer].weights();
        let num_experts = self.preset.config.num_experts;
        let hit: BTreeSet<u32> = call.topk_ids.to_vec::<u32>().expect("ids are u32").into_iter().collect();
        let matrices = [&weights.experts.gate_up_proj, &weights.experts.down_proj].map(bytes);
        let routed = hit.into_iter().flat_map(|expert| {
            matrices.map(|bytes| {
                let len = bytes.len() / num_experts;
                &bytes[expert as usize * len..][..len]
            })
        });
        let shared = weights.shared.iter().map(|shared| &shared.experts);
        routed.chain(shared.flat_map(|experts| [bytes(&experts.gate_up_proj), bytes(&experts.down_proj)])).collect()
    }

    /// The calls with `num_tokens` tokens.
    pub fn calls(&self, distribution: Distribution, num_tokens: usize) -> Calls {
        let calls: Vec<Call> = rotation(&self.preset, self.dtype, num_tokens)
            .map(|(layer, round)| self.call(distribution, num_tokens, layer, round))
            .collect();
        announce_routing(&self.preset, distribution, &calls[0]);
        Calls { calls, next: Cell::new(0) }
    }

    fn call(&self, distribution: Distribution, num_tokens: usize, layer: usize, round: usize) -> Call {
        let config = &self.preset.config;
        let topk_ids = routing::draw(config, distribution, num_tokens, layer, round);
        let mut random = Uniform::new(((layer as u64) << 32) + round as u64);
        let hidden_states = self.hidden_states(layer, &topk_ids, &mut random);
        let topk_weights = weights_of(&topk_ids, config.router.top_k, &mut random);
        let device = self.layers[layer].device();
        let shape = [num_tokens, config.router.top_k];
        Call {
            layer,
            hidden_states: from_f32(device, self.dtype, &hidden_states, [num_tokens, config.hidden_size]),
            topk_ids: Tensor::from_slice(device, &topk_ids, shape).expect("k ids per token"),
            topk_weights: Tensor::from_slice(device, &topk_weights, shape).expect("k weights per token"),
        }
    }

    /// Each token is the sum of the router's rows of the experts it shall go to, plus noise: order-1 features, and a
    /// router that chooses these experts by a clear margin.
    fn hidden_states(&self, layer: usize, topk_ids: &[u32], random: &mut Uniform) -> Vec<f32> {
        let config = &self.preset.config;
        let (hidden_size, top_k) = (config.hidden_size, config.router.top_k);
        let router = self.layers[layer].weights().router.as_ref().expect("these layers have routers");
        let rows = to_f32(&router.weight);
        // Rows have the norm C·√(k/H), C the chosen logit: k of them times H/(k·C) have features of order 1.
        let scale = hidden_size as f64 / (top_k as f64 * CHOSEN_LOGIT);
        let mut hidden_states = Vec::new();
        for ids in topk_ids.chunks_exact(top_k) {
            let gains: Vec<f64> = ids.iter().map(|_| scale * (0.9 + 0.2 * random.draw())).collect();
            for h in 0..hidden_size {
                let planted: f64 = ids
                    .iter()
                    .zip(&gains)
                    .map(|(&id, gain)| gain * f64::from(rows[id as usize * hidden_size + h]))
                    .sum();
                hidden_states.push((planted + 0.4 * (random.draw() - 0.5)) as f32);
            }
        }
        hidden_states
    }
}

impl Calls {
    /// The next call of the rotation.
    pub fn next(&self) -> &Call {
        let next = self.next.get();
        self.next.set((next + 1) % self.calls.len());
        &self.calls[next]
    }

    pub fn all(&self) -> &[Call] {
        &self.calls
    }
}

impl Call {
    pub fn num_tokens(&self) -> usize {
        self.hidden_states.shape().dims()[0]
    }

    pub fn routing(&self) -> Routing<'_> {
        Routing::per_token(self.topk_ids.view(), self.topk_weights.view())
    }
}

/// A tensor's bytes in host memory.
fn bytes(tensor: &Tensor) -> &[u8] {
    match tensor.view().data() {
        Data::Host(bytes) => bytes,
        Data::Device { .. } => panic!("the floor of a device is its copy bandwidth"),
    }
}

/// Prints where the tokens of a rotation's first call go.
fn announce_routing(preset: &Preset, distribution: Distribution, call: &Call) {
    if test_mode() {
        return;
    }
    let topk_ids = call.topk_ids.to_vec::<u32>().expect("ids are u32");
    let routing = routing::describe(&topk_ids, preset.config.num_experts);
    announce(&format!("{} T{} {distribution}: {routing}", preset.name, call.num_tokens()));
}

/// Positive weights that sum to 1 per token.
pub fn weights_of(topk_ids: &[u32], top_k: usize, random: &mut Uniform) -> Vec<f32> {
    let raw: Vec<f32> = topk_ids.iter().map(|_| (0.5 + random.draw()) as f32).collect();
    raw.chunks_exact(top_k).flat_map(|w| w.iter().map(|x| x / w.iter().sum::<f32>())).collect()
}

/// Makes one layer's tensors.
struct Filler<'a> {
    device: &'a Device,
    source: &'a Source,
    dtype: DType,
    layer: usize,
}

impl Filler<'_> {
    fn weights(&self, preset: &Preset) -> MoeWeights {
        let config = &preset.config;
        let MoeConfig { num_experts, hidden_size, intermediate_size, weight_layout, .. } = *config;
        let gate_up = config.gate_up_size();
        let bias = |n| preset.bias.then(|| self.tensor(DType::F32, [num_experts, n], Part::Bias, 0.1));
        let (k_up, k_down) = (unit_scale(hidden_size), unit_scale(intermediate_size));
        // Rows of norm C·√(k/H), see `Stack::hidden_states`.
        let norm = CHOSEN_LOGIT * (config.router.top_k as f64 / hidden_size as f64).sqrt();
        let k_router = unit_scale(hidden_size) * norm as f32;
        MoeWeights {
            router: Some(RouterWeights {
                hidden: None,
                weight: self.tensor(self.dtype, [num_experts, hidden_size], Part::Router, k_router),
                bias: None,
                selection_bias: None,
            }),
            experts: ExpertWeights {
                gate_up_proj: self.tensor(
                    self.dtype,
                    weight_layout.shape(num_experts, gate_up, hidden_size),
                    Part::GateUp,
                    k_up,
                ),
                gate_up_bias: bias(gate_up),
                down_proj: self.tensor(
                    self.dtype,
                    weight_layout.shape(num_experts, hidden_size, intermediate_size),
                    Part::Down,
                    k_down,
                ),
                down_bias: bias(hidden_size),
            },
            shared: config.shared.as_ref().map(|shared| {
                let (gate_up, i) = (shared.gate_up_size(), shared.intermediate_size);
                SharedWeights {
                    experts: ExpertWeights {
                        gate_up_proj: self.tensor(self.dtype, [1, gate_up, hidden_size], Part::SharedGateUp, k_up),
                        gate_up_bias: None,
                        down_proj: self.tensor(self.dtype, [1, hidden_size, i], Part::SharedDown, unit_scale(i)),
                        down_bias: None,
                    },
                    gate: shared
                        .sigmoid_gate
                        .then(|| self.tensor(self.dtype, [1, hidden_size], Part::SharedGate, k_up)),
                }
            }),
            latent: None,
        }
    }

    fn tensor(&self, dtype: DType, shape: impl Into<Shape>, part: Part, scale: f32) -> Tensor {
        let host = if self.device.backend().is_host() { self.device } else { &Device::cpu() };
        let mut tensor = Tensor::zeros(host, dtype, shape).expect("the preset was fitted to memory");
        match dtype {
            DType::F32 => self.fill(&mut tensor, part, scale, |x: f32| x),
            DType::BF16 => self.fill(&mut tensor, part, scale, bf16::from_f32),
            DType::F16 => self.fill(&mut tensor, part, scale, f16::from_f32),
            DType::U32 => unreachable!("weights are floating-point"),
        }
        if self.device.backend().is_host() {
            return tensor;
        }
        Tensor::from_view(self.device, tensor.view()).expect("the preset was fitted to memory")
    }

    fn fill<T: Element>(&self, tensor: &mut Tensor, part: Part, scale: f32, round: fn(f32) -> T) {
        let mut view = tensor.view_mut().expect("the tensor owns its memory");
        let values = view.as_mut_slice::<T>().expect("host memory of the tensor's type");
        self.source.fill(values, part.id(self.layer), scale, round);
    }
}

/// A tensor of `dtype` from f32.
pub fn from_f32(device: &Device, dtype: DType, values: &[f32], shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    let tensor = match dtype {
        DType::F32 => Tensor::from_slice(device, values, shape),
        DType::BF16 => {
            Tensor::from_slice(device, &values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), shape)
        }
        DType::F16 => Tensor::from_slice(device, &values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>(), shape),
        DType::U32 => unreachable!("activations are floating-point"),
    };
    tensor.expect("as many values as the shape says")
}

/// A tensor's elements as f32.
pub fn to_f32(tensor: &Tensor) -> Vec<f32> {
    match tensor.dtype() {
        DType::F32 => tensor.to_vec(),
        DType::BF16 => tensor.to_vec::<bf16>().map(|v| v.into_iter().map(bf16::to_f32).collect()),
        DType::F16 => tensor.to_vec::<f16>().map(|v| v.into_iter().map(f16::to_f32).collect()),
        DType::U32 => unreachable!("activations are floating-point"),
    }
    .expect("host memory of the tensor's own type")
}
