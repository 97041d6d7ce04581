//! Routes logits from a file by a rule from a file, and shows where the tokens go.
//!
//! ```text
//! moe_route (--config router.json | --preset NAME) [--logits F.safetensors] [--output G.safetensors]
//!           [--hidden X.safetensors] [--backend auto|reference|cpu|wgpu|cuda] [--json]
//! ```
//!
//! F holds `logits` [T,E] f32, and what the rule needs besides: `selection_bias` [E] f32, `token_ids` [T] u32,
//! `hash_table` [V,k] u32, `noise_weight` [E,H] f32 with `hidden_states` [T,H] (in F or X). G receives `topk_ids`,
//! `topk_weights`, `expert_offsets`, `permuted_idx` and the figures. A preset without logits runs on random ones.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Parser;
use fused_moe::ops::{
    FiguresMut, PermuteArgs, RaggedMut, RouteArgs, RouteInputs, RouterLogitsArgs, permute, route, router_logits,
};
use fused_moe::plan::PermutePlanMut;
use fused_moe::routing::presets::published;
use fused_moe::routing::{Figures, MASKED, NUM_SCALARS, NoiseKind, RouterConfig, noise};
use fused_moe::{DType, Device, Tensor, TensorView};
use safetensors::SafeTensors;

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
    #[arg(long)]
    json: bool,
}

type Failure = Box<dyn std::error::Error>;

