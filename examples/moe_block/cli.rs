//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use fused_moe::DType;

/// Runs one MoE block of a Hugging Face checkpoint and says how right and how fast it is.
///
/// Without --model: the checkpoints bundled with the source, on every backend that is there.
#[derive(Debug, Parser)]
#[command(name = "moe_block")]
pub struct Cli {
    /// A checkpoint directory as downloaded: config.json and safetensors.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// The layer: a block index, `encoder.N` or `decoder.N` [default: the first with experts].
    #[arg(long, value_name = "N", requires = "model")]
    pub layer: Option<String>,
    /// Safetensors with `hidden_states` [T, H] [default: --tokens random ones].
    #[arg(long, value_name = "FILE", requires = "model", conflicts_with_all = ["tokens", "seed"])]
    pub input: Option<PathBuf>,
    /// Safetensors to write: `output` [T, H], `topk_ids`, `topk_weights`.
    #[arg(long, value_name = "FILE", requires = "model")]
    pub output: Option<PathBuf>,
    /// Safetensors with the `output` [T, H] to compare with.
    #[arg(long, value_name = "FILE", requires = "input")]
    pub expect: Option<PathBuf>,
    /// Where to run.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub backend: String,
    /// The expert weights' type [default: as stored].
    #[arg(long, value_enum)]
    pub dtype: Option<DTypeArg>,
    /// How many random tokens, where there is no --input.
    #[arg(long, value_name = "T", default_value_t = 16)]
    pub tokens: usize,
    /// The seed of the random tokens.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// The largest ‖output − expect‖ / ‖expect‖ [default: 1e-5 for f32 weights, 5e-3 for bf16 and f16].
    #[arg(long, value_name = "X")]
    pub tolerance: Option<f64>,
    /// One JSON object per run, instead of text.
    #[arg(long)]
    pub json: bool,
}

/// The weight types that can be asked for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DTypeArg {
    F32,
    Bf16,
    F16,
}

impl From<DTypeArg> for DType {
    fn from(arg: DTypeArg) -> Self {
        match arg {
            DTypeArg::F32 => Self::F32,
            DTypeArg::Bf16 => Self::BF16,
            DTypeArg::F16 => Self::F16,
        }
    }
}

/// How far from the truth a layer with weights of `dtype` may be.
pub fn default_tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 5e-3 }
}
