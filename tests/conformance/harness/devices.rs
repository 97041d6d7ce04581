//! The devices under test, listed once.

use fused_moe::backend::cpu::Cpu;
use fused_moe::{Device, Error, Result};

use super::remote::Remote;

/// A device that may be there.
pub struct Candidate {
    /// Its name in test names.
    pub name: &'static str,
    /// The backend, as `FUSED_MOE_REQUIRE` names it.
    pub backend: &'static str,
    /// The device, or why it is not there.
    pub open: fn() -> Result<Device>,
}

/// Every device that conformance is asked of.
pub const CANDIDATES: &[Candidate] = &[
    Candidate { name: "cpu", backend: "cpu", open: || Ok(Device::new(Cpu::new())) },
    Candidate { name: "reference", backend: "reference", open: || Ok(Device::reference()) },
    Candidate { name: "remote", backend: "remote", open: || Ok(Device::new(Remote::default())) },
    Candidate { name: "wgpu", backend: "wgpu", open: || Device::by_name("wgpu") },
    Candidate { name: "cuda", backend: "cuda", open: || Device::by_name("cuda") },
];

/// The backends that `FUSED_MOE_REQUIRE=cpu,wgpu,...` says must be there.
///
/// # Errors
/// The names that no candidate has: a typo would require nothing.
pub fn required() -> Result<Vec<String>, String> {
    let list = std::env::var("FUSED_MOE_REQUIRE").unwrap_or_default();
    let names: Vec<String> =
        list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match names.iter().find(|name| CANDIDATES.iter().all(|candidate| candidate.backend != **name)) {
        Some(unknown) => Err(format!("FUSED_MOE_REQUIRE names {unknown:?}, which is no backend under test")),
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
            Err(Error::Unavailable { reason, .. }) if !required.iter().any(|name| name == self.backend) => {
                Found::Skipped(reason)
            }
            Err(error) => Found::Missing(error.to_string()),
        }
    }
}

/// The devices that are there, for tests that need no list of the others.
pub fn present() -> Vec<Device> {
    CANDIDATES.iter().filter_map(|candidate| (candidate.open)().ok()).collect()
}
