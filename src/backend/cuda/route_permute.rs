//! `route` and `permute` of few tokens in one launch on CUDA.

use super::driver::{Kernel, LaunchConfig};
use super::params::RoutePermuteParams;
use super::permute::{self, Chunks, LANES};
use super::queue::Queue;
use super::route;
use crate::error::Result;
use crate::ops::{RouteArgs, RoutePermuteArgs};
use crate::routing::Selection;

const KERNEL: Kernel = Kernel { file: "route_permute", name: "route_permute" };

/// Tokens up to which one block is faster than two launches: a warp routes one in about as long as a launch takes.
const MAX_TOKENS: usize = 32;

/// Warps of a block.
const MAX_WARPS: usize = 32;

/// Shared memory that a block of every device from sm_80 on can have: sm_86 has the least.
const SHARED_BYTES: usize = 96 << 10;

/// Both in one launch, where that is the way; `false` where it is not.
pub(super) fn route_permute(queue: &mut Queue<'_>, args: &mut RoutePermuteArgs<'_>) -> Result<bool> {
    let num_tokens = args.route.router_logits.dims()[0];
    if !(1..=MAX_TOKENS).contains(&num_tokens) || !by_token(&args.route) {
        return Ok(false);
    }
    let num_slots = args.route.topk_ids.shape().numel();
    let num_experts = args.plan.expert_offsets.dims()[0] - 1;
    let route = route::params(&mut args.route)?;
    let Some(chunks) = Chunks::of(num_slots, num_experts).filter(|chunks| chunks.one_launch) else { return Ok(false) };
    let bytes_per_warp = 4 * route::words(&route).max(num_experts + LANES);
    let room = SHARED_BYTES / bytes_per_warp;
    let warps = chunks.num_chunks.max(num_tokens.min(MAX_WARPS).min(room));
    if warps > room {
        return Ok(false);
    }
    let permute = permute::params(route.topk_ids, &mut args.plan, num_slots, &chunks)?;
    let config = LaunchConfig::linear(1, (LANES * warps) as u32).shared((warps * bytes_per_warp) as u32);
    // SAFETY: the kernel takes this struct, and stays within the shapes that `ops` has checked against the memory.
    unsafe { queue.launch(KERNEL, config, &RoutePermuteParams { route, permute })? };
    Ok(true)
}

/// Whether each token is routed without regard to others, in one step.
fn by_token(args: &RouteArgs<'_>) -> bool {
    let config = args.config;
    let coupled = matches!(config.selection, Selection::ExpertChoice { .. } | Selection::Sinkhorn { .. });
    !coupled && config.capacity.is_none() && config.expert_map.is_empty() && args.figures.is_none()
}
