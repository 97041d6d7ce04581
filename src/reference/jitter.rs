//! The oracle of `jitter`.

use crate::routing::noise::{Stream, uniform};

/// `[T, H]`: each element times a number between `1 − epsilon` and `1 + epsilon`, keyed on (seed, token, feature).
pub fn jitter(hidden_states: &[f64], hidden_size: usize, seed: u64, epsilon: f32) -> Vec<f64> {
    let factor = |i: usize| {
        let draw = uniform(seed, Stream::Input, (i / hidden_size) as u32, (i % hidden_size) as u32);
        1.0 + f64::from(epsilon) * (2.0 * f64::from(draw) - 1.0)
    };
    hidden_states.iter().enumerate().map(|(i, x)| x * factor(i)).collect()
}
