//! The oracle of `router_logits`.

/// `[T, E]` logits: `hidden_states [T, H] · weight [E, H]ᵀ + bias [E]`.
pub fn router_logits(hidden_states: &[f64], weight: &[f64], bias: Option<&[f64]>, hidden_size: usize) -> Vec<f64> {
    let mut logits = Vec::new();
    for token in hidden_states.chunks_exact(hidden_size) {
        for (e, row) in weight.chunks_exact(hidden_size).enumerate() {
            let dot: f64 = token.iter().zip(row).map(|(x, w)| x * w).sum();
            logits.push(dot + bias.map_or(0.0, |b| b[e]));
        }
    }
    logits
}
