//! f32 and f64 arithmetic: rounding modes, flush to zero, saturation, the canonical NaN.

use super::scalar::{Mods, Round, Row, row};
use crate::fp::{self, Exact};

const NONE: &[&str] = &[];
const ROUND: &[&str] = &["rn", "rz", "rm", "rp", "ftz", "sat"];
const ROUND_NO_SAT: &[&str] = &["rn", "rz", "rm", "rp", "ftz"];
const FTZ: &[&str] = &["ftz"];
const RN: &[&str] = &["rn"];

/// An f32 input, flushed if the form says so.
fn input(m: Mods, bits: u64) -> f32 {
    let v = f32::from_bits(bits as u32);
    if m.ftz && v.is_subnormal() { 0f32.copysign(v) } else { v }
}

/// An f32 result: flushed, saturated, NaN made canonical.
fn output(m: Mods, v: f32) -> u64 {
    if v.is_nan() {
        return if m.sat { 0 } else { 0x7fff_ffff };
    }
    let v = if m.ftz && v.is_subnormal() { 0f32.copysign(v) } else { v };
    let v = if m.sat { v.clamp(0.0, 1.0) + 0.0 } else { v };
    v.to_bits() as u64
}

/// Rounds as the form says; `nearest` is the native result.
fn rounded(m: Mods, nearest: f32, exact: impl FnOnce() -> Exact) -> u64 {
    let r = match m.round {
        Round::Nearest => nearest,
        _ if nearest.is_nan() => nearest,
        round => {
            let e = exact();
            // An exact zero sum of opposite signs is -0 when rounding down.
            if e.value == 0.0 && round == Round::Down && nearest == 0.0 && nearest.is_sign_positive() {
                -0.0
            } else {
                f32::from_bits(e.encode(fp::F32, round, false))
            }
        }
    };
    output(m, r)
}

fn add(m: Mods, a: u64, b: u64) -> u64 {
    let (a, b) = (input(m, a), input(m, b));
    if a == 0.0 && b == 0.0 && a.is_sign_positive() && b.is_sign_positive() {
        return 0;
    }
    rounded(m, a + b, || Exact::sum(a as f64, b as f64))
}

fn mul(m: Mods, a: u64, b: u64) -> u64 {
    let (a, b) = (input(m, a), input(m, b));
    let nearest = a * b;
    if nearest == 0.0 && (a == 0.0 || b == 0.0) {
        return output(m, nearest);
    }
    rounded(m, nearest, || Exact::product(a as f64, b as f64))
}

fn fma(m: Mods, a: u64, b: u64, c: u64) -> u64 {
    let (a, b, c) = (input(m, a), input(m, b), input(m, c));
    rounded(m, a.mul_add(b, c), || Exact::fma(a as f64, b as f64, c as f64))
}

fn div(m: Mods, a: u64, b: u64) -> u64 {
    let (a, b) = (input(m, a), input(m, b));
    rounded(m, a / b, || Exact::quotient(a as f64, b as f64))
}

fn sqrt(m: Mods, a: u64) -> u64 {
    let a = input(m, a);
    rounded(m, a.sqrt(), || Exact::root(a as f64))
}

/// minimum and maximum: one NaN loses, unless `.NaN`; -0 is below +0.
fn min(m: Mods, a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => f32::NAN,
        (true, false) if !m.nan => b,
        (false, true) if !m.nan => a,
        (false, false) if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        (false, false) => {
            if a < b {
                a
            } else {
                b
            }
        }
        _ => f32::NAN,
    }
}

fn max(m: Mods, a: f32, b: f32) -> f32 {
    -min(m, -a, -b)
}

