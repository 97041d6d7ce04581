//! No allocation in a call of the layer after the first of its shape, on any thread.

#[path = "conformance/harness/mod.rs"]
mod harness;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use fused_moe::backend::cpu::{Cpu, InstructionSet};
use fused_moe::config::{Activation, GateUpLayout, MoeConfig, SharedExpertConfig, WeightLayout};
use fused_moe::layer::LayerOptions;
use fused_moe::routing::{GroupLimit, GroupScore, Renormalize, RouterConfig, ScoreFunction};
use fused_moe::{DType, Device};
use harness::model::{Model, Spec};
use harness::values::garbage;

/// The system's allocator, with every allocation of every thread counted.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every method hands its arguments on to the system's allocator, whose contract is the same.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A layer with all the steps that there are.
fn everything() -> MoeConfig {
    MoeConfig {
        num_experts: 12,
        hidden_size: 96,
        intermediate_size: 40,
        router: RouterConfig {
            score: ScoreFunction::Sigmoid,
            groups: Some(GroupLimit { num_groups: 4, topk_groups: 2, score: GroupScore::SumTop2 }),
            renormalize: Some(Renormalize::default()),
            ..RouterConfig::softmax_top_k(4)
        },
        activation: Activation::Silu,
        gate_up_layout: Some(GateUpLayout::GateThenUp),
        weight_layout: WeightLayout::Nk,
        shared: Some(SharedExpertConfig {
            intermediate_size: 33,
            activation: Activation::Silu,
            gate_up_layout: Some(GateUpLayout::GateThenUp),
            weight_layout: WeightLayout::Nk,
            sigmoid_gate: true,
            output_scale: 1.0,
        }),
        latent_size: Some(64),
    }
}

/// The allocations of one call, after two of the same shape.
fn allocations(device: &Device, weight: DType, weight_layout: WeightLayout, num_tokens: usize) -> usize {
    let config = MoeConfig { weight_layout, ..everything() };
    let spec =
        Spec { config, weight, io: weight, rounded_inputs: true, biases: true, selection_bias: Some(0.1), seed: 1 };
    let model = Model::new(&spec);
    let layer = model.layer(device, LayerOptions::default()).unwrap();
    let mut workspace = layer.workspace(num_tokens).unwrap();
    let shape = [num_tokens, 96];
    let hidden_states = model.hidden_states(num_tokens).upload(device, shape).unwrap();
    let mut output = garbage(device, weight, shape).unwrap();
    let mut call = || layer.forward(hidden_states.view(), output.view_mut().unwrap(), &mut workspace).unwrap();
    call();
    call();
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    call();
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

/// One test only: another one on another thread would allocate too.
#[test]
fn a_call_allocates_nothing() {
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 1, "the counter counts");

    // Inside a pool a call allocates nothing. Its work comes in from outside through rayon's queue, which takes a new
    // block for every 63 pieces of work: that one may show.
    let inside = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(calls_that_allocate);
    assert!(inside.is_empty(), "calls that allocate: {inside:#?}");
    let outside: Vec<_> = calls_that_allocate().into_iter().filter(|call| call.count > 1).collect();
    assert!(outside.is_empty(), "calls that allocate: {outside:#?}");
}

#[derive(Debug)]
#[allow(dead_code, reason = "read by Debug")]
struct Call {
    set: InstructionSet,
    weight: DType,
    weight_layout: WeightLayout,
    num_tokens: usize,
    count: usize,
}

fn calls_that_allocate() -> Vec<Call> {
    let mut found = Vec::new();
    for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
        let device = Device::new(Cpu::builder().instruction_set(set).build().unwrap());
        for weight in harness::values::FLOATS {
            for weight_layout in [WeightLayout::Nk, WeightLayout::Kn] {
                for num_tokens in [1, 8, 100] {
                    let count = allocations(&device, weight, weight_layout, num_tokens);
                    if count > 0 {
                        found.push(Call { set, weight, weight_layout, num_tokens, count });
                    }
                }
            }
        }
    }
    found
}
