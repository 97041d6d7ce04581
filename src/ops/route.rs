//! `route`: which experts each token goes to, and with what weight.

use super::{Expect, dims};
use crate::backend::Device;
use crate::error::{Error, Result};
use crate::routing::RouterConfig;
use crate::tensor::{DType, TensorView, TensorViewMut};

/// Arguments of [`route`].
#[derive(Debug)]
pub struct RouteArgs<'a> {
    /// The rule.
    pub config: &'a RouterConfig,
    /// `[T, E]` f32, zero experts included in E.
    pub router_logits: TensorView<'a>,
    /// `[E]` f32, added to the scores to choose by, never to weigh by.
    pub selection_bias: Option<TensorView<'a>>,
    /// What some rules need besides.
    pub inputs: RouteInputs,
    /// `[T, k]` u32: expert ids, best first; [`MASKED`](crate::routing::MASKED) for a dropped slot.
    pub topk_ids: TensorViewMut<'a>,
    /// `[T, k]` f32; 0 for a dropped slot.
    pub topk_weights: TensorViewMut<'a>,
}

/// What some rules need besides logits.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteInputs {
    /// The batch is sequences of this many tokens each, for rules with capacity per sequence; `None`: one sequence.
    pub tokens_per_sequence: Option<usize>,
}

/// Chooses experts by the rule of [`crate::routing`].
///
/// The ids of a token are unique and in range and its weights are finite whatever the logits are, NaN and ±inf
/// included.
///
/// # Errors
/// [`Error::InvalidArgument`] if the rule, a shape, type or memory does not fit.
pub fn route(device: &Device, args: RouteArgs<'_>) -> Result<()> {
    let expect = Expect::on(device);
    let [num_tokens, num_choices] = dims("router_logits", args.router_logits)?;
    let num_experts = num_choices.saturating_sub(args.config.num_zero_experts);
    args.config.validate(num_experts)?;
    expect.elements("router_logits", args.router_logits, &[DType::F32])?;
    if let Some(bias) = args.selection_bias {
        expect.tensor("selection_bias", bias, [num_choices], &[DType::F32])?;
    }
    if let Some(n) = args.inputs.tokens_per_sequence
        && (n == 0 || !num_tokens.is_multiple_of(n))
    {
        return Err(Error::invalid("inputs.tokens_per_sequence", format!("a divisor of {num_tokens}"), n));
    }
    let shape = [num_tokens, args.config.top_k];
    expect.tensor("topk_ids", args.topk_ids.as_view(), shape, &[DType::U32])?;
    expect.tensor("topk_weights", args.topk_weights.as_view(), shape, &[DType::F32])?;
    device.backend().route(args)
}
