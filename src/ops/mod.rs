//! The steps of a MoE layer, each as one function over a [`Device`]: argument struct, shape contract, validation.
//!
//! Everything a caller can get wrong is found here, once; backends trust what they are given.

mod combine;
mod grouped_gemm;
mod jitter;
mod permute;
mod route;
mod router_logits;

pub use combine::{
    CombineArgs, CombineNext, GroupedGemmCombineArgs, SharedOutput, ZeroExperts, combine, grouped_gemm_combine,
};
pub use grouped_gemm::{Epilogue, GroupedGemmArgs, InputRows, grouped_gemm};
pub use jitter::{JitterArgs, jitter};
pub use permute::{PermuteArgs, RoutePermuteArgs, permute, route_permute};
pub use route::{FiguresMut, RaggedMut, RouteArgs, RouteInputs, route};
pub use router_logits::{RouterLogitsArgs, router_logits};

use crate::backend::Device;
use crate::error::{Error, Result};
use crate::plan::Slots;
use crate::tensor::{DType, Data, Shape, TensorView};

/// What an op asks of one of its tensors.
pub(crate) struct Expect<'d> {
    device: &'d Device,
}

impl<'d> Expect<'d> {
    pub(crate) fn on(device: &'d Device) -> Self {
        Self { device }
    }

    /// `tensor` lies on the device, and has this shape and one of these types.
    pub(crate) fn tensor(
        &self,
        name: &str,
        tensor: TensorView<'_>,
        shape: impl Into<Shape>,
        dtypes: &[DType],
    ) -> Result<()> {
        let shape = shape.into();
        if tensor.shape() != shape {
            return Err(Error::invalid(name, format!("shape {shape}"), tensor.shape()));
        }
        self.elements(name, tensor, dtypes)
    }

    /// As [`Expect::tensor`], with the shape free.
    pub(crate) fn elements(&self, name: &str, tensor: TensorView<'_>, dtypes: &[DType]) -> Result<()> {
        if !dtypes.contains(&tensor.dtype()) {
            return Err(Error::invalid(name, DType::list(dtypes), tensor.dtype()));
        }
        let backend = self.device.backend();
        let here = match tensor.data() {
            Data::Host(_) => backend.is_host(),
            Data::Device { buffer, .. } => backend.owns(buffer),
        };
        if here { Ok(()) } else { Err(Error::invalid(name, format!("memory of {}", self.device), "other memory")) }
    }

    /// The slot structure fits `num_tokens`; returns the number of slots.
    pub(crate) fn slots(&self, slots: Slots<'_>, num_tokens: usize) -> Result<usize> {
        match slots {
            Slots::PerToken { top_k } => num_tokens
                .checked_mul(top_k)
                .filter(|&n| n <= MAX_SLOTS)
                .ok_or_else(|| Error::invalid("top_k", format!("at most {MAX_SLOTS} slots"), top_k)),
            Slots::Ragged { token_offsets, slot_tokens } => {
                self.tensor("token_offsets", token_offsets, [num_tokens + 1], &[DType::U32])?;
                let [num_slots] = dims("slot_tokens", slot_tokens)?;
                self.tensor("slot_tokens", slot_tokens, [num_slots], &[DType::U32])?;
                Ok(num_slots)
            }
        }
    }
}

/// Slots are counted in u32, and the largest u32 marks a masked one.
const MAX_SLOTS: usize = 1 << 31;

/// The extents of a tensor of known rank.
fn dims<const N: usize>(name: &str, tensor: TensorView<'_>) -> Result<[usize; N]> {
    tensor.dims().try_into().map_err(|_| Error::invalid(name, format!("rank {N}"), format!("shape {}", tensor.shape())))
}
