//! `router_logits`: what the router thinks of each expert, a plain projection always computed in f32.

use super::{Expect, dims};
use crate::backend::Device;
use crate::error::Result;
use crate::tensor::{DType, FLOATS, TensorView, TensorViewMut};

/// Arguments of [`router_logits`].
#[derive(Debug)]
pub struct RouterLogitsArgs<'a> {
    /// `[T, H]` f32, bf16 or f16.
    pub hidden_states: TensorView<'a>,
    /// `[E, H]` f32, bf16 or f16.
    pub weight: TensorView<'a>,
    /// `[E]` f32.
    pub bias: Option<TensorView<'a>>,
    /// Whether the output is the tanh of all that: the hidden layer of a router that has one.
    pub tanh: bool,
    /// `[T, E]` f32.
    pub output: TensorViewMut<'a>,
}

/// `output = hidden_states · weightᵀ + bias`, or its tanh; products and sums in f32 whatever the inputs' types.
///
/// A token's result does not depend on the other tokens, bit for bit. One-column weights serve sigmoid gates.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if a shape, type or memory does not fit.
pub fn router_logits(device: &Device, args: RouterLogitsArgs<'_>) -> Result<()> {
    let expect = Expect::on(device);
    let [num_tokens, hidden_size] = dims("hidden_states", args.hidden_states)?;
    let [num_experts, _] = dims("weight", args.weight)?;
    expect.elements("hidden_states", args.hidden_states, FLOATS)?;
    expect.tensor("weight", args.weight, [num_experts, hidden_size], FLOATS)?;
    if let Some(bias) = args.bias {
        expect.tensor("bias", bias, [num_experts], &[DType::F32])?;
    }
    expect.tensor("output", args.output.as_view(), [num_tokens, num_experts], &[DType::F32])?;
    device.backend().router_logits(args)
}
