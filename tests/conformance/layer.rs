//! The layer against the oracle's sum per token, which knows no permutation.

mod variants;

use fused_moe::config::{Activation, GateUpLayout, MoeConfig, WeightLayout};
use fused_moe::layer::{LayerOptions, MoeLayer};
use fused_moe::reference::{self, Routing};
use fused_moe::routing::{MASKED, RouterConfig};
use fused_moe::tensor::AsView;
use fused_moe::weights::{ExpertWeights, MoeWeights, RouterWeights};
use fused_moe::workspace::Workspace;
use fused_moe::{DType, Device, Tensor};

use crate::errors::names;
use crate::harness::model::{Model, Spec, forward, forward_routed};
use crate::harness::slots::Load;
use crate::harness::values::{FLOATS, Floats, download, garbage, rng};
use crate::harness::{Failure, Log, Problem, Test, compare};

pub const TESTS: &[Test] = &[
    Test { op: "layer", name: "variants", body: variants },
    Test { op: "layer", name: "tokens", body: tokens },
    Test { op: "layer", name: "many_rows", body: many_rows },
    Test { op: "layer", name: "types", body: types },
    Test { op: "layer", name: "routed_by_caller", body: routed_by_caller },
    Test { op: "layer", name: "dropped_and_ragged", body: dropped_and_ragged },
    Test { op: "layer", name: "fewer_experts_than_k", body: fewer_experts_than_k },
    Test { op: "layer", name: "workspace_reuse", body: workspace_reuse },
    Test { op: "layer", name: "neighbours", body: neighbours },
    Test { op: "layer", name: "batch_invariant", body: batch_invariant },
    Test { op: "layer", name: "batch_invariant_tiles", body: batch_invariant_tiles },
    Test { op: "layer", name: "repeats", body: repeats },
    Test { op: "layer", name: "non_finite", body: non_finite },
    Test { op: "layer", name: "f16_range", body: f16_range },
    Test { op: "layer", name: "borrowed_weights", body: borrowed_weights },
];

#[derive(Clone, Debug)]
struct Case {
    #[allow(dead_code, reason = "read by Debug")]
    variant: &'static str,
    num_tokens: usize,
    spec: Spec,
}

impl Case {
    fn new((variant, config, selection_bias): variants::Variant, num_tokens: usize, dtype: DType) -> Self {
        let seed = variant.bytes().map(u64::from).sum::<u64>() + num_tokens as u64;
        let selection_bias = selection_bias.then_some(0.2);
        let spec =
            Spec { config, weight: dtype, io: DType::F32, rounded_inputs: true, biases: true, selection_bias, seed };
        Self { variant, num_tokens, spec }
    }

    fn base(num_tokens: usize, dtype: DType) -> Self {
        Self::new(("plain", variants::base(), false), num_tokens, dtype)
    }

    /// Tokens and weights of one type, in sizes that are whole eights.
    fn eights(num_tokens: usize, dtype: DType) -> Self {
        let mut case = Self::base(num_tokens, dtype);
        case.spec.config.hidden_size = 72;
        case.spec.config.intermediate_size = 88;
        case.spec.io = dtype;
        case
    }

    fn tolerance(&self) -> f64 {
        compare::tolerance(&[self.spec.weight, self.spec.io])
    }

    fn compare(&self, output: &[f64], expected: &[f64]) -> Result<(), Problem> {
        compare::floats("output", output, expected, self.spec.config.hidden_size, self.tolerance())
    }
}

fn check(device: &Device, case: &Case) -> Result<(), Problem> {
    let model = Model::new(&case.spec);
    let layer = model.layer(device, LayerOptions::default())?;
    check_call(case, &model, &layer, case.num_tokens, &mut layer.workspace(case.num_tokens)?)
}

/// One call of `num_tokens` tokens: its output, and the routing that the workspace shows.
fn check_call(
    case: &Case,
    model: &Model,
    layer: &MoeLayer,
    num_tokens: usize,
    workspace: &mut Workspace,
) -> Result<(), Problem> {
    let hidden_states = model.hidden_states(num_tokens);
    let expected = reference::moe_layer(&model.oracle(), &hidden_states.wide(), None);
    let output = forward(layer, &hidden_states, workspace)?;
    let routing = workspace.routing(num_tokens)?;
    let (ids, weights) =
        (routing.topk_ids.to_vec::<u32>(layer.device())?, download(layer.device(), routing.topk_weights)?);
    compare::exact("topk_ids", &ids, &expected.routing.topk_ids)?;
    compare::floats("topk_weights", &weights, &expected.routing.topk_weights, case.spec.config.router.top_k, 1e-5)?;
    case.compare(&output, &expected.output)
}

