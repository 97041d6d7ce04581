//! Hugging Face checkpoints: `config.json` to [`MoeConfig`], safetensors to weights.
//!
//! ```no_run
//! use fused_moe::Device;
//! use fused_moe::checkpoint::{Checkpoint, LoadOptions};
//!
//! let checkpoint = Checkpoint::open("Qwen3-30B-A3B")?;
//! let layer = checkpoint.layers_with_experts()?[0];
//! let layer = checkpoint.load(&Device::auto(), layer, LoadOptions::default())?;
//! # Ok::<(), fused_moe::Error>(())
//! ```
//!
//! Only the layer's own tensors are read, from memory-mapped files, and where one tensor on disk is just what the layer
//! needs, the mapped file is the layer's memory. Which keys, tensors and rules an architecture has is data: a small
//! entry in `table/` each.

mod architecture;
mod error;
mod files;
mod json;
mod layer_id;
mod matrix;
mod stack;
mod table;
mod weights;

use std::fmt;
use std::path::Path;

use crate::backend::Device;
use crate::config::MoeConfig;
use crate::error::{Error, Result};
use crate::layer::MoeLayer;
use crate::tensor::{DType, FLOATS};
use crate::weights::MoeWeights;

use architecture::Architecture;
pub use error::CheckpointError;
use files::Files;
use json::ConfigJson;
pub use layer_id::{LayerId, LayerStack};
use stack::Loader;
use weights::Layer;

/// A checkpoint directory: `config.json` with `model.safetensors`, or with `model.safetensors.index.json` and shards.
#[derive(Debug)]
pub struct Checkpoint {
    json: ConfigJson,
    architecture: &'static Architecture,
    files: Files,
    fp8_block: Option<[usize; 2]>,
}

/// How weights are loaded.
#[derive(Clone, Copy, Default)]
pub struct LoadOptions<'a> {
    /// The type of the experts' weights; by default as stored, quantised ones as bf16. The router's stay as stored.
    pub dtype: Option<DType>,
    /// Is called as the load proceeds, from several threads.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

/// How far a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Weights that are loaded.
    pub done: u64,
    /// Weights of the layer.
    pub total: u64,
}

