//! A backend that is wrong in one planted way: the oracle, with a fault. The suite must find each.

pub mod combine;
pub mod grouped_gemm;
pub mod permute;
pub mod route;
pub mod router_logits;

use std::sync::atomic::{AtomicUsize, Ordering};

use fused_moe::backend::Backend;
use fused_moe::ops::{CombineArgs, GroupedGemmArgs, PermuteArgs, RouteArgs, RouterLogitsArgs};
use fused_moe::tensor::{DataMut, DeviceBuffer, Shape, Storage, TensorView, TensorViewMut};
use fused_moe::{DType, Device, Result};

use super::host_copy::HostCopy;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: the wrapper itself is sound.
    None,
    /// Something in `router_logits`.
    RouterLogits(router_logits::Fault),
    /// Something in `route`.
    Route(route::Fault),
    /// Something in `permute`.
    Permute(permute::Fault),
    /// Something in `grouped_gemm`.
    GroupedGemm(grouped_gemm::Fault),
    /// Something in `combine`.
    Combine(combine::Fault),
}

impl Fault {
    /// Every fault.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        all.extend(router_logits::Fault::ALL.iter().copied().map(Self::RouterLogits));
        all.extend(route::Fault::ALL.iter().copied().map(Self::Route));
        all.extend(permute::Fault::ALL.iter().copied().map(Self::Permute));
        all.extend(grouped_gemm::Fault::ALL.iter().copied().map(Self::GroupedGemm));
        all.extend(combine::Fault::ALL.iter().copied().map(Self::Combine));
        all
    }

    /// The op that it is in.
    pub fn op(self) -> &'static str {
        match self {
            Self::None => "",
            Self::RouterLogits(_) => "router_logits",
            Self::Route(_) => "route",
            Self::Permute(_) => "permute",
            Self::GroupedGemm(_) => "grouped_gemm",
            Self::Combine(_) => "combine",
        }
    }

    /// Whether a layer's output cannot show it.
    pub fn hidden_in_layer(self) -> bool {
        match self {
            // Random logits do not tie, and a token of NaN may have any weights.
            Self::Route(fault) => matches!(fault, route::Fault::TiesToHighest | route::Fault::WeightNotFinite),
            // Which row a slot has is the plan's own business, as long as the way back agrees.
            Self::Permute(fault) => matches!(fault, permute::Fault::Unstable | permute::Fault::StaleTail),
            // Nobody reads those rows.
            Self::GroupedGemm(fault) => fault == grouped_gemm::Fault::PastTheEnd,
            _ => false,
        }
    }
}

/// The oracle with a [`Fault`].
#[derive(Debug)]
pub struct Faulty {
    oracle: Device,
    fault: Fault,
    calls: AtomicUsize,
}

impl Faulty {
    /// A device with `fault`.
    pub fn device(fault: Fault) -> Device {
        Device::new(Self { oracle: Device::reference(), fault, calls: AtomicUsize::new(0) })
    }

    fn backend(&self) -> &dyn Backend {
        self.oracle.backend()
    }
}

/// The bytes of a host tensor.
fn bytes_mut<'v>(view: &'v mut TensorViewMut<'_>) -> &'v mut [u8] {
    match view.reborrow().data() {
        DataMut::Host(bytes) => bytes,
        DataMut::Device { .. } => panic!("not host memory"),
    }
}

/// The elements of a host tensor that is f32; else none.
fn f32s_mut<'v>(view: &'v mut TensorViewMut<'_>) -> &'v mut [f32] {
    view.as_mut_slice().unwrap_or_default()
}

/// Zeroes what a kernel that only takes whole vectors of 8 leaves out of each row.
fn drop_tail(values: &mut [f32], row_len: usize) {
    values.chunks_exact_mut(row_len.max(1)).for_each(|row| row[row_len / 8 * 8..].fill(0.0));
}

/// The last of `rows` rows as `before` has it, as if it had not been written.
fn restore_last_row(output: &mut TensorViewMut<'_>, rows: usize, before: &HostCopy) {
    let row_len = output.dims()[1] * output.dtype().size();
    let last = rows.saturating_sub(1) * row_len..rows * row_len;
    bytes_mut(output)[last.clone()].copy_from_slice(&before.bytes()[last]);
}

impl Backend for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn device_name(&self) -> String {
        format!("{:?}", self.fault)
    }

    fn is_host(&self) -> bool {
        true
    }

    fn owns(&self, _: &dyn DeviceBuffer) -> bool {
        false
    }

    fn alloc(&self, dtype: DType, shape: Shape, bytes: usize) -> Result<Storage> {
        self.backend().alloc(dtype, shape, bytes)
    }

    fn write(&self, target: TensorViewMut<'_>, source: &[u8]) -> Result<()> {
        self.backend().write(target, source)
    }

    fn read(&self, source: TensorView<'_>, target: &mut [u8]) -> Result<()> {
        self.backend().read(source, target)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn router_logits(&self, args: RouterLogitsArgs<'_>) -> Result<()> {
        match self.fault {
            Fault::RouterLogits(fault) => router_logits::run(fault, self.backend(), args),
            _ => self.backend().router_logits(args),
        }
    }

    fn route(&self, args: RouteArgs<'_>) -> Result<()> {
        match self.fault {
            Fault::Route(fault) => route::run(fault, self.backend(), args),
            _ => self.backend().route(args),
        }
    }

    fn permute(&self, args: PermuteArgs<'_>) -> Result<()> {
        match self.fault {
            Fault::Permute(fault) => {
                permute::run(fault, self.backend(), args, self.calls.fetch_add(1, Ordering::Relaxed))
            }
            _ => self.backend().permute(args),
        }
    }

    fn grouped_gemm(&self, args: GroupedGemmArgs<'_>) -> Result<()> {
        match self.fault {
            Fault::GroupedGemm(fault) => {
                grouped_gemm::run(fault, self.backend(), args, self.calls.fetch_add(1, Ordering::Relaxed))
            }
            _ => self.backend().grouped_gemm(args),
        }
    }

    fn combine(&self, args: CombineArgs<'_>) -> Result<()> {
        match self.fault {
            Fault::Combine(fault) => combine::run(fault, self.backend(), args),
            _ => self.backend().combine(args),
        }
    }
}
