//! `route` with `permute` on CUDA, where tokens are routed on their own: in one launch where they are few, in two where not.

use super::driver::{Kernel, LaunchConfig};
use super::params::{PermuteParams, RouteParams, RoutePermuteParams, count};
use super::permute::{self, Chunk, MAX_CHUNK, SHARED_BYTES, WARPS, threads};
use super::queue::Queue;
use super::route;
use crate::error::Result;
use crate::ops::{RouteArgs, RoutePermuteArgs};
use crate::plan::PermutePlanMut;
use crate::routing::Selection;

const ONE_LAUNCH: Kernel = Kernel { file: "route_permute", name: "route_permute" };
const COUNT: Kernel = Kernel { file: "route_permute", name: "route_count" };

/// Tokens up to which one launch is faster than two.
const MAX_TOKENS: usize = 256;

/// Tokens up to which one block is faster than several, the last of which goes on alone.
const MAX_TOKENS_OF_A_BLOCK: usize = 16;

/// Fewest tokens of a block of the first launch of two: every block of the second reads what each has counted.
const MIN_TOKENS_PER_BLOCK: usize = 8;

const WORD: usize = size_of::<u32>();

/// Both in one launch or two, where that is the way; `false` where it is not.
pub(super) fn route_permute(queue: &mut Queue<'_>, args: &mut RoutePermuteArgs<'_>) -> Result<bool> {
    if args.route.topk_ids.shape().numel() == 0 || !by_token(&args.route) {
        return Ok(false);
    }
    let route = route::params(&mut args.route)?;
    Ok(in_one_launch(queue, &route, &mut args.plan)? || in_two_launches(queue, &route, &mut args.plan)?)
}

/// Whether each token is routed without regard to others, in one step.
fn by_token(args: &RouteArgs<'_>) -> bool {
    let config = args.config;
    let coupled = matches!(config.selection, Selection::ExpertChoice { .. } | Selection::Sinkhorn { .. });
    !coupled && config.capacity.is_none() && config.expert_map.is_empty() && args.figures.is_none()
}

/// How a launch is spread over blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spread {
    blocks: usize,
    tokens_per_block: usize,
    /// Warps of a block that route: of those that there is room for, one a token.
    routing_warps: usize,
}

impl Spread {
    /// A block for each multiprocessor, of a number of tokens within bounds; `None` where there is no room for one token.
    fn of(route: &RouteParams, bounds: [usize; 2], num_sms: u32, bytes: usize) -> Option<Self> {
        let num_tokens = route.num_tokens as usize;
        let tokens_per_block = num_tokens.div_ceil(num_sms.max(1) as usize).clamp(bounds[0], bounds[1]);
        let routing_warps = (bytes / (WORD * route::words(route))).min(tokens_per_block).min(WARPS);
        let blocks = num_tokens.div_ceil(tokens_per_block);
        (routing_warps > 0).then_some(Self { blocks, tokens_per_block, routing_warps })
    }

    /// Shared memory of a block's tokens.
    fn shared_bytes(&self, route: &RouteParams) -> usize {
        WORD * route::words(route) * self.routing_warps
    }

    fn params(&self, route: &RouteParams, permute: PermuteParams, ticket: u64) -> Result<RoutePermuteParams> {
        let (route, tokens_per_block) = (*route, count("tokens of a block", self.tokens_per_block)?);
        Ok(RoutePermuteParams { route, permute, ticket, tokens_per_block, routing_warps: self.routing_warps as u32 })
    }
}