impl Checkpoint {
    /// Opens a checkpoint as downloaded: reads `config.json` and, if there is one, the index of shards.
    ///
    /// The safetensors files are memory-mapped as they are needed, and stay so while the checkpoint or a tensor loaded
    /// from it lives: nobody may change or truncate them meanwhile.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if a file is missing or malformed, or the architecture is not known.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        let json = ConfigJson::read(directory.join("config.json"))?;
        let (outer, inner) = (json.model_type()?, json.inner_model_type());
        let architecture = table::find(outer, inner).ok_or_else(|| CheckpointError::UnknownArchitecture {
            path: json.path.clone(),
            model_type: inner.unwrap_or(outer).to_owned(),
            known: architectures().collect::<Vec<_>>().join(", "),
        })?;
        let fp8_block = quantization(&json)?;
        let checkpoint = Self { files: Files::open(directory)?, json, architecture, fp8_block };
        checkpoint.check_keys()?;
        Ok(checkpoint)
    }

    /// `model_type` of the checkpoint.
    pub fn model_type(&self) -> &str {
        self.json.model_type().unwrap_or(self.architecture.model_type)
    }

    /// The layers that have experts, in order.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if a key has a value that cannot be used.
    pub fn layers_with_experts(&self) -> Result<Vec<LayerId>> {
        Ok(self.list_layers()?)
    }

    /// The first layer that has experts.
    ///
    /// # Errors
    /// As [`Checkpoint::layers_with_experts`], and if there is none.
    pub fn first_layer_with_experts(&self) -> Result<LayerId> {
        let layers = self.list_layers()?;
        layers.first().copied().ok_or_else(|| self.no_experts("any".into(), &layers).into())
    }

    /// What a layer is.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the layer has no experts, a key has a value that cannot be used, or the file has no
    /// tensors for it; [`Error::InvalidArgument`] if the values do not fit each other.
    pub fn config(&self, layer: LayerId) -> Result<MoeConfig> {
        let config = self.layer(layer)?.config()?;
        config.validate()?;
        Ok(config)
    }

    /// A layer's weights on a device.
    ///
    /// # Errors
    /// As [`Checkpoint::config`], and [`Error::Checkpoint`] if a tensor is missing or has another shape or type than
    /// the configuration says, [`Error::Device`] if the device has no room.
    pub fn weights(&self, device: &Device, layer: LayerId, options: LoadOptions<'_>) -> Result<MoeWeights> {
        let layer = self.layer(layer)?;
        let config = layer.config()?;
        config.validate()?;
        self.load_weights(device, &layer, &config, options)
    }

    /// A layer on a device.
    ///
    /// # Errors
    /// As [`Checkpoint::weights`].
    pub fn load(&self, device: &Device, layer: LayerId, options: LoadOptions<'_>) -> Result<MoeLayer> {
        let layer = self.layer(layer)?;
        let config = layer.config()?;
        config.validate()?;
        let weights = self.load_weights(device, &layer, &config, options)?;
        MoeLayer::new(device, config, weights)
    }

    fn layer(&self, layer: LayerId) -> Result<Layer<'_>, CheckpointError> {
        let keys = self.json.keys(layer);
        let exists = self.architecture.stacks.iter().any(|stack| stack.stack == layer.stack())
            && layer.index() < (self.architecture.num_layers)(keys)?;
        if !exists || !(self.architecture.has_experts)(keys)? {
            return Err(self.no_experts(layer.to_string(), &self.list_layers()?));
        }
        Layer::find(&self.files, self.architecture, keys, self.fp8_block)
    }

    fn list_layers(&self) -> Result<Vec<LayerId>, CheckpointError> {
        let mut layers = Vec::new();
        for stack in self.architecture.stacks {
            let first = LayerId::new(stack.stack, 0);
            for index in 0..(self.architecture.num_layers)(self.json.keys(first))? {
                let layer = LayerId::new(stack.stack, index);
                if (self.architecture.has_experts)(self.json.keys(layer))? {
                    layers.push(layer);
                }
            }
        }
        Ok(layers)
    }

    fn no_experts(&self, layer: String, with_experts: &[LayerId]) -> CheckpointError {
        let with_experts = layer_id::list(with_experts);
        CheckpointError::NoExperts { path: self.json.path.clone(), layer, with_experts }
    }

    fn load_weights(
        &self,
        device: &Device,
        layer: &Layer<'_>,
        config: &MoeConfig,
        options: LoadOptions<'_>,
    ) -> Result<MoeWeights> {
        if let Some(dtype) = options.dtype.filter(|dtype| !FLOATS.contains(dtype)) {
            return Err(Error::invalid("dtype", DType::list(FLOATS), dtype));
        }
        let stacks = layer.weights(config)?;
        let mut total = 0;
        let mut sizes = Vec::new();
        stacks.try_map(|stack| {
            total += stack.len();
            sizes.push((stack.dtype(options.dtype), stack.shape()));
            Ok::<_, Error>(())
        })?;
        device.backend().check_sizes(&sizes)?;
        let loader = Loader::new(device, options.progress, total);
        stacks.try_map(|stack| loader.load(stack, options.dtype))
    }

    /// Refuses what would change the layer and is not known here.
    fn check_keys(&self) -> Result<(), CheckpointError> {
        let keys = self.json.keys(LayerId::from(0));
        if keys.value("per_layer_config").is_some() {
            return Err(keys.wrong("per_layer_config", "nothing"));
        }
        for (key, allowed) in self.architecture.only {
            let Some(value) = keys.value(key) else { continue };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if !allowed.contains(&text.as_str()) {
                return Err(keys.wrong(key, allowed.join(" or ")));
            }
        }
        Ok(())
    }
}

/// The `model_type`s that can be loaded, a multimodal wrapper by the name of its language model.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    table::architectures().map(|architecture| architecture.model_type)
}

/// The blocks of 8-bit floats, if `quantization_config` says that there are such. Refuses what cannot be decoded.
fn quantization(json: &ConfigJson) -> Result<Option<[usize; 2]>, CheckpointError> {
    let keys = json.root_keys();
    match keys.text("quantization_config.quant_method", "mxfp4")? {
        "mxfp4" => Ok(None),
        "fp8" => {
            if keys.text("quantization_config.fmt", "e4m3")? != "e4m3" {
                return Err(keys.wrong("quantization_config.fmt", "e4m3"));
            }
            let key = "quantization_config.weight_block_size";
            let Some(list) = keys.list(key)? else { return Ok(Some([128, 128])) };
            let sizes: Vec<_> = list.iter().filter_map(|n| usize::try_from(n.as_u64()?).ok()).collect();
            match *sizes {
                [rows, cols] if list.len() == 2 && rows > 0 && cols > 0 => Ok(Some([rows, cols])),
                _ => Err(keys.wrong(key, "two whole numbers above 0")),
            }
        }
        _ => Err(keys.wrong("quantization_config.quant_method", "fp8 or mxfp4")),
    }
}

impl fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions").field("dtype", &self.dtype).finish_non_exhaustive()
    }
}
