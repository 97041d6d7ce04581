//! `route` against the oracle: ids exact, whatever the logits are.

pub mod rules;
mod selections;

use fused_moe::ops::{self, RouteArgs, RouteInputs};
use fused_moe::reference::{self, Routing};
use fused_moe::routing::{MASKED, RouterConfig, Selection, WeightFunction};
use fused_moe::tensor::AsView;
use fused_moe::{DType, Device, Tensor};
use rand::Rng;
use rand::rngs::StdRng;

use crate::harness::values::{Floats, garbage, garbage_u32, rng};
use crate::harness::{Failure, Log, Problem, Test, compare};

pub const TESTS: &[Test] = &[
    Test { op: "route", name: "rules", body: rules },
    Test { op: "route", name: "tokens", body: tokens },
    Test { op: "route", name: "experts", body: experts },
    Test { op: "route", name: "groups", body: groups },
    Test { op: "route", name: "capacity", body: capacity },
    Test { op: "route", name: "selection_bias", body: selection_bias },
    Test { op: "route", name: "ties", body: ties },
    Test { op: "route", name: "non_finite", body: non_finite },
    Test { op: "route", name: "extremes", body: extremes },
];

/// Selections other than the best k, and what is around them.
pub const SELECTIONS: &[Test] = &[
    Test { op: "route", name: "hash", body: selections::hash },
    Test { op: "route", name: "expert_choice", body: selections::expert_choice },
    Test { op: "route", name: "sinkhorn", body: selections::sinkhorn },
    Test { op: "route", name: "hierarchical", body: selections::hierarchical },
    Test { op: "route", name: "noise", body: selections::noise },
    Test { op: "route", name: "expert_states", body: selections::expert_states },
    Test { op: "route", name: "expert_map", body: selections::expert_map },
    Test { op: "route", name: "figures", body: selections::figures },
];

/// What the logits of a case look like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Logits {
    /// Any in ±4.
    Continuous,
    /// Multiples of 1/64 in ±8: what is not a tie is far apart in f32 too.
    Grid,
    /// All the same.
    Equal,
    /// One of two values.
    TwoValues,
    /// Grid, with this value in place of one in `every` of them, the first of each token included.
    With { value: f32, every: usize },
    /// Nothing but this value.
    Only(f32),
    /// Grid, with NaN, +inf and −inf mixed in.
    Mixed,
    /// Multiples of 1 in ±`scale`.
    Wide(f32),
}

impl Logits {
    fn values(self, rng: &mut StdRng, len: usize) -> Vec<f32> {
        if self == Self::Continuous {
            return (0..len).map(|_| rng.random_range(-4.0..4.0)).collect();
        }
        let mut grid = || rng.random_range(-512..=512) as f32 / 64.0;
        match self {
            Self::Continuous | Self::Grid => (0..len).map(|_| grid()).collect(),
            Self::Equal => vec![0.25; len],
            Self::TwoValues => (0..len).map(|_| if grid() < 0.0 { -1.5 } else { 2.0 }).collect(),
            Self::With { value, every } => (0..len).map(|i| if i % every == 0 { value } else { grid() }).collect(),
            Self::Only(value) => vec![value; len],
            Self::Mixed => {
                let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN];
                (0..len).map(|i| if i % 3 == 0 { special[i / 3 % 4] } else { grid() }).collect()
            }
            Self::Wide(scale) => (0..len).map(|_| (grid() / 8.0 * scale).round()).collect(),
        }
    }
}

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    num_tokens: usize,
    num_experts: usize,
    config: RouterConfig,
    /// Range of the selection bias, where there is one.
    bias: Option<(f32, f32)>,
    logits: Logits,
    tokens_per_sequence: Option<usize>,
}

impl Case {
    fn new(num_tokens: usize, num_experts: usize, config: RouterConfig) -> Self {
        let seed = (num_tokens * 1000 + num_experts) as u64;
        Self { seed, num_tokens, num_experts, config, bias: None, logits: Logits::Grid, tokens_per_sequence: None }
    }

    fn choices(&self) -> usize {
        self.config.num_choices(self.num_experts)
    }
}

