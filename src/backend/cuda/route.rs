//! `route` on CUDA: a warp per token where tokens are on their own; what couples them, what is wanted behind it and an
//! expert map in launches of their own.

use bytemuck::Zeroable;

use super::driver::{Kernel, LaunchConfig};
use super::memory::{address, address_mut, optional_address};
use super::params::{ExpertMapParams, RouteParams, count};
use super::queue::{Queue, unsupported};
use super::{route_capacity, route_expert_choice, route_figures, route_sinkhorn};
use crate::backend::kernel_args::{groups, score_code, weight_code};
use crate::error::Result;
use crate::ops::RouteArgs;
use crate::routing::{GroupScore, NoiseKind, RouterConfig, ScoreFunction, Selection};

const ROUTE: Kernel = Kernel { file: "route", name: "route" };
const PICK: Kernel = Kernel { file: "route", name: "route_pick" };
const WEIGH: Kernel = Kernel { file: "route", name: "route_weigh" };
const MAP: Kernel = Kernel { file: "route", name: "route_map" };

/// Shared memory that a block has on every device without asking for more.
pub(super) const SHARED_BYTES: usize = 48 << 10;

/// Experts of a lane in kernels/cuda/common/route_lanes.cuh.
const PER_LANE: usize = 8;

/// Experts whose states or map fit a kernel's parameters.
const MAX_LISTED: usize = 1024;

/// What a map has for an expert on another rank.
const ELSEWHERE: u16 = u16::MAX;

/// What the launches of a call hand on to each other: where each tensor starts, in words from the start of the scratch
/// memory, and, in the end, as addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// `[T, k]`, with capacity.
    pub(super) picked_ids: u64,
    /// `[T, k]`, with capacity.
    pub(super) score_keys: u64,
    /// `[T, k]`, with capacity.
    pub(super) queue: u64,
    /// `[T, k]`, where weights are made before slots are dropped; 0 where not.
    pub(super) basis_ids: u64,
    /// `[T, E]`, with capacity, or where experts choose.
    pub(super) choice_keys: u64,
    /// `[E, 2]`, where experts choose.
    pub(super) thresholds: u64,
    /// `[T, E]`, of sinkhorn.
    pub(super) cost: u64,
    /// `[E]`, of sinkhorn.
    pub(super) offsets: u64,
    /// `[T, E + 2]`, for figures.
    pub(super) probabilities: u64,
    /// `[chunks, 5, E + 2]`, for figures.
    pub(super) partials: u64,
    words: u64,
}

impl Parts {
    fn of(config: &RouterConfig, params: &RouteParams, figures: bool) -> Self {
        let [tokens, choices, top_k] = [params.num_tokens, params.num_choices, params.top_k].map(u64::from);
        let sinkhorn = matches!(config.selection, Selection::Sinkhorn { .. });
        let mut words = 0;
        let mut take = |wanted: bool, len: u64| {
            let at = words;
            words += if wanted { len } else { 0 };
            at
        };
        let capacity = config.capacity.is_some();
        let before_dropping = config.capacity.is_some_and(|capacity| capacity.normalize_before_dropping);
        let partials = u64::from(route_figures::chunks(params.num_tokens).0) * route_figures::ROWS;
        Self {
            picked_ids: take(capacity, tokens * top_k),
            score_keys: take(capacity, tokens * top_k),
            queue: take(capacity, tokens * top_k),
            basis_ids: take(before_dropping, tokens * top_k),
            choice_keys: take(capacity || config.is_ragged(), tokens * choices),
            thresholds: take(config.is_ragged(), 2 * choices),
            cost: take(sinkhorn, tokens * choices),
            offsets: take(sinkhorn, choices),
            probabilities: take(figures, tokens * (choices + 2)),
            partials: take(figures, partials * (choices + 2)),
            words,
        }
    }

    /// The same as addresses, in memory that begins at `scratch`.
    fn from(self, scratch: u64) -> Self {
        let at = |words: u64| scratch + 4 * words;
        Self {
            picked_ids: at(self.picked_ids),
            score_keys: at(self.score_keys),
            queue: at(self.queue),
            basis_ids: at(self.basis_ids),
            choice_keys: at(self.choice_keys),
            thresholds: at(self.thresholds),
            cost: at(self.cost),
            offsets: at(self.offsets),
            probabilities: at(self.probabilities),
            partials: at(self.partials),
            words: self.words,
        }
    }
}

