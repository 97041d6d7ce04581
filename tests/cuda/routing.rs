//! Routing with the permutation on an emulated device: how many launches it is, what a replay of them does, and what they
//! cost in instructions.

use std::sync::Arc;

use fused_moe::backend::cuda::Cuda;
use fused_moe::ops::{self, RouteArgs, RouteInputs, RoutePermuteArgs};
use fused_moe::plan::PermutePlanMut;
use fused_moe::routing::{GroupLimit, GroupScore, Renormalize, RouterConfig, ScoreFunction};
use fused_moe::{DType, Device, Tensor, reference};

use crate::cuda_vm::{Calls, Recorded, Vm};
use crate::layers::{random, wide};

/// The tensors of one call.
struct Call {
    vm: Arc<Vm>,
    device: Device,
    config: RouterConfig,
    num_experts: usize,
    router_logits: Tensor,
    selection_bias: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    expert_offsets: Tensor,
    permuted_idx: Tensor,
    inv_permuted_idx: Tensor,
}

impl Call {
    fn new(vm: &Arc<Vm>, config: RouterConfig, num_tokens: usize, num_experts: usize) -> Self {
        let device = Device::new(Cuda::new(vm.clone()).expect("the build has kernels"));
        let ids = |len: usize| Tensor::zeros(&device, DType::U32, [len]).expect("small");
        let num_slots = num_tokens * config.top_k;
        Self {
            vm: vm.clone(),
            router_logits: tensor(&device, &random(1, num_tokens * num_experts), num_experts),
            selection_bias: Tensor::from_slice(&device, &random(2, num_experts), [num_experts]).expect("small"),
            topk_ids: Tensor::zeros(&device, DType::U32, [num_tokens, config.top_k]).expect("small"),
            topk_weights: Tensor::zeros(&device, DType::F32, [num_tokens, config.top_k]).expect("small"),
            expert_offsets: ids(num_experts + 1),
            permuted_idx: ids(num_slots),
            inv_permuted_idx: ids(num_slots),
            device,
            config,
            num_experts,
        }
    }

    /// Routes and permutes; what the device was asked.
    fn run(&mut self) -> Calls {
        let own = "memory of its own";
        let has_bias = self.config.score == ScoreFunction::Sigmoid;
        let route = RouteArgs {
            config: &self.config,
            router_logits: self.router_logits.view(),
            selection_bias: has_bias.then(|| self.selection_bias.view()),
            inputs: RouteInputs::default(),
            topk_ids: self.topk_ids.view_mut().expect(own),
            topk_weights: self.topk_weights.view_mut().expect(own),
            ragged: None,
            figures: None,
        };
        let plan = PermutePlanMut {
            expert_offsets: self.expert_offsets.view_mut().expect(own),
            permuted_idx: self.permuted_idx.view_mut().expect(own),
            inv_permuted_idx: self.inv_permuted_idx.view_mut().expect(own),
        };
        self.vm.take_calls();
        ops::route_permute(&self.device, RoutePermuteArgs { route, plan }).expect("it runs");
        self.vm.take_calls()
    }

    /// The ids and the plan are the oracle's for the logits that are there.
    fn check(&self) {
        let logits = wide(&self.router_logits.to_vec::<f32>().expect("f32"));
        let expected = reference::route(&reference::Route::new(&self.config, &logits, self.num_experts)).topk_ids;
        assert!(self.topk_ids.to_vec::<u32>().expect("u32") == expected, "other ids");
        self.check_plan();
    }

    /// The plan is the oracle's for the ids that came out.
    fn check_plan(&self) {
        let ids = |tensor: &Tensor| tensor.to_vec::<u32>().expect("u32");
        let plan = reference::permute(&ids(&self.topk_ids), self.num_experts);
        assert_eq!(ids(&self.expert_offsets), plan.expert_offsets);
        assert!(ids(&self.permuted_idx) == plan.permuted_idx, "other rows");
        assert!(ids(&self.inv_permuted_idx) == plan.inv_permuted_idx, "other slots");
    }
}

