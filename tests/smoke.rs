//! The layer on every device against the oracle's token-by-token sum. Replaced by the conformance suite.
use fused_moe::config::{Activation, GateUpLayout, MoeConfig, WeightLayout};
use fused_moe::reference;
use fused_moe::routing::RouterConfig;
use fused_moe::weights::{ExpertWeights, MoeWeights, RouterWeights};
use fused_moe::{DType, Device, MoeLayer, Tensor};

#[test]
fn layer_matches_the_oracle() {
    let config = MoeConfig {
        num_experts: 7,
        hidden_size: 24,
        intermediate_size: 20,
        router: RouterConfig::softmax_top_k(3),
        activation: Activation::Silu,
        gate_up_layout: Some(GateUpLayout::GateThenUp),
        weight_layout: WeightLayout::Nk,
        shared: None,
        latent_size: None,
    };
    let mut state = 1u64;
    let mut random = |n: usize| -> Vec<f32> {
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    };
    let (router, gate_up, down, x) = (random(7 * 24), random(7 * 40 * 24), random(7 * 24 * 20), random(5 * 24));
    let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let linear = |v: &[f32]| reference::Linear { weight: wide(v), bias: None };
    let oracle = reference::Layer {
        config: &config,
        router: linear(&router),
        selection_bias: None,
        experts: reference::Experts { gate_up_proj: linear(&gate_up), down_proj: linear(&down) },
        shared: None,
        latent: None,
    };
    let expected = reference::moe_layer(&oracle, &wide(&x), None).output;
    for device in [Device::reference(), Device::cpu()] {
        let tensor = |v: &[f32], shape: [usize; 3]| Tensor::from_slice(&device, v, shape).unwrap();
        let weights = MoeWeights {
            router: Some(RouterWeights {
                weight: Tensor::from_slice(&device, &router, [7, 24]).unwrap(),
                bias: None,
                selection_bias: None,
            }),
            experts: ExpertWeights {
                gate_up_proj: tensor(&gate_up, [7, 40, 24]),
                gate_up_bias: None,
                down_proj: tensor(&down, [7, 24, 20]),
                down_bias: None,
            },
            shared: None,
            latent: None,
        };
        let layer = MoeLayer::new(&device, config.clone(), weights).unwrap();
        let mut workspace = layer.workspace(8).unwrap();
        let input = Tensor::from_slice(&device, &x, [5, 24]).unwrap();
        let mut output = Tensor::zeros(&device, DType::F32, [5, 24]).unwrap();
        layer.forward(input.view(), output.view_mut().unwrap(), &mut workspace).unwrap();
        for (a, b) in output.to_vec::<f32>().unwrap().iter().zip(&expected) {
            assert!((f64::from(*a) - b).abs() < 1e-5, "{device}: {a} {b}");
        }
    }
}
