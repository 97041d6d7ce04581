//! Routers by sigmoid, most with a bias that only steers the choice.

use super::softmax::behind_dense;
use super::{BASE, FUSED, PROJ, W132, shared, shared_width, softmax_over_selected, stacked};
use crate::checkpoint::architecture::{Architecture, Experts, Latent, Shared};
use crate::checkpoint::error::Result;
use crate::checkpoint::json::Keys;
use crate::config::WeightLayout;
use crate::routing::{GroupLimit, GroupScore, Renormalize, RouterConfig, ScoreFunction, WeightFunction, WeightsOn};

/// Sigmoid scores; the chosen ones divided by their sum.
fn sigmoid_renormalized(top_k: usize) -> RouterConfig {
    RouterConfig {
        score: ScoreFunction::Sigmoid,
        renormalize: Some(Renormalize::default()),
        ..RouterConfig::softmax_top_k(top_k)
    }
}

/// DeepSeek-V3's router (`noaux_tc`) and the defaults of its keys.
struct NoAuxTc {
    top_k: Option<usize>,
    norm_topk_prob: bool,
    scaling_factor: f32,
    groups: (usize, usize),
}

impl NoAuxTc {
    const fn new(top_k: usize) -> Self {
        Self { top_k: Some(top_k), norm_topk_prob: true, scaling_factor: 1.0, groups: (1, 1) }
    }

    const fn scaled(self, scaling_factor: f32) -> Self {
        Self { scaling_factor, ..self }
    }

    fn read(&self, c: Keys<'_>) -> Result<RouterConfig> {
        let top_k = "num_experts_per_tok|num_experts_per_token";
        let top_k = self.top_k.map_or_else(|| c.required_size(top_k), |default| c.size(top_k, default))?;
        let num_groups = c.size("n_group|num_expert_group", self.groups.0)?;
        let topk_groups = c.size("topk_group", self.groups.1)?;
        let normalized = c.flag("norm_topk_prob|moe_renormalize", self.norm_topk_prob)?;
        Ok(RouterConfig {
            groups: (num_groups != 1).then_some(GroupLimit { num_groups, topk_groups, score: GroupScore::SumTop2 }),
            renormalize: normalized.then_some(Renormalize { add: 1e-20, ..Renormalize::default() }),
            scaling_factor: c.number("routed_scaling_factor", self.scaling_factor)?,
            ..sigmoid_renormalized(top_k)
        })
    }
}

/// Layers by `mlp_layer_types`; without it, all but the first few.
fn sparse_layers(c: Keys<'_>, dense: usize) -> Result<bool> {
    match c.text_per_layer("mlp_layer_types")? {
        Some(kind) => Ok(kind == "sparse"),
        None => behind_dense(c, "first_k_dense_replace", dense),
    }
}

/// What the routers by DeepSeek-V3's rule have in common, so that another rule is not taken for it.
const NO_AUX_TC_ONLY: &[(&str, &[&str])] =
    &[("scoring_func", &["sigmoid", "noaux_tc"]), ("topk_method", &["noaux_tc"]), ("moe_layer_freq", &["1"])];

const DEEPSEEK_V3: Architecture = Architecture {
    model_type: "deepseek_v3",
    num_layers: |c| c.layers("num_hidden_layers", 61),
    has_experts: |c| behind_dense(c, "first_k_dense_replace", 3),
    hidden_size: |c| c.size("hidden_size", 7168),
    num_experts: |c| c.size("n_routed_experts|num_local_experts", 256),
    intermediate_size: |c| c.size("moe_intermediate_size", 2048),
    router: |c| NoAuxTc { groups: (8, 4), ..NoAuxTc::new(8).scaled(2.5) }.read(c),
    selection_bias: Some("gate.e_score_correction_bias"),
    shared: Some(shared("shared_experts.", |c| shared_width(c, "n_shared_experts", 1, 2048))),
    only: NO_AUX_TC_ONLY,
    ..BASE
};

fn lfm2_router(c: Keys<'_>) -> Result<RouterConfig> {
    let rule = Renormalize { add: 1e-6, ..Renormalize::default() };
    Ok(RouterConfig {
        renormalize: c.flag("norm_topk_prob", true)?.then_some(rule),
        scaling_factor: c.number("routed_scaling_factor", 1.0)?,
        ..sigmoid_renormalized(c.size("num_experts_per_tok", 4)?)
    })
}