fn f64_of(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// An f64 result; f64 NaNs keep the hardware's canonical pattern.
fn f64_out(v: f64) -> u64 {
    if v.is_nan() { 0x7fff_ffff_ffff_ffff } else { v.to_bits() }
}

/// Functions that hardware approximates are computed in f64 and rounded once.
fn approx(m: Mods, a: u64, f: fn(f64) -> f64) -> u64 {
    output(m, f(input(m, a) as f64) as f32)
}

/// `div.approx`: for a divisor in 2^126 .. 2^128 the ISA gives zero (or NaN for an infinite dividend).
fn div_approx(m: Mods, a: u64, b: u64) -> u64 {
    let (a, b) = (input(m, a), input(m, b));
    let huge = b.abs() > 2f32.powi(126) && b.is_finite();
    let r = match huge {
        true if a.is_infinite() => f32::NAN,
        true => 0f32.copysign(a * b.signum()),
        false => a / b,
    };
    output(m, r)
}

/// The table of this family: exact forms.
pub(crate) const ROWS: &[&[Row]] = &[
    &[
        row("add.f32", ROUND, 2, |m, a, b, _, _| add(m, a, b)),
        row("sub.f32", ROUND, 2, |m, a, b, _, _| add(m, a, b ^ 0x8000_0000)),
        row("mul.f32", ROUND, 2, |m, a, b, _, _| mul(m, a, b)),
        row("fma.f32", ROUND, 3, |m, a, b, c, _| fma(m, a, b, c)),
        row("mad.f32", ROUND, 3, |m, a, b, c, _| fma(m, a, b, c)),
        row("div.f32", ROUND_NO_SAT, 2, |m, a, b, _, _| div(m, a, b)),
        row("rcp.f32", ROUND_NO_SAT, 1, |m, a, _, _, _| div(m, 1f32.to_bits() as u64, a)),
        row("sqrt.f32", ROUND_NO_SAT, 1, |m, a, _, _, _| sqrt(m, a)),
        row("neg.f32", FTZ, 1, |m, a, _, _, _| (-input(m, a)).to_bits() as u64),
        row("abs.f32", FTZ, 1, |m, a, _, _, _| input(m, a).abs().to_bits() as u64),
        row("min.f32", &["ftz", "NaN"], 2, |m, a, b, _, _| output(m, min(m, input(m, a), input(m, b)))),
        row("max.f32", &["ftz", "NaN"], 2, |m, a, b, _, _| output(m, max(m, input(m, a), input(m, b)))),
        row("copysign.f32", NONE, 2, |_, a, b, _, _| a & 0x8000_0000 | b & 0x7fff_ffff),
    ],
    &[
        row("add.f64", RN, 2, |_, a, b, _, _| f64_out(f64_of(a) + f64_of(b))),
        row("sub.f64", RN, 2, |_, a, b, _, _| f64_out(f64_of(a) - f64_of(b))),
        row("mul.f64", RN, 2, |_, a, b, _, _| f64_out(f64_of(a) * f64_of(b))),
        row("fma.f64", RN, 3, |_, a, b, c, _| f64_out(f64_of(a).mul_add(f64_of(b), f64_of(c)))),
        row("mad.f64", RN, 3, |_, a, b, c, _| f64_out(f64_of(a).mul_add(f64_of(b), f64_of(c)))),
        row("div.f64", RN, 2, |_, a, b, _, _| f64_out(f64_of(a) / f64_of(b))),
        row("rcp.f64", RN, 1, |_, a, _, _, _| f64_out(1.0 / f64_of(a))),
        row("sqrt.f64", RN, 1, |_, a, _, _, _| f64_out(f64_of(a).sqrt())),
        row("neg.f64", NONE, 1, |_, a, _, _, _| a ^ 1 << 63),
        row("abs.f64", NONE, 1, |_, a, _, _, _| a & !(1 << 63)),
        row("min.f64", NONE, 2, |_, a, b, _, _| f64_out(f64_of(a).min(f64_of(b)))),
        row("max.f64", NONE, 2, |_, a, b, _, _| f64_out(f64_of(a).max(f64_of(b)))),
        row("copysign.f64", NONE, 2, |_, a, b, _, _| a & 1 << 63 | b & !(1 << 63)),
    ],
];

/// The table of this family: approximations.
pub(crate) const APPROX_ROWS: &[&[Row]] = &[&[
    row("div.approx.f32", FTZ, 2, |m, a, b, _, _| div_approx(m, a, b)),
    row("div.full.f32", FTZ, 2, |m, a, b, _, _| div(m, a, b)),
    row("rcp.approx.f32", FTZ, 1, |m, a, _, _, _| approx(m, a, |x| 1.0 / x)),
    row("sqrt.approx.f32", FTZ, 1, |m, a, _, _, _| approx(m, a, f64::sqrt)),
    row("rsqrt.approx.f32", FTZ, 1, |m, a, _, _, _| approx(m, a, |x| 1.0 / x.sqrt())),
    row("rsqrt.approx.f64", FTZ, 1, |_, a, _, _, _| f64_out(1.0 / f64_of(a).sqrt())),
    row("sin.approx.f32", FTZ, 1, |m, a, _, _, _| approx(m, a, f64::sin)),
    row("cos.approx.f32", FTZ, 1, |m, a, _, _, _| approx(m, a, f64::cos)),
    row("lg2.approx.f32", FTZ, 1, |m, a, _, _, _| approx(m, a, f64::log2)),
    row("ex2.approx.f32", FTZ, 1, |m, a, _, _, _| approx(m, a, f64::exp2)),
    row("tanh.approx.f32", NONE, 1, |m, a, _, _, _| approx(m, a, f64::tanh)),
]];
