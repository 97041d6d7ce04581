//! `route`: which experts each token goes to, and with what weight.

use super::{Expect, dims};
use crate::backend::Device;
use crate::error::{Error, Result};
use crate::routing::{Figures, NUM_SCALARS, NoiseKind, RouterConfig, Selection};
use crate::tensor::{DType, TensorView, TensorViewMut};

/// Arguments of [`route`]. E counts zero experts too; S is T·k, or [`RouterConfig::num_slots`] where tokens have
/// different numbers of slots.
#[derive(Debug)]
pub struct RouteArgs<'a> {
    /// The rule.
    pub config: &'a RouterConfig,
    /// `[T, E]` f32; `[T, G + E]` where the selection is hierarchical.
    pub router_logits: TensorView<'a>,
    /// `[E]` f32, added to the scores to choose by, never to weigh by.
    pub selection_bias: Option<TensorView<'a>>,
    /// What some rules need besides.
    pub inputs: RouteInputs<'a>,
    /// `[T, k]` or `[S]` u32: expert ids, best first; [`MASKED`](crate::routing::MASKED) for a dropped slot.
    pub topk_ids: TensorViewMut<'a>,
    /// As `topk_ids`, f32; 0 for a dropped slot.
    pub topk_weights: TensorViewMut<'a>,
    /// Where slots belong, for rules that give tokens different numbers of them; `None` for the others.
    pub ragged: Option<RaggedMut<'a>>,
    /// Where figures go, if they are wanted.
    pub figures: Option<FiguresMut<'a>>,
}

/// What some rules need besides logits.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteInputs<'a> {
    /// The batch is sequences of this many tokens each, for rules with capacity per sequence; `None`: one sequence.
    pub tokens_per_sequence: Option<usize>,
    /// `[T, E]` f32: the router's input times W_noise, for noise `normal_softplus`.
    pub noise_logits: Option<TensorView<'a>>,
    /// `[T]` u32, for selection `hash`.
    pub token_ids: Option<TensorView<'a>>,
    /// `[V, k]` u32: the experts of each token id, for selection `hash`. Ids beyond the table, and experts that do not
    /// exist or are disabled, give dropped slots; that a row names an expert once is the table's business.
    pub hash_table: Option<TensorView<'a>>,
}

/// [`Slots::Ragged`](crate::plan::Slots::Ragged) to be written.
#[derive(Debug)]
pub struct RaggedMut<'a> {
    /// `[T + 1]` u32.
    pub token_offsets: TensorViewMut<'a>,
    /// `[S]` u32.
    pub slot_tokens: TensorViewMut<'a>,
}

/// [`Figures`] to be written.
#[derive(Debug)]
pub struct FiguresMut<'a> {
    /// `[E]` u32.
    pub tokens_per_expert: TensorViewMut<'a>,
    /// `[E]` f32.
    pub importance: TensorViewMut<'a>,
    /// `[NUM_SCALARS]` f32: see [`Figures::scalars`].
    pub scalars: TensorViewMut<'a>,
}

impl FiguresMut<'_> {
    /// What `route` has written; waits for the device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a type or length does not fit, [`Error::Device`] if the device fails.
    pub fn to_figures(&self, device: &Device) -> Result<Figures> {
        let scalars: Vec<f32> = self.scalars.as_view().to_vec(device)?;
        let scalars = scalars
            .try_into()
            .map_err(|_| Error::invalid("figures.scalars", format!("[{NUM_SCALARS}]"), self.scalars.shape()))?;
        let importance: Vec<f32> = self.importance.as_view().to_vec(device)?;
        Ok(Figures::from_parts(self.tokens_per_expert.as_view().to_vec(device)?, &importance, scalars))
    }
}

/// Chooses experts by the rule of [`crate::routing`].
///
/// The ids of a token are unique and in range and its weights are finite whatever the logits are, NaN and ±inf
/// included.
///
/// # Errors
/// [`Error::InvalidArgument`] if the rule, a shape, type or memory does not fit, or the rule needs an input that is
/// not there.
pub fn route(device: &Device, args: RouteArgs<'_>) -> Result<()> {
    check(device, &args)?;
    device.backend().route(args)
}

