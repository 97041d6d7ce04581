//! Our side of `gpu.py`: a layer's routed experts behind given ids and weights, and routing with the permutation alone.
//!
//! `inputs` says what is measured (shapes, cut to the device's memory) and draws the routing of every case, once, for
//! all programs alike; `time` fills weights and hidden states by the numbers of `common::data`, as the others do, and
//! times laps as asked for on the standard input (`laps::serve`), each case behind a check against the oracle.

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "cuda")]
mod cuda_clock;
#[cfg(feature = "cuda")]
#[path = "../../tests/cuda_vm/mod.rs"]
mod cuda_vm;
#[path = "gpu/inputs.rs"]
mod inputs;
#[path = "gpu/layer.rs"]
mod layer;
#[path = "gpu/router.rs"]
mod router;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use common::laps;
use fused_moe::Device;
#[cfg(feature = "cuda")]
use fused_moe::backend::cuda::Cuda;
use inputs::{Inputs, Manifest, Shape};
use serde_json::{Value, json};

#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
    /// Passed by cargo.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes `manifest.json` and every case's routing to a folder.
    Inputs(Inputs),
    /// Times one preset of that folder.
    Time(Time),
    /// Prints the tiles that a table for this device may name.
    #[cfg(feature = "cuda")]
    Tiles(Tiles),
}

#[cfg(feature = "cuda")]
#[derive(Debug, Parser)]
struct Tiles {
    /// As for `time`, but `cpu`.
    #[arg(long, default_value = "cuda")]
    device: String,
}

#[derive(Debug, Parser)]
struct Time {
    /// What `inputs` wrote.
    #[arg(long)]
    dir: PathBuf,
    /// One of its presets.
    #[arg(long)]
    preset: String,
    /// `cuda`; without a GPU `ptx-vm` or `ptx-vm-sm90`, which execute the same kernels on the CPU, or `cpu`.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Most tokens for which the calls of a lap are one CUDA graph.
    #[arg(long, default_value_t = 1024)]
    graph_tokens: usize,
}

fn main() -> Result<(), String> {
    // Beside criterion's benches under a plain `cargo bench`, with arguments that are theirs: nothing to do but in
    // test mode a tiny round.
    let mut arguments = std::env::args().skip(1);
    if !arguments.any(|argument| ["inputs", "time", "tiles"].contains(&argument.as_str())) {
        return if common::test_mode() { test() } else { Ok(()) };
    }
    match Options::parse().command {
        Command::Inputs(inputs) => inputs.write(),
        Command::Time(time) => serve(&time),
        #[cfg(feature = "cuda")]
        Command::Tiles(tiles) => print_tiles(&tiles.device),
    }
}

/// Every device that there is without a GPU, on tiny shapes.
fn test() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let folder = dir.path().display().to_string();
    let arguments = ["inputs", "--tiny", "--dir", &folder, "--tokens=1,5", "--presets=qwen3-30b-a3b,deepseek-v3"];
    Inputs::parse_from(arguments).write()?;
    let devices: &[&str] = if cfg!(feature = "cuda") { &["cpu", "ptx-vm", "ptx-vm-sm90"] } else { &["cpu"] };
    for device in devices {
        let time = Time::parse_from(["time", "--dir", &folder, "--preset=deepseek-v3", "--device", device]);
        let mut session = Session::new(&time)?;
        for (tokens, implementation) in [(1, "layer uniform"), (5, "layer zipf"), (5, "route uniform")] {
            let answer = session.answer(tokens, 0.0, implementation)?;
            assert!(answer["laps"].as_array().is_some_and(|laps| !laps.is_empty()), "{device}: {answer}");
        }
    }
    Ok(())
}

fn serve(options: &Time) -> Result<(), String> {
    let mut session = Session::new(options)?;
    let about =
        json!({ "impl": "fused-moe", "version": env!("CARGO_PKG_VERSION"), "device": session.device.to_string() });
    laps::serve(about, |tokens, seconds, implementation| session.answer(tokens, seconds, implementation))
}

/// A device and how time passes on it.
struct Session {
    device: Device,
    clock: Clock,
    dir: PathBuf,
    manifest: Manifest,
    shape: Shape,
    graph_tokens: usize,
    /// The layers' weights; made when the first layer is timed.
    layers: Option<layer::Layers>,
}

enum Clock {
    /// The host's, with a wait at the end of each lap.
    Host,
    /// The GPU's events.
    #[cfg(feature = "cuda")]
    Cuda(cuda_clock::Stream),
}

