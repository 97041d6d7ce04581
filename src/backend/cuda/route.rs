//! `route` on CUDA: a warp per token; an expert map in a launch of its own.

use bytemuck::Zeroable;

use super::driver::{Kernel, LaunchConfig};
use super::memory::{address, address_mut, optional_address};
use super::params::{ExpertMapParams, RouteParams, count};
use super::queue::{Queue, unsupported};
use super::route_capacity;
use crate::backend::kernel_args::{groups, score_code, weight_code};
use crate::error::Result;
use crate::ops::RouteArgs;
use crate::routing::{Capacity, GroupScore, Noise, NoiseKind, RouterConfig, Selection};

const ROUTE: Kernel = Kernel { file: "route", name: "route" };
const MAP: Kernel = Kernel { file: "route", name: "route_map" };

/// Shared memory that a block has on every device without asking for more.
pub(super) const SHARED_BYTES: usize = 48 << 10;

/// Experts whose states or map fit a kernel's parameters.
const MAX_LISTED: usize = 1024;

/// What a map has for an expert on another rank.
const ELSEWHERE: u16 = u16::MAX;

pub(super) fn route(queue: &mut Queue<'_>, mut args: RouteArgs<'_>) -> Result<()> {
    if let Some(what) = missing(&args) {
        return Err(unsupported(what));
    }
    let params = params(&mut args)?;
    match &args.config.capacity {
        Some(capacity) => route_capacity::route(queue, &args, capacity, &params)?,
        None => {
            let config = per_token(&params)?;
            // SAFETY: the kernel takes this struct, and stays within the shapes that `ops` has checked against the memory.
            unsafe { queue.launch(ROUTE, config, &params)? }
        }
    }
    if args.config.expert_map.is_empty() {
        return Ok(());
    }
    map_experts(queue, args.config, &params)
}

