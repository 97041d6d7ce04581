//! Rules as data: what is refused, and how rules read as JSON.

use fused_moe::Error;
use fused_moe::routing::presets::published;
use fused_moe::routing::{
    Capacity, CapacityLimit, CapacityOrder, ExpertState, GroupLimit, GroupScore, Noise, NoiseKind, Overflow,
    Renormalize, RouterConfig, ScoreFunction, Selection,
};

use crate::support::Case;

fn refused(config: RouterConfig, num_experts: usize, argument: &str) {
    match config.validate(num_experts) {
        Err(Error::InvalidArgument { argument: actual, .. }) => assert_eq!(actual, argument),
        other => panic!("{other:?} for {config:?}"),
    }
}

#[test]
fn impossible_rules_name_their_field() {
    let base = || RouterConfig::softmax_top_k(2);
    let groups = |num_groups, topk_groups| Some(GroupLimit { num_groups, topk_groups, score: GroupScore::Max });
    let noise = |kind| Some(Noise { seed: 0, kind });
    let selection = |selection| RouterConfig { selection, ..base() };
    let limit = CapacityLimit::Factor(1.0);
    let next_best = Capacity { overflow: Overflow::NextBest, ..Capacity::new(limit) };
    refused(RouterConfig::softmax_top_k(0), 8, "router.top_k");
    refused(RouterConfig::softmax_top_k(9), 8, "router.top_k");
    refused(RouterConfig { scaling_factor: f32::NAN, ..base() }, 8, "router.scaling_factor");
    refused(RouterConfig { logit_clip: Some(0.0), ..base() }, 8, "router.logit_clip");
    refused(RouterConfig { logit_softcap: Some(f32::INFINITY), ..base() }, 8, "router.logit_softcap");
    refused(RouterConfig { groups: groups(3, 1), ..base() }, 8, "router.groups.num_groups");
    refused(RouterConfig { groups: groups(8, 1), ..base() }, 8, "router.groups.topk_groups");
    let p = Some(Renormalize { p: 0.0, ..Renormalize::default() });
    refused(RouterConfig { renormalize: p, ..base() }, 8, "router.renormalize.p");
    refused(RouterConfig { num_zero_experts: 0, ..base() }, 0, "router.top_k");
    refused(RouterConfig { num_zero_experts: 3, ..base() }, 0, "router.num_zero_experts");
    refused(RouterConfig { expert_states: vec![ExpertState::Active; 3], ..base() }, 8, "router.expert_states");
    refused(RouterConfig { expert_states: vec![ExpertState::Disabled; 8], ..base() }, 8, "router.expert_states");
    refused(RouterConfig { expert_map: vec![None, Some(8)], ..base() }, 8, "router.expert_map");
    let capacity = Capacity::new(CapacityLimit::Factor(-1.0));
    refused(RouterConfig { capacity: Some(capacity), ..base() }, 8, "router.capacity.limit");
    let order = Capacity { order: CapacityOrder::Scores, ..next_best };
    refused(RouterConfig { capacity: Some(order), ..base() }, 8, "router.capacity.order");
    let sparse = Selection::SparseMixer { jitter: 0.01 };
    refused(RouterConfig { top_k: 3, ..selection(sparse) }, 8, "router.top_k");
    refused(RouterConfig { groups: groups(4, 2), ..selection(sparse) }, 8, "router.groups");
    refused(selection(Selection::SparseMixer { jitter: -1.0 }), 8, "router.selection.sparse_mixer.jitter");
    let hash = Selection::Hash { seed: 0 };
    refused(RouterConfig { capacity: Some(next_best), ..selection(hash) }, 8, "router.capacity.overflow");
    let choice = Selection::ExpertChoice { limit };
    refused(RouterConfig { capacity: Some(next_best), ..selection(choice) }, 8, "router.capacity");
    refused(RouterConfig { num_zero_experts: 1, ..selection(choice) }, 8, "router.num_zero_experts");
    let limit = CapacityLimit::TokenFraction(f64::NAN);
    refused(selection(Selection::ExpertChoice { limit }), 8, "router.selection.expert_choice.limit");
    let sinkhorn = Selection::Sinkhorn { tolerance: 1e-4, max_iterations: 0 };
    refused(selection(sinkhorn), 8, "router.selection.sinkhorn.max_iterations");
    let levels = |num_groups, topk_groups| {
        selection(Selection::Hierarchical { num_groups, topk_groups, renormalize_levels: true })
    };
    refused(levels(3, 1), 8, "router.selection.hierarchical.num_groups");
    refused(levels(8, 1), 8, "router.selection.hierarchical.topk_groups");
    refused(RouterConfig { score: ScoreFunction::Sigmoid, ..levels(4, 2) }, 8, "router.score");
    refused(RouterConfig { capacity: Some(capacity), ..levels(4, 2) }, 8, "router.capacity.limit");
    refused(
        RouterConfig { noise: noise(NoiseKind::Normal { std: -1.0 }), ..base() },
        8,
        "router.noise.kind.normal.std",
    );
    let jitter = NoiseKind::InputJitter { epsilon: 1.5 };
    refused(RouterConfig { noise: noise(jitter), ..base() }, 8, "router.noise.kind.input_jitter.epsilon");
    let second = noise(NoiseKind::GumbelSecond);
    refused(RouterConfig { noise: second, ..selection(sinkhorn) }, 8, "router.selection.sinkhorn.max_iterations");
    refused(RouterConfig { noise: second, capacity: Some(next_best), ..base() }, 8, "router.noise.kind");
}

