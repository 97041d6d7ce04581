//! One MoE layer on the best wgpu adapter: this crate's, and the same per-expert products in a loop over burn's tensors.
//!
//! Both get the same weights, hidden states and routing, in one process and in turn; outputs are compared before
//! anything is timed, and a call ends with its output on the host. `burn-layer [TOKENS [LAPS]]` prints a record.

#[path = "../../../common/data.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod data;

use std::time::Instant;

use anyhow::{Result, ensure};
use burn::backend::wgpu::{Wgpu, WgpuDevice};
use burn::tensor::activation::silu;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use data::{Part, Source, splitmix64, unit_scale};
use fused_moe::config::{Activation, GateUpLayout, MoeConfig, SharedExpertConfig, WeightLayout};
use fused_moe::layer::Routing;
use fused_moe::routing::RouterConfig;
use fused_moe::weights::{ExpertWeights, MoeWeights, SharedWeights};
use fused_moe::{DType, Device, MoeLayer, Workspace};

type Matrix = Tensor<Wgpu, 2>;

/// DeepSeek-MoE-16B's layer, with 16 of its 64 experts.
const EXPERTS: usize = 16;
const TOP_K: usize = 6;
const HIDDEN: usize = 2048;
const INTERMEDIATE: usize = 1408;
const SHARED: usize = 2 * INTERMEDIATE;

/// What both sides compute from.
struct Numbers {
    hidden_states: Vec<f32>,
    topk_ids: Vec<u32>,
    topk_weights: Vec<f32>,
    gate_up: Vec<f32>,
    down: Vec<f32>,
    shared_gate_up: Vec<f32>,
    shared_down: Vec<f32>,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let num_tokens = arguments.next().transpose()?.unwrap_or(64);
    let laps = arguments.next().transpose()?.unwrap_or(5);
    let numbers = Numbers::new(num_tokens);
    let mut ours = Ours::new(&numbers)?;
    let theirs = Theirs::new(&numbers);
    let (a, b) = (ours.forward()?, theirs.forward());
    let error = relative_error(&a, &b);
    ensure!(error < 1e-4, "the outputs are {error:e} apart");
    eprintln!("outputs {error:.1e} apart");
    // Burn tries out its kernels in the first calls.
    theirs.forward();
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    for _ in 0..laps {
        our_times.push(seconds(|| ours.forward().map(drop))?);
        their_times.push(seconds(|| {
            theirs.forward();
            Ok(())
        })?);
    }
    let flops = 6.0 * (num_tokens * (TOP_K * INTERMEDIATE + SHARED) * HIDDEN) as f64;
    println!("# device: {}", ours.layer.device());
    println!("preset,dtype,tokens,impl,version,median_us,min_us,calls,gflop_s,times_ours");
    let [our_median, their_median] = [&mut our_times, &mut their_times].map(|times| median(times));
    for (name, version, times, median) in
        [("fused-moe", "0.1.0", &our_times, our_median), ("burn", "0.21", &their_times, their_median)]
    {
        let (micros, fastest) = (median * 1e6, times[0] * 1e6);
        let (rate, ratio) = (flops / median / 1e9, median / our_median);
        println!(
            "deepseek-moe-16b-e{EXPERTS},f32,{num_tokens},{name},{version},{micros:.0},{fastest:.0},{laps},{rate:.2},{ratio:.2}"
        );
    }
    Ok(())
}

