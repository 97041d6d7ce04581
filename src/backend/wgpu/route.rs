//! `route` on wgpu: one workgroup per token where tokens are on their own; what couples them, what a rule needs before it
//! and what is wanted behind it in launches of their own, all recorded together.

mod capacity;
mod expert_choice;
mod figures;
mod prepare;

use super::bind::{Binding, Bound, check_disjoint, count};
use super::device::{NAME, Scratch, WgpuDevice};
use super::kernel::{Constants, Kernel, ROUTE, ROUTE_LEVELS, ROUTE_LEVELS_SUBGROUP, ROUTE_MAP, ROUTE_SUBGROUP};
use super::params::{MapParams, RouteParams};
use super::queue::{Launch, bytes_of, grid};
use crate::backend::kernel_args::{groups, score_code, weight_code};
use crate::error::{Error, Result};
use crate::ops::RouteArgs;
use crate::routing::{GroupScore, MASKED, NoiseKind, RouterConfig, Selection};

/// Lanes of the kernels that know the rule.
const LANES: u64 = 64;

/// Lanes of those that have one per logit or slot.
const WIDE_LANES: u64 = 256;

/// Bytes of workgroup memory besides the experts' and groups' keys: what reductions take.
const REDUCTIONS: usize = LANES as usize * (4 + 8 + 16);

/// `SELECT_…` of `shared/route_rule.wgsl`.
const SELECT_TOP_K: u32 = 0;
const SELECT_GIVEN: u32 = 1;
const SELECT_NOISY_SECOND: u32 = 2;

/// A call: its tensors as bindings, the rule as parameters, and the launches so far.
struct Call<'c, 'a> {
    device: &'c WgpuDevice,
    args: &'c RouteArgs<'a>,
    params: RouteParams,
    constants: Constants,
    router_logits: Binding,
    selection_bias: Binding,
    disabled: Binding,
    given: Binding,
    topk_ids: Bound,
    topk_weights: Bound,
    /// token_offsets and slot_tokens, where slots are ragged.
    ragged: Option<[Bound; 2]>,
    /// The ids before capacity took any, where it may have.
    before_capacity: Option<Bound>,
    launches: Vec<Launch>,
}

pub(super) fn route(device: &WgpuDevice, args: RouteArgs<'_>) -> Result<()> {
    let mut call = Call::new(device, &args)?;
    call.prepare_logits()?;
    match args.config.selection {
        Selection::Hash { seed } => call.hash(seed)?,
        Selection::Sinkhorn { tolerance, max_iterations } => call.balance(tolerance, max_iterations)?,
        _ => call.draw_second()?,
    }
    match (args.config.selection, &args.config.capacity) {
        (Selection::ExpertChoice { limit }, _) => call.choose_by_experts(limit)?,
        (Selection::Hierarchical { .. }, _) => call.by_token(&ROUTE_LEVELS, &ROUTE_LEVELS_SUBGROUP)?,
        (_, Some(capacity)) => call.with_capacity(capacity)?,
        (_, None) => call.by_token(&ROUTE, &ROUTE_SUBGROUP)?,
    }
    if let Some(figures) = &args.figures {
        call.figures(figures)?;
    }
    call.map_experts()?;
    device.launch_all(call.launches)
}

