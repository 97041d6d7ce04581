//! Architectures with a rule or a shape of their own.

use super::{BASE, FUSED, W132, softmax_over_selected};
use crate::checkpoint::LayerStack;
use crate::checkpoint::architecture::{Architecture, Experts, StackNames};
use crate::checkpoint::error::Result;
use crate::checkpoint::json::Keys;
use crate::routing::{Capacity, CapacityLimit, CapacityOrder, Renormalize, RouterConfig, Selection};

/// The key of the encoder, or of the decoder.
fn side<'k>(c: Keys<'_>, encoder: &'k str, decoder: &'k str) -> &'k str {
    if c.layer.stack() == LayerStack::Decoder { decoder } else { encoder }
}

/// Switch: evenly spread over the stack. With no sparse layers asked for, the library still makes layer 1 one.
fn switch_layers(c: Keys<'_>) -> Result<bool> {
    let step = match c.size_if_any(side(c, "encoder_sparse_step", "decoder_sparse_step"))? {
        Some(step) => step,
        None => {
            let sparse = c.size(side(c, "num_sparse_encoder_layers", "num_sparse_decoder_layers"), 3)?;
            switch_num_layers(c)? / sparse.max(1)
        }
    };
    Ok(step == 1 || step > 1 && c.layer.index() % step == 1)
}

fn switch_num_layers(c: Keys<'_>) -> Result<usize> {
    let encoder = c.layers("num_layers", 12)?;
    if c.layer.stack() == LayerStack::Encoder {
        return Ok(encoder);
    }
    let default = if c.is_null("num_decoder_layers") { encoder } else { 12 };
    c.layers("num_decoder_layers", default)
}

fn nllb_router(c: Keys<'_>) -> Result<RouterConfig> {
    let fraction = c.number("moe_eval_capacity_token_fraction", 1.0)?;
    let limit = if fraction > 0.0 {
        CapacityLimit::TokenFraction(c.wide_number("moe_eval_capacity_token_fraction", 1.0)?)
    } else if c.is_null("expert_capacity") {
        CapacityLimit::TokensPerExpert(2)
    } else {
        CapacityLimit::Absolute(c.size("expert_capacity", 64)?)
    };
    let prioritized = c.flag("batch_prioritized_routing", false)?;
    let capacity = Capacity {
        order: if prioritized { CapacityOrder::BatchPriority } else { CapacityOrder::FirstChoices },
        normalize_before_dropping: c.flag("normalize_router_prob_before_dropping", false)?,
        ..Capacity::new(limit)
    };
    Ok(RouterConfig {
        renormalize: Some(Renormalize { min: f32::EPSILON, ..Renormalize::default() }),
        scaling_factor: 1.0 - c.number("moe_token_dropout", 0.2)?,
        capacity: Some(capacity),
        ..RouterConfig::softmax_top_k(2)
    })
}

fn dbrx_router(c: Keys<'_>) -> Result<RouterConfig> {
    let key = "ffn_config.moe_normalize_expert_weights";
    let p = c.number(key, 1.0)?;
    let renormalize = (!c.is_null(key)).then_some(Renormalize { p, ..Renormalize::default() });
    Ok(RouterConfig { renormalize, ..RouterConfig::softmax_top_k(c.size("ffn_config.moe_top_k", 1)?) })
}

fn llama_moe_num_experts(c: Keys<'_>) -> Result<usize> {
    c.size("num_experts", 16)
}

/// All experts of a layer are of one size here; the format allows a list of sizes.
fn llama_moe_size(c: Keys<'_>) -> Result<usize> {
    let layers = c.list("size_experts")?.ok_or_else(|| c.wrong("size_experts", "a list per layer"))?;
    let sizes = layers.get(c.layer.index()).and_then(serde_json::Value::as_array);
    let mut sizes = sizes.into_iter().flatten().map(|size| size.as_u64().and_then(|n| usize::try_from(n).ok()));
    match sizes.next() {
        Some(Some(first)) if sizes.all(|size| size == Some(first)) => Ok(first),
        _ => Err(c.wrong("size_experts", format!("one size for all experts of layer {}", c.layer))),
    }
}

const ENCODER: LayerStack = LayerStack::Encoder;
const DECODER: LayerStack = LayerStack::Decoder;

