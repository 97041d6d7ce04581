//! Routes logits from a file by a rule from a file, and shows where the tokens go.
//!
//! ```text
//! moe_route (--config router.json | --preset NAME) [--logits F.safetensors] [--output G.safetensors]
//!           [--hidden X.safetensors] [--backend auto|reference|cpu|wgpu|cuda] [--json | --chart]
//! ```
//!
//! F holds `logits` [T,E] f32, and what the rule needs besides: `selection_bias` [E] f32, `token_ids` [T] u32,
//! `hash_table` [V,k] u32, `noise_weight` [E,H] f32 with `hidden_states` [T,H] (in F or X). G receives `topk_ids`,
//! `topk_weights`, `expert_offsets`, `permuted_idx` and the figures. A preset without logits runs on random ones.

mod inputs;
mod report;
mod routed;

use std::fmt::Display;
use std::path::PathBuf;

use clap::Parser;
use fused_moe::Device;
use fused_moe::routing::RouterConfig;
use fused_moe::routing::presets::published;

use inputs::Inputs;
use routed::Routed;

#[derive(Parser)]
#[command(about = "Routes logits by a rule, and shows where the tokens go")]
struct Options {
    /// The rule: a RouterConfig as JSON.
    #[arg(long, required_unless_present = "preset", conflicts_with = "preset")]
    config: Option<PathBuf>,
    /// A published rule by its name, such as deepseek_v3.
    #[arg(long)]
    preset: Option<String>,
    /// `logits`, and what the rule needs besides; random ones for a preset.
    #[arg(long, required_unless_present = "preset")]
    logits: Option<PathBuf>,
    /// `hidden_states`, where they are not with the logits.
    #[arg(long)]
    hidden: Option<PathBuf>,
    /// Where results go.
    #[arg(long)]
    output: Option<PathBuf>,
    /// auto, reference, cpu, wgpu or cuda.
    #[arg(long, default_value = "auto")]
    backend: String,
    /// The batch is sequences of this many tokens.
    #[arg(long)]
    tokens_per_sequence: Option<usize>,
    /// Print the figures as JSON.
    #[arg(long, conflicts_with = "chart")]
    json: bool,
    /// Draw the load of every expert also where the output is no terminal.
    #[arg(long)]
    chart: bool,
}

/// One line: what is wrong, and where.
type Failure = Box<dyn std::error::Error>;

fn main() {
    if let Err(error) = run(&Options::parse()) {
        eprintln!("moe_route: {error}");
        std::process::exit(2);
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let rule = Rule::of(options)?;
    let device = Device::by_name(&options.backend)?;
    let mut inputs = Inputs::default();
    for path in [&options.hidden, &options.logits].into_iter().flatten() {
        inputs.load(&device, path)?;
    }
    if options.logits.is_none() {
        inputs.add_random_logits(&device, &rule)?;
    }
    let routed = Routed::of(&device, &rule, &inputs, options.tokens_per_sequence)?;
    if let Some(path) = &options.output {
        report::save(&routed, path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    report::print(&routed, options.json, options.chart);
    Ok(())
}

/// A rule and where it is from.
struct Rule {
    config: RouterConfig,
    origin: String,
    /// E, where a preset says it.
    num_experts: usize,
}

impl Rule {
    fn of(options: &Options) -> Result<Self, Failure> {
        if let Some(name) = &options.preset {
            let presets = published();
            let names: Vec<_> = presets.iter().map(|preset| preset.name).collect();
            let found = presets.iter().find(|preset| preset.name == name);
            let preset = found.ok_or_else(|| format!("--preset: expected one of {}, got {name}", names.join(", ")))?;
            let origin = format!("--preset {name}");
            return Ok(Self { config: preset.config.clone(), origin, num_experts: preset.num_experts });
        }
        let path = options.config.as_deref().ok_or("--config: expected a file, got none")?;
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| format!("{origin}: {error}"))?;
        let config = serde_json::from_str(&text).map_err(|error| format!("{origin}: {error}"))?;
        Ok(Self { config, origin, num_experts: 0 })
    }

    /// An error with the rule's origin in front.
    fn at(&self, error: &dyn Display) -> Failure {
        format!("{}: {error}", self.origin).into()
    }
}
