//! The device: finding an adapter, and turning wgpu's ways to fail into errors.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::kernel::{Kernel, Pipelines};
use super::queue::{PARAMS_BYTES, Pending};
use crate::error::{Error, Result};

pub(super) const NAME: &str = "wgpu";

/// How a device is opened.
#[derive(Clone, Debug)]
pub struct WgpuOptions {
    /// Takes the first adapter whose name contains this, in any case; `None`: the best there is.
    pub adapter: Option<String>,
    /// Limits to ask for; `None`: all that the adapter has.
    pub limits: Option<wgpu::Limits>,
    /// Optional features that may be used where the adapter has them. `EXPERIMENTAL_COOPERATIVE_MATRIX` has to be
    /// added to run f16 weights on matrix units: wgpu calls it experimental, and so it is. `TIMESTAMP_QUERY` may be, for a
    /// caller that measures.
    pub features: wgpu::Features,
    /// How long a read or [`Device::synchronize`](crate::Device::synchronize) waits before it gives up.
    pub timeout: Duration,
}

impl Default for WgpuOptions {
    fn default() -> Self {
        Self { adapter: None, limits: None, features: OPTIONAL_FEATURES, timeout: Duration::from_secs(120) }
    }
}

/// Features that kernels use where they are there.
const OPTIONAL_FEATURES: wgpu::Features = wgpu::Features::SUBGROUP.union(wgpu::Features::PIPELINE_CACHE);

/// Features that only a caller may have a use for.
const FOR_CALLERS: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY;

/// What the kernel for matrix units needs.
const MATRIX_FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16).union(wgpu::Features::SUBGROUP);

/// A device of the wgpu backend: a `wgpu::Device`, its queue, and the launches that wait to be submitted.
///
/// Launches are recorded, and submitted as one command buffer by [`WgpuDevice::flush`], a read, or a
/// [`synchronize`](crate::Device::synchronize). Clones are handles on the same device.
#[derive(Clone, Debug)]
pub struct WgpuDevice {
    /// The same in all clones, and in the buffers of this device: wgpu's own ids repeat from instance to instance.
    pub(super) identity: Arc<()>,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) info: wgpu::AdapterInfo,
    pub(super) limits: wgpu::Limits,
    /// Whether it multiplies 16×16 matrices of f16 into f32, and may be asked to.
    pub(super) matrix_units: bool,
    pub(super) pipelines: Arc<Pipelines>,
    pub(super) scratch: Arc<Mutex<[Option<wgpu::Buffer>; Scratch::COUNT]>>,
    /// Bound where a kernel has a binding that a call does not use.
    pub(super) unused: wgpu::Buffer,
    pub(super) params: wgpu::Buffer,
    pub(super) pending: Arc<Mutex<Pending>>,
    pub(super) timeout: Duration,
    lost: Arc<Mutex<Option<String>>>,
}

impl WgpuDevice {
    /// The best adapter of this machine, with all it has.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no adapter, or its driver refuses.
    pub fn open() -> Result<Self> {
        Self::with_options(&WgpuOptions::default())
    }

