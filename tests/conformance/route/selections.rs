//! Selections other than the best k, noise, expert states and maps, and the figures of a routing.

use fused_moe::ops::{self, FiguresMut, RaggedMut, RouteArgs, RouteInputs};
use fused_moe::reference::{self, Routing};
use fused_moe::routing::{
    Capacity, CapacityLimit, CapacityOrder, ExpertState, Figures, GroupLimit, GroupScore, MASKED, NUM_SCALARS, Noise,
    NoiseKind, Overflow, Renormalize, RouterConfig, ScoreFunction, Selection, WeightFunction,
};
use fused_moe::{DType, Device, Tensor};
use rand::Rng;

use super::{Logits, rules};
use crate::harness::values::{Floats, garbage, garbage_u32, rng};
use crate::harness::{Failure, Log, Problem, compare};

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    num_tokens: usize,
    num_experts: usize,
    config: RouterConfig,
    logits: Logits,
    bias: bool,
    tokens_per_sequence: Option<usize>,
    /// Rows of the hash table, where there is one.
    hash_table: Option<usize>,
    figures: bool,
}

impl Case {
    fn new(num_tokens: usize, num_experts: usize, config: RouterConfig) -> Self {
        let seed = (num_tokens * 1000 + num_experts) as u64;
        let (bias, tokens_per_sequence, hash_table, figures) = (false, None, None, false);
        let logits = Logits::Continuous;
        Self { seed, num_tokens, num_experts, config, logits, bias, tokens_per_sequence, hash_table, figures }
    }

    fn choices(&self) -> usize {
        self.config.num_choices(self.num_experts)
    }

    fn columns(&self) -> usize {
        self.config.num_logits(self.num_experts)
    }

    fn num_slots(&self) -> usize {
        self.config.num_slots(self.num_tokens, self.choices()).expect("few")
    }
}

