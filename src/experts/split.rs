//! Splitting: one FFN cut along its intermediate features.

use super::host::Host;
use super::{ExpertLayout, check_dense};
use crate::backend::Device;
use crate::config::WeightLayout;
use crate::error::{Error, Result};
use crate::routing::noise::{Stream, below};
use crate::tensor::{AsView, Tensor, TensorView};
use crate::weights::ExpertWeights;

/// Which intermediate features of the FFN go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitOrder<'a> {
    /// Neighbours (DeepSeekMoE's fine-grained segmentation).
    Contiguous,
    /// A random partition (LLaMA-MoE's "independent, random", its best).
    Random {
        /// Of the generator in [`crate::routing::noise`].
        seed: u64,
    },
    /// This permutation of `0..I`, cut into equal parts: clusters found elsewhere, say.
    Given(&'a [u32]),
}

/// What [`split`] makes.
#[derive(Debug)]
pub struct Split {
    /// The experts, each with I / E intermediate features.
    pub experts: ExpertWeights,
    /// `[I]`: `permutation[e·I/E + i]` is the FFN's feature that is expert e's i-th.
    pub permutation: Vec<u32>,
}

/// One dense FFN cut along I into `num_experts` fine-grained experts (LLaMA-MoE, Zhu et al. 2024; DeepSeekMoE, Dai et
/// al. 2024).
///
/// All experts together, each with weight 1, are the FFN: gate and up of a feature stay together, and its part of the
/// sum is the same in any expert. A down bias is not a feature's, so each expert gets 1/E of it. Where a router picks k
/// of them, LLaMA-MoE scales their weights by E / k
/// ([`RouterConfig::llama_moe`](crate::routing::RouterConfig::llama_moe)).
///
/// # Errors
/// [`Error::InvalidArgument`] if the FFN's shapes do not fit each other or the layout, `num_experts` does not divide I,
/// or the order is no permutation of `0..I`; otherwise the backend's.
pub fn split<T: AsView>(
    device: &Device,
    dense: &ExpertWeights<T>,
    layout: ExpertLayout,
    num_experts: usize,
    order: SplitOrder<'_>,
) -> Result<Split> {
    let shape = check_dense(device, dense, layout)?;
    let intermediate_size = shape.intermediate_size;
    if num_experts == 0 || !intermediate_size.is_multiple_of(num_experts) {
        let expected = format!("a divisor of the intermediate size {intermediate_size}");
        return Err(Error::invalid("num_experts", expected, num_experts));
    }
    let permutation = order.permutation(intermediate_size)?;
    let (small, h) = (intermediate_size / num_experts, shape.hidden_size);
    let (rows, columns) = gathered_columns(layout, &permutation, small);
    let n = shape.gate_up_size;
    let gate_up = Host::read(device, dense.gate_up_proj.as_view())?;
    let down = Host::read(device, dense.down_proj.as_view())?;
    // N of the first projection and K of the second are what is cut.
    let (gate_up, down) = match layout.weight_layout {
        WeightLayout::Nk => {
            (gather_rows(&gate_up, h, &rows), gather_columns(&down, intermediate_size, &columns, small))
        }
        WeightLayout::Kn => (gather_columns(&gate_up, n, &rows, n / num_experts), gather_rows(&down, h, &columns)),
    };
    let gate_up_shape = layout.weight_layout.shape(num_experts, n / num_experts, h);
    let down_shape = layout.weight_layout.shape(num_experts, h, small);
    let gate_up_bias = dense.gate_up_bias.as_ref().map(|bias| -> Result<_> {
        gather_rows(&Host::read(device, bias.as_view())?, 1, &rows).upload(device, [num_experts, n / num_experts])
    });
    let down_bias = dense.down_bias.as_ref().map(|bias| shared_out(device, bias.as_view(), num_experts));
    let experts = ExpertWeights {
        gate_up_proj: gate_up.upload(device, gate_up_shape)?,
        gate_up_bias: gate_up_bias.transpose()?,
        down_proj: down.upload(device, down_shape)?,
        down_bias: down_bias.transpose()?,
    };
    Ok(Split { experts, permutation })
}

impl SplitOrder<'_> {
    fn permutation(self, len: usize) -> Result<Vec<u32>> {
        let mut permutation: Vec<u32> = (0..len as u32).collect();
        match self {
            Self::Contiguous => {}
            Self::Random { seed } => {
                for i in (1..len).rev() {
                    permutation.swap(i, below(seed, Stream::Shuffle, i as u32, 0, i as u32 + 1) as usize);
                }
            }
            Self::Given(order) => {
                let mut sorted = order.to_vec();
                sorted.sort_unstable();
                if sorted != permutation {
                    let actual = format!("{} numbers that are none", order.len());
                    return Err(Error::invalid("order", format!("a permutation of 0..{len}"), actual));
                }
                permutation.copy_from_slice(order);
            }
        }
        Ok(permutation)
    }
}

/// Where the experts' rows of `gate_up_proj` (expert after expert, in the layout's order) and columns of `down_proj`
/// come from.
fn gathered_columns(layout: ExpertLayout, permutation: &[u32], small: usize) -> (Vec<usize>, Vec<usize>) {
    let features: Vec<usize> = permutation.iter().map(|&feature| feature as usize).collect();
    let Some(gate_up_layout) = layout.gate_up_layout else { return (features.clone(), features) };
    let mut rows = vec![0; 2 * features.len()];
    for (rows, features) in rows.chunks_exact_mut(2 * small).zip(features.chunks_exact(small)) {
        for (i, &feature) in features.iter().enumerate() {
            let (gate, up) = gate_up_layout.columns(i, small);
            (rows[gate], rows[up]) = gate_up_layout.columns(feature, permutation.len());
        }
    }
    (rows, features)
}

/// `[rows, row_len]` to the picked rows.
fn gather_rows(from: &Host, row_len: usize, picks: &[usize]) -> Host {
    let bytes = picks.iter().flat_map(|&row| from.row(row, row_len)).copied().collect();
    Host { dtype: from.dtype, bytes }
}

/// `[rows, columns]` to `[picks / per_expert, rows, per_expert]`: each expert's picks of every row.
fn gather_columns(from: &Host, columns: usize, picks: &[usize], per_expert: usize) -> Host {
    let size = from.dtype.size();
    let mut bytes = Vec::with_capacity(from.bytes.len());
    for picks in picks.chunks_exact(per_expert) {
        for row in from.bytes.chunks_exact(columns * size) {
            picks.iter().for_each(|&column| bytes.extend_from_slice(&row[column * size..][..size]));
        }
    }
    Host { dtype: from.dtype, bytes }
}

/// `[1, H]` to `[E, H]`, each 1/E of it.
fn shared_out(device: &Device, bias: TensorView<'_>, num_experts: usize) -> Result<Tensor> {
    let mut all = Host::read(device, bias)?;
    all.map(|_, b| b / num_experts as f32);
    all.bytes = all.bytes.repeat(num_experts);
    all.upload(device, [num_experts, bias.dims()[1]])
}
