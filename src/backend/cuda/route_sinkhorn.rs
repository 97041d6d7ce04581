//! Experts balanced over the batch, on CUDA: what each expert's logits are shifted by before tokens choose.

use super::driver::{Kernel, LaunchConfig};
use super::params::{RouteParams, SinkhornParams, count};
use super::queue::{Queue, unsupported};
use super::route::{Parts, SHARED_BYTES, launch_rule};
use crate::error::Result;

const COST: Kernel = Kernel { file: "route_sinkhorn", name: "sinkhorn_cost" };
const BALANCE: Kernel = Kernel { file: "route_sinkhorn", name: "sinkhorn_balance" };

/// Makes the offsets, and has `params` choose by them.
pub(super) fn balance(
    queue: &Queue<'_>,
    params: &mut RouteParams,
    parts: &Parts,
    tolerance: f32,
    max_iterations: usize,
) -> Result<()> {
    params.cost = parts.cost;
    let RouteParams { num_tokens, num_choices: num_experts, .. } = *params;
    let max_iterations = count("max_iterations", max_iterations)?;
    let sinkhorn =
        SinkhornParams { cost: parts.cost, offsets: parts.offsets, num_tokens, num_experts, max_iterations, tolerance };
    // Each warp has two words an expert, and one; the factors are one more an expert.
    let experts = 4 * num_experts as usize;
    let warps = (SHARED_BYTES.saturating_sub(experts) / (2 * experts + 4)).min(32).min(num_tokens.max(1) as usize);
    if warps == 0 {
        return Err(unsupported(format!("routing by sinkhorn over {num_experts} experts")));
    }
    let shared_bytes = (experts + warps * (2 * experts + 4)) as u32;
    launch_rule(queue, COST, params)?;
    // SAFETY: the kernel takes this struct, and stays within the parts of the scratch memory.
    unsafe { queue.launch(BALANCE, LaunchConfig::linear(1, 32 * warps as u32).shared(shared_bytes), &sinkhorn)? };
    params.selection_bias = parts.offsets;
    Ok(())
}