pub(super) const TABLE: &[Architecture] = &[
    Architecture {
        model_type: "phimoe",
        num_experts: |c| c.size("num_local_experts", 16),
        intermediate_size: |c| c.size("intermediate_size", 6400),
        router: |c| {
            Ok(RouterConfig {
                selection: Selection::SparseMixer { jitter: c.number("router_jitter_noise", 0.01)? },
                ..RouterConfig::softmax_top_k(c.size("num_experts_per_tok", 2)?)
            })
        },
        block: "block_sparse_moe.|mlp.",
        router_weight: "gate.weight|router.weight",
        experts: &[W132, FUSED],
        ..BASE
    },
    Architecture {
        model_type: "dbrx",
        stacks: &[StackNames { stack: LayerStack::Only, layer: "transformer.blocks.{l}.|blocks.{l}." }],
        num_layers: |c| c.layers("n_layers|num_hidden_layers", 24),
        hidden_size: |c| c.size("d_model|hidden_size", 2048),
        num_experts: |c| c.size("ffn_config.moe_num_experts", 4),
        intermediate_size: |c| c.size("ffn_config.ffn_hidden_size", 3584),
        activation: |c| c.activation("ffn_config.ffn_act_fn.name", "silu"),
        router: dbrx_router,
        block: "ffn.",
        router_weight: "router.layer.weight",
        experts: &[Experts::Rows { gate: "experts.mlp.w1", up: "experts.mlp.v1", down: "experts.mlp.w2" }],
        ..BASE
    },
    Architecture {
        model_type: "switch_transformers",
        stacks: &[
            StackNames { stack: ENCODER, layer: "encoder.block.{l}.layer.1." },
            StackNames { stack: DECODER, layer: "decoder.block.{l}.layer.2." },
        ],
        num_layers: switch_num_layers,
        has_experts: switch_layers,
        hidden_size: |c| c.size("d_model|hidden_size", 768),
        num_experts: |c| c.size("num_experts", 8),
        intermediate_size: |c| c.size("d_ff", 2048),
        activation: |c| c.activation("dense_act_fn", "relu"),
        router: |c| {
            let capacity = Capacity::new(CapacityLimit::Absolute(c.size("expert_capacity", 64)?));
            Ok(RouterConfig {
                capacity: Some(Capacity { per_sequence: true, ..capacity }),
                ..RouterConfig::softmax_top_k(1)
            })
        },
        router_weight: "router.classifier.weight",
        router_bias: |c| c.flag("router_bias", false),
        experts: &[Experts::PerExpert {
            gate: None,
            up: "experts.expert_{e}.wi.weight",
            down: "experts.expert_{e}.wo.weight",
            bias: false,
        }],
        only: &[("router_dtype", &["float32"]), ("is_gated_act", &["false"])],
        ..BASE
    },
    // The published loop over experts and transformers' differ; the rule is the former's.
    Architecture {
        model_type: "nllb-moe",
        stacks: &[
            StackNames { stack: ENCODER, layer: "model.encoder.layers.{l}.|encoder.layers.{l}." },
            StackNames { stack: DECODER, layer: "model.decoder.layers.{l}.|decoder.layers.{l}." },
        ],
        num_layers: |c| c.layers(side(c, "encoder_layers|num_hidden_layers", "decoder_layers"), 12),
        has_experts: |c| {
            let step = c.size(side(c, "encoder_sparse_step", "decoder_sparse_step"), 4)?;
            Ok(step > 0 && (c.layer.index() + 1).is_multiple_of(step))
        },
        hidden_size: |c| c.size("d_model|hidden_size", 1024),
        num_experts: |c| c.size("num_experts", 128),
        intermediate_size: |c| c.size(side(c, "encoder_ffn_dim", "decoder_ffn_dim"), 4096),
        activation: |c| c.activation("activation_function", "relu"),
        router: nllb_router,
        block: "ffn.",
        router_weight: "router.classifier.weight",
        router_bias: |c| c.flag("router_bias", false),
        experts: &[Experts::PerExpert {
            gate: None,
            up: "experts.expert_{e}.fc1.weight",
            down: "experts.expert_{e}.fc2.weight",
            bias: true,
        }],
        only: &[("router_dtype", &["float32"]), ("second_expert_policy", &["all"])],
        ..BASE
    },
    Architecture {
        model_type: "llama_moe",
        num_experts: llama_moe_num_experts,
        intermediate_size: llama_moe_size,
        router: |c| {
            let hidden_size = match c.text("gate_network", "mlp")? {
                "mlp" => Some(llama_moe_num_experts(c)?),
                "linear" => None,
                _ => return Err(c.wrong("gate_network", "mlp or linear")),
            };
            Ok(RouterConfig {
                hidden_size,
                scaling_factor: c.number_per_layer("score_scale_factor", 1.0)?,
                ..softmax_over_selected(c.size("num_selects", 4)?)
            })
        },
        router_weight: "gate.gate_network.2.weight|gate.gate_network.weight",
        router_hidden: Some("gate.gate_network.0.weight"),
        experts: &[Experts::PerExpert {
            gate: Some("calculator.experts.weight_gate.{e}"),
            up: "calculator.experts.weight_up.{e}",
            down: "calculator.experts.weight_down.{e}",
            bias: false,
        }],
        only: &[
            ("gate_type", &["TopKBalancedNoisyGate"]),
            ("gate_use_softmax", &["true"]),
            ("calculator_type", &["UniversalCalculator"]),
            ("multiply_gate_scores", &["true"]),
            ("add_weight_norm", &["false"]),
        ],
        ..BASE
    },
];
