//! [`fused_moe`]'s Mixture-of-Experts layers for [candle](https://github.com/huggingface/candle): a module,
//! [`FusedMoe`], and a plain function, [`moe_experts`], over candle tensors.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use fused_moe_candle::{ExpertsOptions, moe_experts};
//!
//! # fn main() -> candle_core::Result<()> {
//! let cpu = Device::Cpu;
//! let xs = Tensor::randn(0f32, 1., (5, 16), &cpu)?;
//! let gate_up = Tensor::randn(0f32, 1., (4, 2 * 8, 16), &cpu)?;
//! let down = Tensor::randn(0f32, 1., (4, 16, 8), &cpu)?;
//! let topk_ids = Tensor::new(&[[0u32, 1], [1, 2], [2, 3], [3, 0], [0, 2]], &cpu)?;
//! let topk_weights = Tensor::full(0.5f32, (5, 2), &cpu)?;
//! let ys = moe_experts(&xs, &gate_up, &down, &topk_ids, &topk_weights, &ExpertsOptions::default())?;
//! assert_eq!(ys.dims(), &[5, 16]);
//! # Ok(())
//! # }
//! ```
//!
//! Tensors are read where they lie: weights are never copied, and what is copied is `[T, H]` or smaller and only where
//! it is strided. With the feature `cuda`, tensors on CUDA devices are computed on candle's own stream, in candle's memory.
//! Tensors on Metal get an error: candle's Metal memory is not reachable from `fused_moe`'s wgpu backend. Errors are
//! candle's, with `fused_moe`'s text.

#![deny(missing_docs)]
#![deny(unsafe_code)]

mod borrow;
#[cfg(feature = "cuda")]
mod cuda;
mod experts;
mod module;
mod op;
mod workspaces;

pub use experts::{ExpertsOptions, moe_experts};
pub use fused_moe;
pub use module::FusedMoe;
pub use workspaces::Workspaces;
