//! Results: to a file, as JSON, for a terminal.

use std::io::IsTerminal;
use std::path::Path;

use safetensors::Dtype::{F32, F64, U32};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError};

use crate::routed::Routed;

/// The figures of [`fused_moe::routing::Figures::scalars`], in its order.
const FIGURES: [&str; 8] = [
    "importance_cv2",
    "load_cv2",
    "switch_loss",
    "gshard_loss",
    "z_loss",
    "fraction_dropped",
    "entropy",
    "max_over_mean",
];

/// Columns of the longest bar.
const BAR: usize = 60;

/// A tensor of the file.
type Part = (&'static str, (Dtype, Vec<usize>, Vec<u8>));

pub fn save(routed: &Routed, path: &Path) -> Result<(), SafeTensorError> {
    let scalars = routed.figures.scalars();
    let importance = &routed.figures.importance;
    let list = |values: &[u32]| (U32, vec![values.len()], bytemuck::cast_slice::<_, u8>(values).to_vec());
    let mut parts: Vec<Part> = vec![
        ("topk_ids", (U32, routed.shape.clone(), bytemuck::cast_slice(&routed.ids).to_vec())),
        ("topk_weights", (F32, routed.shape.clone(), bytemuck::cast_slice(&routed.weights).to_vec())),
        ("expert_offsets", list(&routed.expert_offsets)),
        ("permuted_idx", list(&routed.permuted_idx)),
        ("tokens_per_expert", list(&routed.figures.tokens_per_expert)),
        ("importance", (F64, vec![importance.len()], bytemuck::cast_slice(importance).to_vec())),
        ("figures", (F64, vec![scalars.len()], bytemuck::cast_slice(&scalars).to_vec())),
    ];
    parts.extend(routed.token_offsets.as_ref().map(|offsets| ("token_offsets", list(offsets))));
    let views: Result<Vec<_>, SafeTensorError> = parts
        .iter()
        .map(|(name, (dtype, shape, data))| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
        .collect();
    safetensors::serialize_to_file(views?, None, path)
}

pub fn print(routed: &Routed, json: bool, chart: bool) {
    let figures = &routed.figures;
    let scalars = FIGURES.into_iter().zip(figures.scalars());
    if json {
        let mut object: serde_json::Map<_, _> = scalars.map(|(name, x)| (name.to_string(), x.into())).collect();
        object.insert("tokens_per_expert".into(), figures.tokens_per_expert.clone().into());
        println!("{}", serde_json::Value::Object(object));
        return;
    }
    scalars.for_each(|(name, x)| println!("{name:>18} {x:.6}"));
    if chart || std::io::stdout().is_terminal() {
        draw(routed);
    }
}

/// Load per expert, and the tokens that lost a slot.
fn draw(routed: &Routed) {
    let load = &routed.figures.tokens_per_expert;
    let most = load.iter().copied().max().unwrap_or(0).max(1);
    for (expert, &n) in load.iter().enumerate() {
        println!("{expert:>6} {n:>7} {}", "█".repeat((n as usize * BAR).div_ceil(most as usize)));
    }
    let tokens = routed.unlucky();
    let names: Vec<String> = tokens.iter().map(usize::to_string).collect();
    println!("{} tokens without all their experts: {}", tokens.len(), names.join(" "));
}
