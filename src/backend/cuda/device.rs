//! Finding CUDA devices.

use std::sync::Arc;

use super::driver::Driver;
use super::{Cuda, images, unavailable};
use crate::backend::Device;
use crate::error::Result;

impl Cuda {
    /// A CUDA device by its number, in its primary context: the one that other engines in the process use too.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable) if this build has no kernels, or the machine no such device.
    pub fn open(ordinal: usize) -> Result<Self> {
        if let Some(reason) = images::ABSENT {
            return Err(unavailable(reason));
        }
        Self::new(open(ordinal)?)
    }

    /// The calling thread's current context, for an engine that has made its own.
    ///
    /// # Errors
    /// As [`Cuda::open`], and [`Error::InvalidArgument`](crate::Error::InvalidArgument) if no context is current.
    pub fn current() -> Result<Self> {
        if let Some(reason) = images::ABSENT {
            return Err(unavailable(reason));
        }
        Self::new(current()?)
    }
}

impl Device {
    /// A CUDA device by its number.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable) if this build has no kernels, or the machine no such device.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Cuda::open(ordinal).map(Self::new)
    }
}

/// The first device that is new enough; else why the last one is not.
pub(crate) fn best() -> Result<Device> {
    let mut found = Device::cuda(0);
    let mut ordinal = 1;
    while found.is_err() && ordinal < num_devices().unwrap_or(0) {
        found = Device::cuda(ordinal).or(found);
        ordinal += 1;
    }
    found
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod here {
    use super::super::nvidia::{self, Nvidia};
    use super::*;

    pub(super) fn open(ordinal: usize) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(Nvidia::open(ordinal)?))
    }

    pub(super) fn current() -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(Nvidia::current()?))
    }

    pub(super) fn num_devices() -> Result<usize> {
        nvidia::num_devices()
    }
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod here {
    use super::*;

    const REASON: &str = "the CUDA backend is for Linux on x86-64 and aarch64";

    pub(super) fn open(_: usize) -> Result<Arc<dyn Driver>> {
        Err(unavailable(REASON))
    }

    pub(super) fn current() -> Result<Arc<dyn Driver>> {
        Err(unavailable(REASON))
    }

    pub(super) fn num_devices() -> Result<usize> {
        Err(unavailable(REASON))
    }
}

use here::{current, num_devices, open};