impl<'c, 'a> Call<'c, 'a> {
    fn new(device: &'c WgpuDevice, args: &'c RouteArgs<'a>) -> Result<Self> {
        let router_logits = device.bind_tensor("router_logits", args.router_logits)?;
        let selection_bias = device.bind_optional("selection_bias", args.selection_bias)?;
        let topk_ids = device.bind_tensor("topk_ids", args.topk_ids.as_view())?;
        let topk_weights = device.bind_tensor("topk_weights", args.topk_weights.as_view())?;
        let bind = |name, view| device.bind_tensor(name, view);
        let ragged = match &args.ragged {
            Some(ragged) => Some([
                bind("ragged.token_offsets", ragged.token_offsets.as_view())?,
                bind("ragged.slot_tokens", ragged.slot_tokens.as_view())?,
            ]),
            None => None,
        };
        for output in [&topk_ids, &topk_weights].into_iter().chain(ragged.iter().flatten()) {
            check_disjoint(output, &[&router_logits, &selection_bias])?;
        }
        let params = RouteParams {
            router_logits_at: router_logits.at,
            selection_bias_at: selection_bias.at,
            topk_ids_at: topk_ids.at,
            topk_weights_at: topk_weights.at,
            token_offsets_at: ragged.as_ref().map_or(0, |[token_offsets, _]| token_offsets.at),
            ..rule_params(args)?
        };
        let disabled = if params.has_disabled == 0 {
            Binding::whole(&device.unused)
        } else {
            let words: Vec<u32> = (0..params.num_choices as usize).map(|e| args.config.is_disabled(e).into()).collect();
            Binding::whole(&device.upload(&words)?)
        };
        Ok(Self {
            device,
            args,
            constants: sizes(device, args.config, &params)?,
            params,
            router_logits: router_logits.binding,
            selection_bias: selection_bias.binding,
            disabled,
            given: Binding::whole(&device.unused),
            topk_ids,
            topk_weights,
            ragged,
            before_capacity: None,
            launches: Vec::new(),
        })
    }

    /// Memory between the launches, of `len` words.
    fn scratch(&self, what: Scratch, len: u64) -> Result<Binding> {
        Ok(Binding::whole(&self.device.scratch(what, len * size_of::<u32>() as u64)?))
    }

    fn num_tokens(&self) -> u64 {
        self.params.num_tokens.into()
    }

    /// T·k.
    fn num_slots(&self) -> u64 {
        self.num_tokens() * u64::from(self.params.top_k)
    }

    /// T·E.
    fn num_pairs(&self) -> u64 {
        self.num_tokens() * u64::from(self.params.num_choices)
    }

    fn grid(&self, workgroups: u64) -> Result<[u32; 3]> {
        grid(workgroups, self.device.limits.max_compute_workgroups_per_dimension)
    }

    fn push(&mut self, kernel: &'static Kernel, params: Vec<u8>, bindings: Vec<Binding>, workgroups: [u32; 3]) {
        self.launches.push(Launch { kernel, entry: "main", constants: Vec::new(), params, bindings, workgroups });
    }

    /// Records a kernel that knows the rule, with one workgroup per token; `outputs` follow what all of them read.
    fn push_rule(&mut self, kernel: &'static Kernel, params: RouteParams, outputs: Vec<Binding>) -> Result<()> {
        let inputs = [&self.router_logits, &self.selection_bias, &self.disabled, &self.given];
        self.launches.push(Launch {
            kernel,
            entry: "main",
            constants: self.constants.clone(),
            params: bytes_of(&params),
            bindings: inputs.into_iter().cloned().chain(outputs).collect(),
            workgroups: self.grid(self.num_tokens())?,
        });
        Ok(())
    }

    /// Ids and weights in one launch.
    fn by_token(&mut self, plain: &'static Kernel, subgroup: &'static Kernel) -> Result<()> {
        let outputs = vec![self.topk_ids.binding.clone(), self.topk_weights.binding.clone()];
        self.push_rule(self.device.with_subgroups(plain, subgroup), self.params, outputs)
    }

    /// Ids to those of this rank.
    fn map_experts(&mut self) -> Result<()> {
        let expert_map = &self.args.config.expert_map;
        if expert_map.is_empty() {
            return Ok(());
        }
        let words: Vec<u32> = expert_map.iter().map(|id| id.unwrap_or(MASKED)).collect();
        let num_slots = self.args.topk_ids.shape().numel();
        let params = MapParams {
            num_slots: count("slots", num_slots)?,
            num_choices: self.params.num_choices,
            topk_ids_at: self.topk_ids.at,
            topk_weights_at: self.topk_weights.at,
        };
        let map = Binding::whole(&self.device.upload(&words)?);
        let bindings = vec![map, self.topk_ids.binding.clone(), self.topk_weights.binding.clone()];
        let workgroups = self.grid((num_slots as u64).div_ceil(WIDE_LANES))?;
        self.push(&ROUTE_MAP, bytes_of(&params), bindings, workgroups);
        Ok(())
    }
}

