//! The same model, the same file, the same threads, in one run: candle's own Qwen3-MoE against candle with fused-moe's
//! experts. Prints one CSV row per type and phase. scripts/side-by-side calls it.

#[path = "../../examples/generate/attention.rs"]
mod attention;
mod checkpoint;
#[path = "../../examples/generate/config.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod config;
#[path = "../../examples/generate/model.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod model;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3_moe;
use checkpoint::Shape;
use clap::Parser;

/// candle's MoE path against fused-moe's.
#[derive(Parser)]
struct Args {
    /// Where to write the checkpoints: 2.5 GB for bf16, 5 GB for f32.
    #[arg(long)]
    dir: PathBuf,
    /// f32 or bf16.
    #[arg(long)]
    dtype: String,
    #[arg(long, default_value_t = 2, value_parser = at_least_one)]
    layers: usize,
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    prefill: usize,
    #[arg(long, default_value_t = 32, value_parser = at_least_one)]
    decode: usize,
    /// Times that everything is measured; medians count.
    #[arg(long, default_value_t = 5, value_parser = at_least_one)]
    rounds: usize,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a number from 1 on".into())
}

/// One of the two, behind what both can do.
trait Engine {
    /// The logits `[V]` after these tokens, which come after those of earlier calls.
    fn logits(&mut self, tokens: &[u32]) -> Result<Tensor>;
    fn reset(&mut self) -> Result<()>;
}

struct Candle {
    model: qwen3_moe::ModelForCausalLM,
    num_cached: usize,
}

/// The whole model and the model without experts, in candle and in ours.
struct Four<T>([T; 4]);

/// Seconds of each call.
#[derive(Default)]
struct Times {
    prefill: Vec<Four<f64>>,
    decode: Vec<Four<f64>>,
}

const CANDLE: usize = 0;
const CANDLE_REST: usize = 1;
const OURS: usize = 2;
const OURS_REST: usize = 3;

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(["f32", "bf16"].contains(&args.dtype.as_str()), "--dtype: expected f32 or bf16, got {}", args.dtype);
    let (whole, rest) = (args.dir.join(format!("whole-{}", args.dtype)), args.dir.join(format!("rest-{}", args.dtype)));
    for (directory, experts) in [(&whole, true), (&rest, false)] {
        if !directory.join("model.safetensors").exists() {
            eprintln!("writing {} ...", directory.display());
            shape(&args, experts).write(directory, args.dtype == "bf16")?;
        }
    }
    let mut engines: Four<Box<dyn Engine>> = Four([
        Box::new(Candle::load(&whole)?),
        Box::new(Candle::load(&rest)?),
        Box::new(model::Model::load(&whole, None, &|_, _| {})?),
        Box::new(model::Model::load(&rest, None, &|_, _| {})?),
    ]);
    let (times, logits) = measure(&args, &mut engines)?;
    report(&args, &times, &logits)
}

fn shape(args: &Args, experts: bool) -> Shape {
    Shape {
        num_layers: args.layers,
        hidden_size: 2048,
        num_heads: 32,
        num_kv_heads: 4,
        head_dim: 128,
        num_experts: 128,
        top_k: 8,
        intermediate_size: 768,
        vocab_size: 1024,
        experts,
    }
}

/// All four in turn, token by token, so that what is compared was measured in the same moments and found the caches as
/// cold; the first round warms up. With the last round's logits.
fn measure(args: &Args, engines: &mut Four<Box<dyn Engine>>) -> Result<(Times, Four<Vec<Tensor>>)> {
    let tokens: Vec<u32> = (0..args.prefill + args.decode).map(|i| (i * 377 % 1021) as u32).collect();
    let (prompt, decoded) = tokens.split_at(args.prefill);
    let mut times = Times::default();
    let mut logits = Four([const { Vec::new() }; 4]);
    for round in 0..=args.rounds {
        logits = Four([const { Vec::new() }; 4]);
        engines.0.iter_mut().try_for_each(|engine| engine.reset())?;
        for (i, call) in [prompt].into_iter().chain(decoded.chunks(1)).enumerate() {
            let mut seconds = Four([0.0; 4]);
            for ((engine, seconds), logits) in engines.0.iter_mut().zip(&mut seconds.0).zip(&mut logits.0) {
                let start = Instant::now();
                logits.push(engine.logits(call)?);
                *seconds = start.elapsed().as_secs_f64();
            }
            if round > 0 {
                let phase = if i == 0 { &mut times.prefill } else { &mut times.decode };
                phase.push(seconds);
            }
        }
    }
    Ok((times, logits))
}

