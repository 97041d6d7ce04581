//! What engines need of `backend::cuda::raw`, on an emulated device that counts what it is asked.

use std::sync::Arc;

use fused_moe::backend::cuda::Cuda;
use fused_moe::backend::cuda::driver::{Driver, StreamHandle};
use fused_moe::backend::cuda::raw::{RawCall, RawLayer, RawRouting, RawTensor};
use fused_moe::config::{Activation, GateUpLayout, MoeConfig, WeightLayout};
use fused_moe::reference;
use fused_moe::routing::{MASKED, RouterConfig};
use fused_moe::weights::{ExpertWeights, MoeWeights, RouterWeights};
use fused_moe::{DType, Error};
use half::bf16;

use crate::cuda_vm::{Recorded, Vm};

const EXPERTS: usize = 7;
const TOP_K: usize = 3;
const HIDDEN: usize = 24;
const INTERMEDIATE: usize = 20;

/// A stream of an engine's.
const STREAM: StreamHandle = StreamHandle(0xbeef00);

/// An engine: its memory on the device, and a layer over it.
struct Engine {
    vm: Arc<Vm>,
    cuda: Cuda,
    config: MoeConfig,
    router: Vec<f32>,
    gate_up: Vec<f32>,
    down: Vec<f32>,
    addresses: [u64; 3],
}

fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    // What bf16 holds.
    (0..n).map(|_| bf16::from_f32(next()).to_f32()).collect()
}

fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
}

fn f32_bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

impl Engine {
    fn new() -> Self {
        let vm = Vm::sm80();
        let cuda = Cuda::new(vm.clone()).expect("the build has kernels");
        let router = random(1, EXPERTS * HIDDEN);
        let gate_up = random(2, EXPERTS * 2 * INTERMEDIATE * HIDDEN);
        let down = random(3, EXPERTS * HIDDEN * INTERMEDIATE);
        let addresses =
            [upload(&vm, f32_bytes(&router)), upload(&vm, &bf16_bytes(&gate_up)), upload(&vm, &bf16_bytes(&down))];
        let config = MoeConfig {
            num_experts: EXPERTS,
            hidden_size: HIDDEN,
            intermediate_size: INTERMEDIATE,
            router: RouterConfig::softmax_top_k(TOP_K),
            activation: Activation::Silu,
            gate_up_layout: Some(GateUpLayout::GateThenUp),
            weight_layout: WeightLayout::Nk,
            shared: None,
            latent_size: None,
        };
        Self { vm, cuda, config, router, gate_up, down, addresses }
    }

    /// The layer, on weights that stay where they are.
    fn layer(&self) -> RawLayer<'_> {
        let [router, gate_up, down] = self.addresses;
        // SAFETY: `new` uploaded as much, and `self` keeps it.
        let tensor = |address, dtype, shape: [usize; 3]| unsafe { RawTensor::new(&self.cuda, address, dtype, shape) };
        // SAFETY: as above.
        let weight = unsafe { RawTensor::new(&self.cuda, router, DType::F32, [EXPERTS, HIDDEN]) }.unwrap();
        let weights = MoeWeights {
            router: Some(RouterWeights { weight, bias: None, selection_bias: None, hidden: None }),
            experts: ExpertWeights {
                gate_up_proj: tensor(gate_up, DType::BF16, [EXPERTS, 2 * INTERMEDIATE, HIDDEN]).unwrap(),
                gate_up_bias: None,
                down_proj: tensor(down, DType::BF16, [EXPERTS, HIDDEN, INTERMEDIATE]).unwrap(),
                down_bias: None,
            },
            shared: None,
            latent: None,
        };
        RawLayer::new(&self.cuda, self.config.clone(), weights, DType::F32).unwrap()
    }

    /// Memory for calls of `num_tokens`, the output and workspace never written.
    fn call(&self, layer: &RawLayer<'_>, hidden_states: &[f32]) -> RawCall {
        let num_tokens = hidden_states.len() / HIDDEN;
        let workspace_bytes = layer.workspace_bytes(num_tokens).unwrap();
        RawCall {
            stream: STREAM,
            hidden_states: upload(&self.vm, f32_bytes(hidden_states)),
            routing: RawRouting::Router,
            output: self.vm.alloc((hidden_states.len() * 4).max(1)).unwrap(),
            workspace: self.vm.alloc(workspace_bytes.max(1)).unwrap(),
            workspace_bytes,
            num_tokens,
        }
    }

    fn oracle(&self) -> reference::Layer<'_> {
        let linear = |v: &[f32]| reference::Linear { weight: v.iter().map(|&v| f64::from(v)).collect(), bias: None };
        reference::Layer {
            config: &self.config,
            router: linear(&self.router),
            selection_bias: None,
            router_hidden: None,
            experts: reference::Experts { gate_up_proj: linear(&self.gate_up), down_proj: linear(&self.down) },
            shared: None,
            latent: None,
        }
    }

    /// The output is the oracle's for `hidden_states`.
    fn check(&self, call: &RawCall, hidden_states: &[f32]) {
        let wide: Vec<f64> = hidden_states.iter().map(|&v| f64::from(v)).collect();
        let expected = reference::moe_layer(&self.oracle(), &wide, None).output;
        assert_close(&download(&self.vm, call.output, hidden_states.len()), &expected);
    }
}

