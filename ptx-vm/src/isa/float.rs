//! f32 and f64 arithmetic: rounding modes, flush to zero, saturation, the canonical NaN.

use std::cmp::Ordering;

use super::scalar::{Mods, Round, Row, row};
use crate::fp::{self, Exact};

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
        round => f32::from_bits(exact().encode(fp::F32, round, false)),
    };
    output(m, r)
}

/// The sum of `a` and `b`, each exact; `nearest` is the native result.
fn sum(m: Mods, nearest: f32, a: f64, b: f64) -> u64 {
    // A sum that is exactly zero is -0 when rounding down, unless both parts are +0.
    let zero = a + b == 0.0;
    if m.round == Round::Down && zero && (a.is_sign_negative() || b.is_sign_negative()) {
        return output(m, -0.0);
    }
    rounded(m, nearest, || Exact::sum(a, b))
}

fn add(m: Mods, a: u64, b: u64) -> u64 {
    let (a, b) = (input(m, a), input(m, b));
    sum(m, a + b, a as f64, b as f64)
}

fn mul(m: Mods, a: u64, b: u64) -> u64 {
    let (a, b) = (input(m, a), input(m, b));
    rounded(m, a * b, || Exact::product(a as f64, b as f64))
}

fn fma(m: Mods, a: u64, b: u64, c: u64) -> u64 {
    let (a, b, c) = (input(m, a), input(m, b), input(m, c));
    sum(m, a.mul_add(b, c), a as f64 * b as f64, c as f64)
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

/// The gross approximations of f64: of the upper halves of input and result, subnormals flushed.
fn approx_f64(a: u64, f: fn(f64) -> f64) -> u64 {
    const UPPER: u64 = u64::MAX << 32;
    let flush = |v: f64| if v.is_subnormal() { 0f64.copysign(v) } else { v };
    let a = f64_of(a);
    if a.is_nan() {
        return f64_out(a);
    }
    let r = flush(f(flush(f64_of(a.to_bits() & UPPER))));
    if r.is_nan() { f64_out(r) } else { r.to_bits() & UPPER }
}

/// `div.approx`: for a divisor in 2^126 .. 2^128 the ISA gives zero (or NaN for an infinite dividend).
fn div_approx(m: Mods, a: u64, b: u64) -> u64 {
    let (a, b) = (input(m, a), input(m, b));
    let huge = b.abs() > 2f32.powi(126) && b.is_finite();
    let r = match huge {
        true if !a.is_finite() => f32::NAN,
        true => 0f32.copysign(a * b.signum()),
        false => a / b,
    };
    output(m, r)
}

/// min and max of f64; the same rules.
fn min_f64(a: f64, b: f64) -> f64 {
    match a.partial_cmp(&b) {
        None if a.is_nan() => b,
        None => a,
        Some(Ordering::Less) => a,
        Some(Ordering::Greater) => b,
        Some(Ordering::Equal) => f64::from_bits(a.to_bits() | b.to_bits()),
    }
}

/// The table of this family: exact forms.
pub(crate) const ROWS: &[&[Row]] = &[
    &[
        row("add[.rn|.rz|.rm|.rp][.ftz][.sat].f32", 2, |m, a, b, _, _| add(m, a, b)),
        row("sub[.rn|.rz|.rm|.rp][.ftz][.sat].f32", 2, |m, a, b, _, _| add(m, a, b ^ 0x8000_0000)),
        row("mul[.rn|.rz|.rm|.rp][.ftz][.sat].f32", 2, |m, a, b, _, _| mul(m, a, b)),
        row("fma(.rn|.rz|.rm|.rp)[.ftz][.sat].f32", 3, |m, a, b, c, _| fma(m, a, b, c)),
        row("mad(.rn|.rz|.rm|.rp)[.ftz][.sat].f32", 3, |m, a, b, c, _| fma(m, a, b, c)),
        row("div(.rn|.rz|.rm|.rp)[.ftz].f32", 2, |m, a, b, _, _| div(m, a, b)),
        row("rcp(.rn|.rz|.rm|.rp)[.ftz].f32", 1, |m, a, _, _, _| div(m, 1f32.to_bits() as u64, a)),
        row("sqrt(.rn|.rz|.rm|.rp)[.ftz].f32", 1, |m, a, _, _, _| sqrt(m, a)),
        row("neg[.ftz].f32", 1, |m, a, _, _, _| (-input(m, a)).to_bits() as u64),
        row("abs[.ftz].f32", 1, |m, a, _, _, _| input(m, a).abs().to_bits() as u64),
        row("min[.ftz][.NaN].f32", 2, |m, a, b, _, _| output(m, min(m, input(m, a), input(m, b)))),
        row("max[.ftz][.NaN].f32", 2, |m, a, b, _, _| output(m, max(m, input(m, a), input(m, b)))),
        row("copysign.f32", 2, |_, a, b, _, _| a & 0x8000_0000 | b & 0x7fff_ffff),
    ],
    &[
        row("add[.rn].f64", 2, |_, a, b, _, _| f64_out(f64_of(a) + f64_of(b))),
        row("sub[.rn].f64", 2, |_, a, b, _, _| f64_out(f64_of(a) - f64_of(b))),
        row("mul[.rn].f64", 2, |_, a, b, _, _| f64_out(f64_of(a) * f64_of(b))),
        row("fma.rn.f64", 3, |_, a, b, c, _| f64_out(f64_of(a).mul_add(f64_of(b), f64_of(c)))),
        row("mad.rn.f64", 3, |_, a, b, c, _| f64_out(f64_of(a).mul_add(f64_of(b), f64_of(c)))),
        row("div.rn.f64", 2, |_, a, b, _, _| f64_out(f64_of(a) / f64_of(b))),
        row("rcp.rn.f64", 1, |_, a, _, _, _| f64_out(1.0 / f64_of(a))),
        row("sqrt.rn.f64", 1, |_, a, _, _, _| f64_out(f64_of(a).sqrt())),
        row("neg.f64", 1, |_, a, _, _, _| a ^ 1 << 63),
        row("abs.f64", 1, |_, a, _, _, _| a & !(1 << 63)),
        row("min.f64", 2, |_, a, b, _, _| f64_out(min_f64(f64_of(a), f64_of(b)))),
        row("max.f64", 2, |_, a, b, _, _| f64_out(-min_f64(-f64_of(a), -f64_of(b)))),
        row("copysign.f64", 2, |_, a, b, _, _| a & 1 << 63 | b & !(1 << 63)),
    ],
];

/// The table of this family: approximations.
pub(crate) const APPROX_ROWS: &[&[Row]] = &[&[
    row("div.approx[.ftz].f32", 2, |m, a, b, _, _| div_approx(m, a, b)),
    row("div.full[.ftz].f32", 2, |m, a, b, _, _| div_approx(m, a, b)),
    row("rcp.approx[.ftz].f32", 1, |m, a, _, _, _| approx(m, a, |x| 1.0 / x)),
    row("sqrt.approx[.ftz].f32", 1, |m, a, _, _, _| approx(m, a, f64::sqrt)),
    row("rsqrt.approx[.ftz].f32", 1, |m, a, _, _, _| approx(m, a, |x| 1.0 / x.sqrt())),
    row("rsqrt.approx.f64", 1, |_, a, _, _, _| f64_out(1.0 / f64_of(a).sqrt())),
    row("rcp.approx.ftz.f64", 1, |_, a, _, _, _| approx_f64(a, |x| 1.0 / x)),
    row("rsqrt.approx.ftz.f64", 1, |_, a, _, _, _| approx_f64(a, |x| 1.0 / x.sqrt())),
    row("sin.approx[.ftz].f32", 1, |m, a, _, _, _| approx(m, a, f64::sin)),
    row("cos.approx[.ftz].f32", 1, |m, a, _, _, _| approx(m, a, f64::cos)),
    row("lg2.approx[.ftz].f32", 1, |m, a, _, _, _| approx(m, a, f64::log2)),
    row("ex2.approx[.ftz].f32", 1, |m, a, _, _, _| approx(m, a, f64::exp2)),
    row("tanh.approx.f32", 1, |m, a, _, _, _| approx(m, a, f64::tanh)),
]];