/// One CSV row per phase, of medians over the calls. Experts' time is the median of what the whole model took longer than
/// the one without them right after it: single differences are small beside the noise of what they are differences of.
fn report(args: &Args, times: &Times, logits: &Four<Vec<Tensor>>) -> Result<()> {
    let error = distance(&logits.0[OURS], &logits.0[CANDLE])?;
    let tolerance = if args.dtype == "f32" { 1e-4 } else { 0.05 };
    ensure!(error <= tolerance, "the two models differ: {error:e}");
    let phases = [("prefill", args.prefill, 1, &times.prefill), ("decode", args.decode, args.decode, &times.decode)];
    for (phase, tokens, calls, times) in phases {
        let median = |of: &dyn Fn(&[f64; 4]) -> f64| {
            let mut values: Vec<f64> = times.iter().map(|call| of(&call.0)).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2] * calls as f64 * 1e3
        };
        let (candle, ours) = (median(&|t| t[CANDLE]), median(&|t| t[OURS]));
        let candle_moe = median(&|t| t[CANDLE] - t[CANDLE_REST]);
        let ours_moe = median(&|t| t[OURS] - t[OURS_REST]);
        println!(
            "{},{phase},{tokens},{},{candle:.1},{ours:.1},{candle_moe:.1},{ours_moe:.1},{:.2},{:.2},{error:.1e}",
            args.dtype,
            args.layers,
            candle / ours,
            candle_moe / ours_moe,
        );
    }
    Ok(())
}

/// ‖a − b‖ / ‖b‖ of the median step. Not of the worst: candle routes in the model's type, and where two experts are equal
/// to bf16's precision the two choose differently.
fn distance(ours: &[Tensor], candle: &[Tensor]) -> Result<f64> {
    let norm = |t: &Tensor| -> Result<f64> { Ok(t.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt()) };
    let errors = ours.iter().zip(candle).map(|(ours, candle)| Ok(norm(&(ours - candle)?)? / norm(candle)?));
    let mut errors = errors.collect::<Result<Vec<_>>>()?;
    errors.sort_by(f64::total_cmp);
    Ok(errors[errors.len() / 2])
}

impl Candle {
    fn load(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let config: qwen3_moe::Config = serde_json::from_str(&text)?;
        let dtype = if text.contains("bfloat16") { DType::BF16 } else { DType::F32 };
        // SAFETY: the file is only read, and was written before.
        let vb = unsafe {
            VarBuilder::from_mmaped_safetensors(&[directory.join("model.safetensors")], dtype, &Device::Cpu)?
        };
        Ok(Self { model: qwen3_moe::ModelForCausalLM::new(&config, vb)?, num_cached: 0 })
    }
}

impl Engine for Candle {
    fn logits(&mut self, tokens: &[u32]) -> Result<Tensor> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = self.model.forward(&input, self.num_cached)?;
        self.num_cached += tokens.len();
        Ok(logits.flatten_all()?.to_dtype(DType::F32)?)
    }

    fn reset(&mut self) -> Result<()> {
        self.model.clear_kv_cache();
        self.num_cached = 0;
        Ok(())
    }
}

impl Engine for model::Model {
    fn logits(&mut self, tokens: &[u32]) -> Result<Tensor> {
        Ok(self.next_token(tokens)?.1)
    }

    fn reset(&mut self) -> Result<()> {
        self.clear_cache();
        Ok(())
    }
}
