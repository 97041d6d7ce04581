//! What a run was, and how it went.

use std::time::Duration;

use fused_moe::checkpoint::LayerId;
use fused_moe::{DType, MoeLayer};
use serde::Serialize;

/// One run; the fields of `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    pub model_type: String,
    pub layer: String,
    pub backend: String,
    pub device: String,
    pub dtype: String,
    pub tokens: usize,
    /// ‖output − expect‖ / ‖expect‖, where there was something to compare with.
    pub rel_error: Option<f64>,
    pub tolerance: f64,
    pub micros: f64,
    pub tokens_per_second: f64,
    /// Bytes of the weights that have to be read, over the time.
    pub gb_per_second: f64,
    /// Operations of the projections, over the time.
    pub gflop_per_second: f64,
    #[serde(skip)]
    bytes: f64,
    #[serde(skip)]
    flops: f64,
}

impl Report {
    pub fn new(layer: &MoeLayer, model_type: &str, id: LayerId, tokens: usize, topk_ids: &[u32]) -> Self {
        let dtype = layer.weights().experts.down_proj.dtype();
        let (bytes, flops) = work(layer, dtype, tokens, topk_ids);
        Self {
            model_type: model_type.into(),
            layer: id.to_string(),
            backend: layer.device().name().into(),
            device: layer.device().backend().device_name(),
            dtype: dtype.to_string(),
            tokens,
            rel_error: None,
            tolerance: crate::cli::default_tolerance(dtype),
            micros: 0.0,
            tokens_per_second: 0.0,
            gb_per_second: 0.0,
            gflop_per_second: 0.0,
            bytes,
            flops,
        }
    }

    pub fn time(&mut self, time: Duration) {
        let seconds = time.as_secs_f64().max(1e-9);
        self.micros = seconds * 1e6;
        self.tokens_per_second = self.tokens as f64 / seconds;
        self.gb_per_second = self.bytes / seconds / 1e9;
        self.gflop_per_second = self.flops / seconds / 1e9;
    }

    /// True where there was nothing to compare with; a NaN is never within.
    pub fn within_tolerance(&self) -> bool {
        self.rel_error.is_none_or(|error| error <= self.tolerance)
    }

    pub fn print(&self, json: bool) {
        if json {
            println!("{}", serde_json::to_string(self).unwrap_or_default());
        } else {
            print_table(std::slice::from_ref(self));
        }
    }
}

/// Bytes of weights that any implementation has to read, and operations it has to do.
fn work(layer: &MoeLayer, dtype: DType, tokens: usize, topk_ids: &[u32]) -> (f64, f64) {
    let config = layer.config();
    let mut hit: Vec<u32> = topk_ids.iter().copied().filter(|&id| (id as usize) < config.num_experts).collect();
    let rows = hit.len();
    hit.sort_unstable();
    hit.dedup();
    let per_expert = (config.gate_up_size() + config.intermediate_size) * config.expert_hidden_size();
    let shared = config.shared.as_ref().map_or(0, |s| (s.gate_up_size() + s.intermediate_size) * config.hidden_size);
    let dense = shared + 2 * config.latent_size.map_or(0, |latent| latent * config.hidden_size);
    let router = config.router.num_choices(config.num_experts) * config.hidden_size;
    let bytes = (hit.len() * per_expert + dense + router) * dtype.size();
    let flops = 2 * (rows * per_expert + tokens * (dense + router));
    (bytes as f64, flops as f64)
}

/// The runs as an aligned table.
pub fn print_table(reports: &[Report]) {
    let header = [
        "architecture",
        "layer",
        "backend",
        "device",
        "dtype",
        "tokens",
        "rel error",
        "µs",
        "tokens/s",
        "GB/s",
        "GFLOP/s",
    ];
    let mut rows = vec![header.map(String::from)];
    rows.extend(reports.iter().map(|r| {
        [
            r.model_type.clone(),
            r.layer.clone(),
            r.backend.clone(),
            r.device.clone(),
            r.dtype.clone(),
            r.tokens.to_string(),
            r.rel_error.map_or("–".into(), |e| format!("{e:.1e}{}", if r.within_tolerance() { "" } else { " !" })),
            format!("{:.1}", r.micros),
            format!("{:.0}", r.tokens_per_second),
            format!("{:.2}", r.gb_per_second),
            format!("{:.2}", r.gflop_per_second),
        ]
    }));
    let widths: Vec<usize> =
        (0..header.len()).map(|c| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        // Names to the left, numbers to the right.
        let cells = row.iter().zip(&widths).enumerate().map(|(c, (cell, &width))| match c {
            0..=4 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
