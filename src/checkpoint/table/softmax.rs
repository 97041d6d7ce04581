//! Routers by softmax, over all experts or over the chosen ones.

use super::{
    BASE, FUSED, PROJ, W132, shared, shared_width, softmax_norm_topk, softmax_over_selected, softmax_renormalized,
    stacked,
};
use crate::checkpoint::architecture::{Architecture, Experts, Shared};
use crate::checkpoint::error::Result;
use crate::checkpoint::json::Keys;
use crate::config::{Activation, GateUpLayout, WeightLayout};
use crate::routing::{GroupLimit, GroupScore, Renormalize, RouterConfig};

/// Mixtral's block, after whose names many others are called.
const MIXTRAL: Architecture = Architecture {
    model_type: "mixtral",
    num_experts: |c| c.size("num_local_experts|num_experts", 8),
    intermediate_size: |c| c.size("intermediate_size", 14336),
    router: |c| Ok(softmax_renormalized(c.size("num_experts_per_tok", 2)?)),
    block: "block_sparse_moe.|mlp.",
    experts: &[W132, FUSED],
    ..BASE
};

/// Qwen2-MoE's layers: every `decoder_sparse_step`-th, but for `mlp_only_layers`.
fn qwen_layers(c: Keys<'_>) -> Result<bool> {
    let step = c.size("decoder_sparse_step", 1)?;
    let number = c.layer.index() + 1;
    Ok(c.lists_layer("mlp_only_layers")? != Some(true) && step > 0 && number.is_multiple_of(step))
}

/// The shared expert behind a sigmoid gate.
const QWEN_SHARED: Shared = Shared {
    sigmoid_gate: Some("shared_expert_gate.weight"),
    ..shared("shared_expert.", |c| c.size("shared_expert_intermediate_size", 5632))
};

const QWEN2_MOE: Architecture = Architecture {
    model_type: "qwen2_moe",
    num_layers: |c| c.layers("num_hidden_layers", 24),
    has_experts: qwen_layers,
    hidden_size: |c| c.size("hidden_size", 2048),
    num_experts: |c| c.size("num_experts|num_local_experts", 60),
    router: |c| softmax_norm_topk(c, 4, false),
    shared: Some(QWEN_SHARED),
    ..BASE
};

const OLMOE: Architecture = Architecture {
    model_type: "olmoe",
    num_layers: |c| c.layers("num_hidden_layers", 16),
    hidden_size: |c| c.size("hidden_size", 2048),
    num_experts: |c| c.size("num_experts|num_local_experts", 64),
    intermediate_size: |c| c.size("intermediate_size", 2048),
    router: |c| softmax_norm_topk(c, 8, false),
    ..BASE
};

const GRANITE_MOE: Architecture = Architecture {
    model_type: "granitemoe",
    num_experts: |c| c.size("num_local_experts", 8),
    intermediate_size: |c| c.size("intermediate_size", 11008),
    router: |c| Ok(softmax_over_selected(c.size("num_experts_per_tok", 2)?)),
    block: "block_sparse_moe.",
    router_weight: "router.layer.weight|router.weight",
    experts: &[stacked("input_linear.weight", "output_linear.weight", WeightLayout::Nk), FUSED],
    ..BASE
};

/// DeepSeek's layers: all but the first few.
pub(super) fn behind_dense(c: Keys<'_>, key: &str, dense: usize) -> Result<bool> {
    Ok(c.layer.index() >= c.size(key, dense)?)
}

fn deepseek_v2_router(c: Keys<'_>) -> Result<RouterConfig> {
    let groups = match c.text("topk_method", "greedy")? {
        "greedy" => None,
        "group_limited_greedy" => Some(GroupLimit {
            num_groups: c.required_size("n_group")?,
            topk_groups: c.required_size("topk_group")?,
            score: GroupScore::Max,
        }),
        _ => return Err(c.wrong("topk_method", "greedy or group_limited_greedy")),
    };
    Ok(RouterConfig {
        groups,
        scaling_factor: c.number("routed_scaling_factor", 1.0)?,
        ..RouterConfig::softmax_top_k(c.required_size("num_experts_per_tok")?)
    })
}

/// Groups by the sum of their two best, as DeepSeek-V3's, but of a softmax.
fn mistral4_router(c: Keys<'_>) -> Result<RouterConfig> {
    let num_groups = c.size("n_group", 1)?;
    let topk_groups = c.size("topk_group", 1)?;
    Ok(RouterConfig {
        groups: (num_groups != 1).then_some(GroupLimit { num_groups, topk_groups, score: GroupScore::SumTop2 }),
        renormalize: c.flag("norm_topk_prob", true)?.then_some(Renormalize { add: 1e-20, ..Renormalize::default() }),
        scaling_factor: c.number("routed_scaling_factor", 1.0)?,
        ..RouterConfig::softmax_top_k(c.size("num_experts_per_tok", 4)?)
    })
}