struct Inputs {
    router_logits: Floats,
    selection_bias: Floats,
    noise_logits: Floats,
    token_ids: Vec<u32>,
    hash_table: Vec<u32>,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut rng = rng(case.seed);
        let (choices, rows) = (case.choices(), case.hash_table.unwrap_or(0));
        Self {
            router_logits: Floats::new(DType::F32, case.logits.values(&mut rng, case.num_tokens * case.columns())),
            selection_bias: Floats::random(&mut rng, DType::F32, choices, 0.5),
            noise_logits: Floats::random(&mut rng, DType::F32, case.num_tokens * choices, 2.0),
            // Some beyond the table.
            token_ids: (0..case.num_tokens).map(|_| rng.random_range(0..rows as u32 + 3)).collect(),
            // Some experts that are not there.
            hash_table: (0..rows * case.config.top_k).map(|_| rng.random_range(0..choices as u32 + 1)).collect(),
        }
    }

    fn expected(&self, case: &Case) -> (Routing, Figures) {
        let (bias, noise) = (self.selection_bias.wide(), self.noise_logits.wide());
        reference::route_with_figures(&reference::Route {
            selection_bias: case.bias.then_some(&bias),
            tokens_per_sequence: case.tokens_per_sequence,
            noise_logits: Some(&noise),
            token_ids: Some(&self.token_ids),
            hash_table: case.hash_table.map(|_| self.hash_table.as_slice()),
            ..reference::Route::new(&case.config, &self.router_logits.wide(), case.choices())
        })
    }

    fn run(&self, device: &Device, case: &Case) -> Result<(Routing, Vec<u32>, Option<Figures>), Problem> {
        let (num_tokens, choices, num_slots) = (case.num_tokens, case.choices(), case.num_slots());
        let router_logits = self.router_logits.upload(device, [num_tokens, case.columns()])?;
        let bias = self.selection_bias.upload(device, [choices])?;
        let noise_logits = self.noise_logits.upload(device, [num_tokens, choices])?;
        let token_ids = Tensor::from_slice(device, &self.token_ids, [num_tokens])?;
        let table_shape = [case.hash_table.unwrap_or(0), case.config.top_k];
        let hash_table = Tensor::from_slice(device, &self.hash_table, table_shape)?;
        let shape: fused_moe::tensor::Shape =
            if case.config.is_ragged() { [num_slots].into() } else { [num_tokens, case.config.top_k].into() };
        let mut topk_ids = garbage_u32(device, shape)?;
        let mut topk_weights = garbage(device, DType::F32, shape)?;
        let mut token_offsets = garbage_u32(device, [num_tokens + 1])?;
        let mut slot_tokens = garbage_u32(device, [num_slots])?;
        let mut load = garbage_u32(device, [choices])?;
        let mut importance = garbage(device, DType::F32, [choices])?;
        let mut scalars = garbage(device, DType::F32, [NUM_SCALARS])?;
        let ragged = RaggedMut { token_offsets: token_offsets.view_mut()?, slot_tokens: slot_tokens.view_mut()? };
        let figures = FiguresMut {
            tokens_per_expert: load.view_mut()?,
            importance: importance.view_mut()?,
            scalars: scalars.view_mut()?,
        };
        let args = RouteArgs {
            config: &case.config,
            router_logits: router_logits.view(),
            selection_bias: case.bias.then(|| bias.view()),
            inputs: RouteInputs {
                tokens_per_sequence: case.tokens_per_sequence,
                noise_logits: Some(noise_logits.view()),
                token_ids: Some(token_ids.view()),
                hash_table: case.hash_table.map(|_| hash_table.view()),
            },
            topk_ids: topk_ids.view_mut()?,
            topk_weights: topk_weights.view_mut()?,
            ragged: case.config.is_ragged().then_some(ragged),
            figures: case.figures.then_some(figures),
        };
        ops::route(device, args)?;
        let token_offsets = case.config.is_ragged().then(|| token_offsets.to_vec()).transpose()?;
        let slot_tokens = if case.config.is_ragged() { slot_tokens.to_vec()? } else { Vec::new() };
        let figures = if case.figures {
            let scalars: Vec<f32> = scalars.to_vec()?;
            let scalars = scalars.try_into().map_err(|_| Problem::Wrong("scalars: another length".into()))?;
            Some(Figures::from_parts(load.to_vec()?, &importance.to_vec::<f32>()?, scalars))
        } else {
            None
        };
        let topk_weights = topk_weights.to_vec::<f32>()?.into_iter().map(f64::from).collect();
        Ok((Routing { topk_ids: topk_ids.to_vec()?, topk_weights, token_offsets }, slot_tokens, figures))
    }
}

fn check(device: &Device, case: &Case) -> Result<(), Problem> {
    let inputs = Inputs::new(case);
    let ((actual, slot_tokens, figures), (expected, expected_figures)) =
        (inputs.run(device, case)?, inputs.expected(case));
    compare::exact("topk_ids", &actual.topk_ids, &expected.topk_ids)?;
    if let (Some(actual), Some(expected)) = (&actual.token_offsets, &expected.token_offsets) {
        compare::exact("token_offsets", actual, expected)?;
        let tokens: Vec<u32> = (0..case.num_tokens as u32)
            .flat_map(|t| std::iter::repeat_n(t, (expected[t as usize + 1] - expected[t as usize]) as usize))
            .collect();
        compare::exact("slot_tokens", &slot_tokens, &tokens)?;
    }
    let row = if case.config.is_ragged() { 1 } else { case.config.top_k };
    compare::floats("topk_weights", &actual.topk_weights, &expected.topk_weights, row, 1e-5)?;
    let masked = actual.topk_ids.iter().zip(&actual.topk_weights).all(|(&id, &w)| id != MASKED || w == 0.0);
    compare::ensure(masked, || "topk_weights: a dropped slot has a weight".into())?;
    figures.map_or(Ok(()), |figures| check_figures(&figures, &expected_figures))
}

