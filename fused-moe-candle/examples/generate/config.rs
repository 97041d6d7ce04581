//! What the decoder around the MoE layers needs of `config.json`; the layers themselves read their own keys.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// A decoder-only model with rotary embeddings, grouped-query attention and RMS norms.
#[derive(Debug, Deserialize)]
pub struct Config {
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: Option<usize>,
    pub rms_norm_eps: f64,
    pub hidden_act: candle_nn::Activation,
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(alias = "torch_dtype")]
    pub dtype: Option<String>,
    pub eos_token_id: Option<EosTokenId>,
    rope_theta: Option<f64>,
    rope_parameters: Option<RopeParameters>,
    rope_scaling: Option<serde_json::Value>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct RopeParameters {
    rope_theta: f64,
    rope_type: String,
}

/// One id, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum EosTokenId {
    One(u32),
    Many(Vec<u32>),
}

impl Config {
    /// Reads a checkpoint's `config.json`, and refuses what this decoder would compute wrongly.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let config: Self = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        if !["qwen3_moe", "mixtral"].contains(&config.model_type.as_str()) {
            bail!("model_type: this example knows qwen3_moe and mixtral, not {}", config.model_type);
        }
        let default_rope = config.rope_parameters.as_ref().is_none_or(|rope| rope.rope_type == "default");
        ensure!(default_rope && config.rope_scaling.is_none(), "scaled rotary embeddings are beyond this example");
        let sliding = config.sliding_window.is_some() && config.use_sliding_window != Some(false);
        ensure!(!sliding, "sliding-window attention is beyond this example");
        Ok(config)
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// transformers 5 writes `rope_parameters`, earlier versions `rope_theta`.
    pub fn rope_theta(&self) -> f64 {
        self.rope_parameters.as_ref().map(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(1e4)
    }

    /// Qwen3 normalises each head's queries and keys.
    pub fn qk_norm(&self) -> bool {
        self.model_type == "qwen3_moe"
    }

    pub fn is_eos(&self, token: u32) -> bool {
        match &self.eos_token_id {
            None => false,
            Some(EosTokenId::One(id)) => *id == token,
            Some(EosTokenId::Many(ids)) => ids.contains(&token),
        }
    }
}
