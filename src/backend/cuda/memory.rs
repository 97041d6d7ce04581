//! Device memory as tensors have it.

use std::any::Any;
use std::sync::Arc;

use super::driver::Driver;
use crate::error::{Error, Result};
use crate::tensor::{Data, DataMut, DeviceBuffer, TensorView, TensorViewMut};

/// Memory of one CUDA device.
#[derive(Debug)]
pub struct CudaBuffer {
    driver: Arc<dyn Driver>,
    address: u64,
    bytes: usize,
    owned: bool,
}

impl CudaBuffer {
    /// Uninitialised memory.
    pub(super) fn alloc(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        // Empty tensors have an address too.
        let address = driver.alloc(bytes.max(1))?;
        Ok(Self { driver: Arc::clone(driver), address, bytes, owned: true })
    }

    /// Memory that is someone else's.
    ///
    /// # Safety
    /// The bytes are memory of the driver's device for as long as the value and views of it are used.
    pub(super) unsafe fn borrowed(driver: &Arc<dyn Driver>, address: u64, bytes: usize) -> Self {
        Self { driver: Arc::clone(driver), address, bytes, owned: false }
    }

    /// Where it starts.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_of(&self, driver: &Arc<dyn Driver>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.driver), Arc::as_ptr(driver))
    }

    fn of(buffer: &dyn DeviceBuffer) -> Result<&Self> {
        let found = buffer.as_any().downcast_ref();
        found.ok_or_else(|| Error::invalid("tensor", "memory of this device", "other memory"))
    }

    /// The address of `bytes` bytes from `offset` on.
    fn at(&self, offset: usize, bytes: usize) -> Result<u64> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.address + offset as u64),
            _ => Err(Error::invalid("tensor", format!("within {} bytes", self.bytes), format!("{offset} + {bytes}"))),
        }
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: `alloc` got the address from this driver, and views of it borrow `self`.
            unsafe { self.driver.free(self.address) }
        }
    }
}

impl DeviceBuffer for CudaBuffer {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The device address of a tensor's first element.
///
/// # Errors
/// [`Error::InvalidArgument`] if it is no memory of this backend, or the buffer is smaller than the tensor.
pub(super) fn address(view: TensorView<'_>) -> Result<u64> {
    let bytes = view.shape().numel() * view.dtype().size();
    match view.data() {
        Data::Device { buffer, byte_offset } => CudaBuffer::of(buffer)?.at(byte_offset, bytes),
        Data::Host(_) => Err(Error::invalid("tensor", "memory of this device", "host memory")),
    }
}

/// As [`address`], to be written.
pub(super) fn address_mut(view: &mut TensorViewMut<'_>) -> Result<u64> {
    let bytes = view.shape().numel() * view.dtype().size();
    match view.reborrow().data() {
        DataMut::Device { buffer, byte_offset } => CudaBuffer::of(buffer)?.at(byte_offset, bytes),
        DataMut::Host(_) => Err(Error::invalid("tensor", "memory of this device", "host memory")),
    }
}

/// As [`address`]; 0, which kernels read as "not there", for none.
pub(super) fn optional_address(view: Option<TensorView<'_>>) -> Result<u64> {
    view.map_or(Ok(0), address)
}
