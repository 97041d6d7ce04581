//! The backends, and [`Device`], the handle through which everything reaches one.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ops::{
    CombineArgs, GroupedGemmArgs, GroupedGemmCombineArgs, JitterArgs, PermuteArgs, RouteArgs, RoutePermuteArgs,
    RouterLogitsArgs,
};
use crate::tensor::{DType, DeviceBuffer, HostBytes, Shape, Storage, TensorView, TensorViewMut};

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod host;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod kernel_args;
mod pages;
mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub(crate) use pages::prefer_huge;

/// What a backend has to do. One value is one device.
///
/// The ops come with arguments that [`crate::ops`] has validated: shapes and types fit, memory is this device's.
/// An op may return before its work is done; work is done in the order of the calls, and `read` waits for it.
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// `cpu`, `wgpu`, `cuda`, `reference`.
    fn name(&self) -> &'static str;

    /// The device in its own words, with what was chosen for it.
    fn device_name(&self) -> String;

    /// Whether the device is emulated on the CPU, so that the CPU backend is the better choice.
    fn is_emulated(&self) -> bool {
        false
    }

    /// Whether tensors lie in host memory.
    fn is_host(&self) -> bool;

    /// Whether `buffer` is memory of this device.
    fn owns(&self, buffer: &dyn DeviceBuffer) -> bool;

    /// Refuses what cannot be allocated, before the first of several tensors is: a layer's weights, a workspace. Where the
    /// device does not say how much memory it has, the driver's word comes with the allocation.
    fn check_sizes(&self, tensors: &[(DType, Shape)]) -> Result<()> {
        tensors.iter().try_for_each(|(dtype, shape)| shape.byte_len(*dtype).map(drop))
    }

    /// Zeroed memory of `bytes` bytes for a tensor; the shape lets a backend split a stack of experts.
    fn alloc(&self, dtype: DType, shape: Shape, bytes: usize) -> Result<Storage>;

    /// Copies host bytes into a tensor.
    fn write(&self, target: TensorViewMut<'_>, source: &[u8]) -> Result<()>;

    /// Copies a tensor to the host; waits for the work that makes it.
    fn read(&self, source: TensorView<'_>, target: &mut [u8]) -> Result<()>;

    /// Waits for all work given to this device.
    fn synchronize(&self) -> Result<()>;

    /// The type in which expert activations and outputs are kept between steps, for weights of `weight`.
    fn intermediate_dtype(&self, weight: DType) -> DType {
        let _ = weight;
        DType::F32
    }

    /// The type that a call over `rows` rows keeps them in, in the memory of [`Backend::intermediate_dtype`]: that type,
    /// or a narrower one. It is the same for all numbers of rows where results may not depend on them.
    fn intermediate_dtype_of(&self, weight: DType, rows: usize, batch_invariant: bool) -> DType {
        let _ = (rows, batch_invariant);
        self.intermediate_dtype(weight)
    }

    /// [`crate::ops::jitter`]. For training-time noise, and so by way of the host unless a backend does better.
    fn jitter(&self, args: JitterArgs<'_>) -> Result<()> {
        let JitterArgs { hidden_states, seed, epsilon, mut output } = args;
        let (shape, dtype) = (hidden_states.shape(), hidden_states.dtype());
        let len = shape.numel() * dtype.size();
        // Words, to be aligned for every type.
        let mut words = vec![0u32; len.div_ceil(4)];
        let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..len];
        self.read(hidden_states, bytes)?;
        let mut jittered = vec![0.0f32; shape.numel()];
        let target = TensorViewMut::from_slice(&mut jittered, shape)?;
        let source = TensorView::from_bytes(bytes, dtype, shape)?;
        cpu::jitter(JitterArgs { hidden_states: source, seed, epsilon, output: target })?;
        self.write(output.reborrow(), bytemuck::cast_slice(&jittered))
    }

    /// [`crate::ops::router_logits`].
    fn router_logits(&self, args: RouterLogitsArgs<'_>) -> Result<()>;

    /// [`crate::ops::route`].
    fn route(&self, args: RouteArgs<'_>) -> Result<()>;

    /// [`crate::ops::permute`].
    fn permute(&self, args: PermuteArgs<'_>) -> Result<()>;

    /// [`crate::ops::route_permute`].
    fn route_permute(&self, args: RoutePermuteArgs<'_>) -> Result<()> {
        args.in_steps(|route| self.route(route), |permute| self.permute(permute))
    }

    /// [`crate::ops::grouped_gemm`].
    fn grouped_gemm(&self, args: GroupedGemmArgs<'_>) -> Result<()>;

    /// [`crate::ops::combine`].
    fn combine(&self, args: CombineArgs<'_>) -> Result<()>;

    /// [`crate::ops::grouped_gemm_combine`].
    fn grouped_gemm_combine(&self, args: GroupedGemmCombineArgs<'_>) -> Result<()> {
        args.in_steps(|gemm| self.grouped_gemm(gemm), |sum| self.combine(sum))
    }
}

/// A handle on one device of one backend; cheap to clone.
#[derive(Clone)]
pub struct Device(Arc<dyn Backend>);

/// A device found by [`Device::discover`], and why better ones were passed over.
#[derive(Debug)]
pub struct Discovery {
    /// The best device that is there.
    pub device: Device,
    /// One [`Error::Unavailable`] for each backend that was tried before it.
    pub skipped: Vec<Error>,
}

impl Device {
    /// The CPU backend with its defaults: best instruction set, rayon's current pool.
    pub fn cpu() -> Self {
        Self::new(cpu::Cpu::new())
    }

    /// The oracle: slow, scalar, f64. For tests and for finding out who is wrong.
    pub fn reference() -> Self {
        Self::new(reference::Reference)
    }

    /// A device of any backend, one from outside this crate included.
    pub fn new(backend: impl Backend) -> Self {
        Self(Arc::new(backend))
    }

    /// The best device of this machine.
    pub fn auto() -> Self {
        Self::discover().device
    }

    /// Every backend that computes for users, best first, each with its device or the reason why it has none.
    pub fn all() -> Vec<Result<Self>> {
        ["cuda", "wgpu", "cpu"].into_iter().map(Self::by_name).collect()
    }

    /// The best device of this machine, and why better ones were passed over.
    pub fn discover() -> Discovery {
        let mut skipped = Vec::new();
        for found in Self::all() {
            match found {
                Ok(device) if device.backend().is_emulated() => {
                    let reason = format!("{device} is emulated on the CPU");
                    skipped.push(Error::Unavailable { backend: device.name(), reason });
                }
                Ok(device) => return Discovery { device, skipped },
                Err(reason) => skipped.push(reason),
            }
        }
        Discovery { device: Self::cpu(), skipped }
    }

    /// A device by the name of its backend: `auto`, `cpu`, `wgpu`, `cuda` or `reference`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for a backend that this build does not have, [`Error::InvalidArgument`] for no backend.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::auto()),
            "cpu" => Ok(Self::new(cpu::Cpu::builder().build()?)),
            "reference" => Ok(Self::reference()),
            "wgpu" => wgpu_device(),
            "cuda" => cuda_device(),
            other => Err(Error::invalid("backend", "auto, reference, cpu, wgpu or cuda", other)),
        }
    }

    /// The backend behind the handle.
    pub fn backend(&self) -> &dyn Backend {
        &*self.0
    }

    /// The backend's name.
    pub fn name(&self) -> &'static str {
        self.0.name()
    }

    /// Waits for all work given to this device.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0.name(), self.0.device_name())
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({self})")
    }
}

#[cfg(feature = "wgpu")]
fn wgpu_device() -> Result<Device> {
    wgpu::WgpuDevice::open().map(Device::new)
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_device() -> Result<Device> {
    Err(Error::Unavailable { backend: "wgpu", reason: "not in this build".into() })
}

#[cfg(feature = "cuda")]
fn cuda_device() -> Result<Device> {
    cuda::best()
}

#[cfg(not(feature = "cuda"))]
fn cuda_device() -> Result<Device> {
    Err(Error::Unavailable { backend: "cuda", reason: "not in this build".into() })
}

/// Memory for the backends that compute in host memory.
fn host_alloc(backend: &'static str, bytes: usize) -> Result<Storage> {
    HostBytes::zeroed(bytes)
        .map(Storage::Host)
        .ok_or_else(|| Error::Device { backend, message: format!("out of memory: {bytes} bytes") })
}
