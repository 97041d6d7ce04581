//! The CPU backend: always there, and worth using.

mod combine;
mod grouped_gemm;
mod permute;
mod route;
mod router_logits;

use super::{Backend, host, host_alloc};
use crate::error::Result;
use crate::ops::{CombineArgs, GroupedGemmArgs, PermuteArgs, RouteArgs, RouterLogitsArgs};
use crate::tensor::{DType, DeviceBuffer, Shape, Storage, TensorView, TensorViewMut};

/// The CPU, with what is chosen for it.
#[derive(Clone, Debug, Default)]
pub struct Cpu {}

impl Cpu {
    /// The best instruction set of this machine, on rayon's current pool.
    pub fn new() -> Self {
        Self {}
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn device_name(&self) -> String {
        format!("{} threads", rayon::current_num_threads())
    }

    fn is_host(&self) -> bool {
        true
    }

    fn owns(&self, _: &dyn DeviceBuffer) -> bool {
        false
    }

    fn alloc(&self, _: DType, _: Shape, bytes: usize) -> Result<Storage> {
        host_alloc(self.name(), bytes)
    }

    fn write(&self, target: TensorViewMut<'_>, source: &[u8]) -> Result<()> {
        host::write(target, source)
    }

    fn read(&self, source: TensorView<'_>, target: &mut [u8]) -> Result<()> {
        host::read(source, target)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn router_logits(&self, args: RouterLogitsArgs<'_>) -> Result<()> {
        router_logits::router_logits(args)
    }

    fn route(&self, args: RouteArgs<'_>) -> Result<()> {
        route::route(args)
    }

    fn permute(&self, args: PermuteArgs<'_>) -> Result<()> {
        permute::permute(args)
    }

    fn grouped_gemm(&self, args: GroupedGemmArgs<'_>) -> Result<()> {
        grouped_gemm::grouped_gemm(args)
    }

    fn combine(&self, args: CombineArgs<'_>) -> Result<()> {
        combine::combine(args)
    }
}
