//! What holds for every input, not only for the cases that somebody thought of.

#[path = "conformance/harness/mod.rs"]
mod harness;

use std::num::NonZeroUsize;

use fused_moe::backend::cpu::Cpu;
use fused_moe::config::{Activation, GateUpLayout, MoeConfig, SharedExpertConfig, WeightLayout};
use fused_moe::layer::LayerOptions;
use fused_moe::ops::{self, PermuteArgs, RouteArgs, RouteInputs};
use fused_moe::plan::PermutePlanMut;
use fused_moe::routing::{MASKED, Renormalize, RouterConfig, ScoreFunction, WeightFunction, WeightsOn};
use fused_moe::{DType, Device, Tensor, reference};
use harness::compare;
use harness::model::{Model, Spec, forward};
use harness::values::{Floats, garbage, garbage_u32};
use proptest::prelude::*;

/// A failed check as a failed property.
fn hold(outcome: Result<(), harness::Problem>) -> Result<(), TestCaseError> {
    outcome.map_err(|problem| TestCaseError::fail(format!("{problem:?}")))
}

/// So many cases of a property, or as many as `PROPTEST_CASES` says.
fn cases(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().map(|n| n.parse().expect("PROPTEST_CASES is a number"));
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

fn score() -> impl Strategy<Value = ScoreFunction> {
    prop_oneof![Just(ScoreFunction::Softmax), Just(ScoreFunction::Sigmoid), Just(ScoreFunction::SqrtSoftplus)]
}

fn router(num_experts: usize) -> impl Strategy<Value = RouterConfig> {
    let weight = prop_oneof![Just(WeightFunction::Score), Just(WeightFunction::SoftmaxOverSelected)];
    let on = prop_oneof![Just(WeightsOn::Output), Just(WeightsOn::Input)];
    (1..=num_experts.min(6), score(), weight, any::<bool>(), on, 0..3usize).prop_map(
        |(top_k, score, weight, renormalize, weights_on, num_zero_experts)| RouterConfig {
            score,
            weight,
            weights_on,
            num_zero_experts,
            renormalize: renormalize.then(Renormalize::default),
            ..RouterConfig::softmax_top_k(top_k)
        },
    )
}

fn shared() -> impl Strategy<Value = Option<SharedExpertConfig>> {
    proptest::option::of((4..20usize, any::<bool>()).prop_map(|(intermediate_size, sigmoid_gate)| SharedExpertConfig {
        intermediate_size,
        activation: Activation::Silu,
        gate_up_layout: Some(GateUpLayout::UpThenGate),
        weight_layout: WeightLayout::Nk,
        sigmoid_gate,
        output_scale: 0.5,
    }))
}

fn config() -> impl Strategy<Value = MoeConfig> {
    let activation = prop_oneof![
        Just(Activation::Silu),
        Just(Activation::Gelu),
        Just(Activation::ReluSquared),
        Just(Activation::ClampedSwiglu { alpha: 1.702, limit: 2.0 })
    ];
    let gate_up =
        prop_oneof![Just(GateUpLayout::GateThenUp), Just(GateUpLayout::UpThenGate), Just(GateUpLayout::Interleaved)];
    let layout = prop_oneof![Just(WeightLayout::Nk), Just(WeightLayout::Kn)];
    // One feature alone can cancel to nothing, and then no rounding is small beside it.
    let sizes = (1..=20usize, 8..=50usize, 4..=50usize);
    (sizes, activation, gate_up, layout, shared(), proptest::option::of(4..30usize)).prop_flat_map(
        |((num_experts, hidden_size, intermediate_size), activation, gate_up, weight_layout, shared, latent_size)| {
            router(num_experts).prop_map(move |router| MoeConfig {
                num_experts,
                hidden_size,
                intermediate_size,
                router,
                activation,
                gate_up_layout: Some(gate_up),
                weight_layout,
                shared: shared.clone(),
                latent_size,
            })
        },
    )
}

fn spec() -> impl Strategy<Value = Spec> {
    (config(), any::<bool>(), 0..1_000_000u64).prop_map(|(config, biases, seed)| Spec {
        config,
        weight: DType::F32,
        io: DType::F32,
        rounded_inputs: true,
        biases,
        selection_bias: biases.then_some(0.1),
        seed,
    })
}

proptest! {
    #![proptest_config(cases(200))]

    /// Offsets ascend and count; row → slot → row is the identity; rows keep the order of their slots.
    #[test]
    fn a_plan_is_a_stable_permutation(
        (num_experts, ids) in (1..40usize).prop_flat_map(|n| {
            (Just(n), proptest::collection::vec(prop_oneof![9 => 0..n as u32, 1 => Just(MASKED)], 0..300))
        })
    ) {
        for device in harness::devices::present() {
            let mut expert_offsets = garbage_u32(&device, [num_experts + 1]).unwrap();
            let mut permuted_idx = garbage_u32(&device, [ids.len()]).unwrap();
            let mut inv_permuted_idx = garbage_u32(&device, [ids.len()]).unwrap();
            let topk_ids = Tensor::from_slice(&device, &ids, [ids.len()]).unwrap();
            let plan = PermutePlanMut {
                expert_offsets: expert_offsets.view_mut().unwrap(),
                permuted_idx: permuted_idx.view_mut().unwrap(),
                inv_permuted_idx: inv_permuted_idx.view_mut().unwrap(),
            };
            ops::permute(&device, PermuteArgs { topk_ids: topk_ids.view(), plan }).unwrap();
            let offsets: Vec<u32> = expert_offsets.to_vec().unwrap();
            let slots: Vec<u32> = permuted_idx.to_vec().unwrap();
            let rows: Vec<u32> = inv_permuted_idx.to_vec().unwrap();
            let used = offsets[num_experts] as usize;
            prop_assert!(offsets[0] == 0 && offsets.is_sorted());
            prop_assert_eq!(used, ids.iter().filter(|&&id| id != MASKED).count());
            prop_assert!(slots[used..].iter().all(|&slot| slot == MASKED));
            for (expert, range) in offsets.windows(2).enumerate() {
                let slots = &slots[range[0] as usize..range[1] as usize];
                prop_assert!(slots.is_sorted_by(|a, b| a < b), "{}: expert {} is not in order", device, expert);
                prop_assert!(slots.iter().all(|&slot| ids[slot as usize] as usize == expert));
            }
            for (slot, &row) in rows.iter().enumerate() {
                let back = if row == MASKED { MASKED } else { slots[row as usize] };
                prop_assert_eq!(back, if ids[slot] == MASKED { MASKED } else { slot as u32 });
            }
        }
    }

    /// Ids are different and in range, weights finite, and renormalised ones sum to the scaling factor.
    #[test]
    fn renormalised_weights_sum_to_the_scale(
        logits in proptest::collection::vec(-30f32..30.0, 1..64),
        score in score(),
        scaling_factor in 0.5f32..4.0,
        k in 1..64usize,
    ) {
        let top_k = k.min(logits.len());
        let renormalize = Some(Renormalize::default());
        let config = RouterConfig { score, scaling_factor, renormalize, ..RouterConfig::softmax_top_k(top_k) };
        for device in harness::devices::present() {
            let router_logits = Tensor::from_slice(&device, &logits, [1, logits.len()]).unwrap();
            let mut topk_ids = garbage_u32(&device, [1, top_k]).unwrap();
            let mut topk_weights = garbage(&device, DType::F32, [1, top_k]).unwrap();
            ops::route(&device, RouteArgs {
                config: &config,
                router_logits: router_logits.view(),
                selection_bias: None,
                inputs: RouteInputs::default(),
                topk_ids: topk_ids.view_mut().unwrap(),
                topk_weights: topk_weights.view_mut().unwrap(),
                ragged: None,
                figures: None,
            }).unwrap();
            let mut ids: Vec<u32> = topk_ids.to_vec().unwrap();
            let weights: Vec<f32> = topk_weights.to_vec().unwrap();
            prop_assert!((weights.iter().sum::<f32>() - scaling_factor).abs() <= 1e-5 * scaling_factor, "{}", device);
            prop_assert!(weights.is_sorted_by(|a, b| a >= b), "{device}: the best first: {weights:?}");
            ids.sort_unstable();
            ids.dedup();
            prop_assert!(ids.len() == top_k && ids.iter().all(|&id| (id as usize) < logits.len()));
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// The layer is the sum over each token's experts.
    #[test]
    fn a_layer_is_the_sum_per_token(spec in spec(), num_tokens in 0..40usize) {
        let model = Model::new(&spec);
        let hidden_states = model.hidden_states(num_tokens);
        let expected = reference::moe_layer(&model.oracle(), &hidden_states.wide(), None).output;
        for device in harness::devices::present_in_turn(spec.seed) {
            let layer = model.layer(&device, LayerOptions::default()).unwrap();
            let output = forward(&layer, &hidden_states, &mut layer.workspace(num_tokens).unwrap()).unwrap();
            hold(compare::floats("output", &output, &expected, spec.config.hidden_size, 1e-5))?;
        }
    }

    /// A token alone has the output that it has among others: nearly, and under the option bit for bit.
    #[test]
    fn tokens_do_not_see_each_other(spec in spec(), num_tokens in 1..40usize, at in 0..40usize, low in any::<bool>()) {
        let weight = if low { DType::BF16 } else { DType::F32 };
        let spec = Spec { weight, ..spec };
        let (model, token, h) = (Model::new(&spec), at % num_tokens, spec.config.hidden_size);
        let hidden_states = model.hidden_states(num_tokens);
        let one = Floats::new(spec.io, hidden_states.values[token * h..][..h].iter().copied());
        for device in harness::devices::present_in_turn(spec.seed) {
            for batch_invariant in [false, true] {
                let layer = model.layer(&device, LayerOptions { batch_invariant }).unwrap();
                let mut workspace = layer.workspace(num_tokens).unwrap();
                let together = forward(&layer, &hidden_states, &mut workspace).unwrap();
                let alone = forward(&layer, &one, &mut workspace).unwrap();
                let together = &together[token * h..][..h];
                hold(if batch_invariant {
                    compare::bits("output", &alone, together)
                } else {
                    compare::floats("output", &alone, together, h, compare::tolerance(&[weight]))
                })?;
            }
        }
    }

    /// The same bits with any number of threads.
    #[test]
    fn threads_do_not_show(spec in spec(), num_tokens in 1..60usize, low in any::<bool>()) {
        let model = Model::new(&Spec { weight: if low { DType::BF16 } else { DType::F32 }, ..spec });
        let hidden_states = model.hidden_states(num_tokens);
        let outputs: Vec<Vec<f64>> = [1, 2, 5]
            .into_iter()
            .map(|threads| {
                let threads = NonZeroUsize::new(threads).unwrap();
                let device = Device::new(Cpu::builder().threads(threads).build().unwrap());
                let layer = model.layer(&device, LayerOptions::default()).unwrap();
                forward(&layer, &hidden_states, &mut layer.workspace(num_tokens).unwrap()).unwrap()
            })
            .collect();
        hold(compare::bits("output", &outputs[1], &outputs[0]))?;
        hold(compare::bits("output", &outputs[2], &outputs[0]))?;
    }
}
