//! cvt between all scalar types.

use super::scalar::{Mods, Round, Row, row};
use crate::fp::{self, BF16, E4M3, E5M2, F16, Format, TF32};

const SAT: &[&str] = &["sat"];
const TO_INT: &[&str] = &["rni", "rzi", "rmi", "rpi", "ftz", "sat"];
const FROM_INT: &[&str] = &["rn", "rz", "rm", "rp", "sat"];
const NARROW: &[&str] = &["rn", "rz", "rm", "rp", "ftz", "sat", "relu", "satfinite"];
const SAME: &[&str] = &["rni", "rzi", "rmi", "rpi", "rn", "ftz", "sat"];

fn flush(m: Mods, v: f32) -> f32 {
    if m.ftz && v.is_subnormal() { 0f32.copysign(v) } else { v }
}

/// f32 and wider inputs as f64; `.ftz` applies to f32.
fn f32_in(m: Mods, a: u64) -> f64 {
    flush(m, f32::from_bits(a as u32)) as f64
}

fn f64_in(_: Mods, a: u64) -> f64 {
    f64::from_bits(a)
}

fn f16_in(_: Mods, a: u64) -> f64 {
    F16.decode(a as u16 as u32)
}

fn bf16_in(_: Mods, a: u64) -> f64 {
    BF16.decode(a as u16 as u32)
}

fn to_integral(round: Round, v: f64) -> f64 {
    match round {
        Round::Nearest => v.round_ties_even(),
        Round::NearestAway => v.round(),
        Round::Zero => v.trunc(),
        Round::Down => v.floor(),
        Round::Up => v.ceil(),
    }
}

/// Float to integer: clamped to the range of the result. A NaN is zero, or the top bit alone when a
/// 64-bit type takes part.
macro_rules! float_to_int {
    ($($form:literal, $input:ident, $t:ident, $u:ident, $wide:literal;)*) => {
        &[$(row($form, TO_INT, 1, |m, a, _, _, _| {
            let v = $input(m, a);
            if v.is_nan() {
                return if $wide { 1 << ($u::BITS - 1) } else { 0 };
            }
            to_integral(m.round, v) as $t as $u as u64
        }),)*]
    };
}

/// Integer to float. The f64 nearest to a 64-bit integer may lack low bits: `rest` keeps their sign.
fn from_int(v: i128, m: Mods) -> (f64, f64) {
    let near = v as f64;
    let rest = (v - near as i128) as f64;
    if m.sat { (near.clamp(0.0, 1.0), 0.0) } else { (near, rest) }
}

macro_rules! int_to_float {
    ($($int:literal, $t:ident;)*) => {
        &[$(
            row(concat!("cvt.f32.", $int), FROM_INT, 1, |m, a, _, _, _| {
                let (v, rest) = from_int(a as $t as i128, m);
                fp::F32.encode(v, rest, m.round, false) as u64
            }),
            row(concat!("cvt.f16.", $int), FROM_INT, 1, |m, a, _, _, _| {
                let (v, rest) = from_int(a as $t as i128, m);
                F16.encode(v, rest, m.round, false) as u64
            }),
            row(concat!("cvt.bf16.", $int), FROM_INT, 1, |m, a, _, _, _| {
                let (v, rest) = from_int(a as $t as i128, m);
                BF16.encode(v, rest, m.round, false) as u64
            }),
            row(concat!("cvt.f64.", $int), &["rn"], 1, |_, a, _, _, _| {
                (a as $t as f64).to_bits()
            }),
        )*]
    };
}

/// `$a` as `$d`, kept in the unsigned twin `$u`.
macro_rules! cast {
    ($m:ident, $a:expr, $d:ident, $u:ident) => {
        (if $m.sat { ($a as i128).clamp($d::MIN as i128, $d::MAX as i128) as $d } else { $a as $d }) as $u as u64
    };
}

