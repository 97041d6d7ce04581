//! `combine` on wgpu: one lane per word of the output.

use super::bind::{Binding, Bound, check_disjoint, count};
use super::device::{Scratch, WgpuDevice};
use super::kernel::{COMBINE, COMBINE_SLOTS};
use super::params::{CombineParams, CombineSlotsParams};
use super::queue::{Launch, bytes_of, grid};
use crate::backend::kernel_args::{dtype_code, slots_of_tokens};
use crate::error::Result;
use crate::ops::{CombineArgs, ZeroExperts};
use crate::tensor::DType;

const LANES: u64 = 256;

pub(super) fn combine(device: &WgpuDevice, args: CombineArgs<'_>) -> Result<()> {
    let [num_tokens, hidden_size] = [args.output.dims()[0], args.output.dims()[1]];
    let (top_k, token_offsets) = slots_of_tokens(args.slots);
    let expert_out = device.bind_tensor("expert_out", args.expert_out)?;
    let token_offsets_bound = device.bind_optional("token_offsets", token_offsets)?;
    let mut inv_permuted_idx = device.bind_optional("inv_permuted_idx", args.inv_permuted_idx)?;
    let mut topk_weights = device.bind_optional("topk_weights", args.topk_weights)?;
    let mut launches = Vec::new();
    if let Some(zero) = args.zero_experts {
        let slots = zero_slots(device, &args, zero, [inv_permuted_idx, topk_weights])?;
        launches.push(slots.launch);
        (inv_permuted_idx, topk_weights) = (slots.rows, slots.weights);
    }
    let hidden_states = device.bind_optional("hidden_states", args.zero_experts.map(|zero| zero.hidden_states))?;
    let shared_out = device.bind_optional("shared.output", args.shared.map(|shared| shared.output))?;
    let gate_logits = device.bind_optional("gate_logits", args.shared.and_then(|shared| shared.gate_logits))?;
    let output = device.bind_tensor("output", args.output.as_view())?;
    let inputs = [
        &expert_out,
        &inv_permuted_idx,
        &topk_weights,
        &token_offsets_bound,
        &hidden_states,
        &shared_out,
        &gate_logits,
    ];
    check_disjoint(&output, &inputs)?;
    let params = CombineParams {
        num_tokens: count("num_tokens", num_tokens)?,
        hidden_size: count("hidden_size", hidden_size)?,
        top_k: count("top_k", top_k)?,
        shared_scale: args.shared.map_or(1.0, |shared| shared.scale),
        expert_out_at: expert_out.at,
        inv_permuted_idx_at: inv_permuted_idx.at,
        topk_weights_at: topk_weights.at,
        token_offsets_at: token_offsets_bound.at,
        hidden_states_at: hidden_states.at,
        shared_out_at: shared_out.at,
        gate_logits_at: gate_logits.at,
        output_at: output.at,
    };
    let dtype = |view: Option<_>| dtype_code(view.unwrap_or(DType::F32));
    let per_word = 4 / args.output.dtype().size() as u64;
    // One word more where the first element is a word's second half.
    let words = ((num_tokens * hidden_size) as u64 + u64::from(output.at) % per_word).div_ceil(per_word);
    let has_zero_experts = args.zero_experts.is_some();
    launches.push(Launch {
        kernel: &COMBINE,
        entry: "main",
        constants: vec![
            ("EXPERT_OUT_DTYPE", dtype_code(args.expert_out.dtype())),
            ("HIDDEN_STATES_DTYPE", dtype(args.zero_experts.map(|zero| zero.hidden_states.dtype()))),
            ("SHARED_OUT_DTYPE", dtype(args.shared.map(|shared| shared.output.dtype()))),
            ("OUTPUT_DTYPE", dtype_code(args.output.dtype())),
            ("HAS_ROWS", (args.inv_permuted_idx.is_some() || has_zero_experts).into()),
            ("HAS_WEIGHTS", (args.topk_weights.is_some() || has_zero_experts).into()),
            ("HAS_ZERO_EXPERTS", has_zero_experts.into()),
            ("RAGGED", token_offsets.is_some().into()),
            ("HAS_SHARED", args.shared.is_some().into()),
            ("HAS_GATE", args.shared.is_some_and(|shared| shared.gate_logits.is_some()).into()),
        ],
        params: bytes_of(&params),
        bindings: vec![
            expert_out.binding,
            inv_permuted_idx.binding,
            topk_weights.binding,
            token_offsets_bound.binding,
            hidden_states.binding,
            shared_out.binding,
            gate_logits.binding,
            output.binding,
        ],
        workgroups: grid(words.div_ceil(LANES), device.limits.max_compute_workgroups_per_dimension)?,
    });
    device.launch_all(launches)
}

/// What `combine_slots.wgsl` leaves, and its launch.
struct ZeroSlots {
    rows: Bound,
    weights: Bound,
    launch: Launch,
}

/// Says of each slot which row it takes, or that it takes the token itself, and with what weight.
fn zero_slots(
    device: &WgpuDevice,
    args: &CombineArgs<'_>,
    zero: ZeroExperts<'_>,
    [inv_permuted_idx, topk_weights]: [Bound; 2],
) -> Result<ZeroSlots> {
    let topk_ids = device.bind_tensor("zero_experts.topk_ids", zero.topk_ids)?;
    let zero_weights = device.bind_tensor("zero_experts.topk_weights", zero.topk_weights)?;
    let num_slots = zero.topk_ids.shape().numel();
    let bytes = (num_slots * size_of::<u32>()) as u64;
    let rows = Binding::whole(&device.scratch(Scratch::SlotRows, bytes)?);
    let weights = Binding::whole(&device.scratch(Scratch::SlotWeights, bytes)?);
    let params = CombineSlotsParams {
        num_slots: count("num_slots", num_slots)?,
        first_zero_expert: zero.first,
        num_zero_experts: zero.count,
        has_rows: args.inv_permuted_idx.is_some().into(),
        has_weights: args.topk_weights.is_some().into(),
        inv_permuted_idx_at: inv_permuted_idx.at,
        topk_weights_at: topk_weights.at,
        topk_ids_at: topk_ids.at,
        zero_weights_at: zero_weights.at,
    };
    let launch = Launch {
        kernel: &COMBINE_SLOTS,
        entry: "main",
        constants: Vec::new(),
        params: bytes_of(&params),
        bindings: vec![
            inv_permuted_idx.binding,
            topk_weights.binding,
            topk_ids.binding,
            zero_weights.binding,
            rows.clone(),
            weights.clone(),
        ],
        workgroups: grid((num_slots as u64).div_ceil(LANES), device.limits.max_compute_workgroups_per_dimension)?,
    };
    Ok(ZeroSlots { rows: Bound { binding: rows, at: 0 }, weights: Bound { binding: weights, at: 0 }, launch })
}
