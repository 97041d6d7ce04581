//! Wrong configurations, weights and calls of the layer.

use std::cell::Cell;

use fused_moe::config::{Activation, GateUpLayout, MoeConfig, SharedExpertConfig, WeightLayout};
use fused_moe::layer::{LayerOptions, MoeLayer, Routing};
use fused_moe::plan::Slots;
use fused_moe::routing::{
    Capacity, CapacityLimit, CapacityOrder, GroupLimit, GroupScore, Overflow, Renormalize, RouterConfig, Selection,
};
use fused_moe::{DType, Device, Result, Tensor};

use super::{Maker, Wrong, names};
use crate::harness::model::{Model, Spec};
use crate::harness::remote::Remote;
use crate::harness::{Failure, Log, Problem};

/// A configuration with everything that a layer can have.
fn everything() -> MoeConfig {
    MoeConfig {
        num_experts: 6,
        hidden_size: 8,
        intermediate_size: 4,
        router: RouterConfig { hidden_size: Some(5), ..RouterConfig::softmax_top_k(2) },
        activation: Activation::Silu,
        gate_up_layout: Some(GateUpLayout::GateThenUp),
        weight_layout: WeightLayout::Nk,
        shared: Some(SharedExpertConfig {
            intermediate_size: 3,
            activation: Activation::Silu,
            gate_up_layout: Some(GateUpLayout::GateThenUp),
            weight_layout: WeightLayout::Nk,
            sigmoid_gate: true,
            output_scale: 1.0,
        }),
        latent_size: Some(7),
    }
}

fn model() -> Model {
    let spec = Spec {
        config: everything(),
        weight: DType::F32,
        io: DType::F32,
        rounded_inputs: true,
        biases: true,
        selection_bias: Some(0.1),
        seed: 1,
    };
    Model::new(&spec)
}

type Change = fn(&mut MoeConfig);

fn groups(config: &mut MoeConfig, num_groups: usize, topk_groups: usize) {
    config.router.groups = Some(GroupLimit { num_groups, topk_groups, score: GroupScore::Max });
}

fn shared(config: &mut MoeConfig) -> &mut SharedExpertConfig {
    config.shared.as_mut().expect("there is one")
}

const CONFIGS: &[(&str, Change)] = &[
    ("num_experts", |c| c.num_experts = 0),
    ("num_experts", |c| c.num_experts = usize::MAX),
    ("hidden_size", |c| c.hidden_size = 0),
    ("hidden_size", |c| c.hidden_size = 1 << 40),
    ("intermediate_size", |c| c.intermediate_size = 0),
    ("shared.intermediate_size", |c| shared(c).intermediate_size = 0),
    ("shared.output_scale", |c| shared(c).output_scale = f32::NAN),
    ("latent_size", |c| c.latent_size = Some(0)),
    ("router.hidden_size", |c| c.router.hidden_size = Some(0)),
    ("activation", |c| {
        c.activation = Activation::ClampedSwiglu { alpha: 1.0, limit: 1.0 };
        c.gate_up_layout = None;
    }),
    ("activation", |c| c.activation = Activation::ClampedSwiglu { alpha: f32::NAN, limit: 1.0 }),
    ("activation", |c| c.activation = Activation::ClampedSwiglu { alpha: 1.0, limit: 0.0 }),
    ("shared.activation", |c| shared(c).activation = Activation::ClampedSwiglu { alpha: 1.0, limit: f32::NAN }),
    ("router.top_k", |c| c.router.top_k = 0),
    ("router.top_k", |c| c.router.top_k = 7),
    ("router.scaling_factor", |c| c.router.scaling_factor = f32::INFINITY),
    ("router.logit_clip", |c| c.router.logit_clip = Some(0.0)),
    ("router.logit_softcap", |c| c.router.logit_softcap = Some(f32::NAN)),
    ("router.groups.num_groups", |c| groups(c, 0, 1)),
    ("router.groups.num_groups", |c| groups(c, 4, 1)),
    ("router.groups.topk_groups", |c| groups(c, 6, 1)),
    ("router.groups.topk_groups", |c| groups(c, 3, 4)),
    ("router.renormalize.p", |c| c.router.renormalize = Some(Renormalize { p: 0.0, ..Renormalize::default() })),
    ("router.renormalize.add", |c| c.router.renormalize = Some(Renormalize { add: -1.0, ..Renormalize::default() })),
    ("router.renormalize.min", |c| {
        c.router.renormalize = Some(Renormalize { min: f32::NAN, ..Renormalize::default() });
    }),
    ("router.top_k", |c| {
        c.router.top_k = 3;
        c.router.selection = Selection::SparseMixer { jitter: 0.1 };
    }),
    ("router.selection.sparse_mixer.jitter", |c| c.router.selection = Selection::SparseMixer { jitter: f32::NAN }),
    ("router.groups", |c| {
        groups(c, 3, 2);
        c.router.selection = Selection::SparseMixer { jitter: 0.1 };
    }),
    ("router.capacity.limit", |c| c.router.capacity = Some(Capacity::new(CapacityLimit::Factor(f64::NAN)))),
    ("router.capacity.order", |c| {
        let capacity = Capacity::new(CapacityLimit::Absolute(1));
        c.router.capacity = Some(Capacity { order: CapacityOrder::Scores, overflow: Overflow::NextBest, ..capacity });
    }),
];