/// Integer to integer: extension by the source type, then truncation or saturation.
macro_rules! int_to_int {
    ($($dst:literal, $d:ident, $u:ident;)*) => { &[$(
        row(concat!("cvt.", $dst, ".u8"), SAT, 1, |m, a, _, _, _| cast!(m, a as u8, $d, $u)),
        row(concat!("cvt.", $dst, ".s8"), SAT, 1, |m, a, _, _, _| cast!(m, a as i8, $d, $u)),
        row(concat!("cvt.", $dst, ".u16"), SAT, 1, |m, a, _, _, _| cast!(m, a as u16, $d, $u)),
        row(concat!("cvt.", $dst, ".s16"), SAT, 1, |m, a, _, _, _| cast!(m, a as i16, $d, $u)),
        row(concat!("cvt.", $dst, ".u32"), SAT, 1, |m, a, _, _, _| cast!(m, a as u32, $d, $u)),
        row(concat!("cvt.", $dst, ".s32"), SAT, 1, |m, a, _, _, _| cast!(m, a as i32, $d, $u)),
        row(concat!("cvt.", $dst, ".u64"), SAT, 1, |m, a, _, _, _| cast!(m, a, $d, $u)),
        row(concat!("cvt.", $dst, ".s64"), SAT, 1, |m, a, _, _, _| cast!(m, a as i64, $d, $u)),
    )*] };
}

/// Narrowing to `format` with the modifiers of cvt.
fn narrow(format: Format, m: Mods, v: f64) -> u64 {
    if v.is_nan() {
        return format.nan() as u64;
    }
    let v = if m.relu && v < 0.0 { 0.0 } else { v };
    format.encode(v, 0.0, m.round, m.sat) as u64
}

/// `cvt.f32.f64`, `cvt.f16.f32` and so on; here `.sat` clamps to [0, 1].
fn narrow_unit(format: Format, m: Mods, v: f64) -> u64 {
    if v.is_nan() && m.sat {
        return 0;
    }
    let v = if m.sat { v.clamp(0.0, 1.0) } else { v };
    let v = if m.integral { to_integral(m.round, v) } else { v };
    let bits = narrow(format, Mods { sat: false, ..m }, v);
    if m.ftz && format == fp::F32 { flush(m, f32::from_bits(bits as u32)).to_bits() as u64 } else { bits }
}

/// The first source becomes the upper half.
fn pair(format: Format, m: Mods, a: f64, b: f64, bits: u32) -> u64 {
    narrow(format, m, a) << bits | narrow(format, m, b)
}

fn tf32(m: Mods, a: u64) -> u64 {
    let v = f32_in(m, a);
    if v.is_nan() { 0x7fff_ffff } else { narrow(TF32, m, v) << 13 }
}

fn unpack_fp8(format: Format, a: u64) -> u64 {
    let half = |b: u64| narrow(F16, Mods::default(), format.decode(b as u8 as u32));
    half(a) | half(a >> 8) << 16
}

fn halves(a: u64) -> (f64, f64) {
    (F16.decode((a >> 16) as u16 as u32), F16.decode(a as u16 as u32))
}

const FLOATS: &[Row] = &[
    row("cvt.f32.f32", SAME, 1, |m, a, _, _, _| narrow_unit(fp::F32, m, f32_in(m, a))),
    row("cvt.f32.f64", NARROW, 1, |m, a, _, _, _| narrow_unit(fp::F32, m, f64_in(m, a))),
    row("cvt.f32.f16", &["ftz", "sat"], 1, |m, a, _, _, _| narrow_unit(fp::F32, m, f16_in(m, a))),
    row("cvt.f32.bf16", &["ftz", "sat"], 1, |m, a, _, _, _| narrow_unit(fp::F32, m, bf16_in(m, a))),
    row("cvt.f64.f32", &["ftz", "sat"], 1, |m, a, _, _, _| {
        let v = f32_in(m, a);
        (if m.sat { v.clamp(0.0, 1.0) } else { v }).to_bits()
    }),
    row("cvt.f64.f16", &["sat"], 1, |_, a, _, _, _| F16.decode(a as u16 as u32).to_bits()),
    row("cvt.f64.bf16", &[], 1, |_, a, _, _, _| BF16.decode(a as u16 as u32).to_bits()),
    row("cvt.f64.f64", SAME, 1, |m, a, _, _, _| {
        let v = f64_in(m, a);
        let v = if m.sat { v.clamp(0.0, 1.0) } else { v };
        (if m.integral { to_integral(m.round, v) } else { v }).to_bits()
    }),
    row("cvt.f16.f16", SAME, 1, |m, a, _, _, _| narrow_unit(F16, m, f16_in(m, a))),
    row("cvt.f16.f32", NARROW, 1, |m, a, _, _, _| narrow_unit(F16, m, f32_in(m, a))),
    row("cvt.f16.f64", NARROW, 1, |m, a, _, _, _| narrow_unit(F16, m, f64_in(m, a))),
    row("cvt.bf16.f32", NARROW, 1, |m, a, _, _, _| narrow(BF16, m, f32_in(m, a))),
    row("cvt.bf16.f64", NARROW, 1, |m, a, _, _, _| narrow(BF16, m, f64_in(m, a))),
    row("cvt.bf16.f16", NARROW, 1, |m, a, _, _, _| narrow(BF16, m, f16_in(m, a))),
    row("cvt.f16.bf16", NARROW, 1, |m, a, _, _, _| narrow(F16, m, bf16_in(m, a))),
    row("cvt.f16x2.f32", NARROW, 2, |m, a, b, _, _| pair(F16, m, f32_in(m, a), f32_in(m, b), 16)),
    row("cvt.bf16x2.f32", NARROW, 2, |m, a, b, _, _| pair(BF16, m, f32_in(m, a), f32_in(m, b), 16)),
    row("cvt.tf32.f32", &["rna", "rn", "rz", "relu", "satfinite"], 1, |m, a, _, _, _| tf32(m, a)),
    row("cvt.e4m3x2.f32", NARROW, 2, |m, a, b, _, _| pair(E4M3, m, f32_in(m, a), f32_in(m, b), 8)),
    row("cvt.e5m2x2.f32", NARROW, 2, |m, a, b, _, _| pair(E5M2, m, f32_in(m, a), f32_in(m, b), 8)),
    row("cvt.e4m3x2.f16x2", NARROW, 1, |m, a, _, _, _| {
        let (high, low) = halves(a);
        pair(E4M3, m, high, low, 8)
    }),
    row("cvt.e5m2x2.f16x2", NARROW, 1, |m, a, _, _, _| {
        let (high, low) = halves(a);
        pair(E5M2, m, high, low, 8)
    }),
    row("cvt.f16x2.e4m3x2", NARROW, 1, |_, a, _, _, _| unpack_fp8(E4M3, a)),
    row("cvt.f16x2.e5m2x2", NARROW, 1, |_, a, _, _, _| unpack_fp8(E5M2, a)),
];

