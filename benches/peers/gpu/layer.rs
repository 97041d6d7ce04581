//! The layer behind its router: permutation, both products, activation and combination.

use std::path::Path;

use fused_moe::layer::Routing;
use fused_moe::reference::{self, Experts, Layer, Linear};
use fused_moe::weights::ExpertWeights;
use fused_moe::{DType, Device, MoeLayer, MoeWeights, Tensor, Workspace};
use half::bf16;
use rayon::prelude::*;

use super::inputs::{self, Case, Shape};
use crate::common::data::{Part, Rounded, Source, unit_scale};
use crate::common::{stack, verify};

/// Copies of a layer's weights.
pub struct Layers {
    layers: Vec<MoeLayer>,
    gate_up: Rounded<bf16>,
    down: Rounded<bf16>,
    hidden: Rounded<bf16>,
}

impl Layers {
    pub fn new(device: &Device, shape: &Shape) -> Self {
        let source = Source::new();
        let rounded = |scale| source.rounded(scale, bf16::from_f32);
        let gate_up = rounded(unit_scale(shape.hidden_size));
        let down = rounded(unit_scale(shape.intermediate_size));
        let tensor = |dims: [usize; 3], numbers: &Rounded<bf16>, part: Part, copy| {
            let mut tensor = Tensor::zeros(device, DType::BF16, dims).expect("shapes were fitted to memory");
            fill(&mut tensor, numbers, part.id(copy));
            tensor
        };
        let Shape { num_experts: e, hidden_size: h, intermediate_size: i, .. } = *shape;
        let layer = |copy| {
            let experts = ExpertWeights {
                gate_up_proj: tensor([e, 2 * i, h], &gate_up, Part::GateUp, copy),
                gate_up_bias: None,
                down_proj: tensor([e, h, i], &down, Part::Down, copy),
                down_bias: None,
            };
            let weights = MoeWeights { router: None, experts, shared: None, latent: None };
            MoeLayer::new(device, shape.config(), weights).expect("weights are made for the configuration")
        };
        let layers = (0..shape.copies).map(layer).collect();
        Self { layers, gate_up, down, hidden: rounded(unit_scale(1)) }
    }

    fn device(&self) -> &Device {
        self.layers[0].device()
    }

    /// One token of one batch in f64, from the same numbers and none of the device's memory.
    fn oracle(&self, copy: usize, hidden_states: &[f64], topk_ids: &[u32], topk_weights: &[f32]) -> Vec<f64> {
        let mut config = self.layers[copy].config().clone();
        let (h, i) = (config.hidden_size, config.intermediate_size);
        config.num_experts = topk_ids.len();
        let experts = |part: Part, numbers: &Rounded<bf16>, len: usize| {
            let mut expert = vec![bf16::ZERO; len];
            let mut weight = Vec::with_capacity(len * topk_ids.len());
            for &id in topk_ids {
                numbers.window(part.id(copy), id as usize * len, &mut expert);
                weight.extend(expert.iter().map(|&x| f64::from(x)));
            }
            Linear { weight, bias: None }
        };
        let layer = Layer {
            config: &config,
            router_hidden: None,
            router: Linear { weight: Vec::new(), bias: None },
            selection_bias: None,
            experts: Experts {
                gate_up_proj: experts(Part::GateUp, &self.gate_up, 2 * i * h),
                down_proj: experts(Part::Down, &self.down, h * i),
            },
            shared: None,
            latent: None,
        };
        let routing = reference::Routing {
            topk_ids: (0..config.num_experts as u32).collect(),
            topk_weights: topk_weights.iter().map(|&w| f64::from(w)).collect(),
            token_offsets: None,
        };
        reference::moe_layer(&layer, hidden_states, Some(routing)).output
    }
}

/// Fills a tensor with the numbers that belong to `id`, by way of one expert's worth of host memory.
fn fill(tensor: &mut Tensor, numbers: &Rounded<bf16>, id: u64) {
    let device = tensor.device().clone();
    let mut view = tensor.view_mut().expect("the tensor owns its memory");
    let experts = view.shape().dims()[0];
    let mut expert = vec![bf16::ZERO; view.shape().numel() / experts.max(1)];
    for e in 0..experts {
        numbers.window(id, e * expert.len(), &mut expert);
        let target = view.slice_mut(e..e + 1).expect("e is below E");
        device.backend().write(target, bytemuck::cast_slice(&expert)).expect("as large as the slice");
    }
}