/// Sums of f32 over the batch: to 1e-5 of what is not small.
fn check_figures(actual: &Figures, expected: &Figures) -> Result<(), Problem> {
    compare::exact("tokens_per_expert", &actual.tokens_per_expert, &expected.tokens_per_expert)?;
    let pairs = actual.importance.iter().zip(&expected.importance);
    for (i, (a, e)) in pairs.chain(actual.scalars().iter().zip(&expected.scalars())).enumerate() {
        // What logits of ±f32::MAX add to the z-loss is beyond f32.
        let close = (a - e).abs() <= 1e-5 * e.abs().max(0.1) || (a.is_infinite() && *e > 1e37);
        compare::ensure(close, || format!("figure {i}: {a}, expected {e}: {actual:?} for {expected:?}"))?;
    }
    Ok(())
}

const SCORES: [ScoreFunction; 3] = [ScoreFunction::Softmax, ScoreFunction::Sigmoid, ScoreFunction::Logit];

fn with(selection: Selection, top_k: usize) -> RouterConfig {
    RouterConfig { selection, ..rules::softmax(top_k) }
}

fn noisy(kind: NoiseKind, config: RouterConfig) -> RouterConfig {
    RouterConfig { noise: Some(Noise { seed: 0x1234_5678_9abc_def0, kind }), ..config }
}

/// Every third expert disabled.
fn some_disabled(num_choices: usize, config: RouterConfig) -> RouterConfig {
    let states = [ExpertState::Active, ExpertState::Frozen, ExpertState::Disabled];
    RouterConfig { expert_states: (0..num_choices).map(|e| states[e % 3]).collect(), ..config }
}

/// Every second expert on another rank.
fn half_here(num_choices: usize, config: RouterConfig) -> RouterConfig {
    let map = (0..num_choices as u32).map(|e| (e % 2 == 0).then_some(e / 2)).collect();
    RouterConfig { expert_map: map, ..config }
}

pub fn hash(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for (num_tokens, num_experts, top_k) in [(0, 4, 2), (1, 3, 3), (33, 7, 2), (150, 64, 6), (70, 257, 1)] {
        let config =
            RouterConfig { renormalize: Some(Renormalize::default()), ..with(Selection::Hash { seed: 5 }, top_k) };
        let capacity = Some(Capacity::new(CapacityLimit::Factor(1.0)));
        for config in [
            config.clone(),
            RouterConfig { weight: WeightFunction::SoftmaxOverSelected, ..config.clone() },
            RouterConfig { score: ScoreFunction::Sigmoid, capacity, ..config.clone() },
        ] {
            for hash_table in [None, Some(1), Some(50)] {
                log.case(device, &Case { hash_table, ..Case::new(num_tokens, num_experts, config.clone()) }, check)?;
                if top_k < num_experts / 2 {
                    let config = some_disabled(num_experts, config.clone());
                    log.case(device, &Case { hash_table, ..Case::new(num_tokens, num_experts, config) }, check)?;
                }
            }
        }
    }
    Ok(())
}

pub fn expert_choice(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let sizes = [(0, 4, 1.0), (1, 3, 2.0), (40, 7, 2.0), (64, 12, 1.0), (65, 64, 1.5), (333, 16, 1.0), (20, 5, 0.0)];
    for (num_tokens, num_experts, factor) in sizes {
        for score in SCORES {
            let limit = CapacityLimit::Factor(factor);
            let config = RouterConfig { score, ..with(Selection::ExpertChoice { limit }, 1) };
            let renormalize = Some(Renormalize { add: 1e-9, ..Renormalize::default() });
            let normalized = RouterConfig { renormalize, ..config.clone() };
            let states = some_disabled(num_experts, config.clone());
            let mapped = half_here(num_experts, config.clone());
            let noise = noisy(NoiseKind::Normal { std: 0.5 }, config.clone());
            for config in [config, normalized, states, mapped, noise] {
                for bias in [false, true] {
                    log.case(device, &Case { bias, ..Case::new(num_tokens, num_experts, config.clone()) }, check)?;
                }
                // What ties by the logits does not by a softmax whose sum is rounded; and a logit of MAX, as a weight,
                // is more than f32 sums.
                let ties = if score == ScoreFunction::Softmax { Logits::Equal } else { Logits::TwoValues };
                let mixed = if score == ScoreFunction::Logit { Logits::Only(f32::NAN) } else { Logits::Mixed };
                for logits in [ties, mixed] {
                    log.case(device, &Case { logits, ..Case::new(num_tokens, num_experts, config.clone()) }, check)?;
                }
            }
        }
    }
    Ok(())
}