fn upload(vm: &Vm, bytes: &[u8]) -> u64 {
    let address = vm.alloc(bytes.len().max(1)).unwrap();
    // SAFETY: just allocated, as long as that.
    unsafe { vm.copy_to_device(address, bytes, StreamHandle::PER_THREAD) }.unwrap();
    address
}

fn download(vm: &Vm, address: u64, n: usize) -> Vec<f32> {
    let mut values = vec![0.0f32; n];
    // SAFETY: the test's own memory.
    unsafe { vm.copy_to_host(address, bytemuck::cast_slice_mut(&mut values), STREAM) }.unwrap();
    values
}

fn assert_close(actual: &[f32], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    let error: f64 = actual.iter().zip(expected).map(|(a, e)| (f64::from(*a) - e).powi(2)).sum();
    let norm: f64 = expected.iter().map(|e| e * e).sum();
    assert!(error.sqrt() <= 5e-3 * norm.sqrt(), "‖out−ref‖/‖ref‖ = {:e}", (error / norm).sqrt());
}

#[test]
fn a_call_allocates_nothing_waits_for_nothing_and_keeps_to_its_stream() {
    let engine = Engine::new();
    let layer = engine.layer();
    for num_tokens in [1, 5, 70] {
        let hidden_states = random(10 + num_tokens as u64, num_tokens * HIDDEN);
        let call = engine.call(&layer, &hidden_states);
        engine.vm.take_calls();
        // SAFETY: the memory of `call` is of these sizes.
        unsafe { layer.enqueue(&call) }.unwrap();
        let calls = engine.vm.take_calls();
        assert_eq!((calls.allocations, calls.frees, calls.synchronisations, calls.copies), (0, 0, 0, 0));
        assert_eq!(calls.streams.into_iter().collect::<Vec<_>>(), [STREAM.0]);
        assert!(!calls.launches.is_empty());
        engine.check(&call, &hidden_states);
    }
}

/// What a CUDA graph does: the same launches again, with other hidden states and so other routing in the same memory.
#[test]
fn recorded_launches_are_replayed_with_changed_routing() {
    let engine = Engine::new();
    let layer = engine.layer();
    let first = random(20, 6 * HIDDEN);
    let call = engine.call(&layer, &first);
    engine.vm.take_calls();
    // SAFETY: the memory of `call` is of these sizes.
    unsafe { layer.enqueue(&call) }.unwrap();
    let graph: Vec<Recorded> = engine.vm.take_calls().launches;
    engine.check(&call, &first);
    for seed in 21..24 {
        let other = random(seed, first.len());
        // SAFETY: the call's own memory.
        unsafe { engine.vm.copy_to_device(call.hidden_states, f32_bytes(&other), STREAM) }.unwrap();
        engine.vm.replay(&graph).unwrap();
        engine.check(&call, &other);
    }
}

