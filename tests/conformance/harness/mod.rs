//! What every conformance test stands on. Nothing here knows a backend: bodies take a [`Device`](fused_moe::Device),
//! upload with `Tensor::from_slice` and download with `to_vec`.
//!
//! Other test targets and crates include this folder with `#[path]`.

#![allow(dead_code, unused_imports, reason = "each test target that includes the harness uses a part of it")]

pub mod compare;
pub mod devices;
pub mod faulty;
pub mod host_copy;
pub mod log;
pub mod model;
pub mod remote;
pub mod slots;
pub mod values;

pub use log::{Failure, Log, Problem, Test};