fn variants(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for variant in variants::all() {
        for dtype in FLOATS {
            for num_tokens in [1, 9] {
                for biases in [false, true] {
                    let case = Case::new(variant.clone(), num_tokens, dtype);
                    log.case(device, &Case { spec: Spec { biases, ..case.spec }, ..case }, check)?;
                }
            }
        }
    }
    Ok(())
}

fn tokens(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129, 300] {
        for dtype in [DType::F32, DType::BF16] {
            log.case(device, &Case::base(num_tokens, dtype), check)?;
        }
    }
    Ok(())
}

/// So many that tensor cores take them.
fn many_rows(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in [DType::BF16, DType::F16] {
        for num_tokens in [20, 60, 131] {
            let mut case = Case::eights(num_tokens, dtype);
            log.case(device, &case, check)?;
            // As gpt-oss has them.
            case.spec.config.weight_layout = WeightLayout::Kn;
            case.spec.config.gate_up_layout = Some(GateUpLayout::Interleaved);
            case.spec.config.activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
            log.case(device, &case, check)?;
        }
    }
    Ok(())
}

fn types(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for weight in FLOATS {
        for io in FLOATS {
            for variant in variants::all() {
                let case = Case::new(variant, 9, weight);
                log.case(device, &Case { spec: Spec { io, rounded_inputs: false, ..case.spec }, ..case }, check)?;
            }
        }
    }
    Ok(())
}

/// Routing by the caller, some of it to no expert of this layer: another rank's.
fn routed_by_caller(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for variant in variants::all() {
        for load in [Load::Uniform, Load::Masked, Load::AllMasked, Load::AllTo(0)] {
            log.case(device, &Case::new(variant.clone(), 9, DType::F32), |device, case| {
                let model = Model::new(&case.spec);
                let config = &case.spec.config;
                let (mut rng, slots) = (rng(case.spec.seed), case.num_tokens * config.router.top_k);
                let ids = load.ids(&mut rng, slots, config.router.num_choices(config.num_experts));
                let weights = Floats::random(&mut rng, DType::F32, slots, 1.0);
                let hidden_states = model.hidden_states(case.num_tokens);
                let routing = Routing { topk_ids: ids.clone(), topk_weights: weights.wide(), token_offsets: None };
                let expected = reference::moe_layer(&model.oracle(), &hidden_states.wide(), Some(routing));
                let layer = model.layer(device, LayerOptions::default())?;
                let mut workspace = layer.workspace(case.num_tokens)?;
                let output = forward_routed(&layer, &hidden_states, &ids, &weights, &mut workspace)?;
                case.compare(&output, &expected.output)
            })?;
        }
    }
    Ok(())
}

/// Tokens that lose slots for capacity, and tokens with none to all of the experts under expert choice.
fn dropped_and_ragged(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for variant in variants::all() {
        let router = &variant.1.router;
        if router.capacity.is_none() && !router.is_ragged() {
            continue;
        }
        for (dtype, biases) in FLOATS.into_iter().flat_map(|dtype| [(dtype, false), (dtype, true)]) {
            let case = Case::new(variant.clone(), 40, dtype);
            log.case(device, &Case { spec: Spec { biases, ..case.spec }, ..case }, |device, case| {
                let model = Model::new(&case.spec);
                let layer = model.layer(device, LayerOptions::default())?;
                let mut workspace = layer.workspace(case.num_tokens)?;
                check_call(case, &model, &layer, case.num_tokens, &mut workspace)?;
                let hidden_states = model.hidden_states(case.num_tokens);
                check_uneven(&reference::moe_layer(&model.oracle(), &hidden_states.wide(), None).routing)
            })?;
        }
    }
    Ok(())
}

/// A routing that says something about capacity or expert choice: some slot is dropped, or tokens have different
/// numbers of slots, one of them none.
fn check_uneven(routing: &Routing) -> Result<(), Problem> {
    match &routing.token_offsets {
        None => compare::ensure(routing.topk_ids.contains(&MASKED), || "no slot is dropped".to_owned()),
        Some(offsets) => {
            let counts: Vec<u32> = offsets.windows(2).map(|slots| slots[1] - slots[0]).collect();
            compare::ensure(counts.contains(&0) && counts.iter().any(|&n| n > 1), || format!("slots: {counts:?}"))
        }
    }
}

