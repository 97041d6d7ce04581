//! What is measured: shapes of models, and the routing of each case, drawn once and written for every program.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use fused_moe::DType;
use fused_moe::config::{Activation, GateUpLayout, MoeConfig, WeightLayout};
use fused_moe::routing::{Renormalize, RouterConfig};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::common::presets::{self, Preset};
use crate::common::routing::{self, Distribution, Uniform};
use crate::common::stack;

#[derive(Debug, Parser)]
pub struct Inputs {
    /// Receives everything; made where it is not there.
    #[arg(long)]
    dir: PathBuf,
    /// Models whose shapes are measured.
    #[arg(long, value_delimiter = ',')]
    presets: Vec<String>,
    /// Tokens per call.
    #[arg(long, value_delimiter = ',')]
    tokens: Vec<usize>,
    /// Bytes that one copy of a layer's weights may take; a larger layer gets fewer experts.
    #[arg(long, default_value_t = usize::MAX)]
    memory: usize,
    /// Tiny forms of the presets, to try everything without a GPU.
    #[arg(long)]
    tiny: bool,
}

/// What `inputs` wrote.
#[derive(Debug, Serialize, Deserialize)]
pub struct Manifest {
    pub tiny: bool,
    pub presets: Vec<Shape>,
    pub cases: Vec<Case>,
}

/// The routed experts of a model's layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shape {
    pub preset: String,
    /// Fewer than the model has where memory is short.
    pub num_experts: usize,
    /// As the model has.
    pub all_experts: usize,
    pub top_k: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    /// Copies of the weights that take turns.
    pub copies: usize,
}

/// One number of tokens under one distribution. `<stem>-<batch>.ids` holds `[T, k]` u32, `<stem>-<batch>.weights` f32.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    pub preset: String,
    pub tokens: usize,
    pub distribution: String,
    /// Batches that take turns over the copies of the weights.
    pub batches: usize,
    pub stem: String,
    /// Experts that a batch hits, on average.
    pub hit_experts: f64,
    /// Bytes of their weights.
    pub bytes: f64,
    /// Multiplications and additions in a batch.
    pub flops: f64,
}

impl Inputs {
    pub fn write(&self) -> Result<(), String> {
        let shapes = self.presets.iter().map(|name| self.shape(name)).collect::<Result<Vec<_>, _>>()?;
        fs::create_dir_all(&self.dir).map_err(|error| format!("{}: {error}", self.dir.display()))?;
        let cases: Vec<(&Shape, usize, Distribution)> = shapes
            .iter()
            .flat_map(|shape| self.tokens.iter().map(move |&tokens| (shape, tokens)))
            .flat_map(|(shape, tokens)| [Distribution::Uniform, Distribution::Zipf].map(|d| (shape, tokens, d)))
            // At one token popularity changes nothing that is measured.
            .filter(|&(_, tokens, distribution)| tokens > 1 || distribution == Distribution::Uniform)
            .collect();
        let cases = cases.into_par_iter().map(|(shape, tokens, d)| self.draw(shape, tokens, d));
        let manifest = Manifest { tiny: self.tiny, cases: cases.collect::<Result<_, _>>()?, presets: shapes };
        let text = serde_json::to_string_pretty(&manifest).map_err(|error| error.to_string())?;
        write(&self.dir.join("manifest.json"), text.as_bytes())
    }

    fn shape(&self, name: &str) -> Result<Shape, String> {
        let model = preset(name, self.tiny)?;
        let fitted = model.fitted(DType::BF16, self.memory)?;
        Ok(Shape {
            preset: name.into(),
            num_experts: fitted.config.num_experts,
            all_experts: model.config.num_experts,
            top_k: fitted.config.router.top_k,
            hidden_size: fitted.config.hidden_size,
            intermediate_size: fitted.config.intermediate_size,
            copies: if fitted.bytes(DType::BF16) < 8 << 30 { 2 } else { 1 },
        })
    }

    fn draw(&self, shape: &Shape, tokens: usize, distribution: Distribution) -> Result<Case, String> {
        let (config, stem) = (shape.config(), format!("{}-{distribution}-t{tokens}", shape.preset));
        let batches = match tokens {
            _ if self.tiny => 2,
            0..=8 => 16,
            9..=64 => 8,
            65..=1024 => 4,
            _ => 2,
        };
        let mut hit = 0;
        for batch in 0..batches {
            let topk_ids = routing::draw(&config, distribution, tokens, 0, batch);
            let weights = stack::weights_of(&topk_ids, shape.top_k, &mut Uniform::new(1 << 40 | batch as u64));
            hit += routing::hit_experts(&topk_ids, shape.num_experts);
            write(&self.dir.join(format!("{stem}-{batch}.ids")), bytemuck::cast_slice(&topk_ids))?;
            write(&self.dir.join(format!("{stem}-{batch}.weights")), bytemuck::cast_slice(&weights))?;
        }
        let hit_experts = hit as f64 / batches as f64;
        let expert = (3 * shape.hidden_size * shape.intermediate_size) as f64;
        let bytes = hit_experts * expert * DType::BF16.size() as f64;
        let flops = 2.0 * expert * (tokens * shape.top_k) as f64;
        let (preset, distribution) = (shape.preset.clone(), distribution.to_string());
        Ok(Case { preset, tokens, distribution, batches, stem, hit_experts, bytes, flops })
    }
}

/// A preset by name.
pub fn preset(name: &str, tiny: bool) -> Result<Preset, String> {
    let preset = presets::all().into_iter().find(|preset| preset.name == name);
    let preset = preset.ok_or_else(|| format!("--presets: unknown: {name}"))?;
    Ok(if tiny { preset.tiny() } else { preset })
}

impl Shape {
    /// The routed experts as every peer has them: SwiGLU without biases, `[E, N, K]`. Who routes does not matter.
    pub fn config(&self) -> MoeConfig {
        let router = RouterConfig::softmax_top_k(self.top_k);
        MoeConfig {
            num_experts: self.num_experts,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            router: RouterConfig { renormalize: Some(Renormalize::default()), ..router },
            activation: Activation::Silu,
            gate_up_layout: Some(GateUpLayout::GateThenUp),
            weight_layout: WeightLayout::Nk,
            shared: None,
            latent_size: None,
        }
    }
}

impl Manifest {
    pub fn read(dir: &Path) -> Result<Self, String> {
        let path = dir.join("manifest.json");
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    pub fn shape(&self, preset: &str) -> Result<&Shape, String> {
        let found = self.presets.iter().find(|shape| shape.preset == preset);
        found.ok_or_else(|| format!("{preset} is not in the manifest"))
    }

    pub fn case(&self, preset: &str, tokens: usize, distribution: &str) -> Result<&Case, String> {
        let mut cases = self.cases.iter();
        let is_it = |case: &&Case| (&*case.preset, case.tokens, &*case.distribution) == (preset, tokens, distribution);
        cases.find(is_it).ok_or_else(|| format!("{preset} T{tokens} {distribution} is not in the manifest"))
    }
}

impl Case {
    /// A batch's ids and weights.
    pub fn routing(&self, dir: &Path, batch: usize) -> Result<(Vec<u32>, Vec<f32>), String> {
        let path = |kind| dir.join(format!("{}-{batch}.{kind}", self.stem));
        Ok((read(&path("ids"))?, read(&path("weights"))?))
    }
}

fn read<T: bytemuck::Pod>(path: &Path) -> Result<Vec<T>, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(bytemuck::pod_collect_to_vec(&bytes))
}

pub fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}
