//! Where an op's launches go: a driver, a stream, and scratch memory that lives as long as the op's launches.

use std::sync::{Arc, Mutex, MutexGuard};

use bytemuck::Pod;

use super::NAME;
use super::driver::{Driver, Kernel, LaunchConfig, StreamHandle};
use super::memory::CudaBuffer;
use super::tickets::Tickets;
use crate::error::{Error, Result};

/// Scratch memory between the launches of one op. Later ops use it again: they are behind on the same stream.
#[derive(Debug)]
pub(super) enum Scratch {
    /// Memory of the device's own, which grows.
    Owned(Option<CudaBuffer>),
    /// The end of a caller's workspace.
    Fixed { address: u64, bytes: usize },
    /// Nothing is launched: how much would be needed.
    Measured { bytes: usize },
}

/// The launches of one op. No other op of the device launches while it lives.
pub(super) struct Queue<'a> {
    pub(super) driver: &'a Arc<dyn Driver>,
    pub(super) stream: StreamHandle,
    pub(super) tickets: &'a Tickets,
    scratch: MutexGuard<'a, Scratch>,
}

impl<'a> Queue<'a> {
    pub(super) fn new(
        driver: &'a Arc<dyn Driver>,
        stream: StreamHandle,
        tickets: &'a Tickets,
        scratch: &'a Mutex<Scratch>,
    ) -> Self {
        let scratch = scratch.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Self { driver, stream, tickets, scratch }
    }

    /// The address of `bytes` bytes of uninitialised memory, a multiple of 256. An op asks once.
    pub(super) fn scratch(&mut self, bytes: usize) -> Result<u64> {
        match &mut *self.scratch {
            Scratch::Measured { bytes: most } => {
                *most = bytes.max(*most);
                // Never read: nothing is launched. Not 0, which would mean "not there".
                Ok(256)
            }
            Scratch::Fixed { address, bytes: room } if bytes <= *room => Ok(*address),
            Scratch::Fixed { bytes: room, .. } => {
                Err(Error::invalid("workspace", format!("scratch of {bytes} bytes"), *room))
            }
            Scratch::Owned(Some(buffer)) if buffer.bytes() >= bytes => Ok(buffer.address()),
            Scratch::Owned(buffer) => {
                // Work that still uses the old one is waited for by the driver before it is freed.
                let new = CudaBuffer::alloc(self.driver, bytes.next_power_of_two().max(1 << 16))?;
                Ok(buffer.insert(new).address())
            }
        }
    }

    /// Enqueues a kernel; one without blocks is none.
    ///
    /// # Safety
    /// `params` is the struct that `kernel` takes, and its addresses are those of the op's tensors and scratch.
    pub(super) unsafe fn launch<P: Pod>(&self, kernel: Kernel, config: LaunchConfig, params: &P) -> Result<()> {
        if config.grid.contains(&0) {
            return Ok(());
        }
        // The limits of every device from sm_80 on.
        let [_, y, z] = config.grid;
        if y > 65535 || z > 65535 {
            return Err(unsupported(format!("a grid of {:?} blocks for {kernel}", config.grid)));
        }
        // SAFETY: the caller's promise; tensors stay allocated until the work behind them is done, as freeing waits.
        unsafe { self.driver.launch(kernel, config, bytemuck::bytes_of(params), self.stream) }
    }
}

/// [`Error::Unsupported`] of this backend.
pub(super) fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { backend: NAME, what: what.into() }
}
