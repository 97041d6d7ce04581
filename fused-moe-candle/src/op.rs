//! The one candle op behind the module and the function.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Error, Layout, MetalStorage, Result, Shape, Tensor, WithDType,
};
use fused_moe::TensorViewMut;
use fused_moe::layer::Routing;
use fused_moe::tensor::Element;
use half::{bf16, f16};

use crate::borrow::{self, invalid};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::module::FusedMoe;

/// A layer as a custom op of its input `[T, H]`; everything else comes with the op.
pub(crate) struct MoeOp {
    pub(crate) moe: FusedMoe,
    pub(crate) routing: Option<TokenRouting>,
}

/// The caller's routing, `[T, k]` each.
pub(crate) struct TokenRouting {
    pub(crate) topk_ids: Tensor,
    pub(crate) topk_weights: Tensor,
}

impl CustomOp1 for MoeOp {
    fn name(&self) -> &'static str {
        "fused-moe"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let output = match storage.dtype() {
            DType::F32 => CpuStorage::F32(self.run::<f32>(storage, layout)?),
            DType::BF16 => CpuStorage::BF16(self.run::<bf16>(storage, layout)?),
            DType::F16 => CpuStorage::F16(self.run::<f16>(storage, layout)?),
            other => return Err(not_a_float(other)),
        };
        Ok((output, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let output = match storage.dtype() {
            DType::F32 => cuda::forward::<f32>(self, fused_moe::DType::F32, storage, layout)?,
            DType::BF16 => cuda::forward::<bf16>(self, fused_moe::DType::BF16, storage, layout)?,
            DType::F16 => cuda::forward::<f16>(self, fused_moe::DType::F16, storage, layout)?,
            other => return Err(not_a_float(other)),
        };
        Ok((output, layout.shape().clone()))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        Err(borrow::no_cuda())
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        Err(borrow::no_metal())
    }
}

impl MoeOp {
    fn run<T: Element + WithDType>(&self, storage: &CpuStorage, layout: &Layout) -> Result<Vec<T>> {
        let input = borrow::host_view(storage, layout)?;
        let mut output = vec![<T as WithDType>::from_f64(0.); input.shape().numel()];
        let view = TensorViewMut::from_slice(&mut output, input.shape()).map_err(Error::wrap)?;
        match &self.routing {
            None => self.moe.run(input, None, view)?,
            Some(TokenRouting { topk_ids, topk_weights }) => {
                let [topk_ids, topk_weights] = [topk_ids, topk_weights].map(Tensor::storage_and_layout);
                let routing = Routing::per_token(borrow::view(&topk_ids)?, borrow::view(&topk_weights)?);
                self.moe.run(input, Some(routing), view)?;
            }
        }
        Ok(output)
    }
}

fn not_a_float(dtype: DType) -> Error {
    invalid("xs", "f32, bf16 or f16", dtype.as_str())
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use super::*;

    /// candle without its `cuda` feature cannot make such tensors, but has the types.
    #[test]
    fn other_devices_get_an_error_that_names_them() {
        let down = Tensor::zeros((2, 4, 4), DType::F32, &candle_core::Device::Cpu).unwrap();
        let gate_up = Tensor::zeros((2, 8, 4), DType::F32, &candle_core::Device::Cpu).unwrap();
        let moe = crate::experts::layer(&gate_up, &down, 1, &crate::ExpertsOptions::default()).unwrap();
        let op = MoeOp { moe, routing: None };
        let cuda = op.cuda_fwd(&CudaStorage, &Layout::contiguous((1, 4))).unwrap_err().to_string();
        assert!(cuda.contains("cuda is unavailable: built without the feature cuda of fused-moe-candle"), "{cuda}");
        let metal = op.metal_fwd(&MetalStorage, &Layout::contiguous((1, 4))).unwrap_err().to_string();
        assert!(metal.contains("metal is unavailable"), "{metal}");
    }
}
