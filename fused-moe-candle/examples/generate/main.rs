//! Greedy text generation from a Hugging Face checkpoint of Qwen3-MoE or Mixtral: attention and norms by candle, every
//! MoE layer by fused-moe.
//!
//!     cargo run --release --example generate -- --model tests/checkpoints/qwen3_moe --prompt "Experts, please!"

mod attention;
mod config;
mod model;

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use candle_core::DType;
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use model::Model;
use tokenizers::Tokenizer;

/// Greedy text generation with fused-moe's experts inside a candle model.
#[derive(Parser)]
struct Args {
    /// Directory with config.json, tokenizer.json and safetensors.
    #[arg(long)]
    model: PathBuf,
    /// The text to go on from.
    #[arg(long)]
    prompt: String,
    /// Tokens to generate, at most.
    #[arg(long, default_value_t = 32)]
    max_new_tokens: usize,
    /// The type of weights and activations; by default as stored.
    #[arg(long)]
    dtype: Option<Dtype>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
    F16,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let tokenizer = Tokenizer::from_file(args.model.join("tokenizer.json")).map_err(|error| anyhow!(error))?;
    let prompt = tokenizer.encode(args.prompt.as_str(), true).map_err(|error| anyhow!(error))?;
    ensure!(!prompt.is_empty(), "the prompt has no tokens");
    let mut model = load(&args)?;
    print!("{}", args.prompt);
    generate(&mut model, &tokenizer, prompt.get_ids(), args.max_new_tokens)
}

fn load(args: &Args) -> Result<Model> {
    let dtype = args.dtype.map(|dtype| match dtype {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 => DType::F16,
    });
    let bar =
        ProgressBar::new(0).with_style(ProgressStyle::with_template("loading {wide_bar} {pos}/{len} layers {eta}")?);
    let model = Model::load(&args.model, dtype, &|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    model
}

/// Prints the text as it comes, then the speed of its two phases.
fn generate(model: &mut Model, tokenizer: &Tokenizer, prompt: &[u32], max_new_tokens: usize) -> Result<()> {
    let mut text = tokenizer.decode_stream(true);
    let start = Instant::now();
    let (mut token, _) = model.next_token(prompt)?;
    let prefill = start.elapsed();
    let mut generated = 0;
    let start = Instant::now();
    while generated < max_new_tokens && !model.config().is_eos(token) {
        if let Some(piece) = text.step(token).map_err(|error| anyhow!(error))? {
            print!("{piece}");
            std::io::stdout().flush()?;
        }
        (token, _) = model.next_token(&[token])?;
        generated += 1;
    }
    let decode = start.elapsed();
    println!();
    let rate = |tokens: usize, time: std::time::Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    eprintln!("prefill {} tokens, {:.1} tokens/s", prompt.len(), rate(prompt.len(), prefill));
    eprintln!("decode {generated} tokens, {:.1} tokens/s", rate(generated, decode));
    Ok(())
}
