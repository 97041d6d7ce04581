//! What is routed: tensors from files, or random ones.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use fused_moe::ops::{RouterLogitsArgs, router_logits};
use fused_moe::routing::{NoiseKind, RouterConfig, noise};
use fused_moe::{DType, Device, Tensor, TensorView};
use safetensors::SafeTensors;

use crate::{Failure, Rule};

/// Tensors by name.
#[derive(Default)]
pub struct Inputs {
    tensors: BTreeMap<String, Tensor>,
    /// The file that was read last.
    origin: String,
}

impl Inputs {
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors.get(name).map(Tensor::view)
    }

    /// An error with the file in front.
    pub fn at(&self, error: &dyn Display) -> Failure {
        if self.origin.is_empty() { error.to_string().into() } else { format!("{}: {error}", self.origin).into() }
    }

    fn missing(&self, name: &str, shape: &str) -> Failure {
        self.at(&format!("{name}: expected a tensor {shape}, got none"))
    }

    /// Adds every tensor of a file.
    pub fn load(&mut self, device: &Device, path: &Path) -> Result<(), Failure> {
        self.origin = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| self.at(&error))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| self.at(&error))?;
        for (name, view) in file.tensors() {
            let dtype = match view.dtype() {
                safetensors::Dtype::F32 => DType::F32,
                safetensors::Dtype::U32 => DType::U32,
                other => return Err(self.at(&format!("{name}: expected F32 or U32, got {other:?}"))),
            };
            let words: Vec<u32> = bytemuck::pod_collect_to_vec(view.data());
            let bytes = bytemuck::cast_slice(&words);
            let tensor = match *view.shape() {
                [n] => TensorView::from_bytes(bytes, dtype, [n]),
                [n, m] => TensorView::from_bytes(bytes, dtype, [n, m]),
                _ => return Err(self.at(&format!("{name}: expected rank 1 or 2, got {:?}", view.shape()))),
            };
            self.tensors.insert(name, Tensor::from_view(device, tensor?)?);
        }
        Ok(())
    }

    /// 512 tokens, with a favourite among eight experts.
    pub fn add_random_logits(&mut self, device: &Device, rule: &Rule) -> Result<(), Failure> {
        let (num_tokens, columns) = (512, rule.config.num_logits(rule.num_experts));
        let mut logits = vec![0.0; num_tokens * columns];
        for (i, logit) in logits.iter_mut().enumerate() {
            let favourite = if i % columns % 8 == 1 { 1.0 } else { 0.0 };
            let (token, column) = ((i / columns) as u32, (i % columns) as u32);
            *logit = 1.5 * noise::normal(1, noise::Stream::Weight, token, column) + favourite;
        }
        self.tensors.insert("logits".into(), Tensor::from_slice(device, &logits, [num_tokens, columns])?);
        Ok(())
    }

    /// The logits, `[T, E]`.
    pub fn logits(&self) -> Result<TensorView<'_>, Failure> {
        let logits = self.get("logits").ok_or_else(|| self.missing("logits", "[T, E]"))?;
        match logits.dims().len() {
            2 => Ok(logits),
            _ => Err(self.at(&format!("logits: expected rank 2, got shape {}", logits.shape()))),
        }
    }

    /// x·W_noise, where the rule has such noise.
    pub fn noise_logits(
        &self,
        device: &Device,
        config: &RouterConfig,
        [num_tokens, num_choices]: [usize; 2],
    ) -> Result<Option<Tensor>, Failure> {
        if config.noise.is_none_or(|noise| noise.kind != NoiseKind::NormalSoftplus) {
            return Ok(None);
        }
        let get = |name, shape| self.get(name).ok_or_else(|| self.missing(name, shape));
        let hidden_states = get("hidden_states", "[T, H] for noise normal_softplus")?;
        let weight = get("noise_weight", "[E, H] for noise normal_softplus")?;
        let hidden_size = hidden_states.dims().last().copied().unwrap_or(0);
        for (name, tensor, rows) in
            [("hidden_states", hidden_states, num_tokens), ("noise_weight", weight, num_choices)]
        {
            if tensor.dims() != [rows, hidden_size] {
                let error = format!("{name}: expected shape [{rows}, {hidden_size}], got {}", tensor.shape());
                return Err(self.at(&error));
            }
        }
        let mut logits = Tensor::zeros(device, DType::F32, [num_tokens, num_choices])?;
        let args = RouterLogitsArgs { hidden_states, weight, bias: None, tanh: false, output: logits.view_mut()? };
        router_logits(device, args).map_err(|error| self.at(&error))?;
        Ok(Some(logits))
    }
}