impl Session {
    fn new(options: &Time) -> Result<Self, String> {
        let (device, clock) = open(&options.device)?;
        let manifest = Manifest::read(&options.dir)?;
        let shape = manifest.shape(&options.preset)?.clone();
        let Time { dir, graph_tokens, .. } = options;
        Ok(Self { device, clock, dir: dir.clone(), manifest, shape, graph_tokens: *graph_tokens, layers: None })
    }

    /// `layer DISTRIBUTION` or `route DISTRIBUTION`, and behind it the table of tiles that is in force from here on.
    fn answer(&mut self, num_tokens: usize, seconds: f64, implementation: &str) -> Result<Value, String> {
        let mut words = implementation.splitn(3, ' ');
        let (unit, distribution) = (words.next().unwrap_or_default(), words.next().unwrap_or("uniform"));
        if let Some(table) = words.next() {
            use_tiles(table)?;
        }
        let case = self.manifest.case(&self.shape.preset, num_tokens, distribution)?;
        let (calls, graph) = (case.batches, num_tokens <= self.graph_tokens);
        let (error, (laps, mode)) = match unit {
            "layer" => {
                let layers = self.layers.get_or_insert_with(|| layer::Layers::new(&self.device, &self.shape));
                let mut ready = layer::Ready::new(layers, &self.dir, case)?;
                let error = ready.verify(layers, &self.dir, case)?;
                (error, self.clock.laps(&self.device, calls, seconds, graph, |i| ready.run(layers, i))?)
            }
            "route" => {
                let mut ready = router::Ready::new(&self.device, &self.shape, self.manifest.tiny, case)?;
                ready.verify()?;
                (0.0, self.clock.laps(&self.device, calls, seconds, graph, |i| ready.run(i))?)
            }
            other => return Err(format!("layer or route, not {other:?}")),
        };
        let mut answer = laps::answer(calls, &laps);
        answer["rel_error"] = json!(error);
        answer["mode"] = json!(mode);
        Ok(answer)
    }
}

impl Clock {
    /// Seconds per call of each lap, and how it was timed.
    fn laps(
        &self,
        device: &Device,
        calls: usize,
        seconds: f64,
        graph: bool,
        mut call: impl FnMut(usize),
    ) -> Result<(Vec<f64>, &'static str), String> {
        match self {
            Self::Host => {
                let call = |i| {
                    call(i);
                    if i == calls - 1 {
                        device.synchronize().expect("the device works");
                    }
                };
                Ok((laps::laps(calls, seconds, call), "host clock"))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(stream) => {
                let laps = stream.laps(calls, seconds, graph, call)?;
                Ok((laps, if graph { "graph" } else { "eager" }))
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn use_tiles(table: &str) -> Result<(), String> {
    fused_moe::backend::cuda::use_tiles(table).map_err(|error| error.to_string())
}

#[cfg(not(feature = "cuda"))]
fn use_tiles(_: &str) -> Result<(), String> {
    Err("this build has no kernels that have tiles".into())
}

#[cfg(feature = "cuda")]
fn print_tiles(device: &str) -> Result<(), String> {
    let cuda = cuda(device)?;
    let (capability, tiles) = (cuda.compute_capability(), cuda.tiles());
    println!("{}", json!({ "device": Device::new(cuda).to_string(), "capability": capability, "tiles": tiles }));
    Ok(())
}

#[cfg(feature = "cuda")]
fn cuda(name: &str) -> Result<Cuda, String> {
    let cuda = match name {
        "ptx-vm" => Cuda::new(cuda_vm::Vm::sm80()),
        "ptx-vm-sm90" => Cuda::new(cuda_vm::Vm::sm90()),
        _ => Cuda::open(0),
    };
    cuda.map_err(|error| error.to_string())
}

fn open(name: &str) -> Result<(Device, Clock), String> {
    match name {
        "cpu" => Ok((Device::cpu(), Clock::Host)),
        #[cfg(feature = "cuda")]
        "ptx-vm" | "ptx-vm-sm90" => Ok((Device::new(cuda(name)?), Clock::Host)),
        #[cfg(feature = "cuda")]
        "cuda" => {
            let cuda = cuda(name)?;
            let stream = cuda_clock::Stream::new(cuda.stream())?;
            Ok((Device::new(cuda), Clock::Cuda(stream)))
        }
        other => Err(format!("--device: {other:?} is not in this build")),
    }
}
