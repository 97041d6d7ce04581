//! The layers under test: one for each thing that models do differently.

use fused_moe::config::{Activation, GateUpLayout, MoeConfig, SharedExpertConfig, WeightLayout};
use fused_moe::routing::{
    Capacity, CapacityLimit, GroupLimit, GroupScore, Noise, NoiseKind, Renormalize, RouterConfig, ScoreFunction,
    WeightFunction, WeightsOn,
};

/// The start of every variant: softmax top-3, renormalised, SwiGLU.
pub fn base() -> MoeConfig {
    MoeConfig {
        num_experts: 7,
        hidden_size: 24,
        intermediate_size: 20,
        router: RouterConfig { renormalize: Some(Renormalize::default()), ..RouterConfig::softmax_top_k(3) },
        activation: Activation::Silu,
        gate_up_layout: Some(GateUpLayout::GateThenUp),
        weight_layout: WeightLayout::Nk,
        shared: None,
        latent_size: None,
    }
}

fn shared(sigmoid_gate: bool) -> SharedExpertConfig {
    SharedExpertConfig {
        intermediate_size: 13,
        activation: Activation::Silu,
        gate_up_layout: Some(GateUpLayout::GateThenUp),
        weight_layout: WeightLayout::Nk,
        sigmoid_gate,
        output_scale: 1.0,
    }
}

/// A name, the configuration, and whether it has a selection bias.
pub type Variant = (&'static str, MoeConfig, bool);

/// Every variant.
pub fn all() -> Vec<Variant> {
    sizes().into_iter().chain(routers()).chain(experts()).collect()
}

fn sizes() -> Vec<Variant> {
    let with_experts =
        |num_experts, top_k| MoeConfig { num_experts, router: RouterConfig::softmax_top_k(top_k), ..base() };
    vec![
        ("plain", base(), false),
        ("top_1", with_experts(12, 1), false),
        ("top_all", with_experts(12, 12), false),
        ("one_expert", with_experts(1, 1), false),
        ("60_experts", with_experts(60, 4), false),
        ("160_experts", with_experts(160, 6), false),
        ("257_experts", with_experts(257, 8), false),
        ("odd_sizes", MoeConfig { hidden_size: 33, intermediate_size: 7, ..base() }, false),
        ("narrow", MoeConfig { hidden_size: 72, intermediate_size: 1, ..base() }, false),
        ("wide", MoeConfig { hidden_size: 65, intermediate_size: 130, ..base() }, false),
    ]
}

fn routers() -> Vec<Variant> {
    let router = base().router;
    let sigmoid = RouterConfig {
        score: ScoreFunction::Sigmoid,
        groups: Some(GroupLimit { num_groups: 4, topk_groups: 2, score: GroupScore::SumTop2 }),
        scaling_factor: 2.5,
        ..router.clone()
    };
    let over_selected = RouterConfig {
        score: ScoreFunction::Logit,
        weight: WeightFunction::SoftmaxOverSelected,
        renormalize: None,
        ..router.clone()
    };
    let on_input = RouterConfig {
        top_k: 2,
        score: ScoreFunction::Logit,
        weight: WeightFunction::Sigmoid,
        renormalize: None,
        weights_on: WeightsOn::Input,
        ..router.clone()
    };
    let zero = RouterConfig { num_zero_experts: 4, scaling_factor: 6.0, renormalize: None, ..router };
    let zero_on_input = RouterConfig { num_zero_experts: 4, ..on_input.clone() };
    let limited = RouterConfig { capacity: Some(Capacity::new(CapacityLimit::Factor(0.75))), ..base().router };
    let jittered = Noise { seed: 5, kind: NoiseKind::InputJitter { epsilon: 0.25 } };
    let with = |router| MoeConfig { router, ..base() };
    vec![
        ("expert_choice", with(RouterConfig::expert_choice(0.8)), false),
        ("expert_choice_of_few", MoeConfig { shared: Some(shared(false)), ..with(RouterConfig::brainformer()) }, true),
        ("input_jitter", with(RouterConfig { noise: Some(jittered), ..base().router }), false),
        ("hierarchical", MoeConfig { num_experts: 12, ..with(RouterConfig::hierarchical(4, 2, 4)) }, false),
        ("router_hidden", with(RouterConfig { hidden_size: Some(9), ..base().router }), false),
        ("capacity", with(limited), false),
        ("grouped_sigmoid", MoeConfig { num_experts: 12, shared: Some(shared(false)), ..with(sigmoid) }, true),
        ("over_selected", with(over_selected), false),
        ("weights_on_input", MoeConfig { shared: Some(shared(false)), ..with(on_input) }, false),
        ("zero_experts", with(zero), true),
        ("zero_experts_on_input", with(zero_on_input), false),
    ]
}

fn experts() -> Vec<Variant> {
    let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 1.5 };
    let interleaved = MoeConfig { gate_up_layout: Some(GateUpLayout::Interleaved), ..base() };
    let scaled = SharedExpertConfig { output_scale: 0.5, weight_layout: WeightLayout::Kn, ..shared(true) };
    let ungated = SharedExpertConfig { activation: Activation::ReluSquared, gate_up_layout: None, ..shared(false) };
    let relu = MoeConfig { activation: Activation::ReluSquared, gate_up_layout: None, ..base() };
    vec![
        ("shared", MoeConfig { shared: Some(shared(false)), ..base() }, false),
        ("shared_gate", MoeConfig { shared: Some(shared(true)), ..base() }, false),
        ("shared_scaled", MoeConfig { shared: Some(scaled), ..base() }, false),
        ("clamped", MoeConfig { activation: clamped, weight_layout: WeightLayout::Kn, ..interleaved.clone() }, false),
        ("interleaved", interleaved, false),
        ("transposed", MoeConfig { weight_layout: WeightLayout::Kn, ..base() }, false),
        ("up_then_gate", MoeConfig { gate_up_layout: Some(GateUpLayout::UpThenGate), ..base() }, false),
        ("geglu", MoeConfig { activation: Activation::Gelu, ..base() }, false),
        ("ungated_gelu", MoeConfig { activation: Activation::GeluTanh, ..relu.clone() }, false),
        ("ungated_relu", MoeConfig { activation: Activation::Relu, ..relu.clone() }, false),
        ("latent", MoeConfig { latent_size: Some(10), shared: Some(ungated), ..relu }, true),
        ("latent_alone", MoeConfig { latent_size: Some(31), ..base() }, false),
        ("latent_zero_experts", latent_zero(), false),
    ]
}

fn latent_zero() -> MoeConfig {
    let router = RouterConfig { num_zero_experts: 3, ..base().router };
    MoeConfig { latent_size: Some(11), shared: Some(shared(true)), router, ..base() }
}