fn laguna_router(c: Keys<'_>) -> Result<RouterConfig> {
    let softcap = c.number("moe_router_logit_softcapping", 0.0)?;
    Ok(RouterConfig {
        logit_softcap: (softcap > 0.0).then_some(softcap),
        scaling_factor: c.number("moe_routed_scaling_factor", 1.0)?,
        ..sigmoid_renormalized(c.size("num_experts_per_tok", 8)?)
    })
}

/// Chosen by logits; weighed by softmax or sigmoid; half of it where the shared experts' output is averaged in.
fn cohere2_router(c: Keys<'_>) -> Result<RouterConfig> {
    let chosen = softmax_over_selected(c.size("num_experts_per_tok", 2)?);
    let scaling_factor = cohere2_scale(c)?;
    match c.text("expert_selection_fn", "softmax")? {
        "softmax" => Ok(RouterConfig { scaling_factor, ..chosen }),
        "sigmoid" => Ok(RouterConfig {
            weight: WeightFunction::Sigmoid,
            renormalize: c.flag("norm_topk_prob", true)?.then(Renormalize::default),
            scaling_factor,
            ..chosen
        }),
        _ => Err(c.wrong("expert_selection_fn", "softmax or sigmoid")),
    }
}

fn cohere2_scale(c: Keys<'_>) -> Result<f32> {
    let shared = c.size("num_shared_experts", 0)? > 0;
    match c.text("shared_expert_combination_strategy", "average")? {
        "average" if shared => Ok(0.5),
        "average" | "sum" => Ok(1.0),
        _ => Err(c.wrong("shared_expert_combination_strategy", "average or sum")),
    }
}

/// One letter per layer in published files, one word in the library's.
fn nemotron_layers(c: Keys<'_>) -> Result<bool> {
    if let Some(kind) = c.text_per_layer("layers_block_type|layer_types")? {
        return Ok(kind == "moe");
    }
    // The library's default, where neither says.
    let pattern = c.text("hybrid_override_pattern", "ME*-")?;
    Ok(pattern.as_bytes().get(c.layer.index()) == Some(&b'E'))
}

fn nemotron_num_layers(c: Keys<'_>) -> Result<usize> {
    match c.list("layers_block_type|layer_types")? {
        Some(list) => c.bounded_layers("layers_block_type|layer_types", list.len()),
        None => c.bounded_layers("hybrid_override_pattern", c.text("hybrid_override_pattern", "ME*-")?.len()),
    }
}

/// No gate half.
const NEMOTRON_EXPERTS: &[Experts] = &[
    Experts::PerExpert {
        gate: None,
        up: "experts.{e}.up_proj.weight",
        down: "experts.{e}.down_proj.weight",
        bias: false,
    },
    Experts::Stacked {
        gate_up: "experts.up_proj",
        down: "experts.down_proj",
        gate_up_layout: None,
        weight_layout: WeightLayout::Nk,
        bias: false,
    },
];