fn seconds(call: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    call()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Leaves them sorted.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

impl Numbers {
    fn new(num_tokens: usize) -> Self {
        let source = Source::new();
        let filled = |len: usize, id: u64, scale: f32| {
            let mut values = vec![0.0; len];
            source.fill(&mut values, id, scale, |x: f32| x);
            values
        };
        let weights =
            |part: Part, experts: usize, n: usize, k: usize| filled(experts * n * k, part.id(0), unit_scale(k));
        // Uniform: each token takes the experts that a hash puts first.
        let topk_ids = (0..num_tokens as u64).flat_map(|token| {
            let mut experts: Vec<u32> = (0..EXPERTS as u32).collect();
            experts.sort_by_key(|&e| splitmix64(token * EXPERTS as u64 + u64::from(e)));
            experts.truncate(TOP_K);
            experts
        });
        Self {
            hidden_states: filled(num_tokens * HIDDEN, 1000, 1.0),
            topk_ids: topk_ids.collect(),
            topk_weights: vec![1.0 / TOP_K as f32; num_tokens * TOP_K],
            gate_up: weights(Part::GateUp, EXPERTS, 2 * INTERMEDIATE, HIDDEN),
            down: weights(Part::Down, EXPERTS, HIDDEN, INTERMEDIATE),
            shared_gate_up: weights(Part::SharedGateUp, 1, 2 * SHARED, HIDDEN),
            shared_down: weights(Part::SharedDown, 1, HIDDEN, SHARED),
        }
    }

    fn num_tokens(&self) -> usize {
        self.hidden_states.len() / HIDDEN
    }
}

struct Ours {
    layer: MoeLayer,
    workspace: Workspace,
    hidden_states: fused_moe::Tensor,
    topk_ids: fused_moe::Tensor,
    topk_weights: fused_moe::Tensor,
    output: fused_moe::Tensor,
}

impl Ours {
    fn new(numbers: &Numbers) -> Result<Self> {
        let device = Device::by_name("wgpu")?;
        let num_tokens = numbers.num_tokens();
        let tensor = |values: &[f32], shape: [usize; 3]| fused_moe::Tensor::from_slice(&device, values, shape);
        let experts = |gate_up, down| ExpertWeights {
            gate_up_proj: gate_up,
            gate_up_bias: None,
            down_proj: down,
            down_bias: None,
        };
        let weights = MoeWeights {
            router: None,
            experts: experts(
                tensor(&numbers.gate_up, [EXPERTS, 2 * INTERMEDIATE, HIDDEN])?,
                tensor(&numbers.down, [EXPERTS, HIDDEN, INTERMEDIATE])?,
            ),
            shared: Some(SharedWeights {
                experts: experts(
                    tensor(&numbers.shared_gate_up, [1, 2 * SHARED, HIDDEN])?,
                    tensor(&numbers.shared_down, [1, HIDDEN, SHARED])?,
                ),
                gate: None,
            }),
            latent: None,
        };
        let layer = MoeLayer::new(&device, config(), weights)?;
        Ok(Self {
            workspace: layer.workspace(num_tokens)?,
            hidden_states: fused_moe::Tensor::from_slice(&device, &numbers.hidden_states, [num_tokens, HIDDEN])?,
            topk_ids: fused_moe::Tensor::from_slice(&device, &numbers.topk_ids, [num_tokens, TOP_K])?,
            topk_weights: fused_moe::Tensor::from_slice(&device, &numbers.topk_weights, [num_tokens, TOP_K])?,
            output: fused_moe::Tensor::zeros(&device, DType::F32, [num_tokens, HIDDEN])?,
            layer,
        })
    }

    fn forward(&mut self) -> Result<Vec<f32>> {
        let routing = Routing::per_token(self.topk_ids.view(), self.topk_weights.view());
        let output = self.output.view_mut()?;
        self.layer.forward_routed(self.hidden_states.view(), routing, output, &mut self.workspace)?;
        Ok(self.output.to_vec()?)
    }
}

fn config() -> MoeConfig {
    let (activation, gate_up_layout) = (Activation::Silu, Some(GateUpLayout::GateThenUp));
    MoeConfig {
        num_experts: EXPERTS,
        hidden_size: HIDDEN,
        intermediate_size: INTERMEDIATE,
        router: RouterConfig::softmax_top_k(TOP_K),
        activation,
        gate_up_layout,
        weight_layout: WeightLayout::Nk,
        shared: Some(SharedExpertConfig {
            intermediate_size: SHARED,
            activation,
            gate_up_layout,
            weight_layout: WeightLayout::Nk,
            sigmoid_gate: false,
            output_scale: 1.0,
        }),
        latent_size: None,
    }
}

/// As burn's users write it: for each expert that is hit, its tokens' rows, three products, and the sum.
struct Theirs {
    device: WgpuDevice,
    experts: Vec<Expert>,
    shared: Expert,
    hidden_states: Matrix,
    /// Tokens and weights of each expert.
    slots: Vec<(Vec<i32>, Vec<f32>)>,
}

struct Expert {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl Expert {
    fn new(device: &WgpuDevice, gate_up: &[f32], down: &[f32], intermediate: usize) -> Self {
        let matrix =
            |values: &[f32], shape: [usize; 2]| Matrix::from_data(TensorData::new(values.to_vec(), shape), device);
        let (gate, up) = gate_up.split_at(intermediate * HIDDEN);
        Self {
            gate: matrix(gate, [intermediate, HIDDEN]),
            up: matrix(up, [intermediate, HIDDEN]),
            down: matrix(down, [HIDDEN, intermediate]),
        }
    }

    fn forward(&self, x: Matrix) -> Matrix {
        let gate = silu(x.clone().matmul(self.gate.clone().transpose()));
        let up = x.matmul(self.up.clone().transpose());
        (gate * up).matmul(self.down.clone().transpose())
    }
}

impl Theirs {
    fn new(numbers: &Numbers) -> Self {
        let device = WgpuDevice::default();
        let gate_up = numbers.gate_up.chunks_exact(2 * INTERMEDIATE * HIDDEN);
        let down = numbers.down.chunks_exact(INTERMEDIATE * HIDDEN);
        let mut slots = vec![(Vec::new(), Vec::new()); EXPERTS];
        for (slot, (&id, &weight)) in numbers.topk_ids.iter().zip(&numbers.topk_weights).enumerate() {
            slots[id as usize].0.push((slot / TOP_K) as i32);
            slots[id as usize].1.push(weight);
        }
        let hidden_states = TensorData::new(numbers.hidden_states.clone(), [numbers.num_tokens(), HIDDEN]);
        Self {
            experts: gate_up
                .zip(down)
                .map(|(gate_up, down)| Expert::new(&device, gate_up, down, INTERMEDIATE))
                .collect(),
            shared: Expert::new(&device, &numbers.shared_gate_up, &numbers.shared_down, SHARED),
            hidden_states: Matrix::from_data(hidden_states, &device),
            slots,
            device,
        }
    }

    fn forward(&self) -> Vec<f32> {
        let x = &self.hidden_states;
        let mut output = self.shared.forward(x.clone());
        for (expert, (tokens, weights)) in self.experts.iter().zip(&self.slots).filter(|(_, slots)| !slots.0.is_empty())
        {
            let rows = tokens.len();
            let tokens = Tensor::<Wgpu, 1, Int>::from_data(TensorData::new(tokens.clone(), [rows]), &self.device);
            let weights = Matrix::from_data(TensorData::new(weights.clone(), [rows, 1]), &self.device);
            let result = expert.forward(x.clone().select(0, tokens.clone())) * weights;
            output = output.select_assign(0, tokens, result, IndexingUpdateOp::Add);
        }
        output.into_data().to_vec().expect("f32 was asked for")
    }
}

fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| square(a - b)).sum();
    (difference / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}