pub(super) fn route(queue: &mut Queue<'_>, mut args: RouteArgs<'_>) -> Result<()> {
    let config = args.config;
    let mut params = params(&mut args)?;
    let parts = Parts::of(config, &params, args.figures.is_some());
    let scratch = if parts.words == 0 { 0 } else { queue.scratch(4 * parts.words as usize)? };
    let parts = parts.from(scratch);
    if let Selection::Sinkhorn { tolerance, max_iterations } = config.selection {
        route_sinkhorn::balance(queue, &mut params, &parts, tolerance, max_iterations)?;
    }
    match (config.selection, &config.capacity) {
        (Selection::ExpertChoice { limit }, _) => {
            route_expert_choice::choose(queue, &mut args, limit, &params, &parts)?;
        }
        (_, Some(capacity)) => route_capacity::route(queue, &args, capacity, &params, &parts)?,
        (_, None) => launch_rule(queue, ROUTE, &params)?,
    }
    if args.figures.is_some() {
        route_figures::write(queue, &mut args, &params, &parts)?;
    }
    if config.expert_map.is_empty() {
        return Ok(());
    }
    map_experts(queue, args.config, &params, args.topk_ids.shape().numel())
}

/// Launches a kernel that has a warp per token and knows the rule.
pub(super) fn launch_rule(queue: &Queue<'_>, kernel: Kernel, params: &RouteParams) -> Result<()> {
    // SAFETY: the kernels take this struct, and stay within the shapes that `ops` has checked against the memory, and
    // within the parts of the scratch memory.
    unsafe { queue.launch(kernel, per_token(params)?, params) }
}

/// Says what tokens or experts are chosen by, and picks each token's best.
pub(super) fn pick(queue: &Queue<'_>, params: &RouteParams) -> Result<()> {
    launch_rule(queue, PICK, params)
}

/// Weighs the slots that there are.
pub(super) fn weigh(queue: &Queue<'_>, params: &RouteParams) -> Result<()> {
    launch_rule(queue, WEIGH, params)
}

/// Words of shared memory that a warp needs.
pub(super) fn words(params: &RouteParams) -> usize {
    (2 * params.num_choices as usize + (params.max_slots + params.num_groups) as usize).next_multiple_of(4)
}

/// A warp per token, as many to a block as have room.
fn per_token(params: &RouteParams) -> Result<LaunchConfig> {
    let words = words(params);
    let warps = (SHARED_BYTES / (4 * words)).min(4);
    if warps == 0 {
        return Err(unsupported(format!("routing over {} experts", params.num_choices)));
    }
    let blocks = (params.num_tokens as usize).div_ceil(warps);
    Ok(LaunchConfig::linear(blocks as u32, 32 * warps as u32).shared((4 * warps * words) as u32))
}

pub(super) fn params(args: &mut RouteArgs<'_>) -> Result<RouteParams> {
    let config = args.config;
    if config.expert_map.len().max(config.expert_states.len()) > MAX_LISTED {
        return Err(unsupported(format!("states or a map of more than {MAX_LISTED} experts")));
    }
    let inputs = args.inputs;
    let (num_groups, topk_groups) = groups(config);
    // Of two levels, the logits of the groups come first.
    let num_choices = args.router_logits.dims()[1] - config.num_group_logits();
    let lanes_per_group = lanes_per_group(config, num_choices, args.selection_bias.is_some());
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
        max_slots: count("top_k", if config.is_ragged() { num_choices } else { config.top_k })?,
        num_groups: count("num_groups", num_groups)?,
        topk_groups: count("topk_groups", topk_groups)?,
        hash_rows: count("hash_table", inputs.hash_table.map_or(0, |table| table.dims()[0]))?,
        score: score_code(config.score),
        weight: weight_code(config.weight),
        selection: match config.selection {
            Selection::SparseMixer { .. } => 1,
            Selection::Hash { .. } => 2,
            Selection::Hierarchical { .. } => 3,
            Selection::ExpertChoice { .. } => 4,
            Selection::TopK | Selection::Sinkhorn { .. } => 0,
        },
        by_score: (args.selection_bias.is_some() || config.is_ragged()).into(),
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
        in_lanes: lanes_per_group.is_some().into(),
        lanes_per_group: count("lanes", lanes_per_group.unwrap_or(0))?,
        disabled: disabled(config),
        ..RouteParams::zeroed()
    })
}

