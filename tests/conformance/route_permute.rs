//! `route` and `permute` in one call, against the oracle of each in turn: what has ways of its own for few tokens and for
//! many.

use fused_moe::ops::{self, RouteArgs, RouteInputs, RoutePermuteArgs};
use fused_moe::plan::PermutePlanMut;
use fused_moe::reference::{self, Plan, Routing};
use fused_moe::routing::{
    Capacity, CapacityLimit, ExpertState, Noise, NoiseKind, RouterConfig, ScoreFunction, Selection,
};
use fused_moe::{DType, Device, Tensor};
use rand::Rng;

use crate::harness::values::{Floats, garbage, garbage_u32, rng};
use crate::harness::{Failure, Log, Problem, Test, compare};
use crate::route::rules;

pub const TESTS: &[Test] = &[
    Test { op: "route_permute", name: "tokens", body: tokens },
    Test { op: "route_permute", name: "experts", body: experts },
    Test { op: "route_permute", name: "rules", body: every_rule },
    Test { op: "route_permute", name: "few_masked", body: few_masked },
    Test { op: "route_permute", name: "many_masked", body: many_masked },
    Test { op: "route_permute", name: "repeats", body: repeats },
];

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    num_tokens: usize,
    num_experts: usize,
    config: RouterConfig,
    bias: bool,
    /// Logits that are no numbers among them.
    non_finite: bool,
}

impl Case {
    fn new(num_tokens: usize, num_experts: usize, config: RouterConfig) -> Self {
        let seed = (num_tokens * 1000 + num_experts) as u64;
        Self { seed, num_tokens, num_experts, config, bias: false, non_finite: false }
    }
}

/// Rows of the hash table, where a rule has one.
const TABLE_ROWS: usize = 5;

struct Inputs {
    router_logits: Floats,
    selection_bias: Floats,
    token_ids: Vec<u32>,
    hash_table: Vec<u32>,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut rng = rng(case.seed);
        let choices = case.config.num_choices(case.num_experts);
        let mut value = |i: usize| match (case.non_finite, i % 5) {
            (true, 0) => f32::NAN,
            (true, 3) => f32::INFINITY,
            // Multiples of 1/64: what is not a tie is far apart in f32 too.
            _ => rng.random_range(-512..=512) as f32 / 64.0,
        };
        let logits = case.num_tokens * case.config.num_logits(case.num_experts);
        Self {
            router_logits: Floats::new(DType::F32, (0..logits).map(&mut value).collect::<Vec<_>>()),
            selection_bias: Floats::random(&mut rng, DType::F32, choices, 0.5),
            // Some beyond the table, which has experts that are not there.
            token_ids: (0..case.num_tokens as u32).map(|i| i * 7 % (TABLE_ROWS as u32 + 2)).collect(),
            hash_table: (0..TABLE_ROWS * case.config.top_k).map(|_| rng.random_range(0..choices as u32 + 1)).collect(),
        }
    }

    fn expected(&self, case: &Case) -> (Routing, Plan) {
        let choices = case.config.num_choices(case.num_experts);
        let bias = self.selection_bias.wide();
        let routing = reference::route(&reference::Route {
            selection_bias: case.bias.then_some(&bias),
            token_ids: Some(&self.token_ids),
            hash_table: Some(&self.hash_table),
            ..reference::Route::new(&case.config, &self.router_logits.wide(), choices)
        });
        let plan = reference::permute(&routing.topk_ids, case.num_experts);
        (routing, plan)
    }
}

/// The tensors of a call.
struct Call {
    router_logits: Tensor,
    selection_bias: Tensor,
    token_ids: Tensor,
    hash_table: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    expert_offsets: Tensor,
    permuted_idx: Tensor,
    inv_permuted_idx: Tensor,
}

impl Call {
    fn new(device: &Device, case: &Case, inputs: &Inputs) -> Result<Self, Problem> {
        let (num_tokens, top_k) = (case.num_tokens, case.config.top_k);
        Ok(Self {
            router_logits: inputs
                .router_logits
                .upload(device, [num_tokens, case.config.num_logits(case.num_experts)])?,
            selection_bias: inputs.selection_bias.upload(device, [case.config.num_choices(case.num_experts)])?,
            token_ids: Tensor::from_slice(device, &inputs.token_ids, [num_tokens])?,
            hash_table: Tensor::from_slice(device, &inputs.hash_table, [TABLE_ROWS, top_k])?,
            topk_ids: garbage_u32(device, [num_tokens, top_k])?,
            topk_weights: garbage(device, DType::F32, [num_tokens, top_k])?,
            expert_offsets: garbage_u32(device, [case.num_experts + 1])?,
            permuted_idx: garbage_u32(device, [num_tokens * top_k])?,
            inv_permuted_idx: garbage_u32(device, [num_tokens * top_k])?,
        })
    }

    fn run(&mut self, device: &Device, case: &Case) -> Result<(), Problem> {
        let hash = matches!(case.config.selection, Selection::Hash { .. });
        let route = RouteArgs {
            config: &case.config,
            router_logits: self.router_logits.view(),
            selection_bias: case.bias.then(|| self.selection_bias.view()),
            inputs: RouteInputs {
                token_ids: hash.then(|| self.token_ids.view()),
                hash_table: hash.then(|| self.hash_table.view()),
                ..RouteInputs::default()
            },
            topk_ids: self.topk_ids.view_mut()?,
            topk_weights: self.topk_weights.view_mut()?,
            ragged: None,
            figures: None,
        };
        let plan = PermutePlanMut {
            expert_offsets: self.expert_offsets.view_mut()?,
            permuted_idx: self.permuted_idx.view_mut()?,
            inv_permuted_idx: self.inv_permuted_idx.view_mut()?,
        };
        Ok(ops::route_permute(device, RoutePermuteArgs { route, plan })?)
    }