pub fn config(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for (argument, change) in CONFIGS {
        let mut config = everything();
        change(&mut config);
        log.case(device, &(argument, config), |device, (argument, config)| {
            names(config.validate(), argument)?;
            names(MoeLayer::new(device, config.clone(), model().upload(device)?), argument)
        })?;
    }
    Ok(())
}

/// In the order of `MoeWeights::try_map`.
const WEIGHTS: [&str; 17] = [
    "weights.router.hidden",
    "weights.router.weight",
    "weights.router.bias",
    "weights.router.selection_bias",
    "weights.experts.gate_up_proj",
    "weights.experts.gate_up_bias",
    "weights.experts.down_proj",
    "weights.experts.down_bias",
    "weights.shared.gate_up_proj",
    "weights.shared.gate_up_bias",
    "weights.shared.down_proj",
    "weights.shared.down_bias",
    "weights.shared.gate",
    "weights.latent.down",
    "weights.latent.down_bias",
    "weights.latent.up",
    "weights.latent.up_bias",
];

pub fn weights(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for (index, argument) in WEIGHTS.into_iter().enumerate() {
        for wrong in [Wrong::Last, Wrong::First, Wrong::Rank, Wrong::Type, Wrong::Elsewhere] {
            log.case(device, &(argument, wrong), |device, _| {
                let good = model().upload(device)?;
                let (at, maker) = (Cell::new(0), Maker { device, field: argument, wrong });
                let spoiled = good.try_map(|tensor| {
                    let this = at.replace(at.get() + 1) == index;
                    let tensor =
                        if this { maker.spoiled(tensor.dtype(), tensor.shape().dims())? } else { copy(tensor)? };
                    Ok::<_, Problem>(tensor)
                })?;
                assert_eq!(at.get(), WEIGHTS.len(), "the list names every weight");
                names(MoeLayer::new(device, everything(), spoiled), argument)
            })?;
        }
    }
    Ok(())
}

fn copy(tensor: &Tensor) -> Result<Tensor> {
    Tensor::zeros(tensor.device(), tensor.dtype(), tensor.shape())
}

/// Weights without a place in the configuration, and places without weights.
pub fn presence(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let changes: [(&str, Change); 4] = [
        ("weights.router.hidden", |c| c.router.hidden_size = None),
        ("weights.shared", |c| c.shared = None),
        ("weights.shared.gate", |c| shared(c).sigmoid_gate = false),
        ("weights.latent", |c| c.latent_size = None),
    ];
    for (argument, change) in changes {
        log.case(device, &argument, |device, argument| {
            let mut less = everything();
            change(&mut less);
            let lesser = Model::new(&Spec { config: less.clone(), ..model().spec }).upload(device)?;
            if *argument != "weights.latent" {
                names(MoeLayer::new(device, less.clone(), model().upload(device)?), argument)?;
                return names(MoeLayer::new(device, everything(), lesser), argument);
            }
            // Without a latent space the experts have other shapes too, which are looked at first; so they are the same.
            less.latent_size = None;
            less.hidden_size = 8;
            let same = MoeConfig { latent_size: Some(8), ..everything() };
            let with = Model::new(&Spec { config: same.clone(), ..model().spec }).upload(device)?;
            names(MoeLayer::new(device, less, with), argument)?;
            names(MoeLayer::new(device, same, lesser), argument)
        })?;
    }
    Ok(())
}