    /// As [`WgpuDevice::open`], as `options` say.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no such adapter, or it does not have what is asked for.
    pub fn with_options(options: &WgpuOptions) -> Result<Self> {
        let adapter = find_adapter(options.adapter.as_deref())?;
        let limits = options.limits.clone().unwrap_or_else(|| adapter.limits());
        if !limits.check_limits(&adapter.limits()) {
            let (asked, has) = (format!("{limits:?}"), format!("{:?}", adapter.limits()));
            return Err(unavailable(format!("{}: asked for {asked}, has {has}", adapter.get_info().name)));
        }
        let matrix_units =
            options.features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) && has_matrix_units(&adapter);
        let matrix_features = if matrix_units { MATRIX_FEATURES } else { wgpu::Features::empty() };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("fused-moe"),
            required_features: adapter.features() & options.features & (OPTIONAL_FEATURES | FOR_CALLERS)
                | matrix_features,
            required_limits: limits,
            experimental_features: if matrix_units {
                // SAFETY: the caller asked for the experimental feature by name, and what it is used for is the one
                // kernel that naga validated for it.
                unsafe { wgpu::ExperimentalFeatures::enabled() }
            } else {
                wgpu::ExperimentalFeatures::disabled()
            },
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| unavailable(format!("{}: {error}", adapter.get_info().name)))?;
        let lost = Arc::new(Mutex::new(None));
        let reason = Arc::clone(&lost);
        device.set_device_lost_callback(move |why, message| {
            *lock(&reason) = Some(format!("device lost ({why:?}): {message}"));
        });
        Ok(Self { matrix_units, ..Self::new(device, queue, options.timeout, lost)? })
    }

    /// A device that an engine has already opened, to share its memory and queue.
    ///
    /// The engine calls [`WgpuDevice::flush`] before it submits work that reads what was computed here. Its own error
    /// and device-lost handlers stay as they are.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is not usable.
    pub fn from_parts(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        Self::new(device, queue, WgpuOptions::default().timeout, Arc::default())
    }

    fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        timeout: Duration,
        lost: Arc<Mutex<Option<String>>>,
    ) -> Result<Self> {
        let ((params, unused), pipelines) = scoped(&device, || {
            let usage = wgpu::BufferUsages::COPY_DST;
            let params = make_buffer(&device, PARAMS_BYTES, usage | wgpu::BufferUsages::UNIFORM);
            let unused = make_buffer(&device, 256, usage | wgpu::BufferUsages::STORAGE);
            ((params, unused), Pipelines::new(&device))
        })?;
        Ok(Self {
            identity: Arc::default(),
            info: device.adapter_info(),
            limits: device.limits(),
            pipelines: Arc::new(pipelines),
            scratch: Arc::default(),
            unused,
            params,
            pending: Arc::default(),
            timeout,
            lost,
            matrix_units: false,
            device,
            queue,
        })
    }

    /// The adapter behind the device.
    pub fn adapter_info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    /// The limits that it was opened with.
    pub fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }

    /// The device itself, for an engine that shares it.
    pub fn wgpu_device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The queue that work is submitted to.
    pub fn wgpu_queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// How many command buffers of launches were submitted so far.
    pub fn num_submissions(&self) -> usize {
        lock(&self.pending).submissions
    }

    /// How many pipelines were made so far: each kernel's variants, once.
    pub fn num_pipelines(&self) -> usize {
        self.pipelines.len()
    }

    /// The kernel for this adapter, of two that do the same.
    pub(super) fn with_subgroups(&self, plain: &'static Kernel, subgroup: &'static Kernel) -> &'static Kernel {
        let there = self.device.features().contains(wgpu::Features::SUBGROUP);
        // The kernels want subgroups to be full, and have 64 lanes.
        if there && (1..=64).contains(&self.info.subgroup_max_size) { subgroup } else { plain }
    }

    /// Lanes of every subgroup, at least 8, where the adapter is emulated on the CPU: there kernels of one subgroup a
    /// workgroup are the fast ones.
    pub(super) fn emulated_subgroup(&self) -> Option<u32> {
        let (least, most) = (self.info.subgroup_min_size, self.info.subgroup_max_size);
        let there = self.device.features().contains(wgpu::Features::SUBGROUP) && (8..=128).contains(&least);
        (self.info.device_type == wgpu::DeviceType::Cpu && there && least == most).then_some(least)
    }

    /// Memory of at least `bytes` that kernels use between the launches of one op, which are recorded together.
    pub(super) fn scratch(&self, what: Scratch, bytes: u64) -> Result<wgpu::Buffer> {
        let size = bytes.next_power_of_two().max(1 << 16).min(self.max_binding());
        if size < bytes {
            return Err(Error::invalid("shape", format!("scratch of at most {} bytes", self.max_binding()), bytes));
        }
        let scratch = &mut lock(&self.scratch)[what as usize];
        match &*scratch {
            Some(buffer) if buffer.size() >= bytes => Ok(buffer.clone()),
            _ => {
                let usage = wgpu::BufferUsages::STORAGE;
                let buffer = self.scoped(|| make_buffer(&self.device, size, usage))?;
                Ok(scratch.insert(buffer).clone())
            }
        }
    }

    /// Memory that holds `words`; new, so that no launch that waits reads it.
    pub(super) fn upload(&self, words: &[u32]) -> Result<wgpu::Buffer> {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        if bytes.len() as u64 > self.max_binding() {
            return Err(Error::invalid("shape", format!("at most {} bytes a table", self.max_binding()), bytes.len()));
        }
        self.scoped(|| {
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
            let buffer = make_buffer(&self.device, (bytes.len() as u64).max(4), usage);
            self.queue.write_buffer(&buffer, 0, bytes);
            buffer
        })
    }

    /// The most bytes that one binding may have, and so a tensor that is no stack of experts.
    pub(super) fn max_binding(&self) -> u64 {
        let limit = self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size);
        // Kernels count a binding's elements in u32.
        limit.min(u64::from(u32::MAX)) / super::buffer::BLOCK * super::buffer::BLOCK
    }

    /// Runs `work` so that whatever goes wrong in wgpu comes back as an error.
    pub(super) fn scoped<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        if let Some(message) = lock(&self.lost).clone() {
            return Err(device_error(message));
        }
        scoped(&self.device, work)
    }

    /// Why the device failed: the driver's word if it is lost, else `message`.
    pub(super) fn failure(&self, message: String) -> Error {
        device_error(lock(&self.lost).clone().unwrap_or(message))
    }
}