#[test]
fn the_drivers_default_streams_are_streams_like_others() {
    let engine = Engine::new();
    let layer = engine.layer();
    for stream in [StreamHandle::LEGACY, StreamHandle::PER_THREAD] {
        let hidden_states = random(30, 2 * HIDDEN);
        let call = RawCall { stream, ..engine.call(&layer, &hidden_states) };
        engine.vm.take_calls();
        // SAFETY: the memory of `call` is of these sizes.
        unsafe { layer.enqueue(&call) }.unwrap();
        assert_eq!(engine.vm.take_calls().streams.into_iter().collect::<Vec<_>>(), [stream.0]);
        engine.check(&call, &hidden_states);
    }
}

#[test]
fn routing_may_be_the_engines() {
    let engine = Engine::new();
    let layer = engine.layer();
    let (num_tokens, hidden_states) = (4, random(40, 4 * HIDDEN));
    let wide: Vec<f64> = hidden_states.iter().map(|&v| f64::from(v)).collect();
    let expected = reference::moe_layer(&engine.oracle(), &wide, None);

    let logits: Vec<f32> = (0..num_tokens * EXPERTS)
        .map(|i| {
            let (x, w) = (&hidden_states[i / EXPERTS * HIDDEN..], &engine.router[i % EXPERTS * HIDDEN..]);
            x.iter().zip(&w[..HIDDEN]).map(|(x, w)| x * w).sum()
        })
        .collect();
    let routing = RawRouting::Logits { router_logits: upload(&engine.vm, f32_bytes(&logits)) };
    let call = RawCall { routing, ..engine.call(&layer, &hidden_states) };
    // SAFETY: the memory of `call` is of these sizes.
    unsafe { layer.enqueue(&call) }.unwrap();
    assert_close(&download(&engine.vm, call.output, hidden_states.len()), &expected.output);

    // Every slot masked: nothing is added, and no row is left unwritten.
    let (ids, weights) = (vec![MASKED; num_tokens * TOP_K], vec![1.0f32; num_tokens * TOP_K]);
    let topk_ids = upload(&engine.vm, bytemuck::cast_slice(&ids));
    let topk_weights = upload(&engine.vm, f32_bytes(&weights));
    let call = RawCall { routing: RawRouting::TopK { topk_ids, topk_weights }, ..engine.call(&layer, &hidden_states) };
    // SAFETY: as above.
    unsafe { layer.enqueue(&call) }.unwrap();
    assert_eq!(download(&engine.vm, call.output, hidden_states.len()), vec![0.0; hidden_states.len()]);
}

#[test]
fn one_workspace_serves_every_smaller_call() {
    let engine = Engine::new();
    let layer = engine.layer();
    let most = 40;
    let workspace_bytes = layer.workspace_bytes(most).unwrap();
    let workspace = engine.vm.alloc(workspace_bytes).unwrap();
    for num_tokens in [40, 1, 0, 17, 3] {
        let hidden_states = random(50 + num_tokens as u64, num_tokens * HIDDEN);
        let call = RawCall { workspace, workspace_bytes, ..engine.call(&layer, &hidden_states) };
        // SAFETY: the memory of `call` is of these sizes.
        unsafe { layer.enqueue(&call) }.unwrap();
        engine.check(&call, &hidden_states);
    }
}

#[test]
fn what_does_not_fit_is_an_error_before_anything_is_launched() {
    let engine = Engine::new();
    let layer = engine.layer();
    let call = engine.call(&layer, &random(60, 9 * HIDDEN));
    engine.vm.take_calls();
    let small = RawCall { workspace_bytes: 1024, ..call };
    let skewed = RawCall { workspace: call.workspace + 8, ..call };
    let odd = RawCall { output: call.output + 2, ..call };
    for (call, argument) in [(small, "workspace_bytes"), (skewed, "workspace"), (odd, "output")] {
        // SAFETY: the memory of `call` is of these sizes, or an error comes.
        match unsafe { layer.enqueue(&call) } {
            Err(Error::InvalidArgument { argument: named, .. }) => assert_eq!(named, argument),
            other => panic!("{argument}: {other:?}"),
        }
    }
    assert!(engine.vm.take_calls().launches.is_empty());
}
