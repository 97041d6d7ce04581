//! Noise of a router, from a counter-based generator: the same key gives the same bits on every backend and run.

use serde::{Deserialize, Serialize};

/// Noise of a router, keyed on (seed, token, expert).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    /// Of the generator; another one for each call gives independent calls.
    pub seed: u64,
    /// Where it goes.
    pub kind: NoiseKind,
}

/// Where noise goes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseKind {
    /// `logit + normal · softplus(x·W_noise)` (Shazeer et al. 2017); needs `noise_logits` = x·W_noise.
    NormalSoftplus,
    /// `logit + std · normal` (V-MoE: std = 1/E).
    Normal {
        /// The standard deviation.
        std: f32,
    },
    /// `x · uniform(1 − epsilon, 1 + epsilon)` on each feature of the router's input (Switch). It is the router's
    /// projection that applies it; `route`, which sees logits only, does nothing.
    InputJitter {
        /// Half the width (0.01).
        epsilon: f32,
    },
    /// Choices after the first are made on `logit + gumbel`, weights without it (GShard's reference code, NLLB
    /// `sampling`).
    GumbelSecond,
    /// A choice after the first is kept with probability `min(1, scale · its share of the picked scores)`
    /// (GShard: 2; ST-MoE: 1 / threshold); else its slot is dropped.
    RandomSecond {
        /// The factor.
        scale: f32,
    },
}

/// What numbers are drawn for: streams of the same seed that do not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Noise on logits, by (token, expert).
    Logit = 0,
    /// Jitter of the router's input, by (token, feature).
    Input = 1,
    /// Gumbel noise, by (token, expert).
    Gumbel = 2,
    /// Whether a choice is kept, by (token, choice).
    Keep = 3,
    /// Experts of a token id, by (id, choice).
    Hash = 4,
    /// Noise on copied weights, by (expert, element).
    Weight = 5,
    /// A permutation, by (position, 0).
    Shuffle = 6,
}

/// 128 random bits: Philox 4×32-10 (Salmon et al. 2011) of the counter (`a`, `b`, stream, 0) under the key `seed`.
pub fn bits(seed: u64, stream: Stream, a: u32, b: u32) -> [u32; 4] {
    philox([a, b, stream as u32, 0], [seed as u32, (seed >> 32) as u32])
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let left = u64::from(counter[0]) * 0xD251_1F53;
        let right = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (right >> 32) as u32 ^ counter[1] ^ key[0],
            right as u32,
            (left >> 32) as u32 ^ counter[3] ^ key[1],
            left as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// Uniform in the open interval (0, 1).
pub fn uniform(seed: u64, stream: Stream, a: u32, b: u32) -> f32 {
    // 24 bits and a half: exact in f32, and neither end is reached.
    ((bits(seed, stream, a, b)[0] >> 8) as f32 + 0.5) * (1.0 / (1u32 << 24) as f32)
}

/// Standard normal (Box-Muller), through `libm` so that every platform rounds alike.
pub fn normal(seed: u64, stream: Stream, a: u32, b: u32) -> f32 {
    let [x, y, ..] = bits(seed, stream, a, b).map(|bits| (f64::from(bits) + 0.5) / f64::from(u32::MAX));
    (libm::sqrt(-2.0 * libm::log(x.min(1.0))) * libm::cos(std::f64::consts::TAU * y)) as f32
}

/// Standard Gumbel: `−ln(−ln u)`.
pub fn gumbel(seed: u64, stream: Stream, a: u32, b: u32) -> f32 {
    -libm::log(-libm::log(f64::from(uniform(seed, stream, a, b)))) as f32
}

/// A whole number below `n`.
pub fn below(seed: u64, stream: Stream, a: u32, b: u32, n: u32) -> u32 {
    ((u64::from(bits(seed, stream, a, b)[0]) * u64::from(n)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_its_published_numbers() {
        // The known answers that come with Random123.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    fn moments(draw: impl Fn(u32, u32) -> f32) -> (f64, f64) {
        let values: Vec<f64> =
            (0..400).flat_map(|a| (0..500).map(move |b| (a, b))).map(|(a, b)| f64::from(draw(a, b))).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let close = |(mean, variance): (f64, f64), expected: (f64, f64)| {
            // Five standard errors of 200 000 draws, with room for the Gumbel's heavier tail.
            let tolerance = 5.0 * (expected.1 / 200_000.0f64).sqrt();
            assert!((mean - expected.0).abs() < tolerance, "mean {mean} for {}", expected.0);
            assert!((variance / expected.1 - 1.0).abs() < 0.03, "variance {variance} for {}", expected.1);
        };
        close(moments(|a, b| normal(7, Stream::Logit, a, b)), (0.0, 1.0));
        close(moments(|a, b| uniform(7, Stream::Input, a, b)), (0.5, 1.0 / 12.0));
        let euler = 0.577_215_664_9;
        close(moments(|a, b| gumbel(7, Stream::Gumbel, a, b)), (euler, std::f64::consts::PI.powi(2) / 6.0));
    }

    #[test]
    fn keys_are_the_whole_story() {
        assert_eq!(normal(1, Stream::Logit, 2, 3), normal(1, Stream::Logit, 2, 3));
        let others = [
            bits(2, Stream::Logit, 2, 3),
            bits(1 << 32, Stream::Logit, 2, 3),
            bits(1, Stream::Gumbel, 2, 3),
            bits(1, Stream::Logit, 3, 2),
            bits(1, Stream::Logit, 2, 4),
        ];
        assert!(!others.contains(&bits(1, Stream::Logit, 2, 3)));
    }
}
