//! `route` on wgpu: one workgroup per token; with capacity, what couples tokens in launches of its own.

use super::bind::{Bound, check_disjoint, count};
use super::device::{NAME, Scratch, WgpuDevice};
use super::kernel::{
    Constants, ROUTE, ROUTE_CAPACITY, ROUTE_CAPACITY_SUBGROUP, ROUTE_PICK, ROUTE_PICK_SUBGROUP, ROUTE_SUBGROUP,
    ROUTE_WEIGH, ROUTE_WEIGH_SUBGROUP,
};
use super::params::{CapacityParams, RouteParams};
use super::queue::{Launch, grid};
use crate::error::{Error, Result};
use crate::ops::RouteArgs;
use crate::routing::{
    Capacity, CapacityOrder, GroupScore, Overflow, RouterConfig, ScoreFunction, Selection, WeightFunction,
};

/// Lanes of every kernel here.
const LANES: u64 = 64;

/// Bytes of workgroup memory besides the experts' and groups' keys: what reductions take.
const REDUCTIONS: usize = LANES as usize * (4 + 8 + 16);

/// The tensors of a call as bindings.
struct Bindings<'a> {
    router_logits: Bound<'a>,
    selection_bias: Bound<'a>,
    topk_ids: Bound<'a>,
    topk_weights: Bound<'a>,
}

pub(super) fn route(device: &WgpuDevice, args: RouteArgs<'_>) -> Result<()> {
    if let Some(what) = missing(&args) {
        return Err(Error::Unsupported { backend: NAME, what: what.into() });
    }
    let num_choices = args.router_logits.dims()[1];
    check_workgroup_memory(device, args.config, num_choices)?;
    let bindings = Bindings {
        router_logits: device.bind_tensor("router_logits", args.router_logits)?,
        selection_bias: device.bind_optional("selection_bias", args.selection_bias)?,
        topk_ids: device.bind_tensor("topk_ids", args.topk_ids.as_view())?,
        topk_weights: device.bind_tensor("topk_weights", args.topk_weights.as_view())?,
    };
    for output in [&bindings.topk_ids, &bindings.topk_weights] {
        check_disjoint(output, &[&bindings.router_logits, &bindings.selection_bias])?;
    }
    let params = params(&args, &bindings)?;
    if let Some(capacity) = &args.config.capacity {
        return with_capacity(device, &args, capacity, &bindings, params);
    }
    let mut constants = picking(args.config, num_choices, args.selection_bias.is_some());
    constants.extend(weighing(args.config));
    device.launch(Launch {
        kernel: device.with_subgroups(&ROUTE, &ROUTE_SUBGROUP),
        entry: "main",
        constants,
        params: bytemuck::bytes_of(&params),
        bindings: &[
            bindings.router_logits.binding,
            bindings.selection_bias.binding,
            bindings.topk_ids.binding,
            bindings.topk_weights.binding,
        ],
        workgroups: tokens_grid(device, params.num_tokens)?,
    })
}