/// The tensors of one call.
struct Call {
    hidden_states: Tensor,
    output: Tensor,
}

fn call(maker: Maker<'_>) -> Result<Call> {
    Ok(Call {
        hidden_states: maker.make("hidden_states", DType::F32, [3, 8])?,
        output: maker.make("output", DType::F32, [3, 8])?,
    })
}

const ALL: [Wrong; 5] = [Wrong::Last, Wrong::First, Wrong::Rank, Wrong::Type, Wrong::Elsewhere];

pub fn forward(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for field in ["hidden_states", "output"] {
        for wrong in ALL {
            // Fewer hidden states are as good as any: the output no longer fits.
            let argument = if (field, wrong) == ("hidden_states", Wrong::First) { "output" } else { field };
            log.case(device, &(field, wrong), |device, _| {
                let layer = model().layer(device, LayerOptions::default())?;
                let Call { hidden_states, mut output } = call(Maker { device, field, wrong })?;
                let outcome = layer.forward(hidden_states.view(), output.view_mut()?, &mut layer.workspace(3)?);
                names(outcome, argument)
            })?;
        }
    }
    log.case(device, &"too many tokens", |device, _| {
        let layer = model().layer(device, LayerOptions::default())?;
        let Call { hidden_states, mut output } = call(Maker { device, field: "", wrong: Wrong::Type })?;
        let outcome = layer.forward(hidden_states.view(), output.view_mut()?, &mut layer.workspace(2)?);
        names(outcome, "hidden_states")
    })?;
    log.case(device, &"no router", |device, _| {
        let mut weights = model().upload(device)?;
        weights.router = None;
        let layer = MoeLayer::new(device, everything(), weights)?;
        let Call { hidden_states, mut output } = call(Maker { device, field: "", wrong: Wrong::Type })?;
        let outcome = layer.forward(hidden_states.view(), output.view_mut()?, &mut layer.workspace(3)?);
        names(outcome, "weights.router")
    })?;
    log.case(device, &"another layer's workspace", |device, _| {
        let layer = model().layer(device, LayerOptions::default())?;
        let config = MoeConfig { shared: None, ..everything() };
        let other = Model::new(&Spec { config, ..model().spec }).layer(device, LayerOptions::default())?;
        let Call { hidden_states, mut output } = call(Maker { device, field: "", wrong: Wrong::Type })?;
        names(layer.forward(hidden_states.view(), output.view_mut()?, &mut other.workspace(3)?), "workspace")
    })?;
    log.case(device, &"another device's workspace", |device, _| {
        let layer = model().layer(device, LayerOptions::default())?;
        let other = model().layer(&Device::new(Remote::default()), LayerOptions::default())?;
        let Call { hidden_states, mut output } = call(Maker { device, field: "", wrong: Wrong::Type })?;
        names(layer.forward(hidden_states.view(), output.view_mut()?, &mut other.workspace(3)?), "workspace")
    })?;
    log.case(device, &"a workspace without end", |device, _| {
        let layer = model().layer(device, LayerOptions::default())?;
        names(layer.workspace(usize::MAX), "max_tokens")?;
        names(layer.workspace(usize::MAX / 2), "shape")
    })
}

pub fn forward_routed(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for field in ["hidden_states", "topk_ids", "topk_weights", "output"] {
        for wrong in ALL {
            let argument = if (field, wrong) == ("hidden_states", Wrong::First) { "output" } else { field };
            log.case(device, &(field, wrong), |device, _| {
                let layer = model().layer(device, LayerOptions::default())?;
                let maker = Maker { device, field, wrong };
                let Call { hidden_states, mut output } = call(maker)?;
                let topk_ids = maker.make("topk_ids", DType::U32, [3, 2])?;
                let topk_weights = maker.make("topk_weights", DType::F32, [3, 2])?;
                let routing = Routing {
                    topk_ids: topk_ids.view(),
                    topk_weights: topk_weights.view(),
                    slots: Slots::PerToken { top_k: 2 },
                };
                let workspace = &mut layer.workspace(3)?;
                names(layer.forward_routed(hidden_states.view(), routing, output.view_mut()?, workspace), argument)
            })?;
        }
    }
    Ok(())
}
