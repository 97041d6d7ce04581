//! Our side of the comparison with other projects (`scripts/bench-peers`): times one preset, checks it against the
//! oracle, and writes what the others need to do the same work on the same numbers.
//!
//! Timed is the layer behind its router: `topk_ids` and `topk_weights` are given, to us and to the others. Beside the
//! layer stands what only reads the same weights, the floor of decode.
//! `--dir` receives `manifest.json` and the calls' inputs and outputs; then laps are timed as asked for on the standard
//! input (`laps::serve`).

#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use common::presets::{self, Preset};
use common::routing::Distribution;
use common::stack::{self, Call, Calls, Stack};
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
    let options = ["ours", "--tokens=1,8", "--dir"].map(PathBuf::from);
    let ran = Session::new(&Options::parse_from(options.into_iter().chain([dir.clone()]))).and_then(|mut session| {
        for (num_tokens, implementation) in [(1, OURS), (8, OURS), (8, READ)] {
            session.time(num_tokens, 0.0, implementation)?;
        }
        Ok(())
    });
    fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    ran
}

fn run(options: &Options) -> Result<(), String> {
    let mut session = Session::new(options)?;
    let about = json!({ "impls": { OURS: env!("CARGO_PKG_VERSION"), READ: "of the same weights" } });
    laps::serve(about, |num_tokens, seconds, implementation| session.time(num_tokens, seconds, implementation))
}

const OURS: &str = "fused-moe";
const READ: &str = "plain read";

/// A stack of layers, and a case for each number of tokens.
struct Session {
    stack: Stack,
    cases: Vec<Case>,
}

impl Session {
    /// Checks each case against the oracle, and writes everything to the directory.
    fn new(options: &Options) -> Result<Self, String> {
        let dtype = [DType::BF16, DType::F16, DType::F32].into_iter().find(|dtype| dtype.to_string() == options.dtype);
        let dtype = dtype.ok_or_else(|| format!("--dtype: bf16, f16 or f32, not {}", options.dtype))?;
        let distribution = match options.distribution.as_str() {
            "uniform" => Distribution::Uniform,
            "zipf" => Distribution::Zipf,
            other => return Err(format!("--distribution: uniform or zipf, not {other}")),
        };
        let stack = Stack::new(&Device::cpu(), &fitted(&options.preset, dtype)?, dtype);
        let save = |case: &mut Case| {
            case.save(&stack, distribution, &options.dir).map_err(|error| format!("{}: {error}", options.dir.display()))
        };
        let mut cases: Vec<Case> = options.tokens.iter().map(|&t| Case::new(&stack, distribution, t)).collect();
        let saved = cases.iter_mut().map(save).collect::<Result<Vec<_>, _>>()?;
        let path = options.dir.join("manifest.json");
        let manifest = manifest(&stack, distribution, saved).to_string();
        fs::write(&path, manifest).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { stack, cases })
    }

    fn time(&mut self, num_tokens: usize, seconds: f64, implementation: &str) -> Result<Value, String> {
        let Self { stack, cases } = self;
        let case = cases.iter_mut().find(|case| case.calls.all()[0].num_tokens() == num_tokens);
        let case = case.ok_or_else(|| format!("{num_tokens} is not one of --tokens"))?;
        let calls = case.calls.all().len();
        let laps = match implementation {
            OURS => laps::laps(calls, seconds, |i| case.run(stack, i)),
            READ => {
                let memory: Vec<_> = case.calls.all().iter().map(|call| stack.memory_of(call)).collect();
                laps::laps(calls, seconds, |i| {
                    machine::read(&memory[i], READ_PIECE, READ_STREAMS);
                })
            }
            other => return Err(format!("{OURS} or {READ}, not {other:?}")),
        };
        Ok(laps::answer(calls, &laps))
    }
}

/// Enough pieces for all threads where few experts are hit.
const READ_PIECE: usize = 256 << 10;
/// As many as reading alone was fastest with.
const READ_STREAMS: usize = 4;

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
    fn save(&mut self, stack: &Stack, distribution: Distribution, dir: &Path) -> std::io::Result<Value> {
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
        let work = stack::mean_work(&stack.preset, stack.dtype, distribution, num_tokens);
        Ok(json!({ "tokens": num_tokens, "calls": saved, "bytes": work.bytes, "flops": work.flops }))
    }
}

fn ids(call: &Call) -> Vec<u32> {
    call.topk_ids.to_vec().expect("ids are u32")
}

fn manifest(stack: &Stack, distribution: Distribution, cases: Vec<Value>) -> Value {
    let config = &stack.preset.config;
    json!({
        "preset": stack.preset.name, "dtype": stack.dtype.to_string(), "layers": stack.layers.len(),
        "num_experts": config.num_experts, "top_k": config.router.top_k,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "shared_intermediate_size": config.shared.as_ref().map_or(0, |shared| shared.intermediate_size),
        "distribution": distribution.to_string(),
        "device": stack.layers[0].device().to_string(),
        "threads": rayon::current_num_threads(),
        "cases": cases,
    })
}