pub(super) fn check(device: &Device, args: &RouteArgs<'_>) -> Result<()> {
    let expect = Expect::on(device);
    let config = args.config;
    let [num_tokens, num_logits] = dims("router_logits", args.router_logits)?;
    let num_choices = num_logits.saturating_sub(config.num_group_logits());
    config.validate_choices(num_choices)?;
    expect.elements("router_logits", args.router_logits, &[DType::F32])?;
    if let Some(bias) = args.selection_bias {
        if matches!(
            config.selection,
            Selection::Hash { .. } | Selection::Hierarchical { .. } | Selection::Sinkhorn { .. }
        ) {
            let expected = "none with selection hash, hierarchical or sinkhorn";
            return Err(Error::invalid("selection_bias", expected, format!("shape {}", bias.shape())));
        }
        expect.tensor("selection_bias", bias, [num_choices], &[DType::F32])?;
    }
    check_inputs(&expect, config, &args.inputs, [num_tokens, num_choices])?;
    let num_slots = config.num_slots(num_tokens, num_choices);
    let num_slots = num_slots.ok_or_else(|| Error::invalid("router.top_k", "slots that fit usize", config.top_k))?;
    match &args.ragged {
        Some(ragged) if config.is_ragged() => {
            expect.tensor("topk_ids", args.topk_ids.as_view(), [num_slots], &[DType::U32])?;
            expect.tensor("topk_weights", args.topk_weights.as_view(), [num_slots], &[DType::F32])?;
            let RaggedMut { token_offsets, slot_tokens } = ragged;
            expect.tensor("ragged.token_offsets", token_offsets.as_view(), [num_tokens + 1], &[DType::U32])?;
            expect.tensor("ragged.slot_tokens", slot_tokens.as_view(), [num_slots], &[DType::U32])?;
        }
        None if !config.is_ragged() => {
            let shape = [num_tokens, config.top_k];
            expect.tensor("topk_ids", args.topk_ids.as_view(), shape, &[DType::U32])?;
            expect.tensor("topk_weights", args.topk_weights.as_view(), shape, &[DType::F32])?;
        }
        given => {
            let expected = if config.is_ragged() { "some, as experts choose" } else { "none, as tokens choose" };
            return Err(Error::invalid("ragged", expected, if given.is_some() { "some" } else { "none" }));
        }
    }
    if let Some(figures) = &args.figures {
        expect.tensor(
            "figures.tokens_per_expert",
            figures.tokens_per_expert.as_view(),
            [num_choices],
            &[DType::U32],
        )?;
        expect.tensor("figures.importance", figures.importance.as_view(), [num_choices], &[DType::F32])?;
        expect.tensor("figures.scalars", figures.scalars.as_view(), [NUM_SCALARS], &[DType::F32])?;
    }
    Ok(())
}

fn check_inputs(
    expect: &Expect<'_>,
    config: &RouterConfig,
    inputs: &RouteInputs<'_>,
    [num_tokens, num_choices]: [usize; 2],
) -> Result<()> {
    if let Some(n) = inputs.tokens_per_sequence
        && (n == 0 || !num_tokens.is_multiple_of(n))
    {
        return Err(Error::invalid("inputs.tokens_per_sequence", format!("a divisor of {num_tokens}"), n));
    }
    match inputs.noise_logits {
        Some(noise) => expect.tensor("inputs.noise_logits", noise, [num_tokens, num_choices], &[DType::F32])?,
        None if config.noise.is_some_and(|noise| noise.kind == NoiseKind::NormalSoftplus) => {
            let expected = format!("shape [{num_tokens}, {num_choices}] for noise normal_softplus");
            return Err(Error::invalid("inputs.noise_logits", expected, "none"));
        }
        None => {}
    }
    match inputs.token_ids {
        Some(ids) => expect.tensor("inputs.token_ids", ids, [num_tokens], &[DType::U32])?,
        None if matches!(config.selection, Selection::Hash { .. }) => {
            let expected = format!("shape [{num_tokens}] for selection hash");
            return Err(Error::invalid("inputs.token_ids", expected, "none"));
        }
        None => {}
    }
    if let Some(table) = inputs.hash_table {
        let [num_ids, _] = dims("inputs.hash_table", table)?;
        expect.tensor("inputs.hash_table", table, [num_ids, config.top_k], &[DType::U32])?;
    }
    Ok(())
}
