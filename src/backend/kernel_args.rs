//! Arguments as the kernels of the GPU backends take them: enums as numbers, the same ones in every kernel language, and
//! enums of views taken apart.

use crate::config::{Activation, GateUpLayout};
use crate::ops::{Epilogue, InputRows};
use crate::plan::Slots;
use crate::routing::{RouterConfig, ScoreFunction, Selection, WeightFunction};
use crate::tensor::{DType, TensorView};

/// [`InputRows`] taken apart.
#[derive(Clone, Copy, Default)]
pub(super) struct Gather<'a> {
    /// 0 where slots are not per token.
    pub(super) top_k: usize,
    /// Present where rows are gathered.
    pub(super) permuted_idx: Option<TensorView<'a>>,
    /// Present where slots are ragged.
    pub(super) slot_tokens: Option<TensorView<'a>>,
    pub(super) slot_scale: Option<TensorView<'a>>,
}

impl<'a> Gather<'a> {
    pub(super) fn of(rows: InputRows<'a>) -> Self {
        let InputRows::Gathered { permuted_idx, slots, slot_scale } = rows else { return Self::default() };
        let (top_k, slot_tokens) = match slots {
            Slots::PerToken { top_k } => (top_k, None),
            Slots::Ragged { slot_tokens, .. } => (0, Some(slot_tokens)),
        };
        Self { top_k, permuted_idx: Some(permuted_idx), slot_tokens, slot_scale }
    }
}

/// k, and where each token's slots start: one of them, 0 and `None` for the other.
pub(super) fn slots_of_tokens(slots: Slots<'_>) -> (usize, Option<TensorView<'_>>) {
    match slots {
        Slots::PerToken { top_k } => (top_k, None),
        Slots::Ragged { token_offsets, .. } => (0, Some(token_offsets)),
    }
}

/// An [`Epilogue`] as numbers; 0 is none of its kind.
#[derive(Clone, Copy, Default)]
pub(super) struct EpilogueCodes {
    pub(super) gate: u32,
    pub(super) activation: u32,
    /// Of the clamped SwiGLU.
    pub(super) alpha: f32,
    /// Of the clamped SwiGLU.
    pub(super) limit: f32,
}

impl EpilogueCodes {
    pub(super) fn of(epilogue: Epilogue) -> Self {
        let (gate, activation) = match epilogue {
            Epilogue::None => return Self::default(),
            Epilogue::Activation(activation) => (0, activation),
            Epilogue::Gated { activation, layout } => (gate_code(layout), activation),
        };
        let (alpha, limit) = match activation {
            Activation::ClampedSwiglu { alpha, limit } => (alpha, limit),
            _ => (0.0, 0.0),
        };
        Self { gate, activation: activation_code(activation), alpha, limit }
    }
}

fn gate_code(layout: GateUpLayout) -> u32 {
    match layout {
        GateUpLayout::GateThenUp => 1,
        GateUpLayout::UpThenGate => 2,
        GateUpLayout::Interleaved => 3,
    }
}

fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
        Activation::Relu => 4,
        Activation::ReluSquared => 5,
        Activation::ClampedSwiglu { .. } => 6,
    }
}

pub(super) fn dtype_code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 | DType::U32 => 0,
        DType::BF16 => 1,
        DType::F16 => 2,
    }
}

pub(super) fn score_code(score: ScoreFunction) -> u32 {
    match score {
        ScoreFunction::Logit => 0,
        ScoreFunction::Softmax => 1,
        ScoreFunction::Sigmoid => 2,
        ScoreFunction::SqrtSoftplus => 3,
    }
}

pub(super) fn weight_code(weight: WeightFunction) -> u32 {
    match weight {
        WeightFunction::Score => 0,
        WeightFunction::SoftmaxOverSelected => 1,
        WeightFunction::Sigmoid => 2,
        WeightFunction::One => 3,
    }
}

/// Groups of experts, and how many of them are chosen; 0 without groups.
pub(super) fn groups(config: &RouterConfig) -> (usize, usize) {
    match (config.selection, config.groups) {
        (Selection::Hierarchical { num_groups, topk_groups, .. }, _) => (num_groups, topk_groups),
        (_, Some(groups)) => (groups.num_groups, groups.topk_groups),
        (_, None) => (0, 0),
    }
}