fn tensor(device: &Device, values: &[f32], columns: usize) -> Tensor {
    Tensor::from_slice(device, values, [values.len() / columns, columns]).expect("small")
}

fn softmax() -> RouterConfig {
    RouterConfig::softmax_top_k(8)
}

/// Of DeepSeek-V3: with a bias.
fn grouped() -> RouterConfig {
    let groups = GroupLimit { num_groups: 8, topk_groups: 4, score: GroupScore::SumTop2 };
    let renormalize = Some(Renormalize { add: 1e-20, ..Renormalize::default() });
    RouterConfig { score: ScoreFunction::Sigmoid, groups: Some(groups), renormalize, scaling_factor: 2.5, ..softmax() }
}

fn kernels(calls: &Calls) -> Vec<&'static str> {
    let kernel = |work: &Recorded| match work {
        Recorded::Launch { kernel, .. } => kernel.name,
        Recorded::Zero { .. } => "zero",
    };
    calls.launches.iter().map(kernel).collect()
}

#[test]
fn one_launch_up_to_256_tokens_and_two_above() {
    for vm in [Vm::sm80(), Vm::sm90()] {
        for (num_tokens, expected) in [
            (1, &["route_permute"] as &[_]),
            (16, &["route_permute"]),
            (17, &["route_permute"]),
            (256, &["route_permute"]),
            (257, &["route_count", "permute_place"]),
            (1100, &["route_count", "permute_place"]),
        ] {
            let mut call = Call::new(&vm, RouterConfig::softmax_top_k(8), num_tokens, 32);
            assert_eq!(kernels(&call.run()), expected, "{num_tokens} tokens");
            call.check();
        }
    }
}

/// What the kernels' headers reckon with, for each token: instructions of a warp, PTX's.
#[test]
fn prefill_over_256_experts_is_two_launches_of_few_instructions() {
    for (config, most) in [(softmax(), 660), (grouped(), 950)] {
        let (vm, num_tokens) = (Vm::sm90(), 8192);
        let mut call = Call::new(&vm, config, num_tokens, 256);
        let calls = call.run();
        assert_eq!(kernels(&calls), ["route_count", "permute_place"]);
        let each = calls.thread_instructions / 32 / num_tokens as u64;
        assert!(each <= most, "{each} instructions");
        // Of so many sums of a score and a bias some are ties in f32: the ids are the conformance suite's.
        call.check_plan();
    }
}

#[test]
fn a_replay_routes_what_is_there_then() {
    for num_tokens in [1, 64, 256, 300] {
        let vm = Vm::sm80();
        let mut call = Call::new(&vm, softmax(), num_tokens, 60);
        let graph = call.run().launches;
        call.check();
        for seed in 5..8 {
            let logits = random(seed, num_tokens * 60);
            call.device.backend().write(call.router_logits.view_mut().unwrap(), bytemuck::cast_slice(&logits)).unwrap();
            vm.replay(&graph).unwrap();
            call.check();
        }
    }
}

/// Blocks count in a place's own counter; who writes to more places than there are counters has two launches.
#[test]
fn more_places_than_counters_are_written_in_two_launches() {
    let mut call = Call::new(&Vm::sm80(), RouterConfig::softmax_top_k(1), 17, 4);
    let mut places = Vec::new();
    let mut launches = Vec::new();
    for _ in 0..1030 {
        launches.push(call.run().launches.len());
        let other = Tensor::zeros(&call.device, DType::U32, [5]).expect("small");
        places.push(std::mem::replace(&mut call.expert_offsets, other));
    }
    assert_eq!(launches, [[1; 1024].as_slice(), &[2; 6]].concat());
    // The first place still has its counter.
    call.expert_offsets = places.swap_remove(0);
    assert_eq!(call.run().launches.len(), 1);
    call.check();
}
