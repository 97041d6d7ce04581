//! `jitter` on wgpu: one lane per element.

use super::bind::{check_disjoint, count};
use super::device::WgpuDevice;
use super::kernel::JITTER;
use super::params::JitterParams;
use super::queue::{Launch, bytes_of, grid};
use crate::backend::kernel_args::dtype_code;
use crate::error::Result;
use crate::ops::JitterArgs;

const LANES: u64 = 256;

pub(super) fn jitter(device: &WgpuDevice, args: JitterArgs<'_>) -> Result<()> {
    let [num_tokens, hidden_size] = [args.output.dims()[0], args.output.dims()[1]];
    let hidden_states = device.bind_tensor("hidden_states", args.hidden_states)?;
    let output = device.bind_tensor("output", args.output.as_view())?;
    check_disjoint(&output, &[&hidden_states])?;
    let params = JitterParams {
        num_tokens: count("num_tokens", num_tokens)?,
        hidden_size: count("hidden_size", hidden_size)?,
        hidden_states_at: hidden_states.at,
        output_at: output.at,
        hidden_states_dtype: dtype_code(args.hidden_states.dtype()),
        seed_low: args.seed as u32,
        seed_high: (args.seed >> 32) as u32,
        epsilon: args.epsilon,
    };
    let elements = (num_tokens * hidden_size) as u64;
    device.launch(Launch {
        kernel: &JITTER,
        entry: "main",
        constants: Vec::new(),
        params: bytes_of(&params),
        bindings: vec![hidden_states.binding, output.binding],
        workgroups: grid(elements.div_ceil(LANES), device.limits.max_compute_workgroups_per_dimension)?,
    })
}