pub(super) const TABLE: &[Architecture] = &[
    DEEPSEEK_V3,
    Architecture {
        model_type: "glm4_moe",
        num_layers: |c| c.layers("num_hidden_layers", 46),
        has_experts: |c| behind_dense(c, "first_k_dense_replace", 1),
        hidden_size: |c| c.size("hidden_size", 4096),
        num_experts: |c| c.size("n_routed_experts|num_local_experts", 128),
        intermediate_size: |c| c.size("moe_intermediate_size", 1408),
        router: |c| NoAuxTc::new(8).read(c),
        shared: Some(shared("shared_experts.", |c| shared_width(c, "n_shared_experts", 1, 1408))),
        ..DEEPSEEK_V3
    },
    Architecture {
        model_type: "dots1",
        num_layers: |c| c.layers("num_hidden_layers", 62),
        has_experts: |c| behind_dense(c, "first_k_dense_replace", 0),
        hidden_size: |c| c.size("hidden_size", 4608),
        num_experts: |c| c.required_size("n_routed_experts|num_local_experts"),
        intermediate_size: |c| c.size("moe_intermediate_size", 1408),
        router: |c| NoAuxTc { top_k: None, norm_topk_prob: false, ..NoAuxTc::new(0) }.read(c),
        shared: Some(shared("shared_experts.", |c| shared_width(c, "n_shared_experts", 0, 1408))),
        ..DEEPSEEK_V3
    },
    Architecture {
        model_type: "solar_open",
        num_layers: |c| c.layers("num_hidden_layers", 48),
        has_experts: |_| Ok(true),
        hidden_size: |c| c.size("hidden_size", 4096),
        num_experts: |c| c.size("n_routed_experts|num_local_experts", 128),
        intermediate_size: |c| c.size("moe_intermediate_size", 1280),
        router: |c| NoAuxTc::new(8).read(c),
        shared: Some(shared("shared_experts.", |c| shared_width(c, "n_shared_experts", 1, 1280))),
        ..DEEPSEEK_V3
    },
    Architecture {
        model_type: "exaone_moe",
        num_layers: |c| c.layers("num_hidden_layers", 32),
        has_experts: |c| sparse_layers(c, 1),
        hidden_size: |c| c.size("hidden_size", 4096),
        num_experts: |c| c.size("num_experts", 64),
        intermediate_size: |c| c.size("moe_intermediate_size", 1024),
        router: |c| NoAuxTc::new(8).scaled(2.5).read(c),
        selection_bias: Some("e_score_correction_bias|gate.e_score_correction_bias"),
        shared: Some(shared("shared_experts.", |c| shared_width(c, "num_shared_experts", 1, 1024))),
        ..DEEPSEEK_V3
    },
    Architecture {
        model_type: "mimo_v2_flash",
        num_layers: |c| c.layers("num_hidden_layers", 48),
        has_experts: |c| match (c.value("mlp_layer_types"), c.list("moe_layer_freq")?) {
            (None, Some(list)) => Ok(list.get(c.layer.index()).and_then(serde_json::Value::as_u64) == Some(1)),
            _ => sparse_layers(c, 1),
        },
        hidden_size: |c| c.size("hidden_size", 4096),
        router: |c| NoAuxTc::new(8).read(c),
        shared: None,
        only: &[("scoring_func", &["sigmoid"]), ("topk_method", &["noaux_tc"]), ("n_shared_experts", &["0"])],
        ..DEEPSEEK_V3
    },
    Architecture {
        model_type: "kimi_linear",
        num_layers: |c| c.layers("num_hidden_layers", 27),
        has_experts: |c| sparse_layers(c, 1),
        hidden_size: |c| c.size("hidden_size", 2304),
        num_experts: |c| c.size("num_local_experts|num_experts", 256),
        intermediate_size: |c| c.size("moe_intermediate_size", 1024),
        router: |c| NoAuxTc::new(8).scaled(2.446).read(c),
        block: "block_sparse_moe.|mlp.",
        experts: &[W132, FUSED],
        shared: Some(shared("shared_experts.", |c| shared_width(c, "n_shared_experts|num_shared_experts", 1, 1024))),
        only: &[("moe_router_activation_func", &["sigmoid"]), ("moe_layer_freq", &["1"])],
        ..DEEPSEEK_V3
    },
    Architecture {
        model_type: "nemotron_h",
        stacks: &[super::StackNames {
            stack: super::LayerStack::Only,
            layer: "backbone.layers.{l}.|model.layers.{l}.|layers.{l}.",
        }],
        num_layers: nemotron_num_layers,
        has_experts: nemotron_layers,
        hidden_size: |c| c.size("hidden_size", 4096),
        num_experts: |c| c.size("n_routed_experts|num_local_experts", 8),
        intermediate_size: |c| c.size("moe_intermediate_size", 7688),
        activation: |c| c.activation("mlp_hidden_act", "relu2"),
        router: |c| NoAuxTc::new(2).read(c),
        block: "mixer.",
        experts: NEMOTRON_EXPERTS,
        shared: Some(Shared {
            activation: |c| c.activation("mlp_hidden_act", "relu2"),
            gated: false,
            bias: |c| c.flag("mlp_bias", false),
            ..shared("shared_experts.", |c| c.size("moe_shared_expert_intermediate_size", 7688))
        }),
        latent: Some(Latent {
            size: |c| c.size_if_any("moe_latent_size"),
            down: "fc1_latent_proj",
            up: "fc2_latent_proj",
            bias: |c| c.flag("mlp_bias", false),
        }),
        ..DEEPSEEK_V3
    },
    Architecture {
        model_type: "minimax_m2",
        num_layers: |c| c.layers("num_hidden_layers", 62),
        hidden_size: |c| c.size("hidden_size", 3072),
        num_experts: |c| c.size("num_local_experts|num_experts", 256),
        intermediate_size: |c| c.size("intermediate_size", 1536),
        router: |c| Ok(sigmoid_renormalized(c.size("num_experts_per_tok", 8)?)),
        block: "block_sparse_moe.|mlp.",
        selection_bias: Some("e_score_correction_bias"),
        experts: &[W132, FUSED],
        only: &[("scoring_func", &["sigmoid"]), ("use_routing_bias", &["true"]), ("shared_intermediate_size", &["0"])],
        ..BASE
    },
    Architecture {
        model_type: "afmoe",
        has_experts: |c| behind_dense(c, "num_dense_layers", 1),
        hidden_size: |c| c.size("hidden_size", 2048),
        num_experts: |c| c.size("num_experts", 64),
        router: |c| {
            Ok(RouterConfig {
                renormalize: Some(Renormalize { add: 1e-20, ..Renormalize::default() }),
                scaling_factor: c.number("route_scale", 1.0)?,
                ..sigmoid_renormalized(c.size("num_experts_per_tok", 6)?)
            })
        },
        router_weight: "router.gate.weight",
        selection_bias: Some("expert_bias"),
        shared: Some(shared("shared_experts.", |c| shared_width(c, "num_shared_experts", 2, 1408))),
        only: &[("score_func", &["sigmoid"]), ("route_norm", &["true"]), ("n_group", &["1"])],
        ..BASE
    },
    Architecture {
        model_type: "lfm2_moe",
        has_experts: |c| behind_dense(c, "num_dense_layers", 2),
        hidden_size: |c| c.size("hidden_size", 2048),
        num_experts: |c| c.size("num_experts", 32),
        intermediate_size: |c| c.size("moe_intermediate_size", 1792),
        activation: |_| Ok(crate::config::Activation::Silu),
        router: lfm2_router,
        block: "feed_forward.",
        selection_bias: Some("expert_bias"),
        has_selection_bias: |c| c.flag("use_expert_bias", true),
        experts: &[W132, FUSED],
        ..BASE
    },
    Architecture {
        model_type: "laguna",
        num_layers: |c| c.layers("num_hidden_layers", 40),
        has_experts: |c| match c.text_per_layer("mlp_layer_types")? {
            Some(kind) => Ok(kind == "sparse"),
            None => Ok(c.layer.index() > 0),
        },
        hidden_size: |c| c.size("hidden_size", 2048),
        num_experts: |c| c.size("num_experts", 256),
        intermediate_size: |c| c.size("moe_intermediate_size", 512),
        router: laguna_router,
        selection_bias: Some("experts.e_score_correction_bias|gate.e_score_correction_bias"),
        shared: Some(shared("shared_expert.|shared_experts.", |c| c.size("shared_expert_intermediate_size", 512))),
        only: &[("moe_apply_router_weight_on_input", &["false"])],
        ..BASE
    },
    Architecture {
        model_type: "cohere2_moe",
        num_layers: |c| c.layers("num_hidden_layers", 40),
        has_experts: |c| sparse_layers(c, 0),
        hidden_size: |c| c.size("hidden_size", 8192),
        num_experts: |c| c.size("num_experts", 8),
        intermediate_size: |c| c.size("intermediate_size", 22528),
        router: cohere2_router,
        shared: Some(Shared {
            scale: cohere2_scale,
            ..shared("shared_experts.", |c| {
                let width = c.size("intermediate_size", 22528)?;
                c.product("num_shared_experts", width, c.size("num_shared_experts", 0)?)
            })
        }),
        ..BASE
    },
    Architecture {
        model_type: "llama4_text",
        wrappers: &["llama4"],
        num_layers: |c| c.layers("num_hidden_layers", 48),
        has_experts: |c| match c.lists_layer("moe_layers")? {
            Some(listed) => Ok(listed),
            None => {
                let step = c.size("interleave_moe_layer_step", 1)?;
                Ok(step > 0 && (c.layer.index() + 1).is_multiple_of(step))
            }
        },
        hidden_size: |c| c.size("hidden_size", 5120),
        num_experts: |c| c.size("num_local_experts", 16),
        intermediate_size: |c| c.size("intermediate_size", 8192),
        router: |c| {
            Ok(RouterConfig {
                score: ScoreFunction::Logit,
                weight: WeightFunction::Sigmoid,
                weights_on: WeightsOn::Input,
                ..RouterConfig::softmax_top_k(c.size("num_experts_per_tok", 1)?)
            })
        },
        block: "feed_forward.",
        router_weight: "router.weight",
        experts: &[stacked("experts.gate_up_proj", "experts.down_proj", WeightLayout::Kn), PROJ],
        shared: Some(shared("shared_expert.", |c| c.size("intermediate_size", 8192))),
        ..BASE
    },
];
