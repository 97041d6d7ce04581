//! f16, bf16 and their packed pairs: computed in f64 and rounded once.

use super::scalar::{LaneFn, Mods, Round, Row, row};
use crate::fp::{BF16, Exact, F16, Format};

fn input(format: Format, m: Mods, bits: u64) -> f64 {
    let value = format.decode(bits as u16 as u32);
    let subnormal = value != 0.0 && value.abs() < f64::powi(2.0, -14);
    if m.ftz && format == F16 && subnormal { 0f64.copysign(value) } else { value }
}

fn output(format: Format, m: Mods, exact: Exact) -> u64 {
    let mut e = exact;
    if e.value.is_nan() {
        return if m.sat { 0 } else { format.nan() as u64 };
    }
    if m.sat && e.value >= 1.0 {
        e = Exact { value: 1.0, rest: 0.0 };
    } else if (m.sat || m.relu) && e.value <= 0.0 {
        e = Exact { value: 0.0, rest: 0.0 };
    }
    let bits = e.encode(format, Round::Nearest, false);
    let subnormal = bits & 0x7c00 == 0 && format == F16;
    (if m.ftz && subnormal { bits & 0x8000 } else { bits }) as u64
}

/// Applies a 16-bit function to both halves.
fn both(f: LaneFn, m: Mods, a: u64, b: u64, c: u64) -> u64 {
    f(m, a, b, c, 0) | f(m, a >> 16, b >> 16, c >> 16, 0) << 16
}

fn min(format: Format, m: Mods, a: u64, b: u64, sign: f64) -> u64 {
    let (x, y) = (input(format, m, a) * sign, input(format, m, b) * sign);
    let r = match (x.is_nan(), y.is_nan()) {
        (true, false) if !m.nan => y,
        (false, true) if !m.nan => x,
        (false, false) if x < y || x == y && x.is_sign_negative() => x,
        (false, false) => y,
        _ => f64::NAN,
    };
    output(format, Mods { sat: false, ..m }, Exact { value: r * sign, rest: 0.0 })
}

fn add(format: Format, m: Mods, a: u64, b: u64) -> u64 {
    output(format, m, Exact::sum(input(format, m, a), input(format, m, b)))
}

fn mul(format: Format, m: Mods, a: u64, b: u64) -> u64 {
    output(format, m, Exact::product(input(format, m, a), input(format, m, b)))
}

fn fma(format: Format, m: Mods, a: u64, b: u64, c: u64) -> u64 {
    output(format, m, Exact::fma(input(format, m, a), input(format, m, b), input(format, m, c)))
}

/// The bits of a value, flushed, whose sign alone changes: a NaN keeps its payload.
fn sign(format: Format, m: Mods, a: u64) -> u64 {
    let subnormal = format == F16 && a & 0x7c00 == 0;
    if m.ftz && subnormal { a & 0x8000 } else { a & 0xffff }
}

fn approx(format: Format, m: Mods, a: u64, f: fn(f64) -> f64) -> u64 {
    output(format, m, Exact { value: f(input(format, m, a)), rest: 0.0 })
}

/// A row for one value and a row for two; `$run` is what happens to each.
macro_rules! rows {
    ($($name:literal, $sources:literal, $one:literal, $two:literal, $run:expr;)*) => {
        &[$(
            row(concat!($name, $one), $sources, $run),
            row(concat!($name, $two), $sources, |m, a, b, c, _| both($run, m, a, b, c)),
        )*]
    };
}

const F16_ROWS: &[Row] = rows! {
    "add[.rn][.ftz][.sat]", 2, ".f16", ".f16x2", |m, a, b, _, _| add(F16, m, a, b);
    "sub[.rn][.ftz][.sat]", 2, ".f16", ".f16x2", |m, a, b, _, _| add(F16, m, a, b ^ 0x8000);
    "mul[.rn][.ftz][.sat]", 2, ".f16", ".f16x2", |m, a, b, _, _| mul(F16, m, a, b);
    "fma.rn[.ftz][.sat|.relu]", 3, ".f16", ".f16x2", |m, a, b, c, _| fma(F16, m, a, b, c);
    "neg[.ftz]", 1, ".f16", ".f16x2", |m, a, _, _, _| sign(F16, m, a) ^ 0x8000;
    "abs[.ftz]", 1, ".f16", ".f16x2", |m, a, _, _, _| sign(F16, m, a) & 0x7fff;
    "min[.ftz][.NaN]", 2, ".f16", ".f16x2", |m, a, b, _, _| min(F16, m, a, b, 1.0);
    "max[.ftz][.NaN]", 2, ".f16", ".f16x2", |m, a, b, _, _| min(F16, m, a, b, -1.0);
    "ex2.approx", 1, ".f16", ".f16x2", |m, a, _, _, _| approx(F16, m, a, f64::exp2);
    "tanh.approx", 1, ".f16", ".f16x2", |m, a, _, _, _| approx(F16, m, a, f64::tanh);
};

const BF16_ROWS: &[Row] = rows! {
    "add[.rn]", 2, ".bf16", ".bf16x2", |m, a, b, _, _| add(BF16, m, a, b);
    "sub[.rn]", 2, ".bf16", ".bf16x2", |m, a, b, _, _| add(BF16, m, a, b ^ 0x8000);
    "mul[.rn]", 2, ".bf16", ".bf16x2", |m, a, b, _, _| mul(BF16, m, a, b);
    "fma.rn[.relu]", 3, ".bf16", ".bf16x2", |m, a, b, c, _| fma(BF16, m, a, b, c);
    "neg", 1, ".bf16", ".bf16x2", |m, a, _, _, _| sign(BF16, m, a) ^ 0x8000;
    "abs", 1, ".bf16", ".bf16x2", |m, a, _, _, _| sign(BF16, m, a) & 0x7fff;
    "min[.NaN]", 2, ".bf16", ".bf16x2", |m, a, b, _, _| min(BF16, m, a, b, 1.0);
    "max[.NaN]", 2, ".bf16", ".bf16x2", |m, a, b, _, _| min(BF16, m, a, b, -1.0);
    "ex2.approx.ftz", 1, ".bf16", ".bf16x2", |m, a, _, _, _| approx(BF16, m, a, f64::exp2);
    "tanh.approx", 1, ".bf16", ".bf16x2", |m, a, _, _, _| approx(BF16, m, a, f64::tanh);
};

/// The table of this family.
pub(crate) const ROWS: &[&[Row]] = &[F16_ROWS, BF16_ROWS];
