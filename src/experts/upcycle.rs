//! Upcycling: copies of a dense FFN.

use super::host::Host;
use super::{ExpertLayout, check_dense};
use crate::backend::Device;
use crate::error::{Error, Result};
use crate::routing::noise::{Stream, normal};
use crate::tensor::{AsView, Tensor, TensorView};
use crate::weights::ExpertWeights;

/// Normal noise on every weight of every copy, so that copies of one FFN can grow apart; biases are copied as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CopyNoise {
    /// Of the generator in [`crate::routing::noise`]: the same seed gives the same experts on every device.
    pub seed: u64,
    /// Standard deviation of what is added.
    pub std: f32,
}

/// `num_experts` copies of a dense FFN, with noise on request (sparse upcycling, Komatsuzaki et al. 2022, who start
/// without noise; Qwen1.5-MoE starts with randomness).
///
/// Without noise, a token whose weights sum to 1 comes out of the experts as it comes out of the FFN, whatever the
/// router does: renormalise its weights, as [`RouterConfig::mixtral`](crate::routing::RouterConfig::mixtral) does. With
/// a down bias too: each copy has the whole of it.
///
/// # Errors
/// [`Error::InvalidArgument`] if the FFN's shapes do not fit each other or the layout, there are no experts to be made,
/// or the noise is not a finite number; otherwise the backend's.
pub fn upcycle<T: AsView>(
    device: &Device,
    dense: &ExpertWeights<T>,
    layout: ExpertLayout,
    num_experts: usize,
    noise: Option<CopyNoise>,
) -> Result<ExpertWeights> {
    check_dense(device, dense, layout)?;
    if num_experts == 0 {
        return Err(Error::invalid("num_experts", "1 or more", num_experts));
    }
    if let Some(CopyNoise { std, .. }) = noise
        && !(std.is_finite() && std >= 0.0)
    {
        return Err(Error::invalid("noise.std", "a finite number ≥ 0", std));
    }
    let gate_up = dense.gate_up_proj.as_view();
    let first_of_down = gate_up.shape().numel();
    let elements = first_of_down + dense.down_proj.as_view().shape().numel();
    if noise.is_some() && u32::try_from(elements).is_err() {
        return Err(Error::invalid("noise", "none for an expert of 2^32 weights or more", elements));
    }
    let matrix = |tensor, first| copies(device, tensor, num_experts, noise.map(|noise| (noise, first)));
    let bias = |bias: &Option<T>| bias.as_ref().map(|b| copies(device, b.as_view(), num_experts, None)).transpose();
    Ok(ExpertWeights {
        gate_up_proj: matrix(gate_up, 0)?,
        gate_up_bias: bias(&dense.gate_up_bias)?,
        down_proj: matrix(dense.down_proj.as_view(), first_of_down)?,
        down_bias: bias(&dense.down_bias)?,
    })
}

/// `[1, …]` to `[E, …]`; with the noise, the index of the tensor's first element in its expert.
fn copies(
    device: &Device,
    tensor: TensorView<'_>,
    num_experts: usize,
    noise: Option<(CopyNoise, usize)>,
) -> Result<Tensor> {
    let one = Host::read(device, tensor)?;
    let len = tensor.shape().numel().max(1);
    let mut all = Host { dtype: one.dtype, bytes: one.bytes.repeat(num_experts) };
    if let Some((CopyNoise { seed, std }, first)) = noise {
        all.map(|i, weight| weight + std * normal(seed, Stream::Weight, (i / len) as u32, (first + i % len) as u32));
    }
    match *tensor.dims() {
        [_, n] => all.upload(device, [num_experts, n]),
        [_, n, m] => all.upload(device, [num_experts, n, m]),
        _ => Err(Error::invalid("dense", "rank 2 or 3", format!("shape {}", tensor.shape()))),
    }
}
