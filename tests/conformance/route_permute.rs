//! `route` and `permute` in one call, against the oracle of each in turn: what few tokens take another way for.

use fused_moe::ops::{self, RouteArgs, RouteInputs, RoutePermuteArgs};
use fused_moe::plan::PermutePlanMut;
use fused_moe::reference;
use fused_moe::routing::{Capacity, CapacityLimit, RouterConfig, ScoreFunction};
use fused_moe::{DType, Device};
use rand::Rng;

use crate::harness::values::{Floats, garbage, garbage_u32, rng};
use crate::harness::{Failure, Log, Problem, Test, compare};

pub const TESTS: &[Test] = &[
    Test { op: "route_permute", name: "tokens", body: tokens },
    Test { op: "route_permute", name: "experts", body: experts },
    Test { op: "route_permute", name: "rules", body: rules },
];

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    num_tokens: usize,
    num_experts: usize,
    config: RouterConfig,
    /// Logits that are no numbers among them.
    non_finite: bool,
}

fn logits(case: &Case) -> Floats {
    let mut rng = rng(case.seed);
    let choices = case.config.num_choices(case.num_experts);
    let value = |i: usize| match (case.non_finite, i % 5) {
        (true, 0) => f32::NAN,
        (true, 3) => f32::INFINITY,
        // Multiples of 1/64: what is not a tie is far apart in f32 too.
        _ => rng.random_range(-512..=512) as f32 / 64.0,
    };
    Floats::new(DType::F32, (0..case.num_tokens * choices).map(value).collect::<Vec<_>>())
}

fn check(device: &Device, case: &Case) -> Result<(), Problem> {
    let (top_k, choices) = (case.config.top_k, case.config.num_choices(case.num_experts));
    let logits = logits(case);
    let expected = reference::route(&reference::Route::new(&case.config, &logits.wide(), choices));
    let plan = reference::permute(&expected.topk_ids, case.num_experts);

    let router_logits = logits.upload(device, [case.num_tokens, choices])?;
    let num_slots = case.num_tokens * top_k;
    let mut topk_ids = garbage_u32(device, [case.num_tokens, top_k])?;
    let mut topk_weights = garbage(device, DType::F32, [case.num_tokens, top_k])?;
    let mut expert_offsets = garbage_u32(device, [case.num_experts + 1])?;
    let mut permuted_idx = garbage_u32(device, [num_slots])?;
    let mut inv_permuted_idx = garbage_u32(device, [num_slots])?;
    let route = RouteArgs {
        config: &case.config,
        router_logits: router_logits.view(),
        selection_bias: None,
        inputs: RouteInputs::default(),
        topk_ids: topk_ids.view_mut()?,
        topk_weights: topk_weights.view_mut()?,
        ragged: None,
        figures: None,
    };
    let plan_mut = PermutePlanMut {
        expert_offsets: expert_offsets.view_mut()?,
        permuted_idx: permuted_idx.view_mut()?,
        inv_permuted_idx: inv_permuted_idx.view_mut()?,
    };
    ops::route_permute(device, RoutePermuteArgs { route, plan: plan_mut })?;
    compare::exact("topk_ids", &topk_ids.to_vec()?, &expected.topk_ids)?;
    let topk_weights: Vec<f64> = topk_weights.to_vec::<f32>()?.into_iter().map(f64::from).collect();
    compare::floats("topk_weights", &topk_weights, &expected.topk_weights, top_k, 1e-5)?;
    compare::exact("expert_offsets", &expert_offsets.to_vec()?, &plan.expert_offsets)?;
    compare::exact("permuted_idx", &permuted_idx.to_vec()?, &plan.permuted_idx)?;
    compare::exact("inv_permuted_idx", &inv_permuted_idx.to_vec()?, &plan.inv_permuted_idx)
}

fn case(num_tokens: usize, num_experts: usize, config: RouterConfig) -> Case {
    Case { seed: (num_tokens * 1000 + num_experts) as u64, num_tokens, num_experts, config, non_finite: false }
}

fn tokens(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [0, 1, 2, 5, 31, 32, 33, 64, 257] {
        for top_k in [1, 2, 8] {
            let case = case(num_tokens, 60, RouterConfig::softmax_top_k(top_k));
            log.case(device, &Case { non_finite: true, ..case.clone() }, check)?;
            log.case(device, &case, check)?;
        }
    }
    Ok(())
}

/// As many as a block has room for, and more.
fn experts(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_experts in [1, 7, 33, 128, 257, 1024] {
        for top_k in [1, 7, 33, 64] {
            if top_k <= num_experts {
                for num_tokens in [1, 3, 32] {
                    log.case(device, &case(num_tokens, num_experts, RouterConfig::softmax_top_k(top_k)), check)?;
                }
            }
        }
    }
    Ok(())
}

/// Rules with ids of no expert, and those that need launches of their own.
fn rules(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let base = RouterConfig { score: ScoreFunction::Sigmoid, ..RouterConfig::softmax_top_k(3) };
    let map = (0..12u32).map(|e| e.is_multiple_of(2).then_some(e / 2)).collect();
    for config in [
        RouterConfig { num_zero_experts: 4, ..base.clone() },
        RouterConfig { capacity: Some(Capacity::new(CapacityLimit::Factor(0.5))), ..base.clone() },
        RouterConfig { expert_map: map, ..base },
    ] {
        for num_tokens in [1, 9, 33] {
            log.case(device, &case(num_tokens, 12, config.clone()), check)?;
        }
    }
    Ok(())
}
