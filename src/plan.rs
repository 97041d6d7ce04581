//! What routing hands on: slots per token, and the permutation that sorts slots by expert.

use crate::tensor::{TensorView, TensorViewMut};

/// How slots belong to tokens.
#[derive(Clone, Copy, Debug)]
pub enum Slots<'a> {
    /// Every token has `top_k` slots: slot = `token·top_k + k`.
    PerToken {
        /// k.
        top_k: usize,
    },
    /// Token `t` has the slots `token_offsets[t]..token_offsets[t + 1]` (expert choice: 0 to E of them).
    Ragged {
        /// `[T + 1]` u32, exclusive: where each token's slots start.
        token_offsets: TensorView<'a>,
        /// `[S]` u32: the token of each slot.
        slot_tokens: TensorView<'a>,
    },
}

/// Which experts each token goes to, by the layer's router or by the caller.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    /// `[T, k]` or `[S]` u32.
    pub topk_ids: TensorView<'a>,
    /// `[T, k]` or `[S]` f32.
    pub topk_weights: TensorView<'a>,
    /// How slots belong to tokens.
    pub slots: Slots<'a>,
}

impl<'a> Routing<'a> {
    /// Of `[T, k]` ids and weights.
    pub fn per_token(topk_ids: TensorView<'a>, topk_weights: TensorView<'a>) -> Self {
        let top_k = topk_ids.dims().last().copied().unwrap_or(0);
        Self { topk_ids, topk_weights, slots: Slots::PerToken { top_k } }
    }
}

/// A stable permutation of slots into rows sorted by expert, on a device.
///
/// A *slot* is a (token, choice) pair; a *row* is a position in the expert-sorted buffer. Slots with an id of no
/// expert (masked, zero experts) have no row. Inside an expert rows keep the order of their slots, so that plans are
/// equal bit for bit over backends and runs.
#[derive(Clone, Copy, Debug)]
pub struct PermutePlan<'a> {
    /// `[E + 1]` u32, exclusive: the rows of expert `e` are `expert_offsets[e]..expert_offsets[e + 1]`.
    pub expert_offsets: TensorView<'a>,
    /// `[S]` u32, row → slot; [`MASKED`](crate::routing::MASKED) from row `expert_offsets[E]` on.
    pub permuted_idx: TensorView<'a>,
    /// `[S]` u32, slot → row; [`MASKED`](crate::routing::MASKED) for a slot without one.
    pub inv_permuted_idx: TensorView<'a>,
}

/// A [`PermutePlan`] to be written.
#[derive(Debug)]
pub struct PermutePlanMut<'a> {
    /// `[E + 1]` u32.
    pub expert_offsets: TensorViewMut<'a>,
    /// `[S]` u32.
    pub permuted_idx: TensorViewMut<'a>,
    /// `[S]` u32.
    pub inv_permuted_idx: TensorViewMut<'a>,
}
