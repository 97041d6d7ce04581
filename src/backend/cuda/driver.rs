//! What the backend asks of a CUDA driver: memory, modules, launches. Nothing else of CUDA is used.
//!
//! The crate's own implementation is NVIDIA's driver by way of cust; the tests' is `ptx-vm`, which executes the kernels'
//! PTX on the CPU. Both run the same host code: grids, parameter structs and workspaces are under test too.

use std::fmt;

use crate::error::Result;
use crate::tensor::DType;

/// A kernel: the file it is in (`kernels/cuda/<file>.cu`) and its name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The stem of the file.
    pub file: &'static str,
    /// The `extern "C"` name.
    pub name: &'static str,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.cu: {}", self.file, self.name)
    }
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster; all 1: none.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl LaunchConfig {
    /// A grid and blocks of one dimension.
    pub const fn linear(blocks: u32, threads: u32) -> Self {
        Self::new([blocks, 1, 1], threads)
    }

    /// A grid of up to three dimensions.
    pub const fn new(grid: [u32; 3], threads: u32) -> Self {
        Self { grid, block: [threads, 1, 1], cluster: [1; 3], shared_bytes: 0 }
    }

    /// With dynamic shared memory.
    pub const fn shared(self, shared_bytes: u32) -> Self {
        Self { shared_bytes, ..self }
    }
}

/// A `CUstream` as a number: a pointer, or one of the driver's two special values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamHandle(pub usize);

impl StreamHandle {
    /// The default stream that synchronises with all others.
    pub const LEGACY: Self = Self(1);
    /// The calling thread's own default stream.
    pub const PER_THREAD: Self = Self(2);
}

/// A tensor that the copy engine of sm_90 reads boxes of: a `CUtensorMap` with 128-byte swizzle, zeros outside of the
/// tensor. The innermost dimension comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TiledTensor {
    /// A 16-bit type.
    pub dtype: DType,
    /// A multiple of 16.
    pub address: u64,
    /// Elements, at least one in each dimension.
    pub dims: [u64; 4],
    /// Bytes from one index to the next in all dimensions but the innermost: multiples of 16.
    pub strides: [u64; 3],
    /// Elements of a box: 64 in the innermost dimension.
    pub boxes: [u32; 4],
}

/// A CUDA driver and one of its devices.
///
/// Work is asynchronous and in the order of calls on one stream. Addresses are device addresses.
///
/// # Safety
/// An implementation does what its methods say, and touches no host memory but the slices it is given, which copies
/// have read or written before they return.
pub unsafe trait Driver: fmt::Debug + Send + Sync + 'static {
    /// The device, in its own words.
    fn device_name(&self) -> String;

    /// Major and minor.
    fn compute_capability(&self) -> (u32, u32);

    /// Streaming multiprocessors.
    fn num_sms(&self) -> u32;

    /// Whether the device is emulated on the CPU.
    fn is_emulated(&self) -> bool {
        false
    }

    /// The 128 bytes of a `CUtensorMap`, for kernels of sm_90. It is made on the host, without a call of the device.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the driver makes none, else as [`Driver::zero`].
    fn tensor_map(&self, tensor: &TiledTensor) -> Result<[u64; 16]>;

    /// A stream of the driver's own, for callers that bring none.
    fn stream(&self) -> StreamHandle;

    /// Uninitialised memory of `bytes` > 0 bytes; its address is a multiple of 256.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there is no room.
    fn alloc(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back, after all work that was enqueued before.
    ///
    /// # Safety
    /// `address` comes from [`Driver::alloc`] of this driver, and nothing uses the memory from now on.
    unsafe fn free(&self, address: u64);

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// The bytes are device memory that nothing else uses until `stream` has got there.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), with the driver's words.
    unsafe fn zero(&self, address: u64, bytes: usize, stream: StreamHandle) -> Result<()>;

    /// Copies from the host, after the work enqueued on `stream`.
    ///
    /// # Safety
    /// As [`Driver::zero`].
    ///
    /// # Errors
    /// As [`Driver::zero`].
    unsafe fn copy_to_device(&self, address: u64, source: &[u8], stream: StreamHandle) -> Result<()>;

    /// Copies to the host, after the work enqueued on `stream`, and waits for it.
    ///
    /// # Safety
    /// The bytes are device memory that was written, or is being written on `stream`.
    ///
    /// # Errors
    /// As [`Driver::zero`]; those of the work that was waited for, too.
    unsafe fn copy_to_host(&self, address: u64, target: &mut [u8], stream: StreamHandle) -> Result<()>;

    /// Runs a kernel that takes one struct by value. Every kernel was loaded when the driver was opened: a launch
    /// allocates nothing and waits for nothing.
    ///
    /// # Safety
    /// `params` is the kernel's parameter struct, and the memory it points to is as the kernel wants it until `stream`
    /// has got there.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) if this build has no such kernel, else as [`Driver::zero`].
    unsafe fn launch(&self, kernel: Kernel, config: LaunchConfig, params: &[u8], stream: StreamHandle) -> Result<()>;

    /// Waits for the work enqueued on `stream`.
    ///
    /// # Errors
    /// That work's.
    fn synchronize(&self, stream: StreamHandle) -> Result<()>;
}
