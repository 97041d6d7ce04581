//! f16, bf16 and their packed pairs: computed in f64 and rounded once.

use super::scalar::{LaneFn, Mods, Round, Row, row};
use crate::fp::{BF16, Exact, F16, Format};

const F16_MODS: &[&str] = &["rn", "ftz", "sat"];
const F16_FMA: &[&str] = &["rn", "ftz", "sat", "relu"];
const BF16_MODS: &[&str] = &["rn"];
const BF16_FMA: &[&str] = &["rn", "relu"];
const FTZ: &[&str] = &["ftz"];
const NONE: &[&str] = &[];
const MINMAX: &[&str] = &["ftz", "NaN"];

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
    if m.sat && !(0.0..=1.0).contains(&e.value) || m.relu && e.value < 0.0 {
        e = Exact { value: if e.value > 1.0 && m.sat { 1.0 } else { 0.0 }, rest: 0.0 };
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

fn approx(format: Format, m: Mods, a: u64, f: fn(f64) -> f64) -> u64 {
    output(format, m, Exact { value: f(input(format, m, a)), rest: 0.0 })
}

macro_rules! half_rows {
    ($one:literal, $two:literal, $f:ident, $arith:expr, $fma:expr) => {
        &[
            row(concat!("add.", $one), $arith, 2, |m, a, b, _, _| {
                output($f, m, Exact::sum(input($f, m, a), input($f, m, b)))
            }),
            row(concat!("sub.", $one), $arith, 2, |m, a, b, _, _| {
                output($f, m, Exact::sum(input($f, m, a), -input($f, m, b)))
            }),
            row(concat!("mul.", $one), $arith, 2, |m, a, b, _, _| {
                output($f, m, Exact::product(input($f, m, a), input($f, m, b)))
            }),
            row(concat!("fma.", $one), $fma, 3, |m, a, b, c, _| {
                output($f, m, Exact::fma(input($f, m, a), input($f, m, b), input($f, m, c)))
            }),
            row(concat!("neg.", $one), FTZ, 1, |_, a, _, _, _| (a ^ 0x8000) as u16 as u64),
            row(concat!("abs.", $one), FTZ, 1, |_, a, _, _, _| a & 0x7fff),
            row(concat!("min.", $one), MINMAX, 2, |m, a, b, _, _| min($f, m, a, b, 1.0)),
            row(concat!("max.", $one), MINMAX, 2, |m, a, b, _, _| min($f, m, a, b, -1.0)),
            row(concat!("ex2.approx.", $one), FTZ, 1, |m, a, _, _, _| approx($f, m, a, f64::exp2)),
            row(concat!("tanh.approx.", $one), NONE, 1, |m, a, _, _, _| approx($f, m, a, f64::tanh)),
            row(concat!("add.", $two), $arith, 2, |m, a, b, _, _| {
                both(|m, a, b, _, _| output($f, m, Exact::sum(input($f, m, a), input($f, m, b))), m, a, b, 0)
            }),
            row(concat!("sub.", $two), $arith, 2, |m, a, b, _, _| {
                both(|m, a, b, _, _| output($f, m, Exact::sum(input($f, m, a), -input($f, m, b))), m, a, b, 0)
            }),
            row(concat!("mul.", $two), $arith, 2, |m, a, b, _, _| {
                both(|m, a, b, _, _| output($f, m, Exact::product(input($f, m, a), input($f, m, b))), m, a, b, 0)
            }),
            row(concat!("fma.", $two), $fma, 3, |m, a, b, c, _| {
                both(
                    |m, a, b, c, _| output($f, m, Exact::fma(input($f, m, a), input($f, m, b), input($f, m, c))),
                    m,
                    a,
                    b,
                    c,
                )
            }),
            row(concat!("neg.", $two), FTZ, 1, |_, a, _, _, _| (a as u32 ^ 0x8000_8000) as u64),
            row(concat!("abs.", $two), FTZ, 1, |_, a, _, _, _| a & 0x7fff_7fff),
            row(concat!("min.", $two), MINMAX, 2, |m, a, b, _, _| {
                both(|m, a, b, _, _| min($f, m, a, b, 1.0), m, a, b, 0)
            }),
            row(concat!("max.", $two), MINMAX, 2, |m, a, b, _, _| {
                both(|m, a, b, _, _| min($f, m, a, b, -1.0), m, a, b, 0)
            }),
            row(concat!("ex2.approx.", $two), FTZ, 1, |m, a, _, _, _| {
                both(|m, a, _, _, _| approx($f, m, a, f64::exp2), m, a, 0, 0)
            }),
            row(concat!("tanh.approx.", $two), NONE, 1, |m, a, _, _, _| {
                both(|m, a, _, _, _| approx($f, m, a, f64::tanh), m, a, 0, 0)
            }),
        ]
    };
}

/// The table of this family.
pub(crate) const ROWS: &[&[Row]] =
    &[half_rows!("f16", "f16x2", F16, F16_MODS, F16_FMA), half_rows!("bf16", "bf16x2", BF16, BF16_MODS, BF16_FMA)];
