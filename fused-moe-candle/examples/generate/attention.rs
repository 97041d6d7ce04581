//! Grouped-query attention with rotary embeddings and a cache, for one sequence.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use candle_nn::kv_cache::ConcatKvCache;
use candle_nn::{Linear, Module, RmsNorm, VarBuilder, linear_b, linear_no_bias, rms_norm, rotary_emb};

use super::config::Config;

pub struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    cache: ConcatKvCache,
}

impl Attention {
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let head_dim = config.head_dim();
        let (num_heads, num_kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let proj =
            |heads: usize, name| linear_b(config.hidden_size, heads * head_dim, config.attention_bias, vb.pp(name));
        let norm = |name| rms_norm(head_dim, config.rms_norm_eps, vb.pp(name));
        let qk_norm = config.qk_norm().then(|| Ok::<_, candle_core::Error>((norm("q_norm")?, norm("k_norm")?)));
        Ok(Self {
            q_proj: proj(num_heads, "q_proj")?,
            k_proj: proj(num_kv_heads, "k_proj")?,
            v_proj: proj(num_kv_heads, "v_proj")?,
            o_proj: match config.attention_bias {
                true => linear_b(num_heads * head_dim, config.hidden_size, true, vb.pp("o_proj"))?,
                false => linear_no_bias(num_heads * head_dim, config.hidden_size, vb.pp("o_proj"))?,
            },
            qk_norm: qk_norm.transpose()?,
            num_heads,
            num_kv_heads,
            head_dim,
            cache: ConcatKvCache::new(2),
        })
    }

    /// `xs` `[L, H]`, the tokens after those in the cache.
    pub fn forward(&mut self, xs: &Tensor, rope: &Rope) -> Result<Tensor> {
        let len = xs.dim(0)?;
        let mut q = self.heads(&self.q_proj, self.num_heads, xs)?;
        let mut k = self.heads(&self.k_proj, self.num_kv_heads, xs)?;
        let v = self.heads(&self.v_proj, self.num_kv_heads, xs)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let (q, k) = (rope.apply(&q)?, rope.apply(&k)?);
        let (k, v) = self.cache.append(&k, &v)?;
        let context = self.attend(&q.to_dtype(DType::F32)?, &k.to_dtype(DType::F32)?, &v.to_dtype(DType::F32)?)?;
        let context = context.transpose(1, 2)?.reshape((len, self.num_heads * self.head_dim))?;
        self.o_proj.forward(&context.to_dtype(xs.dtype())?)
    }

    pub fn clear_cache(&mut self) {
        self.cache.reset();
    }

    /// `[1, heads, L, D]`.
    fn heads(&self, proj: &Linear, heads: usize, xs: &Tensor) -> Result<Tensor> {
        proj.forward(xs)?.reshape((1, xs.dim(0)?, heads, self.head_dim))?.transpose(1, 2)?.contiguous()
    }

    /// Causal softmax attention in f32, by candle's kernel: it takes `[1, L, heads, D]`, and gives `[1, heads, L, D]`.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let mask = AttnMask::causal_with_offset(k.dim(2)? - q.dim(2)?);
        let tokens_first = |t: &Tensor| t.transpose(1, 2)?.contiguous();
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        flash_attn::<f32>(&tokens_first(q)?, &tokens_first(k)?, &tokens_first(v)?, scale, mask, None, None)
    }
}

/// The rotation of the tokens of one call.
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// For positions `offset..offset + len`.
    pub fn new(config: &Config, offset: usize, len: usize, dtype: DType) -> Result<Self> {
        let head_dim = config.head_dim();
        let theta = config.rope_theta();
        let frequencies: Vec<f32> =
            (0..head_dim / 2).map(|i| theta.powf(-2. * i as f64 / head_dim as f64) as f32).collect();
        let frequencies = Tensor::new(frequencies, &Device::Cpu)?.reshape((1, ()))?;
        let positions = Tensor::arange(offset as f32, (offset + len) as f32, &Device::Cpu)?.reshape((len, 1))?;
        let angles = positions.matmul(&frequencies)?;
        Ok(Self { cos: angles.cos()?.to_dtype(dtype)?, sin: angles.sin()?.to_dtype(dtype)? })
    }

    fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        rotary_emb::rope(&xs.contiguous()?, &self.cos, &self.sin)
    }
}