pub fn sinkhorn(device: &Device, log: &mut Log) -> Result<(), Failure> {
    // A single token is balanced until all its experts tie.
    for (num_tokens, num_experts, top_k) in [(0, 4, 2), (2, 3, 1), (40, 7, 3), (65, 64, 2), (300, 16, 1)] {
        for (tolerance, max_iterations) in [(1e-4, 1), (1e-4, 100)] {
            let config = with(Selection::Sinkhorn { tolerance, max_iterations }, top_k);
            let capacity = Some(Capacity::new(CapacityLimit::Factor(1.0)));
            let sigmoid = RouterConfig { score: ScoreFunction::Sigmoid, capacity, ..config.clone() };
            for config in [config.clone(), sigmoid, noisy(NoiseKind::Normal { std: 0.2 }, config)] {
                log.case(device, &Case::new(num_tokens, num_experts, config.clone()), check)?;
                if top_k < num_experts / 2 {
                    log.case(device, &Case::new(num_tokens, num_experts, some_disabled(num_experts, config)), check)?;
                }
            }
        }
    }
    Ok(())
}

pub fn hierarchical(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let sizes = [(1, 1, 1, 1), (12, 4, 2, 2), (12, 12, 3, 3), (60, 5, 2, 8), (96, 8, 3, 12), (300, 75, 70, 140)];
    for (num_experts, num_groups, topk_groups, top_k) in sizes {
        for renormalize_levels in [false, true] {
            let config = with(Selection::Hierarchical { num_groups, topk_groups, renormalize_levels }, top_k);
            let normalized = RouterConfig {
                renormalize: Some(Renormalize::default()),
                scaling_factor: 2.5,
                logit_softcap: Some(3.0),
                ..config.clone()
            };
            let noise = noisy(NoiseKind::Normal { std: 0.5 }, config.clone());
            let mut configs = vec![config.clone(), normalized, noise];
            if top_k / topk_groups <= num_experts / num_groups / 3 {
                configs.push(some_disabled(num_experts, config));
            }
            for config in configs {
                for num_tokens in [0, 1, 33] {
                    log.case(device, &Case::new(num_tokens, num_experts, config.clone()), check)?;
                }
                for logits in [Logits::Equal, Logits::Only(f32::NAN)] {
                    log.case(device, &Case { logits, ..Case::new(9, num_experts, config.clone()) }, check)?;
                }
            }
        }
    }
    Ok(())
}

pub fn noise(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let groups = Some(GroupLimit { num_groups: 4, topk_groups: 2, score: GroupScore::SumTop2 });
    // Many tokens first: slow devices then have them with every rule.
    for (num_tokens, num_experts, top_k) in [(65, 12, 3), (0, 4, 2), (1, 8, 2), (150, 64, 2)] {
        for score in SCORES {
            let config = RouterConfig { score, ..rules::softmax(top_k) };
            let limited = |normalize_before_dropping| {
                let order = CapacityOrder::FirstChoices;
                let capacity =
                    Capacity { order, normalize_before_dropping, ..Capacity::new(CapacityLimit::Factor(1.0)) };
                let renormalize = (score != ScoreFunction::Logit).then(Renormalize::default);
                RouterConfig { capacity: Some(capacity), renormalize, ..config.clone() }
            };
            let next_best = Capacity { overflow: Overflow::NextBest, ..Capacity::new(CapacityLimit::Factor(1.0)) };
            let next_best = RouterConfig { capacity: Some(next_best), ..config.clone() };
            let mut configs = Vec::new();
            for kind in [NoiseKind::Normal { std: 0.7 }, NoiseKind::NormalSoftplus] {
                let grouped = RouterConfig { groups, ..config.clone() };
                let capped = RouterConfig { logit_clip: Some(2.0), ..config.clone() };
                for config in [config.clone(), grouped, capped, limited(false), next_best.clone()] {
                    configs.push(noisy(kind, config));
                }
            }
            for kind in [NoiseKind::GumbelSecond, NoiseKind::RandomSecond { scale: 2.0 }] {
                for config in [config.clone(), limited(false), limited(true)] {
                    configs.push(noisy(kind, config));
                }
            }
            configs.push(noisy(NoiseKind::InputJitter { epsilon: 0.1 }, config.clone()));
            for config in configs {
                for bias in [false, true] {
                    log.case(device, &Case { bias, ..Case::new(num_tokens, num_experts, config.clone()) }, check)?;
                }
            }
        }
    }
    Ok(())
}