/// Lanes that a group of experts takes in kernels/cuda/common/route_lanes.cuh, where all experts count as one where there
/// are no groups; `None` where the rule is not one of those there.
fn lanes_per_group(config: &RouterConfig, num_choices: usize, has_bias: bool) -> Option<usize> {
    let by_score = has_bias || config.groups.is_some_and(|groups| groups.score == GroupScore::SumTop2);
    let common = matches!(config.selection, Selection::TopK | Selection::Sinkhorn { .. })
        && !matches!(config.noise.map(|noise| noise.kind), Some(kind) if !matches!(kind, NoiseKind::InputJitter { .. }))
        && config.logit_softcap.is_none()
        && !(by_score && config.score == ScoreFunction::SqrtSoftplus)
        && !(0..config.expert_states.len()).any(|e| config.is_disabled(e));
    if !common || num_choices > 32 * PER_LANE {
        return None;
    }
    let Some(groups) = config.groups else { return Some(32) };
    let lanes = num_choices / groups.num_groups / PER_LANE;
    (lanes.is_power_of_two() && lanes * groups.num_groups * PER_LANE == num_choices).then_some(lanes)
}

/// One bit for each expert that is never chosen.
fn disabled(config: &RouterConfig) -> [u32; 32] {
    let mut bits = [0; 32];
    for e in (0..config.expert_states.len().min(MAX_LISTED)).filter(|&e| config.is_disabled(e)) {
        bits[e / 32] |= 1 << (e % 32);
    }
    bits
}

fn map_experts(queue: &Queue<'_>, config: &RouterConfig, route: &RouteParams, num_slots: usize) -> Result<()> {
    let num_slots = count("slots", num_slots)?;
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
    use crate::routing::{Capacity, CapacityLimit, ExpertState, GroupLimit, Noise};

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
    fn common_rules_run_in_lanes() {
        let lanes = |num_groups: usize, num_choices| {
            let groups = GroupLimit { num_groups, topk_groups: 1, score: GroupScore::SumTop2 };
            let groups = (num_groups > 0).then_some(groups);
            let config = RouterConfig { groups, score: ScoreFunction::Sigmoid, ..RouterConfig::softmax_top_k(2) };
            lanes_per_group(&config, num_choices, true)
        };
        assert_eq!([lanes(0, 8), lanes(0, 256), lanes(0, 257)], [Some(32), Some(32), None]);
        assert_eq!([lanes(8, 256), lanes(4, 32), lanes(1, 256)], [Some(4), Some(1), Some(32)]);
        // Groups that end within a lane, and of no power of two.
        assert_eq!([lanes(8, 160), lanes(8, 32), lanes(2, 48)], [None; 3]);
        let common = RouterConfig::softmax_top_k(2);
        for config in [
            RouterConfig { logit_softcap: Some(30.0), ..common.clone() },
            RouterConfig { selection: Selection::Hash { seed: 1 }, ..common.clone() },
            RouterConfig { expert_states: vec![ExpertState::Disabled], ..common.clone() },
            RouterConfig { noise: Some(Noise { kind: NoiseKind::GumbelSecond, seed: 1 }), ..common },
        ] {
            assert_eq!(lanes_per_group(&config, 8, false), None, "{config:?}");
        }
    }

    #[test]
    fn a_block_has_room_for_its_warps() {
        for (num_choices, warps) in [(8, 4), (256, 4), (1024, 4), (4096, 1)] {
            let params = RouteParams { num_tokens: 9, num_choices, max_slots: 8, ..RouteParams::zeroed() };
            let config = per_token(&params).unwrap();
            assert_eq!(config.block, [32 * warps, 1, 1]);
            assert_eq!(config.grid, [9u32.div_ceil(warps), 1, 1]);
            assert!(config.shared_bytes as usize <= SHARED_BYTES);
        }
        assert!(per_token(&RouteParams { num_choices: 10_000, max_slots: 1, ..RouteParams::zeroed() }).is_err());
    }

    #[test]
    fn parts_lie_side_by_side() {
        let params = RouteParams { num_tokens: 6, num_choices: 10, top_k: 2, ..RouteParams::zeroed() };
        let mut config = RouterConfig::softmax_top_k(2);
        assert_eq!(Parts::of(&config, &params, false), Parts::default());
        config.capacity = Some(Capacity::new(CapacityLimit::Absolute(1)));
        let parts = Parts::of(&config, &params, false);
        assert_eq!((parts.score_keys, parts.queue, parts.choice_keys, parts.words), (12, 24, 36, 96));
        // Beyond 32 bits.
        let far = RouteParams { num_tokens: 1 << 31, num_choices: 1024, ..params };
        assert_eq!(Parts::of(&config, &far, false).words, (3 << 32) + (1 << 41));
        let from = parts.from(256);
        assert_eq!((from.picked_ids, from.score_keys, from.choice_keys), (256, 256 + 48, 256 + 144));
    }
}
