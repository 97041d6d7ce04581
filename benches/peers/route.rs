//! Our side of `route.py`: routes the batches of a file by DeepSeek-V3's rule, writes the first batch's ids and weights
//! beside it, and times them all. Prints one JSON object.

#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use common::laps;
use fused_moe::ops::{RouteArgs, RouteInputs, route};
use fused_moe::routing::RouterConfig;
use fused_moe::{DType, Device, Tensor};
use serde_json::json;

#[derive(Debug, Parser)]
struct Options {
    /// Holds `logits.f32` [B, T, E] and `bias.f32` [E], little-endian; receives `ids.u32` and `weights.f32` [T, k].
    #[arg(long)]
    dir: PathBuf,
    /// T.
    #[arg(long, default_value_t = 8192)]
    tokens: usize,
    /// How long to time for.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), String> {
    // Beside criterion's benches under a plain `cargo bench`, with arguments that are theirs: nothing to do but in
    // test mode a tiny round.
    if common::test_mode() {
        return test();
    }
    if !std::env::args().any(|argument| argument == "--dir") {
        return Ok(());
    }
    run(&Options::parse())
}

fn test() -> Result<(), String> {
    let dir = std::env::temp_dir().join(format!("fused-moe-route-{}", std::process::id()));
    fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let random = |n: usize| (0..n).map(|i| (i * 7919 % 1009) as f32 / 504.0 - 1.0).collect::<Vec<_>>();
    write(&dir.join("logits.f32"), &random(2 * 3 * EXPERTS))?;
    write(&dir.join("bias.f32"), &random(EXPERTS))?;
    let ran = run(&Options { dir: dir.clone(), tokens: 3, seconds: 0.0, bench: false });
    fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    ran
}

const EXPERTS: usize = 256;

fn run(options: &Options) -> Result<(), String> {
    let Options { dir, tokens, seconds, .. } = options;
    let (device, config) = (Device::cpu(), RouterConfig::deepseek_v3());
    let upload = |values: &[f32]| Tensor::from_slice(&device, values, [*tokens, EXPERTS]).map_err(|e| e.to_string());
    let batches: Vec<Tensor> =
        read(&dir.join("logits.f32"))?.chunks_exact(tokens * EXPERTS).map(upload).collect::<Result<_, _>>()?;
    if batches.is_empty() {
        return Err(format!("{}: less than one batch of {tokens} tokens", dir.join("logits.f32").display()));
    }
    let bias = Tensor::from_slice(&device, &read(&dir.join("bias.f32"))?, [EXPERTS]).map_err(|e| e.to_string())?;
    let output = |dtype| Tensor::zeros(&device, dtype, [*tokens, config.top_k]).map_err(|e| e.to_string());
    let (mut ids, mut weights) = (output(DType::U32)?, output(DType::F32)?);
    let mut call = |batch: &Tensor| {
        let args = RouteArgs {
            config: &config,
            router_logits: batch.view(),
            selection_bias: Some(bias.view()),
            inputs: RouteInputs::default(),
            topk_ids: ids.view_mut().expect("memory of its own"),
            topk_weights: weights.view_mut().expect("memory of its own"),
            ragged: None,
            figures: None,
        };
        route(&device, args).expect("shapes fit");
    };
    let mut times = laps::laps(batches.len(), *seconds, |i| call(&batches[i]));
    times.sort_by(f64::total_cmp);
    call(&batches[0]);
    write(&dir.join("ids.u32"), &ids.to_vec::<u32>().map_err(|e| e.to_string())?)?;
    write(&dir.join("weights.f32"), &weights.to_vec::<f32>().map_err(|e| e.to_string())?)?;
    let row = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": device.to_string(),
        "median_us": times[times.len() / 2] * 1e6,
        "min_us": times[0] * 1e6,
        "calls": times.len() * batches.len(),
    });
    println!("{row}");
    Ok(())
}

fn read(path: &Path) -> Result<Vec<f32>, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(bytemuck::pod_collect_to_vec(&bytes))
}

fn write<T: bytemuck::Pod>(path: &Path, values: &[T]) -> Result<(), String> {
    fs::write(path, bytemuck::cast_slice(values)).map_err(|error| format!("{}: {error}", path.display()))
}