/// What of the rule is not on the device yet.
fn missing(args: &RouteArgs<'_>) -> Option<&'static str> {
    match args.config.selection {
        Selection::TopK | Selection::SparseMixer { .. } => {}
        Selection::Hash { .. } => return Some("routing by hash"),
        Selection::ExpertChoice { .. } => return Some("routing by expert choice"),
        Selection::Sinkhorn { .. } => return Some("routing by sinkhorn"),
        Selection::Hierarchical { .. } => return Some("hierarchical routing"),
    }
    match args.config {
        RouterConfig { noise: Some(_), .. } => Some("router noise"),
        RouterConfig { expert_states, .. } if !expert_states.is_empty() => Some("expert states"),
        RouterConfig { expert_map, .. } if !expert_map.is_empty() => Some("an expert map"),
        _ => args.figures.as_ref().map(|_| "routing figures"),
    }
}

fn tokens_grid(device: &WgpuDevice, num_tokens: u32) -> Result<[u32; 3]> {
    grid(u64::from(num_tokens), device.limits.max_compute_workgroups_per_dimension)
}

/// Picks, drops or gives on what is beyond capacity, and weighs what is left.
fn with_capacity(
    device: &WgpuDevice,
    args: &RouteArgs<'_>,
    capacity: &Capacity,
    bindings: &Bindings<'_>,
    params: RouteParams,
) -> Result<()> {
    let RouteParams { num_tokens, num_choices, top_k, .. } = params;
    let tokens = args.inputs.tokens_per_sequence.filter(|_| capacity.per_sequence).unwrap_or(num_tokens as usize);
    let sequences = (num_tokens as usize).div_ceil(tokens.max(1));
    let words = |n: u64| n * size_of::<u32>() as u64;
    let slots = words(u64::from(num_tokens) * u64::from(top_k));
    let picked_ids = device.scratch(Scratch::PickedIds, slots)?;
    let score_keys = device.scratch(Scratch::ScoreKeys, slots)?;
    let choice_keys = device.scratch(Scratch::ChoiceKeys, words(u64::from(num_tokens) * u64::from(num_choices)))?;
    let queue = device.scratch(Scratch::Queue, slots)?;
    let load = device.scratch(Scratch::Load, words(sequences as u64 * u64::from(num_choices)))?;
    let pick_params = RouteParams { topk_ids_at: 0, ..params };
    let give_params = capacity_params(args, capacity, &params, tokens)?;
    let pick_bindings = [
        bindings.router_logits.binding.clone(),
        bindings.selection_bias.binding.clone(),
        picked_ids.as_entire_buffer_binding(),
        score_keys.as_entire_buffer_binding(),
        choice_keys.as_entire_buffer_binding(),
    ];
    let give_bindings = [
        picked_ids.as_entire_buffer_binding(),
        score_keys.as_entire_buffer_binding(),
        choice_keys.as_entire_buffer_binding(),
        queue.as_entire_buffer_binding(),
        load.as_entire_buffer_binding(),
        bindings.topk_ids.binding.clone(),
    ];
    let weigh_bindings = [
        bindings.router_logits.binding.clone(),
        bindings.selection_bias.binding.clone(),
        bindings.topk_ids.binding.clone(),
        bindings.topk_weights.binding.clone(),
        picked_ids.as_entire_buffer_binding(),
    ];
    let pick = Launch {
        kernel: device.with_subgroups(&ROUTE_PICK, &ROUTE_PICK_SUBGROUP),
        entry: "main",
        constants: picking(args.config, num_choices as usize, args.selection_bias.is_some()),
        params: bytemuck::bytes_of(&pick_params),
        bindings: &pick_bindings,
        workgroups: tokens_grid(device, num_tokens)?,
    };
    let give = |entry, workgroups| Launch {
        kernel: device.with_subgroups(&ROUTE_CAPACITY, &ROUTE_CAPACITY_SUBGROUP),
        entry,
        constants: vec![("ORDER", order_constant(capacity.order))],
        params: bytemuck::bytes_of(&give_params),
        bindings: &give_bindings,
        workgroups,
    };
    let mut launches = vec![pick];
    if let Some(queued) = queued(capacity.order, u64::from(num_tokens), u64::from(top_k)) {
        let max = device.limits.max_compute_workgroups_per_dimension;
        launches.push(give("order", grid(queued.div_ceil(LANES), max)?));
    }
    let entry = if capacity.overflow == Overflow::Drop { "drop_slots" } else { "next_best" };
    launches.push(give(entry, [count("sequences", sequences)?, 1, 1]));
    let mut constants = picking(args.config, num_choices as usize, args.selection_bias.is_some());
    constants.retain(|(name, _)| *name == "SCORE");
    constants.extend(weighing(args.config));
    constants.push(("BEFORE_DROPPING", capacity.normalize_before_dropping.into()));
    launches.push(Launch {
        kernel: device.with_subgroups(&ROUTE_WEIGH, &ROUTE_WEIGH_SUBGROUP),
        entry: "main",
        constants,
        params: bytemuck::bytes_of(&params),
        bindings: &weigh_bindings,
        workgroups: tokens_grid(device, num_tokens)?,
    });
    device.launch_all(launches)
}

/// What stands in a queue that is ordered by score.
fn queued(order: CapacityOrder, num_tokens: u64, top_k: u64) -> Option<u64> {
    match order {
        CapacityOrder::FirstChoices | CapacityOrder::Tokens => None,
        CapacityOrder::BatchPriority => Some(num_tokens),
        CapacityOrder::Scores => Some(num_tokens * top_k),
    }
}

fn order_constant(order: CapacityOrder) -> u32 {
    match order {
        CapacityOrder::FirstChoices => 0,
        CapacityOrder::BatchPriority => 1,
        CapacityOrder::Tokens => 2,
        CapacityOrder::Scores => 3,
    }
}

fn capacity_params(
    args: &RouteArgs<'_>,
    capacity: &Capacity,
    params: &RouteParams,
    tokens_per_sequence: usize,
) -> Result<CapacityParams> {
    let num_experts = params.num_choices as usize - args.config.num_zero_experts;
    let limit = capacity.limit.slots(tokens_per_sequence, args.config.top_k, num_experts);
    Ok(CapacityParams {
        num_tokens: params.num_tokens,
        num_choices: params.num_choices,
        num_experts: num_experts as u32,
        top_k: params.top_k,
        tokens_per_sequence: count("tokens_per_sequence", tokens_per_sequence)?,
        limit: count("capacity", limit)?,
        topk_ids_at: params.topk_ids_at,
    })
}

fn params(args: &RouteArgs<'_>, bindings: &Bindings<'_>) -> Result<RouteParams> {
    let config = args.config;
    let groups = config.groups.map_or((0, 0), |groups| (groups.num_groups, groups.topk_groups));
    let renormalize = config.renormalize.unwrap_or_default();
    Ok(RouteParams {
        num_tokens: count("num_tokens", args.router_logits.dims()[0])?,
        num_choices: count("num_choices", args.router_logits.dims()[1])?,
        top_k: count("top_k", config.top_k)?,
        num_groups: count("num_groups", groups.0)?,
        topk_groups: count("topk_groups", groups.1)?,
        router_logits_at: bindings.router_logits.at,
        selection_bias_at: bindings.selection_bias.at,
        topk_ids_at: bindings.topk_ids.at,
        topk_weights_at: bindings.topk_weights.at,
        logit_clip: config.logit_clip.unwrap_or(f32::MAX),
        logit_softcap: config.logit_softcap.unwrap_or(0.0),
        renormalize_add: renormalize.add,
        renormalize_min: renormalize.min,
        renormalize_p: renormalize.p,
        scaling_factor: config.scaling_factor,
        jitter: if let Selection::SparseMixer { jitter } = config.selection { jitter } else { 0.0 },
    })
}

fn check_workgroup_memory(device: &WgpuDevice, config: &RouterConfig, num_choices: usize) -> Result<()> {
    let bytes = REDUCTIONS + 4 * (num_choices.next_multiple_of(64) + config.groups.map_or(1, |g| g.num_groups));
    let available = device.limits.max_compute_workgroup_storage_size;
    if bytes > available as usize {
        let what = format!("{num_choices} experts: route needs {bytes} bytes of workgroup memory of {available}");
        return Err(Error::Unsupported { backend: NAME, what });
    }
    Ok(())
}

/// The constants of picking experts.
fn picking(config: &RouterConfig, num_choices: usize, has_bias: bool) -> Constants {
    let score = match config.score {
        ScoreFunction::Logit => 0,
        ScoreFunction::Softmax => 1,
        ScoreFunction::Sigmoid => 2,
        ScoreFunction::SqrtSoftplus => 3,
    };
    let groups = match config.groups.map(|groups| groups.score) {
        None => 0,
        Some(GroupScore::Max) => 1,
        Some(GroupScore::SumTop2) => 2,
    };
    vec![
        ("SCORE", score),
        ("GROUPS", groups),
        ("HAS_BIAS", has_bias.into()),
        ("CHOICES", num_choices.next_multiple_of(64) as u32),
        ("GROUP_SLOTS", config.groups.map_or(1, |groups| groups.num_groups as u32)),
    ]
}

/// The constants of weighing them.
fn weighing(config: &RouterConfig) -> Constants {
    let weight = match (config.selection, config.weight) {
        (Selection::SparseMixer { .. }, _) => 4,
        (_, WeightFunction::Score) => 0,
        (_, WeightFunction::SoftmaxOverSelected) => 1,
        (_, WeightFunction::Sigmoid) => 2,
        (_, WeightFunction::One) => 3,
    };
    vec![("WEIGHT", weight), ("RENORMALIZE", config.renormalize.is_some().into())]
}