struct Inputs {
    router_logits: Floats,
    selection_bias: Option<Floats>,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut rng = rng(case.seed);
        let choices = case.choices();
        let bias = case
            .bias
            .map(|(low, high)| (0..choices).map(|_| low + (high - low) * rng.random::<f32>()).collect::<Vec<_>>());
        Self {
            router_logits: Floats::new(DType::F32, case.logits.values(&mut rng, case.num_tokens * choices)),
            selection_bias: bias.map(|bias| Floats::new(DType::F32, bias)),
        }
    }

    fn expected(&self, case: &Case) -> Routing {
        let bias = self.selection_bias.as_ref().map(Floats::wide);
        reference::route(&reference::Route {
            selection_bias: bias.as_deref(),
            tokens_per_sequence: case.tokens_per_sequence,
            ..reference::Route::new(&case.config, &self.router_logits.wide(), case.choices())
        })
    }

    fn run(&self, device: &Device, case: &Case) -> Result<Routing, Problem> {
        let router_logits = self.router_logits.upload(device, [case.num_tokens, case.choices()])?;
        let bias = self.selection_bias.as_ref().map(|bias| bias.upload(device, [case.choices()])).transpose()?;
        let shape = [case.num_tokens, case.config.top_k];
        let mut topk_ids = garbage_u32(device, shape)?;
        let mut topk_weights = garbage(device, DType::F32, shape)?;
        let args = RouteArgs {
            config: &case.config,
            router_logits: router_logits.view(),
            selection_bias: bias.as_ref().map(Tensor::as_view),
            inputs: RouteInputs { tokens_per_sequence: case.tokens_per_sequence, ..RouteInputs::default() },
            topk_ids: topk_ids.view_mut()?,
            topk_weights: topk_weights.view_mut()?,
            ragged: None,
            figures: None,
        };
        ops::route(device, args)?;
        let topk_weights = topk_weights.to_vec::<f32>()?.into_iter().map(f64::from).collect();
        Ok(Routing { topk_ids: topk_ids.to_vec()?, topk_weights, token_offsets: None })
    }
}

fn check(device: &Device, case: &Case) -> Result<(), Problem> {
    let inputs = Inputs::new(case);
    let (actual, expected) = (inputs.run(device, case)?, inputs.expected(case));
    check_sound(case, "oracle", &expected)?;
    check_sound(case, "output", &actual)?;
    compare::exact("topk_ids", &actual.topk_ids, &expected.topk_ids)?;
    compare::floats("topk_weights", &actual.topk_weights, &expected.topk_weights, case.config.top_k, 1e-5)
}

/// What holds for every token whatever its logits: ids unique and in range, or dropped by a rule that drops; weights
/// finite, and 0 where there is no expert.
fn check_sound(case: &Case, who: &str, routing: &Routing) -> Result<(), Problem> {
    let k = case.config.top_k;
    for (token, ids) in routing.topk_ids.chunks_exact(k).enumerate() {
        let dropped = |id: u32| id == MASKED && case.config.capacity.is_some();
        let sound = ids.iter().enumerate().all(|(i, &id)| {
            dropped(id) && routing.topk_weights[token * k + i] == 0.0
                || (id as usize) < case.choices() && !ids[..i].contains(&id)
        });
        compare::ensure(sound, || {
            format!("topk_ids of the {who}: token {token}: {ids:?}, expected different ones below {}", case.choices())
        })?;
    }
    match routing.topk_weights.iter().position(|weight| !weight.is_finite()) {
        None => Ok(()),
        Some(slot) => Err(Problem::Wrong(format!(
            "topk_weights of the {who}: [{}, {}]: {}, expected a finite one",
            slot / k,
            slot % k,
            routing.topk_weights[slot]
        ))),
    }
}

/// Every score, weight, renormalisation and scale.
fn rules(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for config in rules::all(4) {
        for num_experts in [7, 12, 60] {
            for bias in [None, Some((-0.25, 0.25))] {
                log.case(device, &Case { bias, ..Case::new(22, num_experts, config.clone()) }, check)?;
            }
        }
    }
    Ok(())
}

fn tokens(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [0, 1, 2, 7, 8, 9, 31, 32, 33, 56, 63, 64, 65, 127, 129, 1024, 2049] {
        for config in [rules::softmax(4), rules::deepseek_v3(4, 4, 2)] {
            log.case(device, &Case::new(num_tokens, 16, config), check)?;
        }
    }
    Ok(())
}

/// E that are no power of two, k = 1 and k = E; the lists others test on.
fn experts(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_experts in
        [1, 6, 7, 8, 12, 16, 31, 32, 33, 40, 60, 63, 64, 65, 71, 72, 96, 128, 129, 160, 256, 257, 288, 512]
    {
        for top_k in [1, 2, 3, 4, 6, 8, 22, 32, num_experts] {
            if top_k <= num_experts {
                for config in [rules::softmax(top_k), rules::deepseek_v3(top_k, 1, 1)] {
                    log.case(device, &Case::new(22, num_experts, config), check)?;
                }
            }
        }
    }
    Ok(())
}

/// Experts that take so many slots and no more: every order, what overflows dropped or sent on.
fn capacity(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for capacity in rules::capacities() {
        for config in [rules::softmax(3), rules::deepseek_v3(3, 1, 1), rules::softmax(12)] {
            for num_tokens in [0, 1, 9, 24, 40] {
                let config = RouterConfig { capacity: Some(capacity), num_zero_experts: 2, ..config.clone() };
                let case = Case::new(num_tokens, 12, RouterConfig { groups: None, ..config });
                log.case(device, &case, check)?;
                for logits in [Logits::Equal, Logits::Mixed] {
                    log.case(device, &Case { logits, ..case.clone() }, check)?;
                }
                if num_tokens == 24 {
                    log.case(device, &Case { tokens_per_sequence: Some(8), ..case }, check)?;
                }
            }
        }
    }
    Ok(())
}

