//! What engines need of `backend::cuda::raw`, on an emulated device that counts what it is asked.

use std::sync::Arc;

use fused_moe::backend::cuda::Cuda;
use fused_moe::backend::cuda::driver::{Driver, StreamHandle};
use fused_moe::backend::cuda::raw::{RawCall, RawLayer, RawRouting, RawTensor};
use fused_moe::routing::MASKED;
use fused_moe::weights::{ExpertWeights, MoeWeights, RouterWeights};
use fused_moe::{DType, Device, Error};
use half::bf16;

use crate::cuda_vm::{Recorded, Vm};
use crate::layers::{Spec, random, relative_error};

const EXPERTS: usize = 7;
const TOP_K: usize = 3;
const HIDDEN: usize = 24;
const INTERMEDIATE: usize = 20;

const SPEC: Spec = Spec {
    num_experts: EXPERTS,
    top_k: TOP_K,
    hidden_size: HIDDEN,
    intermediate_size: INTERMEDIATE,
    dtype: DType::BF16,
    scale: 1.0,
};

/// A stream of an engine's.
const STREAM: StreamHandle = StreamHandle(0xbeef00);

/// An engine: its memory on the device, and a layer over it.
struct Engine {
    vm: Arc<Vm>,
    cuda: Cuda,
    router: Vec<f32>,
    addresses: [u64; 3],
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
        let [router, gate_up, down] = SPEC.values();
        let addresses =
            [upload(&vm, f32_bytes(&router)), upload(&vm, &bf16_bytes(&gate_up)), upload(&vm, &bf16_bytes(&down))];
        Self { vm, cuda, router, addresses }
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
        RawLayer::new(&self.cuda, SPEC.config(), weights, DType::F32).unwrap()
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

    /// The output is the oracle's for `hidden_states`.
    fn check(&self, call: &RawCall, hidden_states: &[f32]) {
        let output = download(&self.vm, call.output, hidden_states.len());
        if !hidden_states.is_empty() {
            let error = relative_error(&output, &SPEC.expected(hidden_states));
            assert!(error <= 5e-3, "{error:e}");
        }
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

/// The launches of a layer.
fn launches(num_tokens: usize) -> Vec<&'static str> {
    let vm = Vm::sm80();
    let device = Device::new(Cuda::new(vm.clone()).expect("the build has kernels"));
    let hidden_states = random(5, num_tokens * Spec::SMALL.hidden_size);
    let answer = Spec::SMALL.run(&device, &hidden_states);
    let error = relative_error(&answer.output, &Spec::SMALL.expected(&hidden_states));
    assert!(error <= 5e-3, "{num_tokens} tokens: {error:e}");
    let kernel = |work: &Recorded| match work {
        Recorded::Launch { kernel, .. } => Some(kernel.name),
        Recorded::Zero { .. } => None,
    };
    vm.take_calls().launches.iter().filter_map(kernel).collect()
}

/// One token is four launches: logits, routing with the plan, first projection with activation, second with combine.
#[test]
fn a_token_is_four_launches() {
    assert_eq!(launches(1), ["router_logits", "route_permute", "decode_bf16", "decode_combine_bf16"]);
}

/// Each of the two projections is a launch, and so is combine.
#[test]
fn up_to_256_tokens_are_routed_and_sorted_in_a_launch() {
    let (one, two) = (launches(256), launches(257));
    assert_eq!(one[..2], ["router_logits", "route_permute"]);
    assert_eq!(two[..3], ["router_logits", "route_count", "permute_place"]);
    assert_eq!((one.len(), two.len()), (5, 6));
}

/// What a CUDA graph does: the same launches again, with other hidden states and so other routing in the same memory.
#[test]
fn recorded_launches_are_replayed_with_changed_routing() {
    let engine = Engine::new();
    let layer = engine.layer();
    // Routed by one block, by several, and in a launch before the one that sorts.
    for num_tokens in [6, 70, 260] {
        let first = random(20, num_tokens * HIDDEN);
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
    engine.check(&call, &hidden_states);

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
