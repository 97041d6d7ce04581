//! Experts made out of weights that are there: what holds for every FFN, and what is refused.

#[path = "conformance/harness/mod.rs"]
mod harness;

use fused_moe::config::{Activation, GateUpLayout, MoeConfig, SharedExpertConfig, WeightLayout};
use fused_moe::experts::{CopyNoise, ExpertLayout, NewRows, Split, SplitOrder, add_experts, split, upcycle};
use fused_moe::ops::{self, RouterLogitsArgs};
use fused_moe::reference::{self, Routing};
use fused_moe::routing::{ExpertState, GroupLimit, GroupScore, RouterConfig};
use fused_moe::weights::{ExpertWeights, MoeWeights, RouterWeights};
use fused_moe::{DType, Device, Error, MoeLayer, Tensor};
use harness::model::{Model, Spec, forward_routed};
use harness::remote::Remote;
use harness::values::{FLOATS, Floats, download, rng};
use harness::{Problem, compare};
use proptest::prelude::*;
use rand::Rng;
use rand::seq::SliceRandom;

/// A failed check as a failed property.
fn hold(outcome: Result<(), Problem>) -> Result<(), TestCaseError> {
    outcome.map_err(|problem| TestCaseError::fail(format!("{problem:?}")))
}

/// So many cases of a property, or as many as `PROPTEST_CASES` says.
fn cases(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().map(|n| n.parse().expect("PROPTEST_CASES is a number"));
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

/// Experts are made on the host: what differs is where their memory lies.
fn devices() -> [Device; 3] {
    [Device::cpu(), Device::reference(), Device::new(Remote::default())]
}

/// Every activation with a gate, in each layout, and all but the clamped one without.
fn nonlinearity() -> impl Strategy<Value = (Activation, Option<GateUpLayout>)> {
    let plain = prop_oneof![
        Just(Activation::Silu),
        Just(Activation::Gelu),
        Just(Activation::Relu),
        Just(Activation::ReluSquared)
    ];
    let layout =
        prop_oneof![Just(GateUpLayout::GateThenUp), Just(GateUpLayout::UpThenGate), Just(GateUpLayout::Interleaved)];
    let clamped = Just(Activation::ClampedSwiglu { alpha: 1.702, limit: 2.0 });
    prop_oneof![(plain.clone(), proptest::option::of(layout.clone())), (clamped, layout.prop_map(Some)),]
}

/// A dense FFN as a layer of one expert, cut into parts of `small` features.
fn dense(parts: usize) -> impl Strategy<Value = Spec> {
    let layout = prop_oneof![Just(WeightLayout::Nk), Just(WeightLayout::Kn)];
    let weight = prop_oneof![Just(DType::F32), Just(DType::BF16), Just(DType::F16)];
    // One feature alone can cancel to nothing, and then no rounding is small beside it.
    let sizes = (8..40usize, 4..12usize, nonlinearity());
    (sizes, layout, weight, any::<bool>(), 0..1_000_000u64).prop_map(
        move |((hidden_size, small, (activation, gate_up_layout)), weight_layout, weight, biases, seed)| Spec {
            config: MoeConfig {
                num_experts: 1,
                hidden_size,
                intermediate_size: small * parts,
                router: RouterConfig::softmax_top_k(1),
                activation,
                gate_up_layout,
                weight_layout,
                shared: None,
                latent_size: None,
            },
            weight,
            io: DType::F32,
            rounded_inputs: true,
            biases,
            selection_bias: None,
            seed,
        },
    )
}

/// What the dense FFN makes of its input.
fn dense_output(model: &Model, hidden_states: &Floats) -> Vec<f64> {
    let num_tokens = hidden_states.values.len() / model.spec.config.hidden_size;
    let routing = Routing { topk_ids: vec![0; num_tokens], topk_weights: vec![1.0; num_tokens], token_offsets: None };
    reference::moe_layer(&model.oracle(), &hidden_states.wide(), Some(routing)).output
}

/// The experts as a layer that is given its routing.
fn layer_of(device: &Device, spec: &Spec, sizes: [usize; 2], top_k: usize, experts: ExpertWeights) -> MoeLayer {
    let [num_experts, intermediate_size] = sizes;
    let router = RouterConfig::softmax_top_k(top_k);
    let config = MoeConfig { num_experts, intermediate_size, router, ..spec.config.clone() };
    let weights = MoeWeights { router: None, experts, shared: None, latent: None };
    MoeLayer::new(device, config, weights).expect("experts that fit")
}

fn bytes_of(device: &Device, tensor: &Tensor) -> Vec<f64> {
    download(device, tensor.view()).expect("readable")
}

proptest! {
    #![proptest_config(cases(48))]

    /// All parts of an FFN, each with weight 1, are the FFN.
    #[test]
    fn split_experts_together_are_the_ffn(
        (parts, spec) in (1..6usize).prop_flat_map(|parts| (Just(parts), dense(parts))),
        num_tokens in 1..9usize,
        shuffle in proptest::option::of(any::<u64>()),
    ) {
        let (model, config) = (Model::new(&spec), &spec.config);
        let hidden_states = model.hidden_states(num_tokens);
        let expected = dense_output(&model, &hidden_states);
        let order = shuffle.map_or(SplitOrder::Contiguous, |seed| SplitOrder::Random { seed });
        for device in devices() {
            let ffn = model.upload(&device).unwrap().experts;
            let Split { experts, permutation } = split(&device, &ffn, config.into(), parts, order).unwrap();
            let mut sorted = permutation.clone();
            sorted.sort_unstable();
            prop_assert!(sorted.iter().copied().eq(0..config.intermediate_size as u32));
            prop_assert!(shuffle.is_some() || permutation == sorted);
            let sizes = [parts, config.intermediate_size / parts];
            let layer = layer_of(&device, &spec, sizes, parts, experts);
            let ids: Vec<u32> = (0..num_tokens).flat_map(|_| 0..parts as u32).collect();
            let weights = Floats::filled(DType::F32, ids.len(), 1.0);
            let mut workspace = layer.workspace(num_tokens).unwrap();
            let output = forward_routed(&layer, &hidden_states, &ids, &weights, &mut workspace).unwrap();
            let tolerance = compare::tolerance(&[spec.weight]);
            hold(compare::floats("output", &output, &expected, config.hidden_size, tolerance))?;
        }
    }

    /// Copies of an FFN under weights that sum to 1 are the FFN.
    #[test]
    fn upcycled_experts_are_the_ffn(
        spec in dense(2),
        num_experts in 1..7usize,
        k in 1..7usize,
        num_tokens in 1..9usize,
    ) {
        let (model, config) = (Model::new(&spec), &spec.config);
        let (top_k, mut rng) = (1 + k % num_experts, rng(spec.seed));
        let hidden_states = model.hidden_states(num_tokens);
        let expected = dense_output(&model, &hidden_states);
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for _ in 0..num_tokens {
            let mut all: Vec<u32> = (0..num_experts as u32).collect();
            all.shuffle(&mut rng);
            ids.extend(&all[..top_k]);
            let shares: Vec<f32> = (0..top_k).map(|_| 0.1 + rng.random::<f32>()).collect();
            weights.extend(shares.iter().map(|share| share / shares.iter().sum::<f32>()));
        }
        let weights = Floats::new(DType::F32, weights);
        for device in devices() {
            let ffn = model.upload(&device).unwrap().experts;
            let experts = upcycle(&device, &ffn, config.into(), num_experts, None).unwrap();
            let copies = bytes_of(&device, &ffn.gate_up_proj).repeat(num_experts);
            hold(compare::bits("gate_up_proj", &bytes_of(&device, &experts.gate_up_proj), &copies))?;
            let layer = layer_of(&device, &spec, [num_experts, config.intermediate_size], top_k, experts);
            let mut workspace = layer.workspace(num_tokens).unwrap();
            let output = forward_routed(&layer, &hidden_states, &ids, &weights, &mut workspace).unwrap();
            let tolerance = compare::tolerance(&[spec.weight]);
            hold(compare::floats("output", &output, &expected, config.hidden_size, tolerance))?;
        }
    }

    /// Old experts keep their logits and weights bit for bit, and the added ones are what was added.
    #[test]
    fn widening_leaves_the_old_experts_alone(
        (num_old, num_added, num_zero_experts) in (1..9usize, 1..5usize, 0..3usize),
        (weight, rows, hidden) in (0..3usize, 0..4usize, any::<bool>()),
        (num_tokens, seed) in (1..9usize, 0..1_000_000u64),
    ) {
        let spec = lifelong(num_old, num_zero_experts, FLOATS[weight], hidden, seed);
        let (model, config) = (Model::new(&spec), &spec.config);
        let newcomers = Spec { config: MoeConfig { num_experts: num_added, ..config.clone() }, seed: seed + 1, ..spec.clone() };
        let newcomers = Model::new(&newcomers);
        let of: Vec<u32> = (0..num_added).map(|i| (i % num_old) as u32).collect();
        let rows = match rows {
            0 => NewRows::Zeros,
            1 => NewRows::Normal { seed, std: 0.02 },
            2 => NewRows::Mean,
            _ => NewRows::CopiesOf(&of),
        };
        let router_input = Floats::random(&mut rng(seed), spec.weight, num_tokens * router_width(config), 1.0);
        for device in devices() {
            let old = model.upload(&device).unwrap();
            let added = newcomers.upload(&device).unwrap().experts;
            let (wider, weights) = add_experts(&device, config, &old, &added, rows).unwrap();
            prop_assert_eq!(wider.num_experts, num_old + num_added);
            wider.validate().unwrap();
            let (before, after) = (old.router.as_ref().unwrap(), weights.router.as_ref().unwrap());
            let before = logits(&device, before, &router_input, num_tokens);
            let after = logits(&device, after, &router_input, num_tokens);
            check_logits(&before, &after, [num_old, num_added, num_zero_experts], rows)?;
            let (stack, behind) = (bytes_of(&device, &weights.experts.down_proj), bytes_of(&device, &added.down_proj));
            let (first, second) = stack.split_at(stack.len() - behind.len());
            hold(compare::bits("old experts", first, &bytes_of(&device, &old.experts.down_proj)))?;
            hold(compare::bits("added experts", second, &behind))?;
            MoeLayer::new(&device, wider, weights).unwrap();
        }
    }
}

fn router_width(config: &MoeConfig) -> usize {
    config.router.hidden_size.unwrap_or(config.hidden_size)
}

/// A layer with everything that a layer can have.
fn lifelong(num_experts: usize, num_zero_experts: usize, weight: DType, hidden: bool, seed: u64) -> Spec {
    let shared = SharedExpertConfig {
        intermediate_size: 5,
        activation: Activation::Silu,
        gate_up_layout: Some(GateUpLayout::GateThenUp),
        weight_layout: WeightLayout::Nk,
        sigmoid_gate: true,
        output_scale: 1.0,
    };
    let router = RouterConfig {
        num_zero_experts,
        hidden_size: hidden.then_some(6),
        ..RouterConfig::softmax_top_k(num_experts.min(2))
    };
    let config = MoeConfig {
        num_experts,
        hidden_size: 19,
        intermediate_size: 8,
        router,
        activation: Activation::Silu,
        gate_up_layout: Some(GateUpLayout::Interleaved),
        weight_layout: WeightLayout::Kn,
        shared: Some(shared),
        latent_size: Some(7),
    };
    Spec { config, weight, io: DType::F32, rounded_inputs: true, biases: true, selection_bias: Some(0.1), seed }
}

/// `[T, E]` of the router's last projection.
fn logits(device: &Device, router: &RouterWeights, input: &Floats, num_tokens: usize) -> Vec<Vec<f64>> {
    let [num_logits, width] = *router.weight.shape().dims() else { panic!("rank 2") };
    let input = input.upload(device, [num_tokens, width]).unwrap();
    let mut output = Tensor::zeros(device, DType::F32, [num_tokens, num_logits]).unwrap();
    let args = RouterLogitsArgs {
        hidden_states: input.view(),
        weight: router.weight.view(),
        bias: router.bias.as_ref().map(Tensor::view),
        tanh: false,
        output: output.view_mut().unwrap(),
    };
    ops::router_logits(device, args).unwrap();
    bytes_of(device, &output).chunks_exact(num_logits).map(<[f64]>::to_vec).collect()
}

fn check_logits(
    before: &[Vec<f64>],
    after: &[Vec<f64>],
    [num_old, num_added, num_zero]: [usize; 3],
    rows: NewRows<'_>,
) -> Result<(), TestCaseError> {
    for (before, after) in before.iter().zip(after) {
        hold(compare::bits("old logits", &after[..num_old], &before[..num_old]))?;
        hold(compare::bits("zero experts' logits", &after[num_old + num_added..], &before[num_old..]))?;
        prop_assert_eq!(after.len(), num_old + num_added + num_zero);
        for (i, &new) in after[num_old..num_old + num_added].iter().enumerate() {
            match rows {
                NewRows::Zeros => prop_assert_eq!(new, 0.0),
                NewRows::Normal { .. } => prop_assert!(new != 0.0 && new.abs() < 1.0, "{}", new),
                NewRows::Mean => {
                    let mean = before[..num_old].iter().sum::<f64>() / num_old as f64;
                    // The mean row is rounded to the type of the others.
                    prop_assert!((new - mean).abs() < 0.05, "{} for {}", new, mean);
                }
                NewRows::CopiesOf(of) => prop_assert!((new - before[of[i] as usize]).abs() < 1e-5),
            }
        }
    }
    Ok(())
}

/// A dense FFN of 12 features, and what it is.
fn small(device: &Device) -> (ExpertWeights, ExpertLayout) {
    let layout = ExpertLayout { gate_up_layout: Some(GateUpLayout::GateThenUp), weight_layout: WeightLayout::Nk };
    let zeros = |shape: [usize; 3]| Tensor::zeros(device, DType::F32, shape).unwrap();
    let ffn = ExpertWeights {
        gate_up_proj: zeros([1, 24, 5]),
        gate_up_bias: None,
        down_proj: zeros([1, 5, 12]),
        down_bias: None,
    };
    (ffn, layout)
}

fn refused<T>(outcome: fused_moe::Result<T>, argument: &str) {
    match outcome {
        Err(Error::InvalidArgument { argument: actual, .. }) => assert_eq!(actual, argument),
        Err(error) => panic!("{error} for {argument}"),
        Ok(_) => panic!("accepted: {argument}"),
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::cpu();
    let (ffn, layout) = small(&device);
    let cut = |num_experts, order| split(&device, &small(&device).0, layout, num_experts, order);
    refused(cut(5, SplitOrder::Contiguous), "num_experts");
    refused(cut(0, SplitOrder::Contiguous), "num_experts");
    refused(cut(24, SplitOrder::Contiguous), "num_experts");
    refused(cut(3, SplitOrder::Given(&[0, 1, 2])), "order");
    refused(cut(3, SplitOrder::Given(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10])), "order");
    assert_eq!(cut(3, SplitOrder::Given(&[11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0])).unwrap().permutation[0], 11);
    refused(upcycle(&device, &ffn, layout, 0, None), "num_experts");
    refused(upcycle(&device, &ffn, layout, 2, Some(CopyNoise { seed: 0, std: f32::NAN })), "noise.std");
    let ungated = ExpertLayout { gate_up_layout: None, ..layout };
    refused(upcycle(&device, &ffn, ungated, 2, None), "dense.gate_up_proj");
    let turned = ExpertLayout { weight_layout: WeightLayout::Kn, ..layout };
    refused(split(&device, &ffn, turned, 3, SplitOrder::Contiguous), "dense.gate_up_proj");
    let two = upcycle(&device, &ffn, layout, 2, None).unwrap();
    refused(split(&device, &two, layout, 2, SplitOrder::Contiguous), "dense");
    let bias = Some(Tensor::zeros(&device, DType::F32, [1, 7]).unwrap());
    refused(
        upcycle(&device, &ExpertWeights { gate_up_bias: bias, ..small(&device).0 }, layout, 2, None),
        "dense.gate_up_bias",
    );
}

#[test]
fn experts_that_cannot_be_added_are_refused() {
    let device = Device::cpu();
    let spec = lifelong(4, 1, DType::F32, false, 1);
    let (model, config) = (Model::new(&spec), &spec.config);
    let weights = model.upload(&device).unwrap();
    let added = || model.upload(&device).unwrap().experts;
    let add = |config: &MoeConfig, experts: ExpertWeights, rows| add_experts(&device, config, &weights, &experts, rows);
    refused(add(config, ExpertWeights { down_bias: None, ..added() }, NewRows::Zeros), "added.down_bias");
    let wide = Model::new(&Spec { config: MoeConfig { intermediate_size: 9, ..config.clone() }, ..spec.clone() });
    refused(add(config, wide.upload(&device).unwrap().experts, NewRows::Zeros), "added");
    let half = Model::new(&Spec { weight: DType::BF16, ..spec.clone() });
    refused(add(config, half.upload(&device).unwrap().experts, NewRows::Zeros), "added.gate_up_proj");
    refused(add(config, added(), NewRows::CopiesOf(&[0, 1])), "rows");
    refused(add(config, added(), NewRows::CopiesOf(&[0, 1, 2, 4])), "rows");
    refused(add(config, added(), NewRows::Normal { seed: 0, std: -1.0 }), "rows.std");
    let mut grouped = config.clone();
    grouped.router.groups = Some(GroupLimit { num_groups: 1, topk_groups: 1, score: GroupScore::Max });
    refused(add(&grouped, added(), NewRows::Zeros), "router.groups");
    let mut mapped = config.clone();
    mapped.router.expert_map = (0..5).map(Some).collect();
    refused(add(&mapped, added(), NewRows::Zeros), "router.expert_map");
}

#[test]
fn old_experts_are_frozen_and_new_ones_added() {
    use ExpertState::{Active, Added, Disabled, Frozen};
    let device = Device::reference();
    let mut spec = lifelong(3, 1, DType::F32, false, 1);
    spec.config.router.expert_states = vec![Added, Disabled, Active, Active];
    let model = Model::new(&spec);
    let (weights, added) = (model.upload(&device).unwrap(), model.upload(&device).unwrap().experts);
    let (wider, _) = add_experts(&device, &spec.config, &weights, &added, NewRows::Mean).unwrap();
    assert_eq!(wider.router.expert_states, [Frozen, Disabled, Frozen, Added, Added, Added, Active]);
    // Where the caller routes there is no router to widen.
    let routed = MoeWeights { router: None, ..weights };
    let (wider, weights) = add_experts(&device, &spec.config, &routed, &added, NewRows::Mean).unwrap();
    assert!(weights.router.is_none() && MoeLayer::new(&device, wider, weights).is_ok());
}

/// The noise has the deviation asked for, is another in every expert, and the same for the same seed on every device.
#[test]
fn upcycling_noise_is_what_was_asked_for() {
    let spec = lifelong(1, 0, DType::F32, false, 3);
    let config =
        MoeConfig { hidden_size: 64, intermediate_size: 40, latent_size: None, shared: None, ..spec.config.clone() };
    let model = Model::new(&Spec { config: config.clone(), ..spec });
    let noisy = |device: &Device, seed| {
        let ffn = model.upload(device).unwrap().experts;
        let experts = upcycle(device, &ffn, (&config).into(), 3, Some(CopyNoise { seed, std: 0.01 })).unwrap();
        let old: Vec<f64> =
            [&ffn.gate_up_proj, &ffn.down_proj].iter().flat_map(|t| bytes_of(device, t).repeat(3)).collect();
        let new: Vec<f64> =
            [&experts.gate_up_proj, &experts.down_proj].iter().flat_map(|t| bytes_of(device, t)).collect();
        let bias = experts.down_bias.as_ref().map(|bias| bytes_of(device, bias));
        assert_eq!(bias, ffn.down_bias.as_ref().map(|bias| bytes_of(device, bias).repeat(3)), "biases have no noise");
        (old.iter().zip(&new).map(|(old, new)| new - old).collect::<Vec<f64>>(), new)
    };
    let (noise, experts) = noisy(&Device::cpu(), 8);
    let n = noise.len() as f64;
    let (mean, square) = (noise.iter().sum::<f64>() / n, noise.iter().map(|x| x * x).sum::<f64>() / n);
    // Five standard errors.
    assert!(mean.abs() < 5.0 * 0.01 / n.sqrt(), "mean {mean}");
    assert!((square.sqrt() / 0.01 - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "deviation {}", square.sqrt());
    let one = 2 * 40 * 64;
    assert!(noise[..one].iter().zip(&noise[one..2 * one]).filter(|(a, b)| a == b).count() < one / 100);
    assert_eq!(noisy(&Device::reference(), 8).1, experts);
    assert_ne!(noisy(&Device::cpu(), 9).1, experts);
}