fn groups(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let shapes = [
        (128, 4, 2, 4),
        (256, 8, 4, 8),
        (512, 16, 8, 16),
        (96, 1, 1, 8),
        (160, 8, 3, 6),
        (60, 5, 2, 4),
        (12, 12, 4, 4),
        (12, 12, 12, 12),
        (12, 1, 1, 12),
        (12, 2, 1, 6),
        (21, 7, 2, 6),
    ];
    for (num_experts, num_groups, topk_groups, top_k) in shapes {
        for config in
            [rules::deepseek_v3(top_k, num_groups, topk_groups), rules::deepseek_v2(top_k, num_groups, topk_groups)]
        {
            // A negative bias makes every choice score negative: a group masked with 0 would win.
            for bias in [None, Some((-0.5, 0.5)), Some((-4.0, -3.0))] {
                log.case(device, &Case { bias, ..Case::new(33, num_experts, config.clone()) }, check)?;
            }
        }
    }
    Ok(())
}

/// The bias chooses and never weighs, large or negative.
fn selection_bias(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for config in rules::all(3) {
        for bias in [(0.0, 1.0), (-1.0, 0.0), (-100.0, 100.0), (10.0, 11.0)] {
            log.case(device, &Case { bias: Some(bias), ..Case::new(17, 12, config.clone()) }, check)?;
        }
    }
    Ok(())
}

/// Ties go to the lowest id.
fn ties(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for logits in [Logits::Equal, Logits::TwoValues] {
        for (num_experts, num_groups) in [(7, 1), (64, 4), (160, 8), (257, 1)] {
            for config in [
                rules::softmax(6),
                rules::deepseek_v3(6, num_groups, num_groups.div_ceil(2)),
                rules::deepseek_v2(6, num_groups, num_groups.div_ceil(2)),
                rules::logit(6),
            ] {
                log.case(device, &Case { logits, ..Case::new(9, num_experts, config) }, check)?;
            }
        }
    }
    Ok(())
}

fn non_finite(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let values = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let sparse = values.into_iter().flat_map(|value| [2, 5, 11].map(|every| Logits::With { value, every }));
    let cases: Vec<Logits> = sparse.chain(values.map(Logits::Only)).chain([Logits::Mixed]).collect();
    for config in rules::all(4).into_iter().chain([rules::deepseek_v3(4, 4, 2), rules::deepseek_v2(4, 4, 2)]) {
        for logits in &cases {
            for bias in [None, Some((-0.5, 0.5))] {
                log.case(device, &Case { logits: *logits, bias, ..Case::new(11, 16, config.clone()) }, check)?;
            }
        }
    }
    Ok(())
}

/// Large finite logits: nothing overflows.
fn extremes(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for config in rules::all(4) {
        for logits in [Logits::Wide(90.0), Logits::Wide(1e4), Logits::Only(f32::MAX), Logits::Only(f32::MIN)] {
            // A tanh saturates in f32 before it does in the oracle's f64.
            let check = if config.logit_softcap.is_some() { check_nearly } else { check };
            log.case(device, &Case { logits, ..Case::new(11, 12, config.clone()) }, check)?;
        }
    }
    Ok(())
}

/// The choice is right as far as f32 can tell.
fn check_nearly(device: &Device, case: &Case) -> Result<(), Problem> {
    let inputs = Inputs::new(case);
    let actual = inputs.run(device, case)?;
    check_sound(case, "output", &actual)?;
    let everyone = RouterConfig {
        top_k: case.choices(),
        weight: WeightFunction::Score,
        selection: Selection::TopK,
        renormalize: None,
        scaling_factor: 1.0,
        ..case.config.clone()
    };
    let ranking = inputs.expected(&Case { config: everyone, ..case.clone() });
    let k = case.config.top_k;
    for (token, ids) in actual.topk_ids.chunks_exact(k).enumerate() {
        let ranked = token * case.choices()..(token + 1) * case.choices();
        let (best, scores) = (&ranking.topk_ids[ranked.clone()], &ranking.topk_weights[ranked]);
        for (i, id) in ids.iter().enumerate() {
            let score = best.iter().position(|other| other == id).map_or(f64::NAN, |at| scores[at]);
            compare::ensure((score - scores[i]).abs() <= 1e-6 * scores[i].abs().max(1e-30), || {
                format!("topk_ids [{token}, {i}]: {id} with score {score:e}, expected {} with {:e}", best[i], scores[i])
            })?;
        }
    }
    Ok(())
}