    fn compare(&self, case: &Case, (routing, plan): &(Routing, Plan)) -> Result<(), Problem> {
        compare::exact("topk_ids", &self.topk_ids.to_vec()?, &routing.topk_ids)?;
        let topk_weights: Vec<f64> = self.topk_weights.to_vec::<f32>()?.into_iter().map(f64::from).collect();
        compare::floats("topk_weights", &topk_weights, &routing.topk_weights, case.config.top_k, 1e-5)?;
        compare::exact("expert_offsets", &self.expert_offsets.to_vec()?, &plan.expert_offsets)?;
        compare::exact("permuted_idx", &self.permuted_idx.to_vec()?, &plan.permuted_idx)?;
        compare::exact("inv_permuted_idx", &self.inv_permuted_idx.to_vec()?, &plan.inv_permuted_idx)
    }
}

fn check(device: &Device, case: &Case) -> Result<(), Problem> {
    let inputs = Inputs::new(case);
    let mut call = Call::new(device, case, &inputs)?;
    call.run(device, case)?;
    call.compare(case, &inputs.expected(case))
}

/// As many as a block routes, as one launch routes, and more.
fn tokens(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [0, 1, 2, 5, 16, 17, 31, 32, 33, 64, 255, 256, 257, 600] {
        for top_k in [1, 2, 8, 16] {
            let case = Case::new(num_tokens, 60, RouterConfig::softmax_top_k(top_k));
            log.case(device, &Case { non_finite: true, ..case.clone() }, check)?;
            log.case(device, &case, check)?;
        }
    }
    Ok(())
}

/// As many as a block has room for, and more.
fn experts(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_experts in [1, 7, 33, 128, 256, 257, 1024] {
        for top_k in [1, 7, 33, 64] {
            if top_k <= num_experts {
                // Several blocks first: slow devices then have them with every E.
                for num_tokens in [40, 1, 3, 32, 256, 257] {
                    log.case(device, &Case::new(num_tokens, num_experts, RouterConfig::softmax_top_k(top_k)), check)?;
                }
            }
        }
    }
    Ok(())
}

/// Every rule, those that need launches of their own among them.
fn every_rule(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let base = RouterConfig { score: ScoreFunction::Sigmoid, ..RouterConfig::softmax_top_k(3) };
    let levels = Selection::Hierarchical { num_groups: 4, topk_groups: 3, renormalize_levels: true };
    let map = (0..24u32).map(|e| e.is_multiple_of(2).then_some(e / 2)).collect();
    let mut configs = rules::all(3);
    configs.extend([
        rules::deepseek_v3(3, 3, 2),
        rules::deepseek_v2(3, 4, 2),
        RouterConfig { num_zero_experts: 4, ..base.clone() },
        RouterConfig { selection: levels, ..rules::softmax(3) },
        RouterConfig { capacity: Some(Capacity::new(CapacityLimit::Factor(0.5))), ..base.clone() },
        RouterConfig { expert_map: map, ..base },
    ]);
    for config in configs {
        let by_level = matches!(config.selection, Selection::Hierarchical { .. });
        for (num_tokens, bias) in [(33, false), (9, !by_level), (260, !by_level)] {
            let case = Case::new(num_tokens, 24 - config.num_zero_experts, config.clone());
            log.case(device, &Case { bias, ..case }, check)?;
        }
    }
    Ok(())
}

fn few_masked(device: &Device, log: &mut Log) -> Result<(), Failure> {
    masked(device, log, &[33, 1, 64, 255])
}

fn many_masked(device: &Device, log: &mut Log) -> Result<(), Failure> {
    masked(device, log, &[257, 500])
}

/// Slots of no expert, which no row takes.
fn masked(device: &Device, log: &mut Log, num_tokens: &[usize]) -> Result<(), Failure> {
    let noise = Some(Noise { seed: 0x1234_5678_9abc_def0, kind: NoiseKind::RandomSecond { scale: 2.0 } });
    let disabled = |e: usize| if e.is_multiple_of(3) { ExpertState::Disabled } else { ExpertState::Active };
    for config in [
        RouterConfig { noise, ..RouterConfig::softmax_top_k(4) },
        RouterConfig { selection: Selection::Hash { seed: 5 }, ..RouterConfig::softmax_top_k(4) },
        RouterConfig { expert_states: (0..20).map(disabled).collect(), ..RouterConfig::softmax_top_k(4) },
        RouterConfig { num_zero_experts: 13, ..RouterConfig::softmax_top_k(4) },
    ] {
        for &num_tokens in num_tokens {
            log.case(device, &Case::new(num_tokens, 20 - config.num_zero_experts, config.clone()), check)?;
        }
    }
    Ok(())
}

/// Other logits in the same memory, again and again: nothing is left over from the call before.
fn repeats(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [9, 64, 256, 300] {
        log.case(device, &Case::new(num_tokens, 33, RouterConfig::softmax_top_k(4)), |device, case| {
            let mut call = Call::new(device, case, &Inputs::new(case))?;
            for seed in 0..4 {
                let case = Case { seed, ..case.clone() };
                let inputs = Inputs::new(&case);
                call.router_logits = inputs.router_logits.upload(device, [num_tokens, 33])?;
                call.run(device, &case)?;
                call.compare(&case, &inputs.expected(&case))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}
