//! A loaded layer, run by the oracle in f64.

use fused_moe::config::MoeConfig;
use fused_moe::reference::{Experts, Layer, Linear, SharedExpert, moe_layer};
use fused_moe::weights::ExpertWeights;
use fused_moe::{DType, MoeLayer, Tensor};

pub fn run(layer: &MoeLayer, hidden_states: &[f32]) -> Vec<f64> {
    let (config, weights): (&MoeConfig, _) = (layer.config(), layer.weights());
    let router = weights.router.as_ref().expect("checkpoints have a router");
    let oracle = Layer {
        config,
        router_hidden: router.hidden.as_ref().map(wide),
        router: linear(&router.weight, &router.bias),
        selection_bias: router.selection_bias.as_ref().map(wide),
        experts: experts(&weights.experts),
        shared: weights
            .shared
            .as_ref()
            .map(|shared| SharedExpert { experts: experts(&shared.experts), gate: shared.gate.as_ref().map(wide) }),
        latent: weights.latent.as_ref().map(|l| (linear(&l.down, &l.down_bias), linear(&l.up, &l.up_bias))),
    };
    let hidden_states: Vec<f64> = hidden_states.iter().map(|&x| f64::from(x)).collect();
    moe_layer(&oracle, &hidden_states, None).output
}

fn experts(weights: &ExpertWeights) -> Experts {
    Experts {
        gate_up_proj: linear(&weights.gate_up_proj, &weights.gate_up_bias),
        down_proj: linear(&weights.down_proj, &weights.down_bias),
    }
}

fn linear(weight: &Tensor, bias: &Option<Tensor>) -> Linear {
    Linear { weight: wide(weight), bias: bias.as_ref().map(wide) }
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::F32 => tensor.to_vec::<f32>().unwrap().into_iter().map(f64::from).collect(),
        DType::BF16 => tensor.to_vec::<half::bf16>().unwrap().into_iter().map(f64::from).collect(),
        DType::F16 => tensor.to_vec::<half::f16>().unwrap().into_iter().map(f64::from).collect(),
        DType::U32 => panic!("weights are floating-point"),
    }
}
