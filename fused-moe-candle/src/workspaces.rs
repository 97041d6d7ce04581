//! Memory between a layer's steps, kept from call to call.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Error, Result};
use fused_moe::tensor::AsView;
use fused_moe::{DType, MoeConfig, MoeLayer, Workspace};

/// Workspaces that calls take and give back. Clones share them, so one value serves all layers of a model; calls at the
/// same time each get their own. All layers that share one must be on the same device.
#[derive(Clone, Debug, Default)]
pub struct Workspaces(Arc<Mutex<Vec<Kept>>>);

#[derive(Debug)]
struct Kept {
    config: MoeConfig,
    weight_dtype: DType,
    max_tokens: usize,
    workspace: Workspace,
}

impl Workspaces {
    /// Runs `call` with a workspace of `layer` for `num_tokens` tokens.
    pub(crate) fn with<T: AsView, R>(
        &self,
        layer: &MoeLayer<T>,
        num_tokens: usize,
        call: impl FnOnce(&mut Workspace) -> fused_moe::Result<R>,
    ) -> Result<R> {
        let mut kept = match self.take(layer, num_tokens) {
            Some(kept) => kept,
            None => Kept::new(layer, num_tokens)?,
        };
        let result = call(&mut kept.workspace).map_err(Error::wrap);
        self.lock().push(kept);
        result
    }

    /// The first that fits; one of the same layer that is too small is dropped, for the larger one replaces it.
    fn take<T: AsView>(&self, layer: &MoeLayer<T>, num_tokens: usize) -> Option<Kept> {
        let mut kept = self.lock();
        let position = kept.iter().position(|kept| kept.serves(layer))?;
        Some(kept.swap_remove(position)).filter(|kept| kept.max_tokens >= num_tokens)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn new<T: AsView>(layer: &MoeLayer<T>, num_tokens: usize) -> Result<Self> {
        // A text that grows by one token a call makes few workspaces, not many.
        let max_tokens = num_tokens.next_power_of_two();
        Ok(Self {
            config: layer.config().clone(),
            weight_dtype: weight_dtype(layer),
            max_tokens,
            workspace: layer.workspace(max_tokens).map_err(Error::wrap)?,
        })
    }

    fn serves<T: AsView>(&self, layer: &MoeLayer<T>) -> bool {
        self.weight_dtype == weight_dtype(layer) && self.config == *layer.config()
    }
}

fn weight_dtype<T: AsView>(layer: &MoeLayer<T>) -> DType {
    layer.weights().experts.down_proj.as_view().dtype()
}