/// The batches of a case on the device.
pub struct Ready {
    batches: Vec<Batch>,
    workspace: Workspace,
    output: Tensor,
}

struct Batch {
    hidden_states: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
}

impl Ready {
    pub fn new(layers: &Layers, dir: &Path, case: &Case) -> Result<Self, String> {
        let device = layers.device();
        let (top_k, hidden_size) = (layers.layers[0].config().router.top_k, layers.layers[0].config().hidden_size);
        let batch = |i| {
            let (topk_ids, topk_weights) = case.routing(dir, i)?;
            let mut hidden_states = vec![bf16::ZERO; case.tokens * hidden_size];
            layers.hidden.window(Part::Hidden.id(i), 0, &mut hidden_states);
            let upload = || -> fused_moe::Result<Batch> {
                Ok(Batch {
                    hidden_states: Tensor::from_slice(device, &hidden_states, [case.tokens, hidden_size])?,
                    topk_ids: Tensor::from_slice(device, &topk_ids, [case.tokens, top_k])?,
                    topk_weights: Tensor::from_slice(device, &topk_weights, [case.tokens, top_k])?,
                })
            };
            upload().map_err(|error| error.to_string())
        };
        let memory = || -> fused_moe::Result<_> {
            let output = Tensor::zeros(device, DType::BF16, [case.tokens, hidden_size])?;
            Ok((layers.layers[0].workspace(case.tokens)?, output))
        };
        let (workspace, output) = memory().map_err(|error| error.to_string())?;
        Ok(Self { batches: (0..case.batches).map(batch).collect::<Result<_, _>>()?, workspace, output })
    }

    pub fn run(&mut self, layers: &Layers, i: usize) {
        let Self { batches, workspace, output } = self;
        let batch = &batches[i];
        let layer = &layers.layers[i % layers.layers.len()];
        let routing = Routing::per_token(batch.topk_ids.view(), batch.topk_weights.view());
        let output = output.view_mut().expect("memory of its own");
        layer.forward_routed(batch.hidden_states.view(), routing, output, workspace).expect("shapes fit");
    }

    /// The largest relative error over the first and the last token of the first and the last batch; an error where it
    /// is beyond the tolerance. Leaves the first token's output in `<stem>.output`, f32: the peers see by it that they do
    /// the same work.
    pub fn verify(&mut self, layers: &Layers, dir: &Path, case: &Case) -> Result<f64, String> {
        let mut worst = 0.0f64;
        for i in verify::first_and_last(self.batches.len()) {
            self.run(layers, i);
            worst = worst.max(self.error(layers, i)?);
            if i == 0 {
                let first = stack::to_f32(&self.output)[..layers.layers[0].config().hidden_size].to_vec();
                inputs::write(&dir.join(format!("{}.output", case.stem)), bytemuck::cast_slice(&first))?;
            }
        }
        let tolerance = verify::tolerance(DType::BF16);
        if worst <= tolerance { Ok(worst) } else { Err(format!("relative error {worst:.1e} against the oracle")) }
    }

    fn error(&self, layers: &Layers, i: usize) -> Result<f64, String> {
        let batch = &self.batches[i];
        let values = || -> fused_moe::Result<_> {
            let output: Vec<bf16> = self.output.to_vec()?;
            Ok((output, batch.topk_ids.to_vec::<u32>()?, batch.topk_weights.to_vec::<f32>()?))
        };
        let (output, topk_ids, topk_weights) = values().map_err(|error| error.to_string())?;
        let tokens = batch.topk_ids.shape().dims()[0];
        let (top_k, hidden_size) = (topk_ids.len() / tokens, output.len() / tokens);
        let wide = |values: &[bf16]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let errors = verify::first_and_last(tokens).into_par_iter().map(|token| {
            let mut hidden_states = vec![bf16::ZERO; hidden_size];
            layers.hidden.window(Part::Hidden.id(i), token * hidden_size, &mut hidden_states);
            let slots = token * top_k..(token + 1) * top_k;
            let copy = i % layers.layers.len();
            let expected = layers.oracle(copy, &wide(&hidden_states), &topk_ids[slots.clone()], &topk_weights[slots]);
            let error = verify::relative_error(&wide(&output[token * hidden_size..][..hidden_size]), &expected);
            // NaN would be lost in a maximum.
            if error.is_nan() { f64::INFINITY } else { error }
        });
        Ok(errors.reduce(|| 0.0, f64::max))
    }
}
