//! `router_logits` on wgpu.

use super::bind::{check_disjoint, count};
use super::device::WgpuDevice;
use super::kernel::{ROUTER_LOGITS, ROUTER_LOGITS_SUBGROUP};
use super::params::RouterLogitsParams;
use super::queue::{Launch, bytes_of, grid};
use crate::backend::kernel_args::dtype_code;
use crate::error::Result;
use crate::ops::RouterLogitsArgs;

/// Tokens and experts of a workgroup.
const BLOCK: usize = 4;

pub(super) fn router_logits(device: &WgpuDevice, args: RouterLogitsArgs<'_>) -> Result<()> {
    let [num_tokens, num_experts] = [args.output.dims()[0], args.output.dims()[1]];
    let hidden_size = args.weight.dims()[1];
    let hidden_states = device.bind_tensor("hidden_states", args.hidden_states)?;
    let weight = device.bind_tensor("weight", args.weight)?;
    let bias = device.bind_optional("bias", args.bias)?;
    let output = device.bind_tensor("output", args.output.as_view())?;
    check_disjoint(&output, &[&hidden_states, &weight, &bias])?;
    let params = RouterLogitsParams {
        num_tokens: count("num_tokens", num_tokens)?,
        num_experts: count("num_experts", num_experts)?,
        hidden_size: count("hidden_size", hidden_size)?,
        hidden_states_at: hidden_states.at,
        weight_at: weight.at,
        bias_at: bias.at,
        output_at: output.at,
    };
    let quads = [hidden_size, hidden_states.at as usize, weight.at as usize].iter().all(|n| n.is_multiple_of(4));
    let blocks = num_tokens.div_ceil(BLOCK) as u64 * num_experts.div_ceil(BLOCK) as u64;
    device.launch(Launch {
        kernel: device.with_subgroups(&ROUTER_LOGITS, &ROUTER_LOGITS_SUBGROUP),
        entry: "main",
        constants: vec![
            ("HIDDEN_STATES_DTYPE", dtype_code(args.hidden_states.dtype())),
            ("WEIGHT_DTYPE", dtype_code(args.weight.dtype())),
            ("HAS_BIAS", args.bias.is_some().into()),
            ("TANH", args.tanh.into()),
            ("QUADS", quads.into()),
        ],
        params: bytes_of(&params),
        bindings: vec![hidden_states.binding, weight.binding, bias.binding, output.binding],
        workgroups: grid(blocks, device.limits.max_compute_workgroups_per_dimension)?,
    })
}
