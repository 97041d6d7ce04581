//! Memory between a layer's steps, kept from call to call.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use fused_moe::{DType, MoeConfig, Workspace};

/// Workspaces that calls take and give back. Clones share them, so one value serves all layers of a model; calls at the
/// same time each get their own.
#[derive(Clone, Debug, Default)]
pub struct Workspaces(Arc<Pools>);

#[derive(Debug, Default)]
struct Pools {
    host: Pool<Workspace>,
    #[cfg(feature = "cuda")]
    cuda: Pool<CudaSlice<u8>>,
}

/// What a workspace is for, besides a number of tokens.
#[derive(Clone, Copy)]
pub(crate) struct Key<'a> {
    pub(crate) config: &'a MoeConfig,
    pub(crate) weight_dtype: DType,
    /// Of a CUDA device; 0 for the host.
    pub(crate) ordinal: usize,
}

impl Workspaces {
    /// Runs `call` with a workspace for `num_tokens` tokens; `make` makes one for a number of tokens.
    pub(crate) fn on_host<R>(
        &self,
        key: &Key<'_>,
        num_tokens: usize,
        make: impl FnOnce(usize) -> Result<Workspace>,
        call: impl FnOnce(&mut Workspace) -> Result<R>,
    ) -> Result<R> {
        self.0.host.with(key, num_tokens, make, call)
    }

    /// As [`Workspaces::on_host`].
    #[cfg(feature = "cuda")]
    pub(crate) fn on_cuda<R>(
        &self,
        key: &Key<'_>,
        num_tokens: usize,
        make: impl FnOnce(usize) -> Result<CudaSlice<u8>>,
        call: impl FnOnce(&mut CudaSlice<u8>) -> Result<R>,
    ) -> Result<R> {
        self.0.cuda.with(key, num_tokens, make, call)
    }
}

#[derive(Debug)]
struct Pool<W>(Mutex<Vec<Kept<W>>>);

#[derive(Debug)]
struct Kept<W> {
    config: MoeConfig,
    weight_dtype: DType,
    ordinal: usize,
    max_tokens: usize,
    workspace: W,
}

impl<W> Default for Pool<W> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<W> Pool<W> {
    fn with<R>(
        &self,
        key: &Key<'_>,
        num_tokens: usize,
        make: impl FnOnce(usize) -> Result<W>,
        call: impl FnOnce(&mut W) -> Result<R>,
    ) -> Result<R> {
        let mut kept = match self.take(key, num_tokens) {
            Some(kept) => kept,
            None => Kept::new(key, num_tokens, make)?,
        };
        let result = call(&mut kept.workspace);
        self.lock().push(kept);
        result
    }

    /// The first that fits; one of the same layer that is too small is dropped, for the larger one replaces it.
    fn take(&self, key: &Key<'_>, num_tokens: usize) -> Option<Kept<W>> {
        let mut kept = self.lock();
        let position = kept.iter().position(|kept| kept.serves(key))?;
        Some(kept.swap_remove(position)).filter(|kept| kept.max_tokens >= num_tokens)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Kept<W>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W> Kept<W> {
    fn new(key: &Key<'_>, num_tokens: usize, make: impl FnOnce(usize) -> Result<W>) -> Result<Self> {
        // A text that grows by one token a call makes few workspaces, not many.
        let max_tokens = num_tokens.next_power_of_two();
        Ok(Self {
            config: key.config.clone(),
            weight_dtype: key.weight_dtype,
            ordinal: key.ordinal,
            max_tokens,
            workspace: make(max_tokens)?,
        })
    }

    fn serves(&self, key: &Key<'_>) -> bool {
        (self.weight_dtype, self.ordinal) == (key.weight_dtype, key.ordinal) && self.config == *key.config
    }
}
