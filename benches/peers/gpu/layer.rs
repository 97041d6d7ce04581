//! The layer behind its router: permutation, both products, activation and combination.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use fused_moe::layer::Routing;
use fused_moe::reference::{self, Experts, Layer, Linear};
use fused_moe::weights::ExpertWeights;
use fused_moe::{DType, Device, MoeLayer, MoeWeights, Tensor, Workspace};
use half::bf16;
use rayon::prelude::*;

use super::inputs::{self, Case, Shape};
use crate::common::data::{Part, Rounded, Source, unit_scale};
use crate::common::verify;

/// Columns that the oracle takes at a time: few megabytes of f64.
const PART: usize = 128;

/// Copies of a layer's weights.
pub struct Layers {
    layers: Vec<MoeLayer>,
    gate_up: Rounded<bf16>,
    down: Rounded<bf16>,
    hidden: Rounded<bf16>,
    /// Of a case's batch and token.
    expected: Mutex<HashMap<(String, usize, usize), Vec<f64>>>,
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
        Self { layers, gate_up, down, hidden: rounded(unit_scale(1)), expected: Mutex::default() }
    }

    fn device(&self) -> &Device {
        self.layers[0].device()
    }

    /// One token of one batch in f64, from the same numbers and none of the device's memory; computed once, as one case
    /// is measured with many tiles.
    fn expected(&self, dir: &Path, case: &Case, batch: usize, token: usize) -> Result<Vec<f64>, String> {
        let key = (case.stem.clone(), batch, token);
        let mut known = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(output) = known.get(&key) {
            return Ok(output.clone());
        }
        let (topk_ids, topk_weights) = case.routing(dir, batch)?;
        let mut hidden_states = vec![bf16::ZERO; self.layers[0].config().hidden_size];
        self.hidden.window(Part::Hidden.id(batch), token * hidden_states.len(), &mut hidden_states);
        let hidden_states = wide(&hidden_states);
        let slots = token * topk_ids.len() / case.tokens..(token + 1) * topk_ids.len() / case.tokens;
        let parts: Vec<_> = topk_ids[slots.clone()]
            .iter()
            .zip(&topk_weights[slots])
            .flat_map(|(&id, &weight)| self.parts().map(move |columns| (id, weight, columns)))
            .collect();
        let copy = batch % self.layers.len();
        let outputs =
            parts.into_par_iter().map(|(id, weight, columns)| self.part(copy, &hidden_states, id, weight, columns));
        let sum = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).map(|(a, b)| a + b).collect();
        let output = outputs.reduce(|| vec![0.0; hidden_states.len()], sum);
        known.insert(key, output.clone());
        Ok(output)
    }

    /// The intermediate size in parts: a whole expert in f64 is up to a gigabyte, and a second of one core.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        let i = self.layers[0].config().intermediate_size;
        (0..i).step_by(PART).map(move |start| start..i.min(start + PART))
    }

    /// What some columns of one expert's intermediate result add to the output: a layer of their own.
    fn part(&self, copy: usize, hidden_states: &[f64], id: u32, topk_weight: f32, columns: Range<usize>) -> Vec<f64> {
        let mut config = self.layers[copy].config().clone();
        let (h, i, id) = (config.hidden_size, config.intermediate_size, id as usize);
        (config.num_experts, config.router.top_k, config.intermediate_size) = (1, 1, columns.len());
        let linear = |part: Part, numbers: &Rounded<bf16>, len: usize, starts: &mut dyn Iterator<Item = usize>| {
            let mut run = vec![bf16::ZERO; len];
            let mut weight = Vec::with_capacity(2 * columns.len() * h);
            for start in starts {
                numbers.window(part.id(copy), start, &mut run);
                weight.extend(run.iter().map(|&x| f64::from(x)));
            }
            Linear { weight, bias: None }
        };
        let halves = [0, i].map(|half| (2 * i * id + half + columns.start) * h);
        let rows = &mut (0..h).map(|row| (id * h + row) * i + columns.start);
        let layer = Layer {
            config: &config,
            router_hidden: None,
            router: Linear { weight: Vec::new(), bias: None },
            selection_bias: None,
            experts: Experts {
                gate_up_proj: linear(Part::GateUp, &self.gate_up, columns.len() * h, &mut halves.into_iter()),
                down_proj: linear(Part::Down, &self.down, columns.len(), rows),
            },
            shared: None,
            latent: None,
        };
        let routing =
            reference::Routing { topk_ids: vec![0], topk_weights: vec![f64::from(topk_weight)], token_offsets: None };
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
            for token in verify::first_and_last(case.tokens) {
                let output = self.output_of(token).map_err(|error| error.to_string())?;
                let error = verify::relative_error(&wide(&output), &layers.expected(dir, case, i, token)?);
                // NaN would be lost in a maximum.
                worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
                if (i, token) == (0, 0) {
                    let first: Vec<f32> = output.iter().map(|&x| f32::from(x)).collect();
                    inputs::write(&dir.join(format!("{}.output", case.stem)), bytemuck::cast_slice(&first))?;
                }
            }
        }
        let tolerance = verify::tolerance(DType::BF16);
        if worst <= tolerance { Ok(worst) } else { Err(format!("relative error {worst:.1e} against the oracle")) }
    }

    fn output_of(&self, token: usize) -> fused_moe::Result<Vec<bf16>> {
        self.output.view().slice(token..token + 1)?.to_vec(self.output.device())
    }
}

fn wide(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}
