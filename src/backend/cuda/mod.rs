//! The CUDA backend: kernels in CUDA C++ (`kernels/cuda`), compiled by nvcc when the crate is built.
//!
//! All launches of a device go to one stream, and nothing comes back to the host between the steps of a layer. Memory,
//! modules and launches go through [`driver::Driver`], so that tests run this very code on an emulated device.

mod arena;
mod combine;
mod decode;
mod device;
pub mod driver;
mod grouped_gemm;
mod images;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod interop;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod libcuda;
mod memory;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod nvidia;
mod params;
mod permute;
mod queue;
pub mod raw;
mod route;
mod route_capacity;
mod route_expert_choice;
mod route_figures;
mod route_permute;
mod route_sinkhorn;
mod router_logits;
mod tickets;
mod tile;
mod tuned;

use std::fmt;
use std::sync::{Arc, Mutex};

pub(crate) use device::best;
pub use memory::CudaBuffer;

use self::arena::Arena;
use self::driver::{Driver, StreamHandle};
use self::queue::{Queue, Scratch};
use self::tickets::Tickets;
use super::Backend;
use crate::error::{Error, Result};
use crate::ops::{
    CombineArgs, GroupedGemmArgs, GroupedGemmCombineArgs, PermuteArgs, RouteArgs, RoutePermuteArgs, RouterLogitsArgs,
};
use crate::tensor::{DType, DeviceBuffer, Shape, Storage, TensorView, TensorViewMut};

const NAME: &str = "cuda";

/// Puts a table of tiles in force for all devices of this process, as `FUSED_MOE_CUDA_TILES` does when it starts: for
/// programs that measure one after another. The text of each stays in memory.
///
/// # Errors
/// [`Error::InvalidArgument`] if the text is no table.
pub fn use_tiles(table: &str) -> Result<()> {
    tuned::replace(table)
}

/// A CUDA device and the stream that its work goes to. Clones are handles on the same device.
#[derive(Clone)]
pub struct Cuda {
    driver: Arc<dyn Driver>,
    stream: StreamHandle,
    scratch: Arc<Mutex<Scratch>>,
    tickets: Arc<Tickets>,
    /// Where memory comes from, if not from the driver.
    arena: Option<Arc<Mutex<Arena>>>,
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({:?}, {:?})", self.driver, self.stream)
    }
}

impl Cuda {
    /// A device of any driver: the way in for tests, which bring one that executes kernels on the CPU.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if this build has no kernels, or the device is older than they are.
    pub fn new(driver: Arc<dyn Driver>) -> Result<Self> {
        if let Some(reason) = images::ABSENT {
            return Err(unavailable(reason));
        }
        check_capability(&*driver)?;
        tuned::check()?;
        let stream = driver.stream();
        let tickets = Arc::new(Tickets::new(&driver, stream)?);
        Ok(Self { driver, stream, scratch: Arc::new(Mutex::new(Scratch::Owned(None))), tickets, arena: None })
    }

    /// The stream that the work of this device goes to.
    pub fn stream(&self) -> StreamHandle {
        self.stream
    }

    /// Major and minor.
    pub fn compute_capability(&self) -> (u32, u32) {
        self.driver.compute_capability()
    }

    /// Rows and columns of the tiles that `FUSED_MOE_CUDA_TILES` may name for this device: what there is to tune.
    pub fn tiles(&self) -> Vec<(u32, u32)> {
        tile::tiles(self.compute_capability())
    }

    fn queue(&self) -> Queue<'_> {
        Queue::new(&self.driver, self.stream, &self.tickets, &self.scratch)
    }
}

/// The kernels' architectures begin with sm_80.
fn check_capability(driver: &dyn Driver) -> Result<()> {
    match driver.compute_capability() {
        (8.., _) => Ok(()),
        (major, minor) => {
            let name = driver.device_name();
            Err(unavailable(format!("{name} is sm_{major}{minor}, kernels are for sm_80 and newer")))
        }
    }
}