/// One rank's experts under routing by the caller: fewer than a token picks of all ranks'.
fn fewer_experts_than_k(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_experts in [1, 3] {
        let config = MoeConfig { num_experts, router: RouterConfig::softmax_top_k(6), ..variants::base() };
        log.case(device, &Case::new(("rank", config, false), 9, DType::F32), |device, case| {
            let (model, config) = (Model::new(&case.spec), &case.spec.config);
            let weights = MoeWeights { router: None, ..model.upload(device)? };
            let layer = MoeLayer::new(device, config.clone(), weights)?;
            let mut rng = rng(case.spec.seed);
            let slots = case.num_tokens * config.router.top_k;
            let ids = Load::Masked.ids(&mut rng, slots, config.num_experts);
            let weights = Floats::random(&mut rng, DType::F32, slots, 1.0);
            let hidden_states = model.hidden_states(case.num_tokens);
            let routing = Routing { topk_ids: ids.clone(), topk_weights: weights.wide(), token_offsets: None };
            let expected = reference::moe_layer(&model.oracle(), &hidden_states.wide(), Some(routing)).output;
            let mut workspace = layer.workspace(case.num_tokens)?;
            let output = forward_routed(&layer, &hidden_states, &ids, &weights, &mut workspace)?;
            case.compare(&output, &expected)?;
            // A layer that routes has that many to pick.
            names(model.layer(device, LayerOptions::default()), "router.top_k")
        })?;
    }
    Ok(())
}

/// One workspace for many calls, first filled with NaN by one of the most tokens: nothing of a call reaches the next.
fn workspace_reuse(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for (turn, variant) in variants::all().into_iter().enumerate() {
        for dtype in log.types(turn, [DType::F32, DType::BF16]) {
            log.case(device, &Case::new(variant.clone(), 33, dtype), |device, case| {
                let model = Model::new(&case.spec);
                let layer = model.layer(device, LayerOptions::default())?;
                let mut workspace = layer.workspace(case.num_tokens)?;
                let numel = case.num_tokens * case.spec.config.hidden_size;
                forward(&layer, &Floats::filled(case.spec.io, numel, f32::NAN), &mut workspace)?;
                [5, 33, 1, 0, 12, 2]
                    .into_iter()
                    .try_for_each(|num_tokens| check_call(case, &model, &layer, num_tokens, &mut workspace))
            })?;
        }
    }
    Ok(())
}

/// Layers whose tokens do not compete for experts, nor are told apart by where they stand.
fn without_competition() -> impl Iterator<Item = variants::Variant> {
    let is_free = |router: &RouterConfig| router.capacity.is_none() && !router.is_ragged() && router.noise.is_none();
    variants::all().into_iter().filter(move |(_, config, _)| is_free(&config.router))
}

/// Parts of a batch as batches of their own.
const PARTS: [(usize, usize); 6] = [(0, 1), (39, 1), (7, 2), (16, 8), (3, 17), (1, 39)];

fn check_parts(
    device: &Device,
    case: &Case,
    options: LayerOptions,
    compare_part: impl Fn(&[f64], &[f64]) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let model = Model::new(&case.spec);
    let layer = model.layer(device, options)?;
    let hidden_size = case.spec.config.hidden_size;
    let hidden_states = model.hidden_states(case.num_tokens);
    let mut workspace = layer.workspace(case.num_tokens)?;
    let together = forward(&layer, &hidden_states, &mut workspace)?;
    for (first, count) in PARTS {
        let range = first * hidden_size..(first + count) * hidden_size;
        let part = Floats::new(case.spec.io, hidden_states.values[range.clone()].iter().copied());
        compare_part(&forward(&layer, &part, &mut workspace)?, &together[range])?;
    }
    Ok(())
}

/// A token's output does not depend on the tokens beside it beyond rounding.
fn neighbours(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for (turn, variant) in without_competition().enumerate() {
        for dtype in log.types(turn, FLOATS) {
            log.case(device, &Case::new(variant.clone(), 40, dtype), |device, case| {
                check_parts(device, case, LayerOptions::default(), |alone, together| case.compare(alone, together))
            })?;
        }
    }
    Ok(())
}

/// Under the option it does not depend on them at all.
fn batch_invariant(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for (turn, variant) in without_competition().enumerate() {
        for dtype in log.types(turn, FLOATS) {
            log.case(device, &Case::new(variant.clone(), 40, dtype), check_bits)?;
        }
    }
    Ok(())
}

/// Nor does it where tensor cores have tiles of other heights for fewer tokens.
fn batch_invariant_tiles(device: &Device, log: &mut Log) -> Result<(), Failure> {
    [DType::BF16, DType::F16].into_iter().try_for_each(|dtype| log.case(device, &Case::eights(131, dtype), check_bits))
}

fn check_bits(device: &Device, case: &Case) -> Result<(), Problem> {
    let options = LayerOptions { batch_invariant: true };
    check_parts(device, case, options, |alone, together| compare::bits("output", alone, together))
}

