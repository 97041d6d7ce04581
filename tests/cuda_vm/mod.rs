//! The CUDA backend on a device without hardware: [`Vm`] gives the kernels' PTX to `ptx-vm`, which executes it on the
//! CPU and faults on races, uninitialised values and accesses out of bounds.

#![allow(dead_code, reason = "each test target that includes this uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use fused_moe::backend::cuda::Cuda;
use fused_moe::backend::cuda::driver::{Driver, Kernel, LaunchConfig, StreamHandle, TiledTensor};
use fused_moe::{DType, Device, Error, Result};
use ptx_vm::{Arg, Config, Gpu, Launch, Module, OobFill, Swizzle, TensorMap, TensorType};

include!(concat!(env!("OUT_DIR"), "/cuda/ptx.rs"));

/// Every file of kernels, by file and architecture.
static MODULES: LazyLock<BTreeMap<(&str, &str), Module>> = LazyLock::new(|| {
    let parse = |&(file, arch, text): &(&'static str, &'static str, &'static str)| {
        let module = Module::parse(text, &format!("{file}.ptx")).unwrap_or_else(|error| panic!("{error}"));
        ((file, arch), module)
    };
    PTX.iter().map(parse).collect()
});

/// A GPU that is not there.
pub struct Vm {
    arch: &'static str,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    gpu: Gpu,
    /// Files whose text a test has changed.
    changed: BTreeMap<String, Arc<Module>>,
    calls: Calls,
}

/// What a driver was asked to do.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    pub allocations: usize,
    pub frees: usize,
    pub synchronisations: usize,
    pub copies: usize,
    /// Every stream that work went to.
    pub streams: BTreeSet<usize>,
    pub launches: Vec<Recorded>,
    /// Thread-instructions that were executed.
    pub thread_instructions: u64,
}

/// Work on a stream, as a CUDA graph would hold it.
#[derive(Clone, Debug, PartialEq)]
pub enum Recorded {
    Launch { kernel: Kernel, config: LaunchConfig, params: Vec<u8> },
    Zero { address: u64, bytes: usize },
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ptx-vm sm_{}", self.arch)
    }
}

impl Vm {
    /// A device of compute capability 8.0.
    pub fn sm80() -> Arc<Self> {
        Self::with("80", Config::with_seed(seed()))
    }

    /// A device of compute capability 9.0.
    pub fn sm90() -> Arc<Self> {
        Self::with("90a", Config::with_seed(seed()))
    }

    pub fn with(arch: &'static str, config: Config) -> Arc<Self> {
        Arc::new(Self { arch, state: Mutex::new(State { gpu: Gpu::new(config), ..State::default() }) })
    }

    /// The same with other PTX for one file; kernels that it lacks stay as they were.
    pub fn changed(config: Config, file: &str, module: Arc<Module>) -> Arc<Self> {
        let vm = Self::with(if file.ends_with("_sm90") { "90a" } else { "80" }, config);
        vm.state().changed.insert(file.to_owned(), module);
        vm
    }

    /// What was asked since the last time.
    pub fn take_calls(&self) -> Calls {
        std::mem::take(&mut self.state().calls)
    }

