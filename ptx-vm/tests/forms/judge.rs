//! Floating point by APFloat: rounding, formats and conversions that owe nothing to the machine's own.

use rustc_apfloat::ieee::{BFloat, Double, Float8E4M3FN, Float8E5M2, Half, Quad, Single};
use rustc_apfloat::{Float, FloatConvert, Round};

/// The rounding that a form names; to nearest without one.
pub fn round_of(parts: &[&str]) -> Round {
    let has = |names: [&str; 2]| names.iter().any(|n| parts.contains(n));
    if has(["rz", "rzi"]) {
        Round::TowardZero
    } else if has(["rm", "rmi"]) {
        Round::TowardNegative
    } else if has(["rp", "rpi"]) {
        Round::TowardPositive
    } else if has(["rna", "rna"]) {
        Round::NearestTiesToAway
    } else {
        Round::NearestTiesToEven
    }
}

/// Total and mantissa bits of a format.
pub fn layout(format: &str) -> (u32, u32) {
    match format {
        "f16" => (16, 10),
        "bf16" => (16, 7),
        "f32" | "tf32" => (32, 23),
        "f64" => (64, 52),
        "e4m3" => (8, 3),
        "e5m2" => (8, 2),
        _ => panic!("no format {format}"),
    }
}

/// What arithmetic gives for a NaN: all bits but the sign.
pub fn nan(format: &str) -> u64 {
    u64::MAX >> (65 - layout(format).0)
}

pub fn is_nan(format: &str, bits: u64) -> bool {
    quad(format, bits).is_nan()
}

fn exponent_is_zero(format: &str, bits: u64) -> bool {
    let (total, mantissa) = layout(format);
    bits >> mantissa & ((1 << (total - 1 - mantissa)) - 1) == 0
}

/// Subnormals become zeros of the same sign.
pub fn flush(format: &str, bits: u64) -> u64 {
    let sign = 1 << (layout(format).0 - 1);
    if exponent_is_zero(format, bits) { bits & sign } else { bits }
}

/// The value of an encoding; every format fits.
pub fn quad(format: &str, bits: u64) -> Quad {
    fn widen<T: Float + FloatConvert<Quad>>(bits: u64) -> Quad {
        T::from_bits(bits as u128).convert(&mut false).value
    }
    let bits = bits & (u64::MAX >> (64 - layout(format).0));
    match format {
        "f16" => widen::<Half>(bits),
        "bf16" => widen::<BFloat>(bits),
        "f32" | "tf32" => widen::<Single>(bits),
        "f64" => widen::<Double>(bits),
        "e4m3" => widen::<Float8E4M3FN>(bits),
        _ => widen::<Float8E5M2>(bits),
    }
}

/// The encoding of a value in a format, rounded once.
pub fn encode(format: &str, v: Quad, round: Round) -> u64 {
    fn narrow<T: Float>(v: Quad, round: Round) -> u64
    where
        Quad: FloatConvert<T>,
    {
        let value: T = v.convert_r(round, &mut false).value;
        value.to_bits() as u64
    }
    if v.is_nan() {
        return nan(format);
    }
    match format {
        "f16" => narrow::<Half>(v, round),
        "bf16" => narrow::<BFloat>(v, round),
        "f32" => narrow::<Single>(v, round),
        "f64" => narrow::<Double>(v, round),
        "e4m3" => narrow::<Float8E4M3FN>(v, round),
        _ => narrow::<Float8E5M2>(v, round),
    }
}

/// Adds, multiplies, divides or fuses encodings of a format.
pub fn arithmetic(format: &str, op: &str, v: &[u64], round: Round) -> u64 {
    fn run<T: Float>(op: &str, v: &[u64], round: Round) -> u64 {
        let x: Vec<T> = v.iter().map(|&bits| T::from_bits(bits as u128)).collect();
        let r = match op {
            "add" => x[0].add_r(x[1], round).value,
            "sub" => x[0].sub_r(x[1], round).value,
            "mul" => x[0].mul_r(x[1], round).value,
            "div" => x[0].div_r(x[1], round).value,
            _ => x[0].mul_add_r(x[1], x[2], round).value,
        };
        r.to_bits() as u64
    }
    let mask = u64::MAX >> (64 - layout(format).0);
    let v: Vec<u64> = v.iter().map(|bits| bits & mask).collect();
    let bits = match format {
        "f16" => run::<Half>(op, &v, round),
        "bf16" => run::<BFloat>(op, &v, round),
        "f32" => run::<Single>(op, &v, round),
        _ => run::<Double>(op, &v, round),
    };
    if is_nan(format, bits) { nan(format) } else { bits }
}

/// The smaller (or, for `max`, larger) of two encodings: -0 is below +0, a NaN loses unless `nan_wins`.
pub fn extreme(format: &str, a: u64, b: u64, max: bool, nan_wins: bool) -> u64 {
    match (is_nan(format, a), is_nan(format, b)) {
        (true, true) => return nan(format),
        (true, false) => return if nan_wins { nan(format) } else { b },
        (false, true) => return if nan_wins { nan(format) } else { a },
        _ => {}
    }
    // Encodings order like integers once negative ones are turned around.
    let width = layout(format).0;
    let key = |bits: u64| {
        let magnitude = (bits & nan(format)) as i128;
        if bits >> (width - 1) & 1 == 1 { -1 - magnitude } else { magnitude }
    };
    if (key(a) < key(b)) != max { a } else { b }
}

/// `.sat`: clamped to [0, 1], a NaN is zero.
pub fn saturate(format: &str, bits: u64) -> u64 {
    let (total, mantissa) = layout(format);
    let one = ((1u64 << (total - 2 - mantissa)) - 1) << mantissa;
    if is_nan(format, bits) || bits >> (total - 1) & 1 == 1 { 0 } else { bits.min(one) }
}

/// Encodings at the edges of a format.
pub fn edges(format: &str) -> Vec<u64> {
    let (total, mantissa) = layout(format);
    let infinity = nan(format) >> mantissa << mantissa;
    let one = ((1u64 << (total - 2 - mantissa)) - 1) << mantissa;
    let magnitudes = [
        0,
        1,
        3,
        (1 << mantissa) - 1,
        1 << mantissa,
        (1 << mantissa) + 1,
        one - 1,
        one,
        one + 1,
        one + (1 << mantissa),
        one + (3 << (mantissa - 1)),
        infinity - 1,
        infinity,
        nan(format),
    ];
    magnitudes.iter().flat_map(|&m| [m, m | 1 << (total - 1)]).collect()
}
