//! The CUDA backend beyond conformance, on an emulated device: the interface for engines, bugs planted in the kernels,
//! and that a program starts where there is no driver.

#[path = "../cuda_vm/mod.rs"]
mod cuda_vm;
mod engine;
mod start;
