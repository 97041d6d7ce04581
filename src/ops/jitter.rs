//! `jitter`: multiplicative noise on the router's input.

use super::{Expect, dims};
use crate::backend::Device;
use crate::error::{Error, Result};
use crate::tensor::{DType, FLOATS, TensorView, TensorViewMut};

/// Arguments of [`jitter`].
#[derive(Debug)]
pub struct JitterArgs<'a> {
    /// `[T, H]` f32, bf16 or f16.
    pub hidden_states: TensorView<'a>,
    /// Of the generator in [`crate::routing::noise`].
    pub seed: u64,
    /// Half the width of the interval, 0 to 1.
    pub epsilon: f32,
    /// `[T, H]` f32.
    pub output: TensorViewMut<'a>,
}

/// `output = hidden_states · uniform(1 − epsilon, 1 + epsilon)`, drawn for each (token, feature) (Switch).
///
/// # Errors
/// [`Error::InvalidArgument`] if epsilon, a shape, type or memory does not fit.
pub fn jitter(device: &Device, args: JitterArgs<'_>) -> Result<()> {
    let expect = Expect::on(device);
    let [num_tokens, hidden_size] = dims("hidden_states", args.hidden_states)?;
    expect.elements("hidden_states", args.hidden_states, FLOATS)?;
    expect.tensor("output", args.output.as_view(), [num_tokens, hidden_size], &[DType::F32])?;
    if !(0.0..=1.0).contains(&args.epsilon) {
        return Err(Error::invalid("epsilon", "0 to 1", args.epsilon));
    }
    device.backend().jitter(args)
}
