//! Devices as the tests want them, and a small layer with its oracle.
#![allow(dead_code, reason = "each test binary uses a part")]

use fused_moe::backend::wgpu::{WgpuDevice, WgpuOptions};
use fused_moe::config::{Activation, GateUpLayout, MoeConfig, WeightLayout};
use fused_moe::ops::{Epilogue, GroupedGemmArgs, InputRows, grouped_gemm};
use fused_moe::reference;
use fused_moe::routing::RouterConfig;
use fused_moe::weights::{ExpertWeights, MoeWeights, RouterWeights};
use fused_moe::{DType, Device, Error, MoeLayer, Tensor};
use half::bf16;

/// The device; `None`, having said why, where this machine has no adapter and need not have one.
pub fn open(options: WgpuOptions) -> Option<WgpuDevice> {
    let required =
        std::env::var("FUSED_MOE_REQUIRE").is_ok_and(|list| list.split(',').any(|name| name.trim() == "wgpu"));
    match WgpuDevice::open() {
        Err(Error::Unavailable { reason, .. }) if !required => {
            eprintln!("skipped: wgpu: {reason}");
            return None;
        }
        found => drop(found.expect("wgpu is required")),
    }
    Some(WgpuDevice::with_options(&options).expect("the adapter is there"))
}

/// As [`open`], with all defaults.
pub fn opened() -> Option<WgpuDevice> {
    open(WgpuOptions::default())
}

/// All that the adapter has, but for a change.
pub fn limits(change: impl FnOnce(&mut wgpu::Limits)) -> WgpuOptions {
    let Ok(device) = WgpuDevice::open() else { return WgpuOptions::default() };
    let mut limits = device.limits().clone();
    change(&mut limits);
    WgpuOptions { limits: Some(limits), ..WgpuOptions::default() }
}

/// A device of an engine, with its queue.
pub fn engine() -> Option<(wgpu::Device, wgpu::Queue)> {
    opened()?;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
    Some(pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap())
}

/// Numbers in −1..1 that are the same on every run.
pub fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// A layer of 7 experts and its input.
pub struct Problem {
    dtype: DType,
    router: Vec<f32>,
    gate_up: Vec<f32>,
    down: Vec<f32>,
    pub hidden_states: Vec<f32>,
}

pub const TOKENS: usize = 5;
const EXPERTS: usize = 7;
pub const HIDDEN: usize = 24;
const INTERMEDIATE: usize = 20;

impl Problem {
    pub fn small() -> Self {
        Self {
            dtype: DType::F32,
            router: random(1, EXPERTS * HIDDEN),
            gate_up: random(2, EXPERTS * 2 * INTERMEDIATE * HIDDEN),
            down: random(3, EXPERTS * HIDDEN * INTERMEDIATE),
            hidden_states: random(4, TOKENS * HIDDEN),
        }
    }

    /// The same with experts in bf16.
    pub fn in_bf16(mut self) -> Self {
        self.dtype = DType::BF16;
        for weights in [&mut self.gate_up, &mut self.down] {
            weights.iter_mut().for_each(|w| *w = bf16::from_f32(*w).to_f32());
        }
        self
    }

    fn config(&self) -> MoeConfig {
        MoeConfig {
            num_experts: EXPERTS,
            hidden_size: HIDDEN,
            intermediate_size: INTERMEDIATE,
            router: RouterConfig::softmax_top_k(3),
            activation: Activation::Silu,
            gate_up_layout: Some(GateUpLayout::GateThenUp),
            weight_layout: WeightLayout::Nk,
            shared: None,
            latent_size: None,
        }
    }

    fn experts(&self, device: &Device, values: &[f32], shape: [usize; 3]) -> fused_moe::Result<Tensor> {
        match self.dtype {
            DType::BF16 => {
                let values: Vec<_> = values.iter().map(|&v| bf16::from_f32(v)).collect();
                Tensor::from_slice(device, &values, shape)
            }
            _ => Tensor::from_slice(device, values, shape),
        }
    }

    pub fn layer(&self, device: &Device) -> fused_moe::Result<MoeLayer> {
        let weights = MoeWeights {
            router: Some(RouterWeights {
                weight: Tensor::from_slice(device, &self.router, [EXPERTS, HIDDEN])?,
                bias: None,
                selection_bias: None,
                hidden: None,
            }),
            experts: ExpertWeights {
                gate_up_proj: self.experts(device, &self.gate_up, [EXPERTS, 2 * INTERMEDIATE, HIDDEN])?,
                gate_up_bias: None,
                down_proj: self.experts(device, &self.down, [EXPERTS, HIDDEN, INTERMEDIATE])?,
                down_bias: None,
            },
            shared: None,
            latent: None,
        };
        MoeLayer::new(device, self.config(), weights)
    }

    /// What the oracle makes of the input.
    pub fn expected(&self) -> Vec<f64> {
        let config = self.config();
        let linear = |v: &[f32]| reference::Linear { weight: wide(v), bias: None };
        let oracle = reference::Layer {
            config: &config,
            router: linear(&self.router),
            selection_bias: None,
            router_hidden: None,
            experts: reference::Experts { gate_up_proj: linear(&self.gate_up), down_proj: linear(&self.down) },
            shared: None,
            latent: None,
        };
        reference::moe_layer(&oracle, &wide(&self.hidden_states), None).output
    }

    pub fn forward(&self, device: &Device) -> fused_moe::Result<Vec<f32>> {
        let layer = self.layer(device)?;
        let mut workspace = layer.workspace(TOKENS)?;
        let input = Tensor::from_slice(device, &self.hidden_states, [TOKENS, HIDDEN])?;
        let mut output = Tensor::zeros(device, DType::F32, [TOKENS, HIDDEN])?;
        layer.forward(input.view(), output.view_mut()?, &mut workspace)?;
        output.to_vec()
    }

    /// The layer on `device` is the oracle's.
    pub fn check(&self, device: &Device) {
        assert_close(&self.forward(device).unwrap(), &self.expected());
    }

    /// One grouped GEMM of the layer: the smallest piece that needs a large kernel.
    pub fn grouped_gemm(&self, device: &Device) -> fused_moe::Result<Vec<f32>> {
        let input = Tensor::from_slice(device, &self.hidden_states, [TOKENS, HIDDEN])?;
        let weight =
            Tensor::from_slice(device, &self.gate_up[..2 * INTERMEDIATE * HIDDEN], [1, 2 * INTERMEDIATE, HIDDEN])?;
        let mut output = Tensor::zeros(device, DType::F32, [TOKENS, 2 * INTERMEDIATE])?;
        let args = GroupedGemmArgs {
            input: input.view(),
            rows: InputRows::Same,
            expert_offsets: None,
            weight: weight.view(),
            weight_layout: WeightLayout::Nk,
            bias: None,
            epilogue: Epilogue::None,
            output: output.view_mut()?,
            batch_invariant: false,
        };
        grouped_gemm(device, args)?;
        output.to_vec()
    }
}

/// ‖actual − expected‖ ≤ 1e-5 ‖expected‖.
pub fn assert_close(actual: &[f32], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    let error: f64 = actual.iter().zip(expected).map(|(a, e)| (f64::from(*a) - e).powi(2)).sum();
    let norm: f64 = expected.iter().map(|e| e * e).sum();
    assert!(error.sqrt() <= 1e-5 * norm.sqrt(), "‖out−ref‖/‖ref‖ = {:e}", (error / norm).sqrt());
}
