//! The devices under test, listed once.

use std::num::NonZeroUsize;

use fused_moe::backend::cpu::{Cpu, InstructionSet};
use fused_moe::{Device, Error, Result};

use super::remote::Remote;

/// A device that may be there.
pub struct Candidate {
    /// Its name, in test names and in `FUSED_MOE_REQUIRE`.
    pub name: &'static str,
    /// The device, or why it is not there.
    pub open: fn() -> Result<Device>,
}

/// Every device that conformance is asked of.
pub const CANDIDATES: &[Candidate] = &[
    Candidate { name: "cpu", open: || Device::by_name("cpu") },
    Candidate { name: "cpu-amx", open: || cpu(InstructionSet::Amx) },
    Candidate { name: "cpu-avx512bf16", open: || cpu(InstructionSet::Avx512Bf16) },
    Candidate { name: "cpu-avx512", open: || cpu(InstructionSet::Avx512) },
    Candidate { name: "cpu-avx2", open: || cpu(InstructionSet::Avx2) },
    Candidate { name: "cpu-portable", open: || cpu(InstructionSet::Portable) },
    Candidate { name: "cpu-3-threads", open: three_threads },
    Candidate { name: "reference", open: || Ok(Device::reference()) },
    Candidate { name: "remote", open: || Ok(Device::new(Remote::default())) },
    Candidate { name: "wgpu", open: || Device::by_name("wgpu") },
    Candidate { name: "cuda", open: || Device::by_name("cuda") },
];

fn cpu(set: InstructionSet) -> Result<Device> {
    Ok(Device::new(Cpu::builder().instruction_set(set).build()?))
}

/// More threads than some machines have: work is cut where the default would not cut it.
fn three_threads() -> Result<Device> {
    let threads = NonZeroUsize::new(3).expect("3 is not 0");
    Ok(Device::new(Cpu::builder().threads(threads).build()?))
}

/// The devices that `FUSED_MOE_REQUIRE=cpu,wgpu,...` says must be there.
///
/// # Errors
/// The names that no candidate has: a typo would require nothing.
pub fn required() -> Result<Vec<String>, String> {
    let list = std::env::var("FUSED_MOE_REQUIRE").unwrap_or_default();
    let names: Vec<String> =
        list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match names.iter().find(|name| CANDIDATES.iter().all(|candidate| candidate.name != **name)) {
        Some(unknown) => Err(format!("FUSED_MOE_REQUIRE names {unknown:?}, which is no device under test")),
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
            Err(Error::Unavailable { reason, .. }) if !required.iter().any(|name| name == self.name) => {
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
