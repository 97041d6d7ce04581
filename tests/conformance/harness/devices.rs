//! The devices under test, listed once.

use std::num::NonZeroUsize;
use std::sync::LazyLock;

use fused_moe::backend::cpu::{Cpu, InstructionSet};
use fused_moe::{Device, Error, Result};

#[cfg(feature = "cuda")]
#[path = "../../cuda_vm/mod.rs"]
pub mod cuda_vm;

use super::log::is_slow;
use super::remote::Remote;

/// A device that may be there.
pub struct Candidate {
    /// Its name, in test names and in `FUSED_MOE_REQUIRE`.
    pub name: &'static str,
    /// The device, or why it is not there.
    pub open: fn() -> Result<Device>,
    /// Whether it keeps much more than a byte per byte, as the oracle does, which copies its inputs to f64: no place for
    /// tensors of 2^31 elements.
    pub widens: bool,
    /// Whether each test opens one for itself: it is interpreted, one launch at a time.
    pub own: bool,
    /// The ops, or tests of one, that it is asked for, if not all: the others run in another candidate's kernels.
    pub ops: Option<&'static [&'static str]>,
}

impl Candidate {
    const fn new(name: &'static str, open: fn() -> Result<Device>) -> Self {
        Self { name, open, widens: false, own: false, ops: None }
    }

    const fn small(name: &'static str, open: fn() -> Result<Device>) -> Self {
        Self { name, open, widens: true, own: false, ops: None }
    }
}

/// Every device that conformance is asked of.
pub const CANDIDATES: &[Candidate] = &[
    Candidate::new("cpu", || Device::by_name("cpu")),
    Candidate::new("cpu-amx", || cpu(InstructionSet::Amx)),
    Candidate::new("cpu-avx512bf16", || cpu(InstructionSet::Avx512Bf16)),
    Candidate::new("cpu-avx512", || cpu(InstructionSet::Avx512)),
    Candidate::new("cpu-avx2", || cpu(InstructionSet::Avx2)),
    Candidate::new("cpu-portable", || cpu(InstructionSet::Portable)),
    Candidate::new("cpu-3-threads", three_threads),
    Candidate::small("reference", || Ok(Device::reference())),
    Candidate::small("remote", || Ok(Device::new(Remote::default()))),
    Candidate::new("wgpu", || Device::by_name("wgpu")),
    Candidate {
        ops: Some(&["jitter", "router_logits", "route", "permute", "grouped_gemm", "combine"]),
        ..Candidate::small("wgpu-plain", plain_wgpu)
    },
    Candidate::new("cuda", || Device::by_name("cuda")),
    Candidate { own: true, ..Candidate::small("ptx-vm", ptx_vm) },
    Candidate {
        own: true,
        ops: Some(&["grouped_gemm", "layer::many_rows", "layer::batch_invariant_tiles"]),
        ..Candidate::small("ptx-vm-sm90", ptx_vm_sm90)
    },
];

/// What `FUSED_MOE_REQUIRE` may name besides devices: build.rs reads it.
const BUILD: &str = "cuda-build";

/// The CUDA backend on an emulated device.
#[cfg(feature = "cuda")]
fn ptx_vm() -> Result<Device> {
    cuda_vm::device()
}

/// The same of compute capability 9.0.
#[cfg(feature = "cuda")]
fn ptx_vm_sm90() -> Result<Device> {
    Ok(Device::new(fused_moe::backend::cuda::Cuda::new(cuda_vm::Vm::sm90())?))
}

#[cfg(not(feature = "cuda"))]
fn ptx_vm_sm90() -> Result<Device> {
    ptx_vm()
}

#[cfg(not(feature = "cuda"))]
fn ptx_vm() -> Result<Device> {
    Err(Error::Unavailable { backend: "cuda", reason: "not in this build".into() })
}

/// Without features that an adapter need not have, which is another set of kernels. On an adapter that is emulated on
/// the CPU, the tiles of GPUs are among them.
#[cfg(feature = "wgpu")]
fn plain_wgpu() -> Result<Device> {
    use fused_moe::backend::wgpu::{WgpuDevice, WgpuOptions};
    let options = WgpuOptions { features: wgpu::Features::empty(), ..WgpuOptions::default() };
    WgpuDevice::with_options(&options).map(Device::new)
}

#[cfg(not(feature = "wgpu"))]
fn plain_wgpu() -> Result<Device> {
    Device::by_name("wgpu")
}

fn cpu(set: InstructionSet) -> Result<Device> {
    Ok(Device::new(Cpu::builder().instruction_set(set).build()?))
}

/// More threads than some machines have: work is cut where the default would not cut it.
fn three_threads() -> Result<Device> {
    let threads = NonZeroUsize::new(3).expect("3 is not 0");
    Ok(Device::new(Cpu::builder().threads(threads).build()?))
}

/// The devices that `FUSED_MOE_REQUIRE=cpu,wgpu,...` says must be there.
///
/// # Errors
/// The names that no candidate has: a typo would require nothing.
pub fn required() -> Result<Vec<String>, String> {
    let list = std::env::var("FUSED_MOE_REQUIRE").unwrap_or_default();
    let names: Vec<String> =
        list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let known = |name: &String| name == BUILD || CANDIDATES.iter().any(|candidate| candidate.name == *name);
    match names.iter().find(|name| !known(name)) {
        Some(unknown) => Err(format!("FUSED_MOE_REQUIRE names {unknown:?}, which is no device under test")),
        None => Ok(names),
    }
}

/// A candidate, opened.
pub enum Found {
    /// It is there.
    Present(Device),
    /// It is not, and need not be: why.
    Skipped(String),
    /// It is not, and must be: why.
    Missing(String),
}

impl Candidate {
    /// Opens the device; an error that is not `Unavailable` is never a skip.
    pub fn find(&self, required: &[String]) -> Found {
        match (self.open)() {
            Ok(device) => Found::Present(device),
            Err(Error::Unavailable { reason, .. }) if !required.iter().any(|name| name == self.name) => {
                Found::Skipped(reason)
            }
            Err(error) => Found::Missing(error.to_string()),
        }
    }
}

/// The devices that are there, for tests that need no list of the others.
pub fn present() -> Vec<Device> {
    // Opened once: a GPU's pipelines are made per device.
    static PRESENT: LazyLock<Vec<Device>> =
        LazyLock::new(|| CANDIDATES.iter().filter_map(|candidate| (candidate.open)().ok()).collect());
    PRESENT.clone()
}

/// The same, of which slow ones are there for every third seed.
pub fn present_in_turn(seed: u64) -> impl Iterator<Item = Device> {
    present().into_iter().filter(move |device| seed.is_multiple_of(3) || !is_slow(device))
}
