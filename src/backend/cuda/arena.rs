//! A caller's workspace: where a layer's buffers are when the engine brings the memory.

use std::sync::{Arc, Mutex, PoisonError};

use super::Cuda;
use super::driver::{Driver, Kernel, LaunchConfig, StreamHandle, TiledTensor};
use super::memory::CudaBuffer;
use super::queue::Scratch;
use super::tickets::Tickets;
use crate::error::{Error, Result};

/// Allocations begin on this, as the driver's do.
const ALIGNMENT: u64 = 256;

/// Memory that is carved from the front.
#[derive(Debug)]
pub(super) struct Arena {
    start: u64,
    next: u64,
    end: u64,
    measures: bool,
}

impl Arena {
    pub(super) fn new(start: u64, bytes: usize) -> Self {
        Self { start, next: start, end: start.saturating_add(bytes as u64), measures: false }
    }

    /// Room for everything, to find out how much is needed.
    pub(super) fn measuring() -> Self {
        Self { measures: true, ..Self::new(ALIGNMENT, usize::MAX / 2) }
    }

    fn carve(&mut self, bytes: usize) -> Result<u64> {
        let address = self.next.next_multiple_of(ALIGNMENT);
        match address.checked_add(bytes as u64) {
            Some(next) if next <= self.end => {
                self.next = next;
                Ok(address)
            }
            _ => {
                let (room, used) = (self.end - self.start, address - self.start);
                let expected = format!("at least {} bytes", used.saturating_add(bytes as u64));
                Err(Error::invalid("workspace_bytes", expected, room))
            }
        }
    }
}

impl Cuda {
    /// A device whose allocations come from a caller's workspace, and whose work goes to a caller's stream.
    pub(super) fn in_workspace(
        driver: &Arc<dyn Driver>,
        stream: StreamHandle,
        tickets: &Arc<Tickets>,
        arena: Arena,
    ) -> Self {
        let scratch = Arc::new(Mutex::new(Scratch::Measured { bytes: 0 }));
        let (driver, tickets) = (Arc::clone(driver), Arc::clone(tickets));
        Self { driver, stream, tickets, scratch, arena: Some(Arc::new(Mutex::new(arena))) }
    }

    /// Memory of the workspace; it is not zeroed, as nothing of a layer's depends on that.
    pub(super) fn carve(&self, arena: &Mutex<Arena>, bytes: usize) -> Result<CudaBuffer> {
        let address = arena.lock().unwrap_or_else(PoisonError::into_inner).carve(bytes)?;
        // SAFETY: the caller of `enqueue` gave the workspace for the call, and each part of it is handed out once.
        Ok(unsafe { CudaBuffer::borrowed(&self.driver, address, bytes) })
    }

    /// From now on what the workspace has left is the ops' scratch memory. Returns the bytes used before.
    pub(super) fn rest_is_scratch(&self) -> usize {
        let Some(arena) = &self.arena else { return 0 };
        let arena = arena.lock().unwrap_or_else(PoisonError::into_inner);
        let address = arena.next.next_multiple_of(ALIGNMENT);
        if !arena.measures {
            let bytes = arena.end.saturating_sub(address) as usize;
            *self.scratch.lock().unwrap_or_else(PoisonError::into_inner) = Scratch::Fixed { address, bytes };
        }
        (address - arena.start) as usize
    }

    /// The most scratch that ops have asked for.
    pub(super) fn measured_scratch(&self) -> usize {
        match *self.scratch.lock().unwrap_or_else(PoisonError::into_inner) {
            Scratch::Measured { bytes } => bytes,
            Scratch::Owned(_) | Scratch::Fixed { .. } => 0,
        }
    }
}

/// A device on which nothing happens.
#[derive(Debug)]
pub(super) struct Measuring(pub(super) Arc<dyn Driver>);

// SAFETY: it touches no memory at all; what it claims to have done nobody reads.
unsafe impl Driver for Measuring {
    fn device_name(&self) -> String {
        self.0.device_name()
    }

    fn compute_capability(&self) -> (u32, u32) {
        self.0.compute_capability()
    }

    fn num_sms(&self) -> u32 {
        self.0.num_sms()
    }

    fn tensor_map(&self, _: &TiledTensor) -> Result<[u64; 16]> {
        Ok([0; 16])
    }

    fn stream(&self) -> StreamHandle {
        StreamHandle::PER_THREAD
    }

    fn alloc(&self, _: usize) -> Result<u64> {
        Ok(ALIGNMENT)
    }

    unsafe fn free(&self, _: u64) {}

    unsafe fn zero(&self, _: u64, _: usize, _: StreamHandle) -> Result<()> {
        Ok(())
    }

    unsafe fn copy_to_device(&self, _: u64, _: &[u8], _: StreamHandle) -> Result<()> {
        Ok(())
    }

    unsafe fn copy_to_host(&self, _: u64, _: &mut [u8], _: StreamHandle) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(&self, _: Kernel, _: LaunchConfig, _: &[u8], _: StreamHandle) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self, _: StreamHandle) -> Result<()> {
        Ok(())
    }
}