/// What kernels pass on to each other within an op. Each has a buffer of its own, for wgpu does not let one buffer be read
/// and written by the same launch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scratch {
    BlockRows,
    PreparedLogits,
    HashedIds,
    RowFactors,
    ExpertCost,
    ExpertFactors,
    PickedIds,
    KeptIds,
    ScoreKeys,
    ChoiceKeys,
    Queue,
    Thresholds,
    Probabilities,
    SlotRows,
    SlotWeights,
    Load,
}

impl Scratch {
    const COUNT: usize = Self::Load as usize + 1;
}

/// Every error scope around `work`: no error reaches wgpu's default handler, which panics.
fn scoped<T>(device: &wgpu::Device, work: impl FnOnce() -> T) -> Result<T> {
    use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
    let scopes = [Internal, OutOfMemory, Validation].map(|filter| device.push_error_scope(filter));
    let value = work();
    let errors: Vec<_> = scopes.into_iter().rev().filter_map(|scope| pollster::block_on(scope.pop())).collect();
    match errors.into_iter().next() {
        None => Ok(value),
        Some(error) => {
            // Lets the device say that it is lost, where that is why.
            let _ = device.poll(wgpu::PollType::Poll);
            Err(device_error(with_sources(&error)))
        }
    }
}

/// An error and what caused it, in the driver's words.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !message.contains(&words) {
            message = format!("{message}: {words}");
        }
        source = cause.source();
    }
    message
}

pub(super) fn device_error(message: String) -> Error {
    Error::Device { backend: NAME, message }
}

fn unavailable(reason: String) -> Error {
    Error::Unavailable { backend: NAME, reason }
}

/// A mutex whose holder panicked is still good: what it guards is changed in single steps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub(super) fn make_buffer(device: &wgpu::Device, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor { label: Some("fused-moe"), size, usage, mapped_at_creation: false })
}

/// The best adapter, or the one of a name.
fn find_adapter(name: Option<&str>) -> Result<wgpu::Adapter> {
    let backends = wgpu::Backends::PRIMARY;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        flags: wgpu::InstanceFlags::empty().with_env(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut adapters = pollster::block_on(instance.enumerate_adapters(backends));
    adapters.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    let names: Vec<_> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
    let Some(name) = name else {
        return adapters.into_iter().next().ok_or_else(|| unavailable("no Vulkan, Metal or DX12 adapter".into()));
    };
    let is_it = |adapter: &wgpu::Adapter| adapter.get_info().name.to_lowercase().contains(&name.to_lowercase());
    adapters
        .into_iter()
        .find(is_it)
        .ok_or_else(|| unavailable(format!("no adapter {name:?}; there are: {}", names.join(", "))))
}

/// The matrix units that `grouped_gemm_coop.wgsl` is written for.
fn has_matrix_units(adapter: &wgpu::Adapter) -> bool {
    use wgpu::CooperativeScalarType::{F16, F32};
    let info = adapter.get_info();
    adapter.features().contains(MATRIX_FEATURES)
        && (info.subgroup_min_size, info.subgroup_max_size) == (32, 32)
        && adapter
            .cooperative_matrix_properties()
            .iter()
            .any(|p| (p.m_size, p.n_size, p.k_size) == (16, 16, 16) && (p.ab_type, p.cr_type) == (F16, F32))
}

fn rank(device_type: wgpu::DeviceType) -> u32 {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}
