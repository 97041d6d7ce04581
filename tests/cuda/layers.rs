//! A small layer with random weights, on any device.

use fused_moe::config::{Activation, GateUpLayout, MoeConfig, WeightLayout};
use fused_moe::routing::RouterConfig;
use fused_moe::weights::{ExpertWeights, MoeWeights, RouterWeights};
use fused_moe::{DType, Device, MoeLayer, Tensor, reference};
use half::{bf16, f16};

/// Sizes and types of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub num_experts: usize,
    pub top_k: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub dtype: DType,
    /// What the weights are multiplied by.
    pub scale: f32,
}

/// Ids, weights and output of a call.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub topk_ids: Vec<u32>,
    pub topk_weights: Vec<f32>,
    pub output: Vec<f32>,
}

/// Numbers in −1..1 that bf16 holds, the same in every run.
pub fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| bf16::from_f32(next()).to_f32()).collect()
}

/// ‖actual − expected‖ / ‖expected‖.
pub fn relative_error(actual: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let error: f64 = actual.iter().zip(expected).map(|(a, e)| (f64::from(*a) - e).powi(2)).sum();
    let norm: f64 = expected.iter().map(|e| e * e).sum();
    let error = (error / norm).sqrt();
    // A NaN has to fail.
    if error.is_nan() { f64::INFINITY } else { error }
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

impl Spec {
    pub const SMALL: Self =
        Self { num_experts: 12, top_k: 3, hidden_size: 104, intermediate_size: 72, dtype: DType::BF16, scale: 1.0 };

    pub fn config(&self) -> MoeConfig {
        MoeConfig {
            num_experts: self.num_experts,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            router: RouterConfig::softmax_top_k(self.top_k),
            activation: Activation::Silu,
            gate_up_layout: Some(GateUpLayout::GateThenUp),
            weight_layout: WeightLayout::Nk,
            shared: None,
            latent_size: None,
        }
    }

    fn shapes(&self) -> [[usize; 3]; 3] {
        let Self { num_experts: e, hidden_size: h, intermediate_size: i, .. } = *self;
        [[1, e, h], [e, 2 * i, h], [e, h, i]]
    }

    /// Router, gate-and-up and down weights.
    pub fn values(&self) -> [Vec<f32>; 3] {
        let values = |j: usize| random(j as u64 + 1, self.shapes()[j].iter().product());
        let scaled = |j: usize| values(j).into_iter().map(|v| bf16::from_f32(v * self.scale).to_f32()).collect();
        [values(0), scaled(1), scaled(2)]
    }

    pub fn layer(&self, device: &Device) -> MoeLayer {
        let [_, gate_up, down] = self.shapes();
        let [router_values, gate_up_values, down_values] = self.values();
        let router_shape = [self.num_experts, self.hidden_size];
        let weights = MoeWeights {
            router: Some(RouterWeights {
                weight: Tensor::from_slice(device, &router_values, router_shape).expect("small"),
                bias: None,
                selection_bias: None,
                hidden: None,
            }),
            experts: ExpertWeights {
                gate_up_proj: tensor(device, self.dtype, &gate_up_values, gate_up),
                gate_up_bias: None,
                down_proj: tensor(device, self.dtype, &down_values, down),
                down_bias: None,
            },
            shared: None,
            latent: None,
        };
        MoeLayer::new(device, self.config(), weights).expect("a valid layer")
    }

    /// One call of the layer.
    pub fn run(&self, device: &Device, hidden_states: &[f32]) -> Answer {
        let layer = self.layer(device);
        let shape = [hidden_states.len() / self.hidden_size, self.hidden_size];
        let mut workspace = layer.workspace(shape[0]).expect("small");
        let input = Tensor::from_slice(device, hidden_states, shape).expect("small");
        let mut output = Tensor::zeros(device, DType::F32, shape).expect("small");
        layer.forward(input.view(), output.view_mut().expect("its own"), &mut workspace).expect("it runs");
        let routing = workspace.routing(shape[0]).expect("as many");
        Answer {
            topk_ids: routing.topk_ids.to_vec(device).expect("u32"),
            topk_weights: routing.topk_weights.to_vec(device).expect("f32"),
            output: output.to_vec().expect("f32"),
        }
    }

    /// What the oracle makes of it, with the same weights.
    pub fn expected(&self, hidden_states: &[f32]) -> Vec<f64> {
        let [router, gate_up, down] = self.values();
        let config = self.config();
        let linear = |values: &[f32]| reference::Linear { weight: wide(values), bias: None };
        let oracle = reference::Layer {
            config: &config,
            router: linear(&router),
            selection_bias: None,
            router_hidden: None,
            experts: reference::Experts { gate_up_proj: linear(&gate_up), down_proj: linear(&down) },
            shared: None,
            latent: None,
        };
        reference::moe_layer(&oracle, &wide(hidden_states), None).output
    }
}

fn tensor<const N: usize>(device: &Device, dtype: DType, values: &[f32], shape: [usize; N]) -> Tensor {
    match dtype {
        DType::BF16 => {
            let values: Vec<_> = values.iter().map(|&v| bf16::from_f32(v)).collect();
            Tensor::from_slice(device, &values, shape)
        }
        DType::F16 => {
            let values: Vec<_> = values.iter().map(|&v| f16::from_f32(v)).collect();
            Tensor::from_slice(device, &values, shape)
        }
        _ => Tensor::from_slice(device, values, shape),
    }
    .expect("small")
}
