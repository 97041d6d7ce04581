//! A random checkpoint in Qwen3-MoE's layout, written tensor by tensor.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use half::bf16;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

/// The sizes of a model; the defaults are Qwen3-30B-A3B with two layers and a small vocabulary.
#[derive(Clone, Debug)]
pub struct Shape {
    pub num_layers: usize,
    pub hidden_size: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub num_experts: usize,
    pub top_k: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    /// Whether the layers have experts. Without, they have a dense MLP of one feature: what is left is the rest of the
    /// model, whose time is taken off the whole's.
    pub experts: bool,
}

/// Width of the MLP that stands where experts are left out.
const REST_WIDTH: usize = 1;

impl Shape {
    fn config(&self, dtype: &str) -> Value {
        json!({
            "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "dtype": dtype,
            "vocab_size": self.vocab_size, "hidden_size": self.hidden_size, "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads, "num_key_value_heads": self.num_kv_heads, "head_dim": self.head_dim,
            "intermediate_size": REST_WIDTH, "moe_intermediate_size": self.intermediate_size,
            "num_experts": self.num_experts, "num_experts_per_tok": self.top_k, "norm_topk_prob": true,
            "decoder_sparse_step": if self.experts { 1 } else { self.num_layers + 1 }, "mlp_only_layers": [],
            "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": false, "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "max_position_embeddings": 4096, "sliding_window": null, "use_sliding_window": false,
            "max_window_layers": self.num_layers,
        })
    }

    /// Every tensor's name and extents.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let h = self.hidden_size;
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, h]),
            ("lm_head.weight".to_owned(), vec![self.vocab_size, h]),
            ("model.norm.weight".to_owned(), vec![h]),
        ];
        for layer in 0..self.num_layers {
            let mut add = |name: String, dims: &[usize]| {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), dims.to_vec()));
            };
            add("input_layernorm".into(), &[h]);
            add("post_attention_layernorm".into(), &[h]);
            for (name, heads) in
                [("q_proj", self.num_heads), ("k_proj", self.num_kv_heads), ("v_proj", self.num_kv_heads)]
            {
                add(format!("self_attn.{name}"), &[heads * self.head_dim, h]);
            }
            add("self_attn.o_proj".into(), &[h, self.num_heads * self.head_dim]);
            add("self_attn.q_norm".into(), &[self.head_dim]);
            add("self_attn.k_norm".into(), &[self.head_dim]);
            let blocks: Vec<(String, usize)> = match self.experts {
                false => vec![("mlp".into(), REST_WIDTH)],
                true => (0..self.num_experts).map(|e| (format!("mlp.experts.{e}"), self.intermediate_size)).collect(),
            };
            if self.experts {
                add("mlp.gate".into(), &[self.num_experts, h]);
            }
            for (block, width) in blocks {
                add(format!("{block}.gate_proj"), &[width, h]);
                add(format!("{block}.up_proj"), &[width, h]);
                add(format!("{block}.down_proj"), &[h, width]);
            }
        }
        tensors
    }

    /// Writes `config.json` and `model.safetensors`: uniform values of variance 1/K, norms of 1.
    pub fn write(&self, directory: &Path, bf16: bool) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let dtype = if bf16 { "bfloat16" } else { "float32" };
        fs::write(directory.join("config.json"), self.config(dtype).to_string())?;
        let (size, tag) = if bf16 { (2, "BF16") } else { (4, "F32") };
        let (tensors, mut header, mut offset) = (self.tensors(), Map::new(), 0);
        for (name, dims) in &tensors {
            let end = offset + dims.iter().product::<usize>() * size;
            header.insert(name.clone(), json!({ "dtype": tag, "shape": dims, "data_offsets": [offset, end] }));
            offset = end;
        }
        let mut header = Value::Object(header).to_string();
        // The data starts on a cache line.
        header.push_str(&" ".repeat((8 + header.len()).next_multiple_of(64) - 8 - header.len()));
        let mut file = BufWriter::with_capacity(1 << 20, File::create(directory.join("model.safetensors"))?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let mut random = SmallRng::seed_from_u64(1);
        for (_, dims) in &tensors {
            let scale = (3.0 / *dims.last().unwrap_or(&1) as f32).sqrt();
            for _ in 0..dims.iter().product::<usize>() {
                let value = if dims.len() == 1 { 1.0 } else { random.random_range(-scale..scale) };
                match bf16 {
                    true => file.write_all(&bf16::from_f32(value).to_le_bytes())?,
                    false => file.write_all(&value.to_le_bytes())?,
                }
            }
        }
        Ok(file.flush()?)
    }
}
