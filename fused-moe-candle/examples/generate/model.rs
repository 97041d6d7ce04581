//! The smallest decoder around the MoE layers: candle's own models have no hook for them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, Embedding, Linear, Module, RmsNorm, VarBuilder, embedding, linear_no_bias, rms_norm};
use fused_moe_candle::fused_moe::checkpoint::{Checkpoint, LayerId, LoadOptions};
use fused_moe_candle::fused_moe::{self, MoeLayer};
use fused_moe_candle::{FusedMoe, Workspaces};

use super::attention::{Attention, Rope};
use super::config::Config;

/// A causal language model on the CPU, with the cache of one sequence.
pub struct Model {
    config: Config,
    embed_tokens: Embedding,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    lm_head: Linear,
    dtype: DType,
    num_cached: usize,
}

struct DecoderLayer {
    input_layernorm: RmsNorm,
    attention: Attention,
    post_attention_layernorm: RmsNorm,
    feed_forward: FeedForward,
}

enum FeedForward {
    Moe(FusedMoe),
    Dense(Mlp),
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    act: Activation,
}

impl Model {
    /// Loads a Hugging Face checkpoint directory; `dtype` is by default the one it is stored in. `progress` gets the
    /// number of layers that are loaded and the number of all.
    pub fn load(directory: &Path, dtype: Option<DType>, progress: &dyn Fn(usize, usize)) -> Result<Self> {
        let config = Config::read(directory)?;
        let dtype = dtype.map_or_else(|| stored_dtype(&config), Ok)?;
        // SAFETY: the files are only read, and a checkpoint is not changed while a model runs from it.
        let vb = unsafe { VarBuilder::from_mmaped_safetensors(&weight_files(directory)?, dtype, &Device::Cpu)? };
        let mut loader = Loader::new(directory, &config, dtype)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            progress(layer, config.num_hidden_layers);
            layers.push(loader.layer(layer, vb.pp(format!("model.layers.{layer}")))?);
        }
        progress(config.num_hidden_layers, config.num_hidden_layers);
        let embed_tokens = embedding(config.vocab_size, config.hidden_size, vb.pp("model.embed_tokens"))?;
        let lm_head = match config.tie_word_embeddings {
            true => Linear::new(embed_tokens.embeddings().clone(), None),
            false => linear_no_bias(config.hidden_size, config.vocab_size, vb.pp("lm_head"))?,
        };
        let norm = rms_norm(config.hidden_size, config.rms_norm_eps, vb.pp("model.norm"))?;
        Ok(Self { config, embed_tokens, layers, norm, lm_head, dtype, num_cached: 0 })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The hidden states `[L, H]` of the next tokens of the sequence.
    pub fn forward(&mut self, tokens: &[u32]) -> candle_core::Result<Tensor> {
        let rope = Rope::new(&self.config, self.num_cached, tokens.len(), self.dtype)?;
        let mut xs = self.embed_tokens.forward(&Tensor::new(tokens, &Device::Cpu)?)?;
        for layer in &mut self.layers {
            xs = layer.forward(&xs, &rope)?;
        }
        self.num_cached += tokens.len();
        self.norm.forward(&xs)
    }

    /// Forgets the sequence.
    #[allow(dead_code, reason = "the example makes one text; tests and measurements make several")]
    pub fn clear_cache(&mut self) {
        self.num_cached = 0;
        self.layers.iter_mut().for_each(|layer| layer.attention.clear_cache());
    }

    /// `[L, V]` f32 of hidden states.
    pub fn logits(&self, hidden_states: &Tensor) -> candle_core::Result<Tensor> {
        self.lm_head.forward(hidden_states)?.to_dtype(DType::F32)
    }

    /// The likeliest token after these, and the logits `[V]` that say so.
    pub fn next_token(&mut self, tokens: &[u32]) -> candle_core::Result<(u32, Tensor)> {
        let hidden_states = self.forward(tokens)?;
        let logits = self.logits(&hidden_states.narrow(0, tokens.len() - 1, 1)?)?.squeeze(0)?;
        Ok((logits.argmax(0)?.to_scalar()?, logits))
    }
}

impl DecoderLayer {
    fn forward(&mut self, xs: &Tensor, rope: &Rope) -> candle_core::Result<Tensor> {
        let xs = (self.attention.forward(&self.input_layernorm.forward(xs)?, rope)? + xs)?;
        let normed = self.post_attention_layernorm.forward(&xs)?;
        match &self.feed_forward {
            FeedForward::Moe(moe) => moe.forward(&normed)? + xs,
            FeedForward::Dense(mlp) => mlp.forward(&normed)? + xs,
        }
    }
}

impl Mlp {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let gate = self.act.forward(&self.gate_proj.forward(xs)?)?;
        self.down_proj.forward(&(gate * self.up_proj.forward(xs)?)?)
    }
}

/// Makes the decoder's layers: attention and norms through candle, experts through fused-moe.
struct Loader<'c> {
    config: &'c Config,
    checkpoint: Checkpoint,
    with_experts: Vec<LayerId>,
    dtype: fused_moe::DType,
    workspaces: Workspaces,
}

impl<'c> Loader<'c> {
    fn new(directory: &Path, config: &'c Config, dtype: DType) -> Result<Self> {
        let checkpoint = Checkpoint::open(directory)?;
        let with_experts = checkpoint.layers_with_experts()?;
        let dtype = match dtype {
            DType::BF16 => fused_moe::DType::BF16,
            DType::F16 => fused_moe::DType::F16,
            _ => fused_moe::DType::F32,
        };
        Ok(Self { config, checkpoint, with_experts, dtype, workspaces: Workspaces::default() })
    }

    fn layer(&mut self, index: usize, vb: VarBuilder) -> Result<DecoderLayer> {
        let norm = |name| rms_norm(self.config.hidden_size, self.config.rms_norm_eps, vb.pp(name));
        let id = LayerId::from(index);
        let feed_forward = match self.with_experts.contains(&id) {
            true => FeedForward::Moe(FusedMoe::from_layer(self.experts(id)?)?.with_workspaces(self.workspaces.clone())),
            false => FeedForward::Dense(self.mlp(vb.pp("mlp"))?),
        };
        Ok(DecoderLayer {
            input_layernorm: norm("input_layernorm")?,
            attention: Attention::new(self.config, vb.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            feed_forward,
        })
    }

    fn experts(&self, layer: LayerId) -> Result<MoeLayer> {
        let options = LoadOptions { dtype: Some(self.dtype), ..LoadOptions::default() };
        Ok(self.checkpoint.load(&fused_moe::Device::cpu(), layer, options)?)
    }

    fn mlp(&self, vb: VarBuilder) -> Result<Mlp> {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        Ok(Mlp {
            gate_proj: linear_no_bias(hidden, inner, vb.pp("gate_proj"))?,
            up_proj: linear_no_bias(hidden, inner, vb.pp("up_proj"))?,
            down_proj: linear_no_bias(inner, hidden, vb.pp("down_proj"))?,
            act: self.config.hidden_act,
        })
    }
}

fn stored_dtype(config: &Config) -> Result<DType> {
    match config.dtype.as_deref() {
        None | Some("float32") => Ok(DType::F32),
        Some("bfloat16") => Ok(DType::BF16),
        Some("float16") => Ok(DType::F16),
        Some(other) => Err(anyhow!("dtype: expected float32, bfloat16 or float16, got {other}")),
    }
}

/// The checkpoint's safetensors, one or sharded.
fn weight_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