/// The rule as the kernels read it; where tensors lie is left out.
fn rule_params(args: &RouteArgs<'_>) -> Result<RouteParams> {
    let config = args.config;
    let [num_tokens, num_logits] = [args.router_logits.dims()[0], args.router_logits.dims()[1]];
    let num_choices = num_logits - config.num_group_logits();
    let (num_groups, topk_groups) = groups(config);
    let renormalize = config.renormalize.unwrap_or_default();
    let (seed, keep_scale) = match config.noise.map(|noise| (noise.seed, noise.kind)) {
        Some((seed, NoiseKind::RandomSecond { scale })) => (seed, Some(scale)),
        _ => (0, None),
    };
    Ok(RouteParams {
        num_tokens: count("num_tokens", num_tokens)?,
        num_choices: count("num_choices", num_choices)?,
        num_group_logits: count("num_groups", config.num_group_logits())?,
        top_k: count("top_k", config.top_k)?,
        num_groups: count("num_groups", num_groups)?,
        topk_groups: count("topk_groups", topk_groups)?,
        selection: SELECT_TOP_K,
        groups: group_constant(config),
        score: score_code(config.score),
        weight: weight_constant(config),
        by_score: (args.selection_bias.is_some() || config.is_ragged()).into(),
        has_bias: args.selection_bias.is_some().into(),
        has_disabled: (0..num_choices).any(|e| config.is_disabled(e)).into(),
        renormalize: config.renormalize.is_some().into(),
        before_dropping: config.capacity.is_some_and(|capacity| capacity.normalize_before_dropping).into(),
        ragged: config.is_ragged().into(),
        renormalize_levels: matches!(config.selection, Selection::Hierarchical { renormalize_levels: true, .. }).into(),
        logit_clip: config.logit_clip.unwrap_or(f32::MAX),
        logit_softcap: config.logit_softcap.unwrap_or(0.0),
        renormalize_add: renormalize.add,
        renormalize_min: renormalize.min,
        renormalize_p: renormalize.p,
        scaling_factor: config.scaling_factor,
        jitter: if let Selection::SparseMixer { jitter } = config.selection { jitter } else { 0.0 },
        keeps_at_random: keep_scale.is_some().into(),
        keep_scale: keep_scale.unwrap_or(0.0),
        seed_low: seed as u32,
        seed_high: (seed >> 32) as u32,
        ..RouteParams::default()
    })
}

fn group_constant(config: &RouterConfig) -> u32 {
    match config.groups.map(|groups| groups.score) {
        None => 0,
        Some(GroupScore::Max) => 1,
        Some(GroupScore::SumTop2) => 2,
    }
}

/// What weights are; of [`Selection::SparseMixer`] a number of its own.
fn weight_constant(config: &RouterConfig) -> u32 {
    match config.selection {
        Selection::SparseMixer { .. } => 4,
        _ => weight_code(config.weight),
    }
}

/// The sizes of the kernels' arrays over experts and groups: powers of two, so that few pipelines serve all sizes, as far
/// as there is workgroup memory.
fn sizes(device: &WgpuDevice, config: &RouterConfig, params: &RouteParams) -> Result<Constants> {
    // By levels there are two arrays of each.
    let arrays = if matches!(config.selection, Selection::Hierarchical { .. }) { 2 } else { 1 };
    let [choices, groups] = [params.num_choices, params.num_groups];
    let bytes = |[choices, groups]: [u32; 2]| REDUCTIONS + arrays * 4 * (choices + groups) as usize;
    let generous = [choices.max(256).next_power_of_two(), groups.max(64).next_power_of_two()];
    let exact = [choices.next_multiple_of(64), groups.max(1)];
    let available = device.limits.max_compute_workgroup_storage_size as usize;
    let fitting = [generous, exact].into_iter().find(|&sizes| bytes(sizes) <= available);
    let [choices, groups] = fitting.ok_or_else(|| {
        let what = format!("{choices} experts: route needs {} bytes of workgroup memory of {available}", bytes(exact));
        Error::Unsupported { backend: NAME, what }
    })?;
    Ok(vec![("CHOICES", choices), ("GROUP_SLOTS", groups)])
}