pub fn expert_states(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for (num_experts, top_k) in [(7, 3), (12, 2), (60, 4), (257, 8)] {
        let configs = rules::all(top_k).into_iter().filter(|config| config.top_k == top_k);
        for config in configs.chain([RouterConfig { num_zero_experts: 2, ..rules::softmax(top_k) }]) {
            let choices = num_experts + config.num_zero_experts;
            let config = some_disabled(choices, config);
            // The clamp of a rule with a limit makes ties in f64 that f32 has too; its logits are those of the grid.
            for logits in [Logits::Grid, Logits::Equal, Logits::Mixed] {
                log.case(device, &Case { logits, ..Case::new(9, num_experts, config.clone()) }, check)?;
            }
        }
    }
    for score in [GroupScore::Max, GroupScore::SumTop2] {
        let groups = Some(GroupLimit { num_groups: 4, topk_groups: 2, score });
        let config = some_disabled(24, RouterConfig { groups, ..rules::softmax(4) });
        for bias in [false, true] {
            log.case(device, &Case { bias, ..Case::new(40, 24, config.clone()) }, check)?;
        }
    }
    Ok(())
}

pub fn expert_map(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for (num_tokens, num_experts) in [(0, 8), (1, 7), (40, 64), (33, 257)] {
        let capacity = Some(Capacity::new(CapacityLimit::Factor(1.0)));
        for config in [rules::softmax(4), rules::deepseek_v3(4, 1, 1), RouterConfig { capacity, ..rules::softmax(4) }] {
            let config = half_here(num_experts, config);
            log.case(device, &Case::new(num_tokens, num_experts, config.clone()), check)?;
            log.case(device, &Case { figures: true, ..Case::new(num_tokens, num_experts, config) }, check)?;
        }
    }
    Ok(())
}

pub fn figures(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let levels = Selection::Hierarchical { num_groups: 4, topk_groups: 2, renormalize_levels: false };
    let limit = CapacityLimit::Factor(1.0);
    let capacity = Some(Capacity::new(CapacityLimit::Factor(0.75)));
    let mut configs = rules::all(2);
    configs.extend([
        with(levels, 4),
        with(Selection::Hash { seed: 5 }, 3),
        with(Selection::ExpertChoice { limit }, 1),
        with(Selection::Sinkhorn { tolerance: 1e-4, max_iterations: 50 }, 2),
        RouterConfig { capacity, num_zero_experts: 2, ..rules::softmax(3) },
        noisy(NoiseKind::RandomSecond { scale: 2.0 }, RouterConfig { capacity, ..rules::softmax(3) }),
        noisy(NoiseKind::Normal { std: 0.5 }, rules::softmax(3)),
        some_disabled(12, rules::softmax(3)),
    ]);
    for config in configs {
        for num_tokens in [0, 2, 33, 150] {
            let num_experts = 12 - config.num_zero_experts;
            log.case(device, &Case { figures: true, ..Case::new(num_tokens, num_experts, config.clone()) }, check)?;
        }
    }
    Ok(())
}