/// The same bits from the same tokens, every time.
fn repeats(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in FLOATS {
        log.case(device, &Case::base(100, dtype), |device, case| {
            let model = Model::new(&case.spec);
            let layer = model.layer(device, LayerOptions::default())?;
            let mut workspace = layer.workspace(case.num_tokens)?;
            let hidden_states = model.hidden_states(case.num_tokens);
            let first = forward(&layer, &hidden_states, &mut workspace)?;
            (0..5).try_for_each(|_| compare::bits("output", &forward(&layer, &hidden_states, &mut workspace)?, &first))
        })?;
    }
    Ok(())
}

/// A token of NaN or infinity spoils its own output only; its ids stay unique and in range.
fn non_finite(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for variant in without_competition() {
        for value in [f32::NAN, f32::INFINITY] {
            log.case(device, &Case::new(variant.clone(), 9, DType::F32), |device, case| {
                let model = Model::new(&case.spec);
                let layer = model.layer(device, LayerOptions::default())?;
                let mut workspace = layer.workspace(case.num_tokens)?;
                let hidden_size = case.spec.config.hidden_size;
                let mut hidden_states = model.hidden_states(case.num_tokens);
                let mut expected = reference::moe_layer(&model.oracle(), &hidden_states.wide(), None).output;
                hidden_states.fill_row(4, hidden_size, value);
                let mut output = forward(&layer, &hidden_states, &mut workspace)?;
                let ids = workspace.routing(case.num_tokens)?.topk_ids.to_vec::<u32>(device)?;
                check_ids(case, &ids)?;
                output.drain(4 * hidden_size..5 * hidden_size);
                expected.drain(4 * hidden_size..5 * hidden_size);
                case.compare(&output, &expected)
            })?;
        }
    }
    Ok(())
}

fn check_ids(case: &Case, ids: &[u32]) -> Result<(), Problem> {
    let config = &case.spec.config;
    let choices = config.router.num_choices(config.num_experts);
    for (token, ids) in ids.chunks_exact(config.router.top_k).enumerate() {
        let unique = ids.iter().enumerate().all(|(i, id)| !ids[..i].contains(id));
        compare::ensure(unique && ids.iter().all(|&id| (id as usize) < choices), || {
            format!("topk_ids of token {token}: {ids:?}, expected different ones below {choices}")
        })?;
    }
    Ok(())
}

/// f16 weights whose activations leave the range of f16, while the output is well inside.
fn f16_range(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [1, 40] {
        let mut case = Case::base(num_tokens, DType::F16);
        case.spec.biases = false;
        log.case(device, &case, |device, case| {
            let mut model = Model::new(&case.spec);
            // Gate times up of 400 each: 160000 on the way to an output of order 1.
            model.scale_experts(400.0, 1e-4);
            let layer = model.layer(device, LayerOptions::default())?;
            check_call(case, &model, &layer, case.num_tokens, &mut layer.workspace(case.num_tokens)?)
        })?;
    }
    Ok(())
}

/// A layer over weights that stay the caller's is the same layer.
fn borrowed_weights(device: &Device, log: &mut Log) -> Result<(), Failure> {
    log.case(device, &Case::base(9, DType::F32), |device, case| {
        let model = Model::new(&case.spec);
        let hidden_states = model.hidden_states(case.num_tokens);
        let expected = reference::moe_layer(&model.oracle(), &hidden_states.wide(), None).output;
        let MoeWeights { router, experts, .. } = model.upload(device)?;
        let router = router.as_ref().map(|router| RouterWeights {
            hidden: None,
            weight: router.weight.view(),
            bias: router.bias.as_ref().map(Tensor::as_view),
            selection_bias: router.selection_bias.as_ref().map(Tensor::as_view),
        });
        let experts = ExpertWeights {
            gate_up_proj: experts.gate_up_proj.view(),
            gate_up_bias: experts.gate_up_bias.as_ref().map(Tensor::as_view),
            down_proj: experts.down_proj.view(),
            down_bias: experts.down_bias.as_ref().map(Tensor::as_view),
        };
        let weights = MoeWeights { router, experts, shared: None, latent: None };
        let layer = MoeLayer::new(device, case.spec.config.clone(), weights)?;
        let mut workspace = layer.workspace(case.num_tokens)?;
        let shape = [case.num_tokens, case.spec.config.hidden_size];
        let input = hidden_states.upload(device, shape)?;
        let mut output = garbage(device, case.spec.io, shape)?;
        layer.forward(input.view(), output.view_mut()?, &mut workspace)?;
        case.compare(&download(device, output.view())?, &expected)
    })
}
