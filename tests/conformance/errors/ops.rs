//! Wrong arguments of the ops.

use fused_moe::config::{Activation, GateUpLayout, WeightLayout};
use fused_moe::ops::{
    self, CombineArgs, Epilogue, GroupedGemmArgs, InputRows, PermuteArgs, RouteArgs, RouteInputs, RouterLogitsArgs,
    SharedOutput, ZeroExperts,
};
use fused_moe::plan::{PermutePlanMut, Slots};
use fused_moe::routing::RouterConfig;
use fused_moe::{DType, Device, Result, Tensor};

use super::Wrong::{Elsewhere, First, Last, Rank, Type};
use super::{Maker, Wrong, names};
use crate::harness::{Failure, Log, Problem};

/// A field, how it is wrong, and the argument that the error names: the field, where it is not another that no longer
/// fits it.
type Row = (&'static str, &'static [Wrong], &'static str);

/// Each row's mistakes, one call each.
fn each(device: &Device, log: &mut Log, rows: &[Row], call: fn(Maker<'_>) -> Result<()>) -> Result<(), Failure> {
    for &(field, wrongs, argument) in rows {
        for &wrong in wrongs {
            log.case(device, &(field, wrong), |device, _| names(call(Maker { device, field, wrong }), argument))?;
        }
    }
    log.case(device, &"nothing wrong", |device, _| Ok::<_, Problem>(call(Maker { device, field: "", wrong: Type })?))
}

pub fn router_logits(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let rows: [Row; 5] = [
        ("hidden_states", &[Rank, Type, Elsewhere], "hidden_states"),
        ("hidden_states", &[Last], "weight"),
        ("weight", &[Rank, Last, Type, Elsewhere], "weight"),
        ("bias", &[Rank, Last, Type, Elsewhere], "bias"),
        ("output", &[Rank, Last, First, Type, Elsewhere], "output"),
    ];
    each(device, log, &rows, |t| {
        let mut output = t.make("output", DType::F32, [3, 5])?;
        ops::router_logits(
            t.device,
            RouterLogitsArgs {
                hidden_states: t.make("hidden_states", DType::BF16, [3, 4])?.view(),
                weight: t.make("weight", DType::F16, [5, 4])?.view(),
                bias: Some(t.make("bias", DType::F32, [5])?.view()),
                tanh: false,
                output: output.view_mut()?,
            },
        )
    })
}

pub fn route(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let rows: [Row; 6] = [
        ("router_logits", &[Rank, Type, Elsewhere], "router_logits"),
        ("router_logits", &[Last], "selection_bias"),
        ("selection_bias", &[Rank, Last, Type, Elsewhere], "selection_bias"),
        ("topk_ids", &[Rank, Last, First, Type, Elsewhere], "topk_ids"),
        ("topk_weights", &[Rank, Last, First, Type, Elsewhere], "topk_weights"),
        ("sequences of 2", &[Type], "inputs.tokens_per_sequence"),
    ];
    each(device, log, &rows, |t| {
        let mut topk_ids = t.make("topk_ids", DType::U32, [3, 2])?;
        let mut topk_weights = t.make("topk_weights", DType::F32, [3, 2])?;
        ops::route(
            t.device,
            RouteArgs {
                config: &RouterConfig::softmax_top_k(2),
                router_logits: t.make("router_logits", DType::F32, [3, 5])?.view(),
                selection_bias: Some(t.make("selection_bias", DType::F32, [5])?.view()),
                inputs: RouteInputs {
                    tokens_per_sequence: (t.field == "sequences of 2").then_some(2),
                    ..RouteInputs::default()
                },
                topk_ids: topk_ids.view_mut()?,
                topk_weights: topk_weights.view_mut()?,
                ragged: None,
                figures: None,
            },
        )
    })
}

pub fn permute(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let rows: [Row; 5] = [
        ("topk_ids", &[Type, Elsewhere], "topk_ids"),
        ("topk_ids", &[Last], "permuted_idx"),
        ("expert_offsets", &[Rank, Type, Elsewhere], "expert_offsets"),
        ("permuted_idx", &[Rank, Last, Type, Elsewhere], "permuted_idx"),
        ("inv_permuted_idx", &[Rank, Last, Type, Elsewhere], "inv_permuted_idx"),
    ];
    each(device, log, &rows, |t| {
        let mut expert_offsets = t.make("expert_offsets", DType::U32, [6])?;
        let mut permuted_idx = t.make("permuted_idx", DType::U32, [6])?;
        let mut inv_permuted_idx = t.make("inv_permuted_idx", DType::U32, [6])?;
        let plan = PermutePlanMut {
            expert_offsets: expert_offsets.view_mut()?,
            permuted_idx: permuted_idx.view_mut()?,
            inv_permuted_idx: inv_permuted_idx.view_mut()?,
        };
        ops::permute(t.device, PermuteArgs { topk_ids: t.make("topk_ids", DType::U32, [3, 2])?.view(), plan })
    })?;
    let no_expert: [Row; 1] = [("expert_offsets", &[First], "expert_offsets")];
    each(device, log, &no_expert, |t| {
        let mut expert_offsets = t.make("expert_offsets", DType::U32, [2])?;
        let mut permuted_idx = Tensor::zeros(t.device, DType::U32, [1])?;
        let mut inv_permuted_idx = Tensor::zeros(t.device, DType::U32, [1])?;
        let plan = PermutePlanMut {
            expert_offsets: expert_offsets.view_mut()?,
            permuted_idx: permuted_idx.view_mut()?,
            inv_permuted_idx: inv_permuted_idx.view_mut()?,
        };
        ops::permute(t.device, PermuteArgs { topk_ids: Tensor::zeros(t.device, DType::U32, [1])?.view(), plan })
    })
}

pub fn grouped_gemm(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let rows: [Row; 12] = [
        ("input", &[Rank, Type, Elsewhere], "input"),
        ("input", &[Last], "weight"),
        ("weight", &[Rank, Last, Type, Elsewhere], "weight"),
        ("odd n", &[Type], "weight"),
        ("no offsets", &[Type], "weight"),
        ("expert_offsets", &[Rank, Last, Type, Elsewhere], "expert_offsets"),
        ("bias", &[Rank, Last, Type, Elsewhere], "bias"),
        ("permuted_idx", &[Rank, Last, Type, Elsewhere], "permuted_idx"),
        ("slot_scale", &[Rank, Last, Type, Elsewhere], "slot_scale"),
        ("output", &[Rank, Last, First, Type, Elsewhere], "output"),
        ("too many slots", &[Type], "top_k"),
        ("rows in place", &[Type], "input"),
    ];
    each(device, log, &rows, |t| {
        let n = if t.field == "odd n" { 7 } else { 8 };
        let (permuted_idx, slot_scale) =
            (t.make("permuted_idx", DType::U32, [6])?, t.make("slot_scale", DType::F32, [6])?);
        let expert_offsets = t.make("expert_offsets", DType::U32, [6])?;
        let mut output = t.make("output", DType::F32, [6, n / 2])?;
        let gathered = InputRows::Gathered {
            permuted_idx: permuted_idx.view(),
            slots: Slots::PerToken { top_k: if t.field == "too many slots" { 1 << 31 } else { 2 } },
            slot_scale: Some(slot_scale.view()),
        };
        let layout = GateUpLayout::GateThenUp;
        ops::grouped_gemm(
            t.device,
            GroupedGemmArgs {
                input: t.make("input", DType::F32, [3, 4])?.view(),
                rows: if t.field == "rows in place" { InputRows::Same } else { gathered },
                expert_offsets: (t.field != "no offsets").then(|| expert_offsets.view()),
                weight: t.make("weight", DType::F32, [5, n, 4])?.view(),
                weight_layout: WeightLayout::Nk,
                bias: Some(t.make("bias", DType::F32, [5, n])?.view()),
                epilogue: Epilogue::Gated { activation: Activation::Silu, layout },
                output: output.view_mut()?,
                batch_invariant: false,
            },
        )
    })
}

pub fn combine(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let rows: [Row; 13] = [
        ("output", &[Rank, Type, Elsewhere], "output"),
        ("output", &[Last], "expert_out"),
        ("output", &[First], "token_offsets"),
        ("expert_out", &[Rank, Last, First, Type, Elsewhere], "expert_out"),
        ("token_offsets", &[Rank, Last, Type, Elsewhere], "token_offsets"),
        ("slot_tokens", &[Rank, Type, Elsewhere], "slot_tokens"),
        ("inv_permuted_idx", &[Rank, Last, Type, Elsewhere], "inv_permuted_idx"),
        ("topk_weights", &[Rank, Last, Type, Elsewhere], "topk_weights"),
        ("zero_experts.topk_ids", &[Rank, Last, Type, Elsewhere], "zero_experts.topk_ids"),
        ("zero_experts.topk_weights", &[Rank, Last, Type, Elsewhere], "zero_experts.topk_weights"),
        ("zero_experts.hidden_states", &[Rank, Last, First, Type, Elsewhere], "zero_experts.hidden_states"),
        ("shared.output", &[Rank, Last, First, Type, Elsewhere], "shared.output"),
        ("shared.gate_logits", &[Rank, Last, First, Type, Elsewhere], "shared.gate_logits"),
    ];
    each(device, log, &rows, |t| {
        let mut output = t.make("output", DType::F32, [3, 4])?;
        ops::combine(
            t.device,
            CombineArgs {
                expert_out: t.make("expert_out", DType::F32, [6, 4])?.view(),
                inv_permuted_idx: Some(t.make("inv_permuted_idx", DType::U32, [6])?.view()),
                topk_weights: Some(t.make("topk_weights", DType::F32, [6])?.view()),
                slots: Slots::Ragged {
                    token_offsets: t.make("token_offsets", DType::U32, [4])?.view(),
                    slot_tokens: t.make("slot_tokens", DType::U32, [6])?.view(),
                },
                zero_experts: Some(ZeroExperts {
                    topk_ids: t.make("zero_experts.topk_ids", DType::U32, [6])?.view(),
                    topk_weights: t.make("zero_experts.topk_weights", DType::F32, [6])?.view(),
                    first: 5,
                    count: 1,
                    hidden_states: t.make("zero_experts.hidden_states", DType::BF16, [3, 4])?.view(),
                }),
                shared: Some(SharedOutput {
                    output: t.make("shared.output", DType::F16, [3, 4])?.view(),
                    gate_logits: Some(t.make("shared.gate_logits", DType::F32, [3, 1])?.view()),
                    scale: 1.0,
                }),
                output: output.view_mut()?,
            },
        )
    })
}

/// Indices that lead nowhere: in host memory they are found, and never followed.
pub fn contents(device: &Device, log: &mut Log) -> Result<(), Failure> {
    if !device.backend().is_host() {
        return log.case(device, &"indices in device memory", |device, _| {
            let what = "checks of indices in its memory".into();
            Err(Problem::Error(fused_moe::Error::Unsupported { backend: device.name(), what }))
        });
    }
    for offsets in [[1, 2, 2], [0, 2, 1], [0, 1, 4], [0, u32::MAX, 1]] {
        log.case(device, &("expert_offsets", offsets), |device, (_, offsets)| {
            let outcome = gemm_with(device, offsets, [0, 1, 2]);
            names(outcome, "expert_offsets")
        })?;
    }
    for permuted_idx in [[0, 3, 1], [u32::MAX, 0, 1]] {
        log.case(device, &("permuted_idx", permuted_idx), |device, (_, permuted_idx)| {
            names(gemm_with(device, &[0, 2, 3], *permuted_idx), "permuted_idx")
        })?;
    }
    log.case(device, &"inv_permuted_idx", |device, _| {
        let mut output = Tensor::zeros(device, DType::F32, [3, 4])?;
        names(
            ops::combine(
                device,
                CombineArgs {
                    expert_out: Tensor::zeros(device, DType::F32, [3, 4])?.view(),
                    inv_permuted_idx: Some(Tensor::from_slice(device, &[0u32, 3, 1], [3])?.view()),
                    topk_weights: None,
                    slots: Slots::PerToken { top_k: 1 },
                    zero_experts: None,
                    shared: None,
                    output: output.view_mut()?,
                },
            ),
            "inv_permuted_idx",
        )
    })
}

fn gemm_with(device: &Device, expert_offsets: &[u32; 3], permuted_idx: [u32; 3]) -> Result<()> {
    let mut output = Tensor::zeros(device, DType::F32, [3, 4])?;
    ops::grouped_gemm(
        device,
        GroupedGemmArgs {
            input: Tensor::zeros(device, DType::F32, [3, 4])?.view(),
            rows: InputRows::Gathered {
                permuted_idx: Tensor::from_slice(device, &permuted_idx, [3])?.view(),
                slots: Slots::PerToken { top_k: 1 },
                slot_scale: None,
            },
            expert_offsets: Some(Tensor::from_slice(device, expert_offsets, [3])?.view()),
            weight: Tensor::zeros(device, DType::F32, [2, 4, 4])?.view(),
            weight_layout: WeightLayout::Nk,
            bias: None,
            epilogue: Epilogue::None,
            output: output.view_mut()?,
            batch_invariant: false,
        },
    )
}
