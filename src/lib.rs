//! Kernels for Mixture-of-Experts (MoE) inference: routing, token permutation, grouped GEMM over the experts with the
//! activation fused in, and the weighted combine, behind one safe API over several backends.
//!
//! ```text
//! router_logits [T,E] ──route──▶ topk_ids [T,k] u32, topk_weights [T,k] f32
//! topk_ids ──permute──▶ PermutePlan { expert_offsets [E+1], permuted_idx [T·k], inv_permuted_idx [T·k] }
//! hidden_states [T,H] ──grouped_gemm + activation (rows gathered through the plan)──▶ act [T·k, I]
//! act ──grouped_gemm──▶ expert_out [T·k, H]
//! expert_out, topk_weights ──combine──▶ out [T,H]
//! ```
//!
//! T tokens, E experts, k experts per token, H `hidden_size`, I `intermediate_size`.

#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod backend;
#[cfg(feature = "capi")]
pub mod capi;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod experts;
pub mod layer;
pub mod ops;
pub mod plan;
pub mod reference;
pub mod routing;
pub mod tensor;
pub mod weights;
pub mod workspace;

pub use backend::Device;
pub use config::MoeConfig;
pub use error::{Error, Result};
pub use layer::MoeLayer;
pub use tensor::{DType, Tensor, TensorView, TensorViewMut};
pub use weights::MoeWeights;
pub use workspace::Workspace;

/// The README's example, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
