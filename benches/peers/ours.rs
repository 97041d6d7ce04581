//! Our side of the comparison with other projects (`scripts/bench-peers`): times one preset, checks it against the
//! oracle, and writes what the others need to do the same work on the same numbers.
//!
//! Timed is the layer behind its router: `topk_ids` and `topk_weights` are given, to us and to the others.
//! Prints one JSON object per number of tokens; `--dir` receives `manifest.json` and the calls' inputs and outputs.

#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use common::presets::{self, Preset};
use common::routing::Distribution;
use common::stack::{self, Call, Calls, Stack, Work};
use common::{laps, machine, verify};
use fused_moe::{DType, Device, Tensor, Workspace};
use serde_json::{Value, json};

#[derive(Debug, Parser)]
struct Options {
    /// One of the presets; its tiny form in test mode.
    #[arg(long, default_value = "qwen3-30b-a3b")]
    preset: String,
    /// bf16, f16 or f32.
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// Tokens per call.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 512])]
    tokens: Vec<usize>,
    /// How popular experts are.
    #[arg(long, default_value = "uniform")]
    distribution: String,
    /// Seconds to time each number of tokens for.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Where the inputs go.
    #[arg(long)]
    dir: PathBuf,
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
    let dir = std::env::temp_dir().join(format!("fused-moe-bench-{}", std::process::id()));
    fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let options = ["ours", "--tokens=1,8", "--seconds=0", "--dir"].map(PathBuf::from);
    let ran = run(&Options::parse_from(options.into_iter().chain([dir.clone()])));
    fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    ran
}

fn run(options: &Options) -> Result<(), String> {
    let dtype = [DType::BF16, DType::F16, DType::F32].into_iter().find(|dtype| dtype.to_string() == options.dtype);
    let dtype = dtype.ok_or_else(|| format!("--dtype: bf16, f16 or f32, not {}", options.dtype))?;
    let distribution = match options.distribution.as_str() {
        "uniform" => Distribution::Uniform,
        "zipf" => Distribution::Zipf,
        other => return Err(format!("--distribution: uniform or zipf, not {other}")),
    };
    let preset = fitted(&options.preset, dtype)?;
    let stack = Stack::new(&Device::cpu(), &preset, dtype);
    let mut read_bandwidth = machine::read_bandwidth(&stack.memory());
    let mut cases = Vec::new();
    for &num_tokens in &options.tokens {
        let work = stack::mean_work(&preset, dtype, distribution, num_tokens);
        let mut case = Case::new(&stack, distribution, num_tokens);
        let times = laps::time(case.calls.all().len(), options.seconds, |i| case.run(&stack, i));
        println!("{}", row(&preset, dtype, num_tokens, work, &times));
        read_bandwidth = read_bandwidth.max(machine::read_bandwidth(&stack.memory()));
        cases.push(case.save(&stack, &options.dir).map_err(|error| format!("{}: {error}", options.dir.display()))?);
    }
    let manifest = manifest(&stack, distribution, read_bandwidth, cases);
    let path = options.dir.join("manifest.json");
    fs::write(&path, manifest.to_string()).map_err(|error| format!("{}: {error}", path.display()))
}

/// The preset by name, at full size or not at all: a comparison with fewer experts would mislead.
fn fitted(name: &str, dtype: DType) -> Result<Preset, String> {
    let preset = presets::all().into_iter().find(|preset| preset.name == name);
    let preset = preset.ok_or_else(|| format!("--preset: unknown: {name}"))?;
    if common::test_mode() {
        return Ok(preset.tiny());
    }
    let (need, free) = (preset.bytes(dtype), machine::weights_budget());
    if need > free {
        return Err(format!("{name} {dtype} needs {:.1} GB, {:.1} GB free", need as f64 / 1e9, free as f64 / 1e9));
    }
    Ok(preset)
}

/// One number of tokens.
struct Case {
    calls: Calls,
    workspace: Workspace,
    output: Tensor,
}

impl Case {
    fn new(stack: &Stack, distribution: Distribution, num_tokens: usize) -> Self {
        let calls = stack.calls(distribution, num_tokens);
        let layer = &stack.layers[0];
        let workspace = layer.workspace(num_tokens).expect("the preset was fitted to memory");
        let shape = [num_tokens, stack.preset.config.hidden_size];
        let output = Tensor::zeros(layer.device(), stack.dtype, shape).expect("small");
        let mut case = Self { calls, workspace, output };
        case.run(stack, 0);
        let call = &case.calls.all()[0];
        let topk_weights = call.topk_weights.to_vec::<f32>().expect("weights are f32");
        verify::layer(stack, call, &ids(call), &topk_weights, &case.output, false);
        case
    }

    fn run(&mut self, stack: &Stack, i: usize) {
        let Self { calls, workspace, output } = self;
        let call = &calls.all()[i];
        let output = output.view_mut().expect("memory of its own");
        let layer = &stack.layers[call.layer];
        layer.forward_routed(call.hidden_states.view(), call.routing(), output, workspace).expect("shapes fit");
    }

    /// Writes every call's input, and the first one's output, as raw little-endian numbers, floats as f32.
    fn save(&mut self, stack: &Stack, dir: &Path) -> std::io::Result<Value> {
        let num_tokens = self.calls.all()[0].num_tokens();
        let mut saved = Vec::new();
        for (i, call) in self.calls.all().iter().enumerate() {
            let stem = format!("t{num_tokens}-{i}");
            let write = |name: &str, bytes: &[u8]| fs::write(dir.join(format!("{stem}.{name}")), bytes);
            write("ids", bytemuck::cast_slice(&ids(call)))?;
            write("weights", bytemuck::cast_slice(&stack::to_f32(&call.topk_weights)))?;
            write("hidden", bytemuck::cast_slice(&stack::to_f32(&call.hidden_states)))?;
            saved.push(json!({ "layer": call.layer, "stem": stem }));
        }
        self.run(stack, 0);
        fs::write(dir.join(format!("t{num_tokens}-0.output")), bytemuck::cast_slice(&stack::to_f32(&self.output)))?;
        Ok(json!({ "tokens": num_tokens, "calls": saved }))
    }
}

fn ids(call: &Call) -> Vec<u32> {
    call.topk_ids.to_vec().expect("ids are u32")
}

fn row(preset: &Preset, dtype: DType, num_tokens: usize, work: Work, times: &laps::Times) -> Value {
    json!({
        "impl": "fused-moe", "version": env!("CARGO_PKG_VERSION"),
        "preset": preset.name, "dtype": dtype.to_string(), "tokens": num_tokens,
        "median_us": times.median * 1e6, "min_us": times.min * 1e6, "calls": times.calls,
        "bytes": work.bytes, "flops": work.flops,
    })
}

fn manifest(stack: &Stack, distribution: Distribution, read_bandwidth: f64, cases: Vec<Value>) -> Value {
    let config = &stack.preset.config;
    json!({
        "preset": stack.preset.name, "dtype": stack.dtype.to_string(), "layers": stack.layers.len(),
        "num_experts": config.num_experts, "top_k": config.router.top_k,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "shared_intermediate_size": config.shared.as_ref().map_or(0, |shared| shared.intermediate_size),
        "distribution": distribution.to_string(),
        "device": stack.layers[0].device().to_string(),
        "threads": rayon::current_num_threads(),
        "read_bandwidth": read_bandwidth,
        "cases": cases,
    })
}