    /// Does recorded work again: what replaying a graph does.
    pub fn replay(&self, work: &[Recorded]) -> Result<()> {
        let mut state = self.state();
        work.iter().try_for_each(|item| state.execute(self.arch, item))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of `FUSED_MOE_PTX_VM_SEED`, to look at one schedule again.
fn seed() -> u64 {
    std::env::var("FUSED_MOE_PTX_VM_SEED").map_or(1, |seed| seed.parse().expect("a number"))
}

impl State {
    fn execute(&mut self, arch: &str, work: &Recorded) -> Result<()> {
        let (kernel, config, params) = match work {
            Recorded::Zero { address, bytes } => {
                return self.gpu.copy_to(*address, &vec![0; *bytes]).map_err(failed);
            }
            Recorded::Launch { kernel, config, params } => (kernel, config, params),
        };
        let has = |module: &&Module| module.kernels().any(|name| name == kernel.name);
        let changed = self.changed.get(kernel.file).map(|module| &**module).filter(has);
        let module =
            changed.or_else(|| MODULES.get(&(kernel.file, arch))).or_else(|| MODULES.get(&(kernel.file, "80")));
        let module = module.ok_or_else(|| unsupported(format!("{kernel}: no such file")))?;
        let launch = Launch { shared_bytes: config.shared_bytes, ..Launch::new(config.grid, config.block) };
        let launch = launch.cluster(config.cluster);
        let counters =
            self.gpu.launch(module, kernel.name, launch, &[Arg::bytes(params)]).map_err(|error| Error::Device {
                backend: "cuda",
                message: format!("{kernel}, grid {:?}, block {:?}: {error}", config.grid, config.block),
            })?;
        self.calls.thread_instructions += counters.instructions;
        Ok(())
    }
}

fn failed(error: ptx_vm::Error) -> Error {
    Error::Device { backend: "cuda", message: error.to_string() }
}

fn unsupported(what: String) -> Error {
    Error::Unsupported { backend: "cuda", what }
}

// SAFETY: device memory is ptx-vm's own; host memory is reached through the slices only, and before calls return.
unsafe impl Driver for Vm {
    fn device_name(&self) -> String {
        "ptx-vm".into()
    }

    fn compute_capability(&self) -> (u32, u32) {
        if self.arch == "80" { (8, 0) } else { (9, 0) }
    }

    /// Few, so that persistent kernels take several tiles per block.
    fn num_sms(&self) -> u32 {
        3
    }

    fn is_emulated(&self) -> bool {
        true
    }

    fn tensor_map(&self, tensor: &TiledTensor) -> Result<[u64; 16]> {
        let TiledTensor { dtype, address, dims, strides, boxes } = tensor;
        let ty = if *dtype == DType::F16 { TensorType::F16 } else { TensorType::BF16 };
        let (swizzle, fill) = (Swizzle::B128, OobFill::Zeros);
        let map = TensorMap::tiled(ty, *address, dims, strides, boxes, &[1; 4], swizzle, fill).map_err(failed)?;
        let mut words =
            map.encode().chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect::<Vec<_>>();
        words.resize(16, 0);
        Ok(words.try_into().expect("16 words"))
    }

    fn stream(&self) -> StreamHandle {
        StreamHandle(0x5000)
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        if bytes > 1 << 32 {
            return Err(Error::Device { backend: "cuda", message: format!("no room for {bytes} bytes on ptx-vm") });
        }
        let mut state = self.state();
        state.calls.allocations += 1;
        Ok(state.gpu.alloc(bytes))
    }

    unsafe fn free(&self, address: u64) {
        let mut state = self.state();
        state.calls.frees += 1;
        state.gpu.free(address).expect("an address of alloc");
    }

    unsafe fn zero(&self, address: u64, bytes: usize, stream: StreamHandle) -> Result<()> {
        let mut state = self.state();
        state.calls.streams.insert(stream.0);
        let work = Recorded::Zero { address, bytes };
        state.execute(self.arch, &work)?;
        state.calls.launches.push(work);
        Ok(())
    }

    unsafe fn copy_to_device(&self, address: u64, source: &[u8], _: StreamHandle) -> Result<()> {
        let mut state = self.state();
        state.calls.copies += 1;
        state.gpu.copy_to(address, source).map_err(failed)
    }

    unsafe fn copy_to_host(&self, address: u64, target: &mut [u8], _: StreamHandle) -> Result<()> {
        let mut state = self.state();
        state.calls.copies += 1;
        target.copy_from_slice(&state.gpu.copy_from(address, target.len()).map_err(failed)?);
        Ok(())
    }

    unsafe fn launch(&self, kernel: Kernel, config: LaunchConfig, params: &[u8], stream: StreamHandle) -> Result<()> {
        let mut state = self.state();
        state.calls.streams.insert(stream.0);
        let work = Recorded::Launch { kernel, config, params: params.to_vec() };
        state.execute(self.arch, &work)?;
        state.calls.launches.push(work);
        Ok(())
    }

    fn synchronize(&self, _: StreamHandle) -> Result<()> {
        self.state().calls.synchronisations += 1;
        Ok(())
    }
}

/// A GPU that is too old.
#[derive(Debug)]
pub struct Old;

fn too_old<T>() -> Result<T> {
    Err(unsupported("anything on sm_75".into()))
}

// SAFETY: it does nothing.
unsafe impl Driver for Old {
    fn device_name(&self) -> String {
        "an old GPU".into()
    }

    fn compute_capability(&self) -> (u32, u32) {
        (7, 5)
    }

    fn num_sms(&self) -> u32 {
        1
    }

    fn tensor_map(&self, _: &TiledTensor) -> Result<[u64; 16]> {
        too_old()
    }

    fn stream(&self) -> StreamHandle {
        StreamHandle::PER_THREAD
    }

    fn alloc(&self, _: usize) -> Result<u64> {
        too_old()
    }

    unsafe fn free(&self, _: u64) {}

    unsafe fn zero(&self, _: u64, _: usize, _: StreamHandle) -> Result<()> {
        too_old()
    }

    unsafe fn copy_to_device(&self, _: u64, _: &[u8], _: StreamHandle) -> Result<()> {
        too_old()
    }

    unsafe fn copy_to_host(&self, _: u64, _: &mut [u8], _: StreamHandle) -> Result<()> {
        too_old()
    }

    unsafe fn launch(&self, _: Kernel, _: LaunchConfig, _: &[u8], _: StreamHandle) -> Result<()> {
        too_old()
    }

    fn synchronize(&self, _: StreamHandle) -> Result<()> {
        too_old()
    }
}

/// The CUDA backend on an emulated device.
///
/// # Errors
/// `Unavailable` if the build has no kernels.
pub fn device() -> Result<Device> {
    Ok(Device::new(Cuda::new(Vm::sm80())?))
}