/// The table of this family.
pub(crate) const ROWS: &[&[Row]] = &[
    int_to_int! {
        "u8", u8, u8; "s8", i8, u8; "u16", u16, u16; "s16", i16, u16;
        "u32", u32, u32; "s32", i32, u32; "u64", u64, u64; "s64", i64, u64;
    },
    int_to_float! {
        "u8", u8; "s8", i8; "u16", u16; "s16", i16; "u32", u32; "s32", i32; "u64", u64; "s64", i64;
    },
    float_to_int! {
        "cvt.u8.f32", f32_in, u8, u8, false; "cvt.s8.f32", f32_in, i8, u8, false;
        "cvt.u16.f32", f32_in, u16, u16, false; "cvt.s16.f32", f32_in, i16, u16, false;
        "cvt.u32.f32", f32_in, u32, u32, false; "cvt.s32.f32", f32_in, i32, u32, false;
        "cvt.u64.f32", f32_in, u64, u64, true; "cvt.s64.f32", f32_in, i64, u64, true;
        "cvt.u8.f64", f64_in, u8, u8, true; "cvt.s8.f64", f64_in, i8, u8, true;
        "cvt.u16.f64", f64_in, u16, u16, true; "cvt.s16.f64", f64_in, i16, u16, true;
        "cvt.u32.f64", f64_in, u32, u32, true; "cvt.s32.f64", f64_in, i32, u32, true;
        "cvt.u64.f64", f64_in, u64, u64, true; "cvt.s64.f64", f64_in, i64, u64, true;
        "cvt.u8.f16", f16_in, u8, u8, false; "cvt.s8.f16", f16_in, i8, u8, false;
        "cvt.u16.f16", f16_in, u16, u16, false; "cvt.s16.f16", f16_in, i16, u16, false;
        "cvt.u32.f16", f16_in, u32, u32, false; "cvt.s32.f16", f16_in, i32, u32, false;
        "cvt.u64.f16", f16_in, u64, u64, true; "cvt.s64.f16", f16_in, i64, u64, true;
        "cvt.s32.bf16", bf16_in, i32, u32, false; "cvt.u32.bf16", bf16_in, u32, u32, false;
    },
    FLOATS,
];

/// Bytes of the result type and of the register, where a signed result is narrower than its register.
pub(crate) fn sign_extension(form: &str, width: usize) -> Option<(usize, usize)> {
    let bytes = match form.strip_prefix("cvt.")?.split('.').next()? {
        "s8" => 1,
        "s16" => 2,
        "s32" => 4,
        _ => return None,
    };
    (bytes < width).then_some((bytes, width))
}