fn in_one_launch(queue: &Queue<'_>, route: &RouteParams, plan: &mut PermutePlanMut<'_>) -> Result<bool> {
    let num_tokens = route.num_tokens as usize;
    if num_tokens > MAX_TOKENS {
        return Ok(false);
    }
    let (num_slots, num_experts) = (num_tokens * route.top_k as usize, plan.expert_offsets.dims()[0] - 1);
    let least = if num_tokens <= MAX_TOKENS_OF_A_BLOCK { num_tokens } else { 1 };
    let spread = Spread::of(route, [least, MAX_TOKENS], queue.driver.num_sms(), SHARED_BYTES);
    let (Some(chunk), Some(spread)) = (Chunk::only(num_slots, num_experts), spread) else { return Ok(false) };
    let permute = chunk.params(route.topk_ids, plan, num_slots)?;
    let ticket = if spread.blocks == 1 { Some(0) } else { queue.tickets.of(permute.expert_offsets) };
    let Some(ticket) = ticket else { return Ok(false) };
    let warps = chunk.block_warps().max(spread.routing_warps);
    let shared_bytes = chunk.shared_bytes(0).max(spread.shared_bytes(route));
    let config = LaunchConfig::linear(spread.blocks as u32, threads(warps)).shared(shared_bytes as u32);
    // SAFETY: the kernel takes this struct, and stays within the shapes that `ops` has checked against the memory.
    unsafe { queue.launch(ONE_LAUNCH, config, &spread.params(route, permute, ticket)?)? };
    Ok(true)
}

fn in_two_launches(queue: &mut Queue<'_>, route: &RouteParams, plan: &mut PermutePlanMut<'_>) -> Result<bool> {
    let (num_tokens, top_k) = (route.num_tokens as usize, route.top_k as usize);
    let num_experts = plan.expert_offsets.dims()[0] - 1;
    let (num_sms, counts) = (queue.driver.num_sms(), WORD * num_experts);
    let room = SHARED_BYTES.saturating_sub(counts);
    let most = (MAX_CHUNK / top_k).max(MIN_TOKENS_PER_BLOCK);
    let Some(spread) = Spread::of(route, [MIN_TOKENS_PER_BLOCK, most], num_sms, room) else { return Ok(false) };
    let Some(chunk) = permute::chunk_of_many(spread.tokens_per_block * top_k, num_experts) else { return Ok(false) };
    let mut permute = chunk.params(route.topk_ids, plan, num_tokens * top_k)?;
    // As for the most blocks: more tokens may have fewer, and a workspace for them is one for fewer tokens too.
    let most_blocks = num_tokens.div_ceil(most).max(num_sms as usize);
    permute.chunk_slots = queue.scratch(most_blocks * num_experts * permute::COUNT_BYTES)?;
    let shared_bytes = (spread.shared_bytes(route) + counts) as u32;
    let config = LaunchConfig::linear(spread.blocks as u32, threads(spread.routing_warps)).shared(shared_bytes);
    // SAFETY: as above; `chunk_slots` is scratch of [chunks, E].
    unsafe { queue.launch(COUNT, config, &spread.params(route, permute, 0)?)? };
    permute::launch_place(queue, spread.blocks, &chunk, &permute)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    #[test]
    fn every_token_has_a_block() {
        let spread = |num_tokens, bounds| {
            let route = RouteParams { num_tokens, num_choices: 256, max_slots: 8, ..RouteParams::zeroed() };
            let Spread { blocks, tokens_per_block, routing_warps } =
                Spread::of(&route, bounds, 132, SHARED_BYTES).unwrap();
            assert!(blocks * tokens_per_block >= num_tokens as usize, "{num_tokens}");
            assert!((blocks - 1) * tokens_per_block < num_tokens as usize, "{num_tokens}");
            (blocks, tokens_per_block, routing_warps)
        };
        let (few, many) = ([1, 256], [8, 4096]);
        assert_eq!([spread(1, few), spread(132, few), spread(256, few)], [(1, 1, 1), (132, 1, 1), (128, 2, 2)]);
        assert_eq!([spread(257, many), spread(8192, many)], [(33, 8, 8), (131, 63, 32)]);
        assert_eq!(spread(1 << 20, many), (256, 4096, 32));
        let many = RouteParams { num_tokens: 1, num_choices: 20_000, ..RouteParams::zeroed() };
        assert_eq!(Spread::of(&many, [1, 256], 132, SHARED_BYTES), None);
    }
}
