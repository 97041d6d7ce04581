//! The CUDA backend beyond conformance: the interface for engines on an emulated device, a GPU beside that device, and that
//! a program starts where there is no driver.

mod build;
mod complaints;
#[path = "../cuda_vm/mod.rs"]
mod cuda_vm;
mod engine;
mod hardware;
mod layers;
mod routing;
mod start;