#[test]
fn missing_inputs_are_named() {
    let named = |case: Case, argument: &str| {
        for device in [fused_moe::Device::reference(), fused_moe::Device::cpu()] {
            match case.route_on(&device) {
                Err(Error::InvalidArgument { argument: actual, .. }) => assert_eq!(actual, argument),
                other => panic!("{other:?}"),
            }
        }
    };
    let noise = Some(Noise { seed: 0, kind: NoiseKind::NormalSoftplus });
    let base = RouterConfig::softmax_top_k(2);
    named(Case::random(RouterConfig { noise, ..base.clone() }, 3, 4, 1), "inputs.noise_logits");
    let selection = Selection::Hash { seed: 0 };
    named(Case::random(RouterConfig { selection, ..base.clone() }, 3, 4, 1), "inputs.token_ids");
    named(Case { tokens_per_sequence: Some(2), ..Case::random(base, 3, 4, 1) }, "inputs.tokens_per_sequence");
    named(Case::random(RouterConfig::hierarchical(2, 1, 1), 3, 4, 1).with_bias(1), "selection_bias");
}

#[test]
fn json_is_what_it_says() {
    let json = r#"{
        "top_k": 2,
        "score": "sigmoid",
        "weight": "softmax_over_selected",
        "logit_clip": 30.0,
        "groups": { "num_groups": 4, "topk_groups": 2, "score": "sum_top2" },
        "renormalize": { "min": 1e-12 },
        "weights_on": "input",
        "capacity": { "limit": { "factor": 1.25 }, "order": "batch_priority", "overflow": "next_best" },
        "noise": { "seed": 7, "kind": { "normal": { "std": 0.1 } } },
        "expert_states": ["active", "frozen", "added", "disabled", "active", "active", "active", "active"],
        "expert_map": [0, null, 1, null, 2, 3, null, null]
    }"#;
    let config: RouterConfig = serde_json::from_str(json).expect("valid");
    assert_eq!(config.renormalize, Some(Renormalize { min: 1e-12, ..Renormalize::default() }));
    assert_eq!(config.capacity.map(|c| c.limit), Some(CapacityLimit::Factor(1.25)));
    assert_eq!(config.noise, Some(Noise { seed: 7, kind: NoiseKind::Normal { std: 0.1 } }));
    let rules = [
        r#"{"top_k":1,"score":"softmax","selection":{"expert_choice":{"limit":{"absolute":3}}}}"#,
        r#"{"top_k":2,"score":"logit","selection":{"sparse_mixer":{"jitter":0.01}}}"#,
        r#"{"top_k":2,"score":"softmax","selection":{"hash":{"seed":3}}}"#,
        r#"{"top_k":2,"score":"softmax","selection":{"sinkhorn":{"tolerance":1e-4,"max_iterations":100}}}"#,
        r#"{"top_k":2,"score":"sqrt_softplus","selection":"top_k","noise":{"seed":1,"kind":"gumbel_second"}}"#,
    ];
    for json in rules {
        let config: RouterConfig = serde_json::from_str(json).expect(json);
        assert!(config.validate(8).is_ok(), "{json}");
    }
    for (json, word) in [
        (r#"{"top_k":1,"score":"relu"}"#, "relu"),
        (r#"{"top_k":1,"score":"softmax","normalise":true}"#, "normalise"),
        (r#"{"score":"softmax"}"#, "top_k"),
        (r#"{"top_k":1,"score":"softmax","selection":"best"}"#, "best"),
    ] {
        let error = serde_json::from_str::<RouterConfig>(json).expect_err(json).to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn presets_are_valid_and_survive_json() {
    let presets = published();
    assert_eq!(presets.len(), 18);
    for preset in presets {
        preset.config.validate(preset.num_experts).expect(preset.name);
        let json = serde_json::to_string(&preset.config).expect("plain data");
        assert_eq!(serde_json::from_str::<RouterConfig>(&json).expect(&json), preset.config);
        let mut case = Case::random(preset.config, 96, preset.num_experts, 1);
        case.checked();
        case.tokens_per_sequence = Some(24);
        case.checked();
    }
}
