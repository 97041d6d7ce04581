//! `combine` on wgpu: one lane per word of the output.

use super::bind::{check_disjoint, count, dtype_constant};
use super::device::{NAME, WgpuDevice};
use super::kernel::COMBINE;
use super::params::CombineParams;
use super::queue::{Launch, grid};
use crate::error::{Error, Result};
use crate::ops::CombineArgs;
use crate::plan::Slots;
use crate::tensor::DType;

const LANES: u64 = 256;

pub(super) fn combine(device: &WgpuDevice, args: CombineArgs<'_>) -> Result<()> {
    let [num_tokens, hidden_size] = [args.output.dims()[0], args.output.dims()[1]];
    let (top_k, token_offsets) = match args.slots {
        Slots::PerToken { top_k } => (top_k, None),
        Slots::Ragged { token_offsets, .. } => (0, Some(token_offsets)),
    };
    let topk_ids = args.zero_experts.map(|zero| zero.topk_ids);
    if topk_ids.is_some() && token_offsets.is_some() {
        return Err(Error::Unsupported { backend: NAME, what: "zero experts with ragged slots".into() });
    }
    let expert_out = device.bind_tensor("expert_out", args.expert_out)?;
    let inv_permuted_idx = device.bind_optional("inv_permuted_idx", args.inv_permuted_idx)?;
    let topk_weights = device.bind_optional("topk_weights", args.topk_weights)?;
    let per_slot = device.bind_optional("topk_ids", topk_ids.or(token_offsets))?;
    let hidden_states = device.bind_optional("hidden_states", args.zero_experts.map(|zero| zero.hidden_states))?;
    let shared_out = device.bind_optional("shared.output", args.shared.map(|shared| shared.output))?;
    let gate_logits = device.bind_optional("gate_logits", args.shared.and_then(|shared| shared.gate_logits))?;
    let output = device.bind_tensor("output", args.output.as_view())?;
    let inputs = [&expert_out, &inv_permuted_idx, &topk_weights, &per_slot, &hidden_states, &shared_out, &gate_logits];
    check_disjoint(&output, &inputs)?;
    let params = CombineParams {
        num_tokens: count("num_tokens", num_tokens)?,
        hidden_size: count("hidden_size", hidden_size)?,
        top_k: count("top_k", top_k)?,
        first_zero_expert: args.zero_experts.map_or(0, |zero| zero.first),
        num_zero_experts: args.zero_experts.map_or(0, |zero| zero.count),
        shared_scale: args.shared.map_or(1.0, |shared| shared.scale),
        expert_out_at: expert_out.at,
        inv_permuted_idx_at: inv_permuted_idx.at,
        topk_weights_at: topk_weights.at,
        per_slot_at: per_slot.at,
        hidden_states_at: hidden_states.at,
        shared_out_at: shared_out.at,
        gate_logits_at: gate_logits.at,
        output_at: output.at,
    };
    let dtype = |view: Option<_>| dtype_constant(view.unwrap_or(DType::F32));
    let per_word = 4 / args.output.dtype().size() as u64;
    // One word more where the first element is a word's second half.
    let words = ((num_tokens * hidden_size) as u64 + u64::from(output.at) % per_word).div_ceil(per_word);
    device.launch(Launch {
        kernel: &COMBINE,
        entry: "main",
        constants: vec![
            ("EXPERT_OUT_DTYPE", dtype_constant(args.expert_out.dtype())),
            ("HIDDEN_STATES_DTYPE", dtype(args.zero_experts.map(|zero| zero.hidden_states.dtype()))),
            ("SHARED_OUT_DTYPE", dtype(args.shared.map(|shared| shared.output.dtype()))),
            ("OUTPUT_DTYPE", dtype_constant(args.output.dtype())),
            ("HAS_ROWS", args.inv_permuted_idx.is_some().into()),
            ("HAS_WEIGHTS", args.topk_weights.is_some().into()),
            ("HAS_ZERO_EXPERTS", topk_ids.is_some().into()),
            ("RAGGED", token_offsets.is_some().into()),
            ("HAS_SHARED", args.shared.is_some().into()),
            ("HAS_GATE", args.shared.is_some_and(|shared| shared.gate_logits.is_some()).into()),
        ],
        params: bytemuck::bytes_of(&params),
        bindings: &[
            expert_out.binding,
            inv_permuted_idx.binding,
            topk_weights.binding,
            per_slot.binding,
            hidden_states.binding,
            shared_out.binding,
            gate_logits.binding,
            output.binding,
        ],
        workgroups: grid(words.div_ceil(LANES), device.limits.max_compute_workgroups_per_dimension)?,
    })
}