/// What of the rule is not on the device yet.
fn missing(args: &RouteArgs<'_>) -> Option<&'static str> {
    match args.config.selection {
        Selection::TopK | Selection::SparseMixer { .. } | Selection::Hash { .. } | Selection::Hierarchical { .. } => {}
        Selection::ExpertChoice { .. } => return Some("routing by expert choice"),
        Selection::Sinkhorn { .. } => return Some("routing by sinkhorn"),
    }
    let listed = args.config.expert_map.len().max(args.config.expert_states.len());
    match args.config {
        RouterConfig {
            noise: Some(Noise { kind: NoiseKind::RandomSecond { .. }, .. }),
            capacity: Some(Capacity { normalize_before_dropping: true, .. }),
            ..
        } => Some("choices kept at random, with weights made before slots are dropped"),
        _ if listed > MAX_LISTED => Some("states or a map of more than 1024 experts"),
        _ => args.figures.as_ref().map(|_| "routing figures"),
    }
}

/// A warp per token, as many to a block as have room.
pub(super) fn per_token(params: &RouteParams) -> Result<LaunchConfig> {
    let words = 2 * params.num_choices as usize + params.top_k as usize + params.num_groups as usize;
    let warps = (SHARED_BYTES / (4 * words)).min(4);
    if warps == 0 {
        return Err(unsupported(format!("routing over {} experts", params.num_choices)));
    }
    let blocks = (params.num_tokens as usize).div_ceil(warps);
    Ok(LaunchConfig::linear(blocks as u32, 32 * warps as u32).shared((4 * warps * words) as u32))
}

fn params(args: &mut RouteArgs<'_>) -> Result<RouteParams> {
    let config = args.config;
    let inputs = args.inputs;
    let (num_groups, topk_groups) = groups(config);
    // Of two levels, the logits of the groups come first.
    let num_choices = args.router_logits.dims()[1] - config.num_group_logits();
    let renormalize = config.renormalize.unwrap_or_default();
    let (noise, noise_scale) = match config.noise.map(|noise| noise.kind) {
        // Jitter is on the router's input.
        None | Some(NoiseKind::InputJitter { .. }) => (0, 0.0),
        Some(NoiseKind::Normal { std }) => (1, std),
        Some(NoiseKind::NormalSoftplus) => (2, 0.0),
        Some(NoiseKind::GumbelSecond) => (3, 0.0),
        Some(NoiseKind::RandomSecond { scale }) => (4, scale),
    };
    Ok(RouteParams {
        router_logits: address(args.router_logits)?,
        selection_bias: optional_address(args.selection_bias)?,
        token_ids: optional_address(inputs.token_ids)?,
        hash_table: optional_address(inputs.hash_table)?,
        topk_ids: address_mut(&mut args.topk_ids)?,
        topk_weights: address_mut(&mut args.topk_weights)?,
        noise_logits: optional_address(inputs.noise_logits)?,
        hash_seed: if let Selection::Hash { seed } = config.selection { seed } else { 0 },
        noise_seed: config.noise.map_or(0, |noise| noise.seed),
        num_tokens: count("num_tokens", args.router_logits.dims()[0])?,
        num_choices: count("num_choices", num_choices)?,
        top_k: count("top_k", config.top_k)?,
        num_groups: count("num_groups", num_groups)?,
        topk_groups: count("topk_groups", topk_groups)?,
        hash_rows: count("hash_table", inputs.hash_table.map_or(0, |table| table.dims()[0]))?,
        score: score_code(config.score),
        weight: weight_code(config.weight),
        selection: match config.selection {
            Selection::SparseMixer { .. } => 1,
            Selection::Hash { .. } => 2,
            Selection::Hierarchical { .. } => 3,
            _ => 0,
        },
        group_score: config.groups.map_or(0, |groups| (groups.score == GroupScore::SumTop2).into()),
        noise,
        noise_scale,
        renormalize: config.renormalize.is_some().into(),
        logit_clip: config.logit_clip.unwrap_or(f32::MAX),
        logit_softcap: config.logit_softcap.unwrap_or(0.0),
        renormalize_add: renormalize.add,
        renormalize_min: renormalize.min,
        renormalize_p: renormalize.p,
        scaling_factor: config.scaling_factor,
        jitter: if let Selection::SparseMixer { jitter } = config.selection { jitter } else { 0.0 },
        renormalize_levels: matches!(config.selection, Selection::Hierarchical { renormalize_levels: true, .. }).into(),
        has_disabled: (0..config.expert_states.len()).any(|e| config.is_disabled(e)).into(),
        disabled: disabled(config),
        ..RouteParams::zeroed()
    })
}

/// One bit for each expert that is never chosen.
fn disabled(config: &RouterConfig) -> [u32; 32] {
    let mut bits = [0; 32];
    for e in (0..config.expert_states.len().min(MAX_LISTED)).filter(|&e| config.is_disabled(e)) {
        bits[e / 32] |= 1 << (e % 32);
    }
    bits
}

fn map_experts(queue: &mut Queue<'_>, config: &RouterConfig, route: &RouteParams) -> Result<()> {
    let num_slots = count("slots", route.num_tokens as usize * route.top_k as usize)?;
    let mut ids = [ELSEWHERE; MAX_LISTED];
    for (id, here) in ids.iter_mut().zip(&config.expert_map) {
        // Ids on this rank are below 1024: `validate` has them below the experts here, which are no more than the map.
        *id = here.and_then(|here| u16::try_from(here).ok()).unwrap_or(ELSEWHERE);
    }
    let params = ExpertMapParams {
        topk_ids: route.topk_ids,
        topk_weights: route.topk_weights,
        num_slots,
        num_choices: route.num_choices,
        ids,
    };
    // SAFETY: as for the route before, whose outputs these are.
    unsafe { queue.launch(MAP, LaunchConfig::linear(num_slots.div_ceil(256), 256), &params) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::ExpertState;

    #[test]
    fn a_disabled_expert_is_its_bit() {
        let mut config = RouterConfig::softmax_top_k(1);
        config.expert_states = vec![ExpertState::Active; 70];
        config.expert_states[33] = ExpertState::Disabled;
        config.expert_states[64] = ExpertState::Disabled;
        config.expert_states[2] = ExpertState::Frozen;
        let bits = disabled(&config);
        assert_eq!((bits[0], bits[1], bits[2]), (0, 2, 1));
    }

    #[test]
    fn a_block_has_room_for_its_warps() {
        for (num_choices, warps) in [(8, 4), (256, 4), (1024, 4), (4096, 1)] {
            let params = RouteParams { num_tokens: 9, num_choices, top_k: 8, ..RouteParams::zeroed() };
            let config = per_token(&params).unwrap();
            assert_eq!(config.block, [32 * warps, 1, 1]);
            assert_eq!(config.grid, [9u32.div_ceil(warps), 1, 1]);
            assert!(config.shared_bytes as usize <= SHARED_BYTES);
        }
        assert!(per_token(&RouteParams { num_choices: 10_000, top_k: 1, ..RouteParams::zeroed() }).is_err());
    }
}
