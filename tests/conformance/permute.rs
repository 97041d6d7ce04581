//! `permute` against the oracle: every plan exact.

use fused_moe::ops::{self, PermuteArgs};
use fused_moe::plan::PermutePlanMut;
use fused_moe::reference::{self, Plan};
use fused_moe::tensor::TensorView;
use fused_moe::{Device, Tensor};

use crate::harness::slots::Load;
use crate::harness::values::{garbage_u32, rng};
use crate::harness::{Failure, Log, Problem, Test, compare};

pub const TESTS: &[Test] = &[
    Test { op: "permute", name: "loads", body: loads },
    Test { op: "permute", name: "tokens", body: tokens },
    Test { op: "permute", name: "aligned_lists", body: aligned_lists },
    Test { op: "permute", name: "many_slots", body: many_slots },
    Test { op: "permute", name: "ragged_slots", body: ragged_slots },
    Test { op: "permute", name: "repeats", body: repeats },
];

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    num_tokens: usize,
    top_k: usize,
    num_experts: usize,
    load: Load,
}

impl Case {
    fn topk_ids(&self) -> Vec<u32> {
        self.load.ids(&mut rng(self.seed), self.num_tokens * self.top_k, self.num_experts)
    }
}

fn run(device: &Device, topk_ids: TensorView<'_>, num_experts: usize) -> Result<Plan, Problem> {
    let num_slots = topk_ids.shape().numel();
    let mut expert_offsets = garbage_u32(device, [num_experts + 1])?;
    let mut permuted_idx = garbage_u32(device, [num_slots])?;
    let mut inv_permuted_idx = garbage_u32(device, [num_slots])?;
    let plan = PermutePlanMut {
        expert_offsets: expert_offsets.view_mut()?,
        permuted_idx: permuted_idx.view_mut()?,
        inv_permuted_idx: inv_permuted_idx.view_mut()?,
    };
    ops::permute(device, PermuteArgs { topk_ids, plan })?;
    Ok(Plan {
        expert_offsets: expert_offsets.to_vec()?,
        permuted_idx: permuted_idx.to_vec()?,
        inv_permuted_idx: inv_permuted_idx.to_vec()?,
    })
}

fn compare_plans(actual: &Plan, expected: &Plan) -> Result<(), Problem> {
    compare::exact("expert_offsets", &actual.expert_offsets, &expected.expert_offsets)?;
    compare::exact("permuted_idx", &actual.permuted_idx, &expected.permuted_idx)?;
    compare::exact("inv_permuted_idx", &actual.inv_permuted_idx, &expected.inv_permuted_idx)
}

fn check(device: &Device, case: &Case) -> Result<(), Problem> {
    let ids = case.topk_ids();
    let topk_ids = Tensor::from_slice(device, &ids, [case.num_tokens, case.top_k])?;
    let plan = run(device, topk_ids.view(), case.num_experts)?;
    compare_plans(&plan, &reference::permute(&ids, case.num_experts))
}

fn loads(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_experts in [1, 2, 7, 12, 60, 64, 65, 160, 256, 257, 1025] {
        for load in Load::all(num_experts) {
            // Several warps' worth first: slow devices then have it with every E.
            for (num_tokens, top_k) in [(33, 3), (1, 1)] {
                let case = Case { seed: num_experts as u64, num_tokens, top_k, num_experts, load };
                log.case(device, &case, check)?;
            }
        }
    }
    Ok(())
}

fn tokens(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [0, 1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 513, 1023, 1025, 2047, 4097]
    {
        for (top_k, num_experts, load) in [(1, 7, Load::Uniform), (4, 60, Load::Masked), (12, 12, Load::Uniform)] {
            log.case(device, &Case { seed: num_tokens as u64, num_tokens, top_k, num_experts, load }, check)?;
        }
    }
    Ok(())
}

/// The list on which others test their alignment kernels.
fn aligned_lists(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [1, 3, 256, 2256, 4096] {
        for num_experts in [32, 160, 256, 257] {
            for top_k in [1, 2, 16, 32] {
                log.case(device, &Case { seed: 3, num_tokens, top_k, num_experts, load: Load::Uniform }, check)?;
            }
        }
    }
    Ok(())
}

/// More than one block's: many experts, and slots that are no multiple of anything.
fn many_slots(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let loads = [Load::Masked, Load::Uniform];
    for (num_tokens, num_experts, load) in
        [(8209, 7, loads[0]), (10_007, 70, loads[1]), (12_300, 300, loads[0]), (18_000, 1000, loads[1])]
    {
        log.case(device, &Case { seed: 4, num_tokens, top_k: 1, num_experts, load }, check)?;
    }
    Ok(())
}

/// Slots without a k: expert choice hands on a flat list.
fn ragged_slots(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_slots in [0, 1, 37, 1000] {
        let case = Case { seed: 5, num_tokens: num_slots, top_k: 1, num_experts: 12, load: Load::Masked };
        log.case(device, &case, |device, case| {
            let ids = case.topk_ids();
            let topk_ids = Tensor::from_slice(device, &ids, [case.num_tokens])?;
            let plan = run(device, topk_ids.view(), case.num_experts)?;
            compare_plans(&plan, &reference::permute(&ids, case.num_experts))
        })?;
    }
    Ok(())
}

/// The same plan from the same ids, every time: no race decides an order.
fn repeats(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let case = Case { seed: 9, num_tokens: 3000, top_k: 8, num_experts: 5, load: Load::Uniform };
    log.case(device, &case, |device, case| {
        let topk_ids = Tensor::from_slice(device, &case.topk_ids(), [case.num_tokens, case.top_k])?;
        let first = run(device, topk_ids.view(), case.num_experts)?;
        (0..10).try_for_each(|_| compare_plans(&run(device, topk_ids.view(), case.num_experts)?, &first))
    })
}