fn ernie_layers(c: Keys<'_>) -> Result<bool> {
    let layer = c.layer.index();
    let interval = c.size("moe_layer_interval", 1)?;
    let is_last_or_before = match c.value("moe_layer_end_index").and_then(serde_json::Value::as_i64) {
        Some(-1) => true,
        _ => c.size_if_any("moe_layer_end_index")?.is_none_or(|end| layer <= end),
    };
    let in_step = interval > 0 && (layer + 1).is_multiple_of(interval);
    Ok(in_step && layer >= c.size("moe_layer_start_index", 1)? && is_last_or_before)
}

fn ernie_router(c: Keys<'_>) -> Result<RouterConfig> {
    let min = c.number("moe_norm_min", 1e-12)?;
    Ok(RouterConfig {
        renormalize: Some(Renormalize { min, ..Renormalize::default() }),
        ..RouterConfig::softmax_top_k(c.size("moe_k|num_experts_per_tok", 6)?)
    })
}

fn gpt_oss_activation(c: Keys<'_>) -> Result<Activation> {
    Ok(Activation::ClampedSwiglu { alpha: c.number("swiglu_alpha", 1.702)?, limit: c.number("swiglu_limit", 7.0)? })
}

pub(super) const TABLE: &[Architecture] = &[
    MIXTRAL,
    Architecture { model_type: "minimax", ..MIXTRAL },
    QWEN2_MOE,
    Architecture {
        model_type: "qwen3_moe",
        num_experts: |c| c.size("num_experts|num_local_experts", 128),
        intermediate_size: |c| c.size("moe_intermediate_size", 768),
        router: |c| softmax_norm_topk(c, 8, false),
        shared: None,
        ..QWEN2_MOE
    },
    Architecture {
        model_type: "qwen3_next",
        num_layers: |c| c.layers("num_hidden_layers", 48),
        num_experts: |c| c.size("num_experts|num_local_experts", 512),
        intermediate_size: |c| c.size("moe_intermediate_size", 512),
        router: |c| softmax_norm_topk(c, 10, true),
        shared: Some(Shared { intermediate_size: |c| c.size("shared_expert_intermediate_size", 512), ..QWEN_SHARED }),
        ..QWEN2_MOE
    },
    OLMOE,
    Architecture {
        model_type: "flex_olmo",
        num_layers: |c| c.layers("num_hidden_layers", 32),
        hidden_size: |c| c.size("hidden_size", 4096),
        num_experts: |c| c.size("num_experts|num_local_experts", 7),
        intermediate_size: |c| c.size("intermediate_size", 11008),
        router: |c| softmax_norm_topk(c, 5, false),
        ..OLMOE
    },
    GRANITE_MOE,
    // Its shared MLP stands beside the block, not in it.
    Architecture { model_type: "granitemoeshared", ..GRANITE_MOE },
    Architecture {
        model_type: "jamba",
        has_experts: |c| {
            let period = c.size("expert_layer_period", 2)?;
            let offset = c.size("expert_layer_offset", 1)?;
            let in_step = period > 0 && c.layer.index() % period == offset;
            Ok(in_step && c.size("num_experts|num_local_experts", 16)? > 1)
        },
        num_experts: |c| c.size("num_experts|num_local_experts", 16),
        intermediate_size: |c| c.size("intermediate_size", 14336),
        block: "feed_forward.",
        router_weight: "router.weight",
        ..BASE
    },
    Architecture {
        model_type: "deepseek",
        num_layers: |c| c.layers("num_hidden_layers", 30),
        has_experts: |c| {
            let step = c.size("moe_layer_freq", 1)?;
            let in_step = step > 0 && c.layer.index().is_multiple_of(step);
            Ok(in_step && behind_dense(c, "first_k_dense_replace", 0)? && c.value("n_routed_experts").is_some())
        },
        num_experts: |c| c.required_size("n_routed_experts"),
        intermediate_size: |c| c.size("moe_intermediate_size", 1407),
        router: |c| {
            let top_k = c.required_size("num_experts_per_tok")?;
            let renormalize = top_k > 1 && c.flag("norm_topk_prob", false)?;
            let rule = Renormalize { add: 1e-20, ..Renormalize::default() };
            Ok(RouterConfig { renormalize: renormalize.then_some(rule), ..RouterConfig::softmax_top_k(top_k) })
        },
        shared: Some(shared("shared_experts.", |c| shared_width(c, "n_shared_experts", 0, 1407))),
        only: &[("scoring_func", &["softmax"])],
        ..BASE
    },
    Architecture {
        model_type: "deepseek_v2",
        has_experts: |c| behind_dense(c, "first_k_dense_replace", 0),
        num_experts: |c| c.size("n_routed_experts|num_experts", 64),
        intermediate_size: |c| c.size("moe_intermediate_size", 1407),
        router: deepseek_v2_router,
        shared: Some(Shared {
            bias: |c| c.flag("mlp_bias", false),
            ..shared("shared_experts.", |c| shared_width(c, "n_shared_experts", 2, 1407))
        }),
        only: &[("scoring_func", &["softmax"]), ("moe_layer_freq", &["1"])],
        ..BASE
    },
    Architecture {
        model_type: "mistral4",
        num_layers: |c| c.layers("num_hidden_layers", 36),
        has_experts: |c| behind_dense(c, "first_k_dense_replace", 0),
        num_experts: |c| c.size("n_routed_experts|num_local_experts", 128),
        intermediate_size: |c| c.size("moe_intermediate_size", 2048),
        router: mistral4_router,
        shared: Some(shared("shared_experts.", |c| shared_width(c, "n_shared_experts", 1, 2048))),
        experts: &[FUSED, PROJ],
        ..BASE
    },
    Architecture {
        model_type: "ernie4_5_moe",
        num_layers: |c| c.layers("num_hidden_layers", 28),
        has_experts: ernie_layers,
        hidden_size: |c| c.size("hidden_size", 2560),
        num_experts: |c| c.size("moe_num_experts|num_experts", 64),
        intermediate_size: |c| c.size("moe_intermediate_size", 1536),
        router: ernie_router,
        selection_bias: Some("moe_statics.e_score_correction_bias|gate.moe_statics.e_score_correction_bias"),
        shared: Some(Shared {
            bias: |c| c.flag("use_bias", false),
            ..shared("shared_experts.", |c| shared_width(c, "moe_num_shared_experts", 2, 1536))
        }),
        ..BASE
    },
    Architecture {
        model_type: "hunyuan_v1_moe",
        num_experts: |c| c.size_per_layer("num_experts|num_local_experts", 1),
        intermediate_size: |c| c.size("intermediate_size", 11008),
        router: |c| Ok(softmax_renormalized(c.size_per_layer("moe_topk|num_experts_per_tok", 1)?)),
        router_weight: "gate.wg.weight",
        shared: Some(shared("shared_mlp.", |c| c.size("intermediate_size", 11008))),
        ..BASE
    },
    Architecture {
        model_type: "longcat_flash",
        num_layers: |c| c.layers("num_layers", 28),
        hidden_size: |c| c.size("hidden_size", 6144),
        num_experts: |c| c.size("n_routed_experts|num_local_experts", 512),
        intermediate_size: |c| c.size("expert_ffn_hidden_size|moe_intermediate_size", 2048),
        router: |c| {
            Ok(RouterConfig {
                num_zero_experts: c.size("zero_expert_num", 256)?,
                scaling_factor: c.number("routed_scaling_factor", 6.0)?,
                ..RouterConfig::softmax_top_k(c.size("moe_topk|num_experts_per_tok", 12)?)
            })
        },
        router_weight: "router.classifier.weight",
        selection_bias: Some("router.e_score_correction_bias"),
        only: &[("zero_expert_type", &["identity"])],
        ..BASE
    },
    Architecture {
        model_type: "gpt_oss",
        num_layers: |c| c.layers("num_hidden_layers", 36),
        hidden_size: |c| c.size("hidden_size", 2880),
        num_experts: |c| c.size("num_local_experts|num_experts", 128),
        intermediate_size: |c| c.size("intermediate_size", 2880),
        activation: gpt_oss_activation,
        router: |c| Ok(softmax_over_selected(c.size("num_experts_per_tok|experts_per_token", 4)?)),
        router_weight: "router.weight",
        router_bias: |_| Ok(true),
        experts: &[
            Experts::Stacked {
                gate_up: "experts.gate_up_proj",
                down: "experts.down_proj",
                gate_up_layout: Some(GateUpLayout::Interleaved),
                weight_layout: WeightLayout::Kn,
                bias: true,
            },
            Experts::Mxfp4 { gate_up: "experts.gate_up_proj", down: "experts.down_proj" },
        ],
        ..BASE
    },
    Architecture {
        model_type: "aria_text",
        wrappers: &["aria"],
        num_experts: |c| c.size("moe_num_experts", 8),
        intermediate_size: |c| c.size("intermediate_size", 4096),
        // Whatever `hidden_act` says; that is for the shared experts.
        activation: |_| Ok(Activation::Silu),
        router: |c| Ok(softmax_over_selected(c.size("moe_topk", 2)?)),
        router_weight: "router.weight",
        experts: &[
            stacked("experts.fc1.weight", "experts.fc2.weight", WeightLayout::Kn),
            stacked("experts.gate_up_proj", "experts.down_proj", WeightLayout::Kn),
        ],
        shared: Some(Shared {
            bias: |c| c.flag("mlp_bias", false),
            ..shared("shared_experts.", |c| {
                let width = c.size("intermediate_size", 4096)?;
                c.product("moe_num_shared_experts", width, c.size("moe_num_shared_experts", 2)?)
            })
        }),
        ..BASE
    },
];
