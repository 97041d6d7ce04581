//! Random numbers that all programs of these benches make alike: this file (also part of peers/candle) and
//! `peers/data.py`, so that weights need not be passed through files.
//!
//! A tensor is a window, starting at a place of its own, into one periodic sequence of numbers in (−1, 1) without
//! zeros: filling gigabytes is then a copy. The period is prime, so rows never line up with it.

/// Length of the sequence.
pub const PERIOD: usize = 4_194_301;

/// A 64-bit hash (Steele, Lea, Flood 2014), here of a counter.
pub fn splitmix64(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The sequence.
#[derive(Debug)]
pub struct Source(Vec<f32>);

impl Source {
    /// Computes the sequence once.
    pub fn new() -> Self {
        let value = |i: usize| (((splitmix64(i as u64) >> 40) as f64 + 0.5) / (1 << 23) as f64 - 1.0) as f32;
        Self((0..PERIOD).map(value).collect())
    }

    /// Fills the tensor with number `id`: the sequence from a place that depends on `id`, scaled and rounded.
    pub fn fill<T: Copy>(&self, target: &mut [T], id: u64, scale: f32, round: fn(f32) -> T) {
        self.rounded(scale, round).window(id, 0, target);
    }

    /// The sequence in a tensor's own type.
    pub fn rounded<T: Copy>(&self, scale: f32, round: fn(f32) -> T) -> Rounded<T> {
        Rounded(self.0.iter().map(|&value| round(value * scale)).collect())
    }
}

/// The sequence, scaled and rounded.
#[derive(Debug)]
pub struct Rounded<T>(Vec<T>);

impl<T: Copy> Rounded<T> {
    /// The elements of the tensor with number `id` from `offset` on.
    pub fn window(&self, id: u64, offset: usize, target: &mut [T]) {
        let mut start = ((splitmix64(id) % PERIOD as u64) as usize + offset) % PERIOD;
        let mut rest = target;
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(rest.len().min(PERIOD - start));
            now.copy_from_slice(&self.0[start..start + now.len()]);
            (rest, start) = (later, 0);
        }
    }
}

/// The scale that gives a product over `k` inputs of unit variance unit variance itself.
pub fn unit_scale(k: usize) -> f32 {
    (3.0 / k as f64).sqrt() as f32
}

/// Which of a layer's tensors.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    GateUp,
    Down,
    SharedGateUp,
    SharedDown,
    Router,
    SharedGate,
    Bias,
    Hidden,
    Logits,
}

impl Part {
    /// The number of this tensor of layer `layer`.
    pub fn id(self, layer: usize) -> u64 {
        layer as u64 * 16 + self as u64
    }
}
