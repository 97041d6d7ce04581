//! The CPU backend: always there, and worth using.

mod combine;
mod epilogue;
mod exp;
mod grouped_gemm;
mod isa;
mod jitter;
mod kernel;
mod permute;
mod pool;
mod route;
mod router_logits;
mod scratch;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

pub(super) use jitter::jitter;

use super::{Backend, host, host_alloc};
use crate::error::{Error, Result};
use crate::ops::{CombineArgs, GroupedGemmArgs, JitterArgs, PermuteArgs, RouteArgs, RouterLogitsArgs};
use crate::tensor::{DType, DeviceBuffer, Shape, Storage, TensorView, TensorViewMut};
pub use isa::InstructionSet;
use isa::Isa;
use pool::Pool;
use scratch::Scratch;

/// The environment variable that chooses the instruction set: a [`InstructionSet::name`].
pub const ISA_VARIABLE: &str = "FUSED_MOE_CPU_ISA";

/// The CPU, with what is chosen for it.
#[derive(Debug)]
pub struct Cpu {
    isa: Result<Isa, IsaError>,
    pool: Pool,
    /// One for each call at a time that there has been.
    scratch: Mutex<Vec<Scratch>>,
}

/// What to choose for a [`Cpu`].
#[derive(Clone, Debug, Default)]
pub struct CpuBuilder {
    instruction_set: Option<InstructionSet>,
    threads: Option<NonZeroUsize>,
}

/// An instruction set that was asked for and cannot be.
#[derive(Clone, Debug)]
enum IsaError {
    Unknown(String),
    Missing(InstructionSet),
}

impl CpuBuilder {
    /// This instruction set, whatever `FUSED_MOE_CPU_ISA` says.
    pub fn instruction_set(self, set: InstructionSet) -> Self {
        Self { instruction_set: Some(set), ..self }
    }

    /// A pool of the device's own with this many threads, in place of rayon's current pool.
    pub fn threads(self, threads: NonZeroUsize) -> Self {
        Self { threads: Some(threads), ..self }
    }

    /// The device.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if this machine does not have the instruction set or threads cannot be made,
    /// [`Error::InvalidArgument`] if `FUSED_MOE_CPU_ISA` names none.
    pub fn build(self) -> Result<Cpu> {
        let isa = choose(self.instruction_set)?;
        let pool = match self.threads.map(NonZeroUsize::get) {
            None => Pool::Current,
            Some(threads) => Pool::own(threads)?,
        };
        Ok(Cpu { isa: Ok(isa), pool, scratch: Mutex::default() })
    }
}

/// The set asked for, or the environment's, or the best.
fn choose(set: Option<InstructionSet>) -> Result<Isa, IsaError> {
    let set = match (set, std::env::var_os(ISA_VARIABLE)) {
        (Some(set), _) => set,
        (None, None) => return Ok(Isa::best()),
        (None, Some(name)) => {
            let name = name.to_string_lossy();
            name.parse().map_err(|_| IsaError::Unknown(name.into_owned()))?
        }
    };
    Isa::detect(set).ok_or(IsaError::Missing(set))
}

impl From<IsaError> for Error {
    fn from(error: IsaError) -> Self {
        match error {
            IsaError::Unknown(name) => {
                Self::invalid(ISA_VARIABLE, InstructionSet::ALL.map(InstructionSet::name).join(", "), name)
            }
            IsaError::Missing(set) => {
                Self::Unavailable { backend: "cpu", reason: format!("this machine has no {set}") }
            }
        }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// The best instruction set of this machine, or the one that `FUSED_MOE_CPU_ISA` names, on rayon's current pool.
    ///
    /// If the variable names one that cannot be, every op says so; [`Cpu::builder`] says it at once.
    pub fn new() -> Self {
        Self { isa: choose(None), pool: Pool::Current, scratch: Mutex::default() }
    }

    /// To choose instruction set and threads.
    pub fn builder() -> CpuBuilder {
        CpuBuilder::default()
    }

    /// The instruction set.
    ///
    /// # Errors
    /// As [`CpuBuilder::build`].
    pub fn instruction_set(&self) -> Result<InstructionSet> {
        self.isa().map(Isa::set)
    }

    fn isa(&self) -> Result<Isa> {
        self.isa.clone().map_err(Error::from)
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Lends memory to a call, and takes it back for the next.
    fn with_scratch(&self, call: impl FnOnce(&mut Scratch)) {
        let lock = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = lock().pop().unwrap_or_default();
        call(&mut scratch);
        lock().push(scratch);
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn device_name(&self) -> String {
        let isa = match &self.isa {
            Ok(isa) => isa.set().to_string(),
            Err(error) => Error::from(error.clone()).to_string(),
        };
        format!("{isa}, {} threads", self.pool.threads())
    }

    fn is_host(&self) -> bool {
        true
    }

    fn owns(&self, _: &dyn DeviceBuffer) -> bool {
        false
    }

    fn alloc(&self, _: DType, _: Shape, bytes: usize) -> Result<Storage> {
        host_alloc(self.name(), bytes)
    }

    fn write(&self, target: TensorViewMut<'_>, source: &[u8]) -> Result<()> {
        host::write(target, source)
    }

    fn read(&self, source: TensorView<'_>, target: &mut [u8]) -> Result<()> {
        host::read(source, target)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn jitter(&self, args: JitterArgs<'_>) -> Result<()> {
        jitter::jitter(args)
    }

    fn router_logits(&self, args: RouterLogitsArgs<'_>) -> Result<()> {
        router_logits::router_logits(self, args)
    }

    fn route(&self, args: RouteArgs<'_>) -> Result<()> {
        let isa = self.isa()?;
        self.pool.install(|| route::route(isa, args))
    }

    fn permute(&self, args: PermuteArgs<'_>) -> Result<()> {
        self.pool.install(|| permute::permute(args))
    }

    fn grouped_gemm(&self, args: GroupedGemmArgs<'_>) -> Result<()> {
        grouped_gemm::grouped_gemm(self, args)
    }

    fn combine(&self, args: CombineArgs<'_>) -> Result<()> {
        self.pool.install(|| combine::combine(args))
    }
}