fn unavailable(reason: impl Into<String>) -> Error {
    Error::Unavailable { backend: NAME, reason: reason.into() }
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        NAME
    }

    fn device_name(&self) -> String {
        let (major, minor) = self.driver.compute_capability();
        format!("{}, sm_{major}{minor}", self.driver.device_name())
    }

    fn is_emulated(&self) -> bool {
        self.driver.is_emulated()
    }

    fn is_host(&self) -> bool {
        false
    }

    fn owns(&self, buffer: &dyn DeviceBuffer) -> bool {
        buffer.as_any().downcast_ref::<CudaBuffer>().is_some_and(|buffer| buffer.is_of(&self.driver))
    }

    fn alloc(&self, _: DType, _: Shape, bytes: usize) -> Result<Storage> {
        if let Some(arena) = &self.arena {
            return Ok(Storage::Device(Box::new(self.carve(arena, bytes)?)));
        }
        let buffer = CudaBuffer::alloc(&self.driver, bytes)?;
        if bytes > 0 {
            // SAFETY: the memory is new, and this big.
            unsafe { self.driver.zero(buffer.address(), bytes, self.stream) }?;
        }
        Ok(Storage::Device(Box::new(buffer)))
    }

    fn write(&self, mut target: TensorViewMut<'_>, source: &[u8]) -> Result<()> {
        let address = memory::address_mut(&mut target)?;
        let expected = target.shape().numel() * target.dtype().size();
        if source.len() != expected {
            return Err(Error::invalid("source", format!("{expected} bytes"), source.len()));
        }
        if source.is_empty() {
            return Ok(());
        }
        // SAFETY: the tensor's memory, lent to be written; `address_mut` checked that it ends in its buffer.
        unsafe { self.driver.copy_to_device(address, source, self.stream) }
    }

    fn read(&self, source: TensorView<'_>, target: &mut [u8]) -> Result<()> {
        let address = memory::address(source)?;
        let expected = source.shape().numel() * source.dtype().size();
        if target.len() != expected {
            return Err(Error::invalid("target", format!("{expected} bytes"), target.len()));
        }
        if target.is_empty() {
            return Ok(());
        }
        // SAFETY: the tensor's memory, zeroed when it was made; `address` checked that it ends in its buffer.
        unsafe { self.driver.copy_to_host(address, target, self.stream) }
    }

    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize(self.stream)
    }

    /// f32: activations rounded to the weights' type alone can miss the bound on the error at a few tokens, and leave the
    /// range of f16. Tensor cores take them as tf32.
    fn intermediate_dtype(&self, _: DType) -> DType {
        DType::F32
    }

    /// bf16 where wgmma multiplies them, whose operands are of one type; f32 where few rows are bound by the weights.
    fn intermediate_dtype_of(&self, weight: DType, rows: usize, batch_invariant: bool) -> DType {
        let many = batch_invariant || rows > tile::DECODE_ROWS as usize;
        if weight == DType::BF16 && many && tile::has_wgmma(&*self.driver) { DType::BF16 } else { DType::F32 }
    }

    fn router_logits(&self, args: RouterLogitsArgs<'_>) -> Result<()> {
        router_logits::router_logits(&mut self.queue(), args)
    }

    fn route(&self, args: RouteArgs<'_>) -> Result<()> {
        route::route(&mut self.queue(), args)
    }

    fn permute(&self, args: PermuteArgs<'_>) -> Result<()> {
        permute::permute(&mut self.queue(), args)
    }

    fn route_permute(&self, mut args: RoutePermuteArgs<'_>) -> Result<()> {
        if route_permute::route_permute(&mut self.queue(), &mut args)? {
            return Ok(());
        }
        args.in_steps(|route| self.route(route), |permute| self.permute(permute))
    }

    fn grouped_gemm(&self, args: GroupedGemmArgs<'_>) -> Result<()> {
        grouped_gemm::grouped_gemm(&mut self.queue(), args)
    }

    fn combine(&self, args: CombineArgs<'_>) -> Result<()> {
        combine::combine(&mut self.queue(), args)
    }

    fn grouped_gemm_combine(&self, mut args: GroupedGemmCombineArgs<'_>) -> Result<()> {
        if decode::gemm_combine(&mut self.queue(), &mut args)? {
            return Ok(());
        }
        args.in_steps(|gemm| self.grouped_gemm(gemm), |sum| self.combine(sum))
    }
}