fn main() {
    if let Err(error) = run(&Options::parse()) {
        eprintln!("moe_route: {error}");
        std::process::exit(2);
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let (config, num_experts) = rule(options)?;
    let device = Device::by_name(&options.backend)?;
    let mut tensors = BTreeMap::new();
    for path in [&options.hidden, &options.logits].into_iter().flatten() {
        load(&device, path, &mut tensors)?;
    }
    if options.logits.is_none() {
        random_inputs(&device, &config, num_experts.unwrap_or_default(), &mut tensors)?;
    }
    let routed = Routed::of(&device, &config, &tensors, options.tokens_per_sequence)?;
    if let Some(path) = &options.output {
        routed.save(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    routed.print(options.json);
    Ok(())
}

/// The rule, and E where a preset says it.
fn rule(options: &Options) -> Result<(RouterConfig, Option<usize>), Failure> {
    if let Some(name) = &options.preset {
        let presets = published();
        let names: Vec<_> = presets.iter().map(|preset| preset.name).collect();
        let found = presets.iter().find(|preset| preset.name == name);
        let preset = found.ok_or_else(|| format!("--preset: expected one of {}, got {name}", names.join(", ")))?;
        return Ok((preset.config.clone(), Some(preset.num_experts)));
    }
    let path = options.config.as_deref().ok_or("--config: expected a file, got none")?;
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let config = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((config, None))
}

fn load(device: &Device, path: &Path, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), Failure> {
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let bytes = std::fs::read(path).map_err(|error| at(&error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| at(&error))?;
    for (name, view) in file.tensors() {
        let words: Vec<u32> = match view.dtype() {
            safetensors::Dtype::F32 | safetensors::Dtype::U32 => bytemuck::pod_collect_to_vec(view.data()),
            other => return Err(at(&format!("{name}: expected F32 or U32, got {other:?}")).into()),
        };
        let dtype = if view.dtype() == safetensors::Dtype::F32 { DType::F32 } else { DType::U32 };
        let bytes = bytemuck::cast_slice(&words);
        let tensor = match *view.shape() {
            [n] => TensorView::from_bytes(bytes, dtype, [n]),
            [n, m] => TensorView::from_bytes(bytes, dtype, [n, m]),
            _ => return Err(at(&format!("{name}: expected rank 1 or 2, got {:?}", view.shape())).into()),
        };
        tensors.insert(name, Tensor::from_view(device, tensor?)?);
    }
    Ok(())
}

/// 64 tokens per expert, with a favourite in eight.
fn random_inputs(
    device: &Device,
    config: &RouterConfig,
    num_experts: usize,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<(), Failure> {
    let (num_tokens, columns) = (512, config.num_logits(num_experts));
    let mut logits = vec![0.0; num_tokens * columns];
    for (i, logit) in logits.iter_mut().enumerate() {
        let favourite = if i % columns % 8 == 1 { 1.0 } else { 0.0 };
        let (token, column) = ((i / columns) as u32, (i % columns) as u32);
        *logit = 1.5 * noise::normal(1, noise::Stream::Weight, token, column) + favourite;
    }
    tensors.insert("logits".into(), Tensor::from_slice(device, &logits, [num_tokens, columns])?);
    Ok(())
}

struct Routed {
    ids: Vec<u32>,
    weights: Vec<f32>,
    shape: Vec<usize>,
    token_offsets: Option<Vec<u32>>,
    expert_offsets: Vec<u32>,
    permuted_idx: Vec<u32>,
    figures: Figures,
}

impl Routed {
    fn of(
        device: &Device,
        config: &RouterConfig,
        tensors: &BTreeMap<String, Tensor>,
        tokens_per_sequence: Option<usize>,
    ) -> Result<Self, Failure> {
        let get = |name: &str| tensors.get(name).map(Tensor::view);
        let logits = get("logits").ok_or("logits: expected a tensor [T, E], got none")?;
        let &[num_tokens, columns] = logits.dims() else {
            return Err(format!("logits: expected rank 2, got {}", logits.shape()).into());
        };
        let num_choices = columns.saturating_sub(config.num_logits(0) - config.num_choices(0));
        config.validate(match config.expert_map.is_empty() {
            true => num_choices.saturating_sub(config.num_zero_experts),
            false => config.expert_map.iter().flatten().count(),
        })?;
        let num_slots = config.num_slots(num_tokens, num_choices).ok_or("logits: too many slots")?;
        let noise_logits = noise_logits(device, config, &get, [num_tokens, num_choices])?;
        let zeros = |dtype, n: usize| Tensor::zeros(device, dtype, [n]);
        let (mut load, mut importance) = (zeros(DType::U32, num_choices)?, zeros(DType::F32, num_choices)?);
        let mut scalars = zeros(DType::F32, NUM_SCALARS)?;
        let (mut offsets, mut slot_tokens) = (zeros(DType::U32, num_tokens + 1)?, zeros(DType::U32, num_slots)?);
        let ragged = config.is_ragged();
        let shape = if ragged { vec![num_slots] } else { vec![num_tokens, config.top_k] };
        let output = |dtype| match ragged {
            true => Tensor::zeros(device, dtype, [num_slots]),
            false => Tensor::zeros(device, dtype, [num_tokens, config.top_k]),
        };
        let (mut ids, mut weights) = (output(DType::U32)?, output(DType::F32)?);
        let ragged_out = match ragged {
            true => Some(RaggedMut { token_offsets: offsets.view_mut()?, slot_tokens: slot_tokens.view_mut()? }),
            false => None,
        };
        let args = RouteArgs {
            config,
            router_logits: logits,
            selection_bias: get("selection_bias"),
            inputs: RouteInputs {
                tokens_per_sequence,
                noise_logits: noise_logits.as_ref().map(Tensor::view),
                token_ids: get("token_ids"),
                hash_table: get("hash_table"),
            },
            topk_ids: ids.view_mut()?,
            topk_weights: weights.view_mut()?,
            ragged: ragged_out,
            figures: Some(FiguresMut {
                tokens_per_expert: load.view_mut()?,
                importance: importance.view_mut()?,
                scalars: scalars.view_mut()?,
            }),
        };
        route(device, args)?;
        let (mut expert_offsets, mut permuted_idx) =
            (zeros(DType::U32, num_choices + 1)?, zeros(DType::U32, num_slots)?);
        let mut inv_permuted_idx = zeros(DType::U32, num_slots)?;
        let plan = PermutePlanMut {
            expert_offsets: expert_offsets.view_mut()?,
            permuted_idx: permuted_idx.view_mut()?,
            inv_permuted_idx: inv_permuted_idx.view_mut()?,
        };
        permute(device, PermuteArgs { topk_ids: ids.view(), plan })?;
        let figures = FiguresMut {
            tokens_per_expert: load.view_mut()?,
            importance: importance.view_mut()?,
            scalars: scalars.view_mut()?,
        };
        Ok(Self {
            ids: ids.to_vec()?,
            weights: weights.to_vec()?,
            shape,
            token_offsets: ragged.then(|| offsets.to_vec()).transpose()?,
            expert_offsets: expert_offsets.to_vec()?,
            permuted_idx: permuted_idx.to_vec()?,
            figures: figures.to_figures(device)?,
        })
    }

    fn save(&self, path: &Path) -> Result<(), Failure> {
        use safetensors::Dtype::{F64, U32};
        use safetensors::tensor::TensorView;
        let scalars = self.figures.scalars();
        let importance = &self.figures.importance;
        let ids = |values: &Vec<u32>| (U32, vec![values.len()], bytemuck::cast_slice::<_, u8>(values).to_vec());
        let mut parts = vec![
            ("topk_ids", (U32, self.shape.clone(), bytemuck::cast_slice(&self.ids).to_vec())),
            (
                "topk_weights",
                (safetensors::Dtype::F32, self.shape.clone(), bytemuck::cast_slice(&self.weights).to_vec()),
            ),
            ("expert_offsets", ids(&self.expert_offsets)),
            ("permuted_idx", ids(&self.permuted_idx)),
            ("tokens_per_expert", ids(&self.figures.tokens_per_expert)),
            ("importance", (F64, vec![importance.len()], bytemuck::cast_slice(importance).to_vec())),
            ("figures", (F64, vec![scalars.len()], bytemuck::cast_slice(&scalars).to_vec())),
        ];
        parts.extend(self.token_offsets.as_ref().map(|offsets| ("token_offsets", ids(offsets))));
        let views: Result<Vec<_>, safetensors::SafeTensorError> = parts
            .iter()
            .map(|(name, (dtype, shape, data))| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
            .collect();
        safetensors::serialize_to_file(views?, None, path)?;
        Ok(())
    }

    fn print(&self, json: bool) {
        let figures = &self.figures;
        let names = [
            "importance_cv2",
            "load_cv2",
            "switch_loss",
            "gshard_loss",
            "z_loss",
            "fraction_dropped",
            "entropy",
            "max_over_mean",
        ];
        let scalars = names.into_iter().zip(figures.scalars());
        if json {
            let mut object: serde_json::Map<_, _> = scalars.map(|(name, x)| (name.to_string(), x.into())).collect();
            object.insert("tokens_per_expert".into(), figures.tokens_per_expert.clone().into());
            println!("{}", serde_json::Value::Object(object));
            return;
        }
        scalars.for_each(|(name, x)| println!("{name:>18} {x:.6}"));
        if std::io::stdout().is_terminal() {
            self.draw();
        }
    }

    /// Load per expert, and the tokens that lost a slot.
    fn draw(&self) {
        let load = &self.figures.tokens_per_expert;
        let most = load.iter().copied().max().unwrap_or(0).max(1);
        for (expert, &n) in load.iter().enumerate() {
            println!("{expert:>6} {n:>7} {}", "█".repeat((n as usize * 60).div_ceil(most as usize)));
        }
        let dropped: Vec<String> = match &self.token_offsets {
            Some(offsets) => {
                offsets.windows(2).enumerate().filter(|(_, s)| s[0] == s[1]).map(|(t, _)| t.to_string()).collect()
            }
            None => {
                let rows = self.ids.chunks(self.shape[1]).enumerate();
                rows.filter(|(_, ids)| ids.contains(&MASKED)).map(|(t, _)| t.to_string()).collect()
            }
        };
        println!("{} tokens without all their experts: {}", dropped.len(), dropped.join(" "));
    }
}

/// x·W_noise, where the rule has such noise and its parts are there.
fn noise_logits<'t>(
    device: &Device,
    config: &RouterConfig,
    get: &impl Fn(&str) -> Option<TensorView<'t>>,
    shape: [usize; 2],
) -> Result<Option<Tensor>, Failure> {
    if config.noise.is_none_or(|noise| noise.kind != NoiseKind::NormalSoftplus) {
        return Ok(None);
    }
    let hidden_states = get("hidden_states").ok_or("hidden_states: expected a tensor [T, H] for noise, got none")?;
    let weight = get("noise_weight").ok_or("noise_weight: expected a tensor [E, H] for noise, got none")?;
    let mut logits = Tensor::zeros(device, DType::F32, shape)?;
    let args = RouterLogitsArgs { hidden_states, weight, bias: None, tanh: false, output: logits.view_mut()? };
    router_logits(device, args)?;
    Ok(Some(logits))
}
