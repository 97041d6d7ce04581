//! A backend that notes how long each of its ops takes, around another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fused_moe::backend::Backend;
use fused_moe::ops::{CombineArgs, GroupedGemmArgs, PermuteArgs, RouteArgs, RouterLogitsArgs};
use fused_moe::tensor::{DeviceBuffer, Shape, Storage};
use fused_moe::{DType, Result, TensorView, TensorViewMut};

/// The ops of a layer, in the order of the arrays here.
pub const OPS: [&str; 5] = ["router_logits", "route", "permute", "grouped_gemm", "combine"];

/// Nanoseconds in each of [`OPS`].
#[derive(Clone, Debug, Default)]
pub struct Clocks(Arc<[AtomicU64; OPS.len()]>);

impl Clocks {
    /// The time in each op since the last call of this.
    pub fn take(&self) -> [Duration; OPS.len()] {
        std::array::from_fn(|op| Duration::from_nanos(self.0[op].swap(0, Ordering::Relaxed)))
    }
}

/// `B`, timed.
#[derive(Debug)]
pub struct Timed<B> {
    backend: B,
    clocks: Clocks,
}

impl<B: Backend> Timed<B> {
    pub fn new(backend: B, clocks: Clocks) -> Self {
        Self { backend, clocks }
    }

    fn time(&self, op: usize, run: impl FnOnce(&B) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        let result = run(&self.backend);
        self.clocks.0[op].fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }
}

impl<B: Backend> Backend for Timed<B> {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn device_name(&self) -> String {
        self.backend.device_name()
    }

    fn is_host(&self) -> bool {
        self.backend.is_host()
    }

    fn owns(&self, buffer: &dyn DeviceBuffer) -> bool {
        self.backend.owns(buffer)
    }

    fn alloc(&self, dtype: DType, shape: Shape, bytes: usize) -> Result<Storage> {
        self.backend.alloc(dtype, shape, bytes)
    }

    fn write(&self, target: TensorViewMut<'_>, source: &[u8]) -> Result<()> {
        self.backend.write(target, source)
    }

    fn read(&self, source: TensorView<'_>, target: &mut [u8]) -> Result<()> {
        self.backend.read(source, target)
    }

    fn synchronize(&self) -> Result<()> {
        self.backend.synchronize()
    }

    fn intermediate_dtype(&self, weight: DType) -> DType {
        self.backend.intermediate_dtype(weight)
    }

    fn router_logits(&self, args: RouterLogitsArgs<'_>) -> Result<()> {
        self.time(0, |backend| backend.router_logits(args))
    }

    fn route(&self, args: RouteArgs<'_>) -> Result<()> {
        self.time(1, |backend| backend.route(args))
    }

    fn permute(&self, args: PermuteArgs<'_>) -> Result<()> {
        self.time(2, |backend| backend.permute(args))
    }

    fn grouped_gemm(&self, args: GroupedGemmArgs<'_>) -> Result<()> {
        self.time(3, |backend| backend.grouped_gemm(args))
    }

    fn combine(&self, args: CombineArgs<'_>) -> Result<()> {
        self.time(4, |backend| backend.combine(args))
    }
}
