//! cvt between all scalar types.

use super::scalar::{Mods, Round, Row, row};
use crate::fp::{self, BF16, E4M3, E5M2, F16, Format, TF32};

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
        &[$(row(concat!("cvt(.rni|.rzi|.rmi|.rpi)", $form), 1, |m, a, _, _, _| {
            let v = $input(m, a);
            if v.is_nan() {
                return if $wide { 1 << ($u::BITS - 1) } else { 0 };
            }
            to_integral(m.round, v) as $t as $u as u64
        }),)*]
    };
}

/// Integer to float. The f64 nearest to a 64-bit integer may lack low bits: `rest` keeps their sign.
fn from_int(v: i128, format: Format, m: Mods) -> u64 {
    let v = if m.sat { v.clamp(0, 1) } else { v };
    let near = v as f64;
    format.encode(near, (v - near as i128) as f64, m.round, false) as u64
}

fn f64_from_int(v: i128, m: Mods) -> u64 {
    (if m.sat { v.clamp(0, 1) } else { v } as f64).to_bits()
}

macro_rules! int_to_float {
    ($($int:literal, $t:ident;)*) => {
        &[$(
            row(concat!("cvt(.rn|.rz|.rm|.rp)[.sat].f32.", $int), 1, |m, a, _, _, _| {
                from_int(a as $t as i128, fp::F32, m)
            }),
            row(concat!("cvt(.rn|.rz|.rm|.rp)[.sat].f16.", $int), 1, |m, a, _, _, _| from_int(a as $t as i128, F16, m)),
            row(concat!("cvt(.rn|.rz|.rm|.rp).bf16.", $int), 1, |m, a, _, _, _| from_int(a as $t as i128, BF16, m)),
            row(concat!("cvt.rn[.sat].f64.", $int), 1, |m, a, _, _, _| f64_from_int(a as $t as i128, m)),
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
        row(concat!("cvt[.sat].", $dst, ".u8"), 1, |m, a, _, _, _| cast!(m, a as u8, $d, $u)),
        row(concat!("cvt[.sat].", $dst, ".s8"), 1, |m, a, _, _, _| cast!(m, a as i8, $d, $u)),
        row(concat!("cvt[.sat].", $dst, ".u16"), 1, |m, a, _, _, _| cast!(m, a as u16, $d, $u)),
        row(concat!("cvt[.sat].", $dst, ".s16"), 1, |m, a, _, _, _| cast!(m, a as i16, $d, $u)),
        row(concat!("cvt[.sat].", $dst, ".u32"), 1, |m, a, _, _, _| cast!(m, a as u32, $d, $u)),
        row(concat!("cvt[.sat].", $dst, ".s32"), 1, |m, a, _, _, _| cast!(m, a as i32, $d, $u)),
        row(concat!("cvt[.sat].", $dst, ".u64"), 1, |m, a, _, _, _| cast!(m, a, $d, $u)),
        row(concat!("cvt[.sat].", $dst, ".s64"), 1, |m, a, _, _, _| cast!(m, a as i64, $d, $u)),
    )*] };
}

/// Rounds to `format` with the modifiers of cvt; no flushing.
fn narrow(format: Format, m: Mods, v: f64) -> u64 {
    if v.is_nan() {
        return if m.sat { 0 } else { format.nan() as u64 };
    }
    let v = if m.sat && v <= 0.0 || m.relu && v < 0.0 { 0.0 } else { v };
    let v = if m.sat && v > 1.0 { 1.0 } else { v };
    let v = if m.integral { to_integral(m.round, v) } else { v };
    format.encode(v, 0.0, m.round, m.finite) as u64
}

/// To f32, where `.ftz` flushes results too.
fn narrow_f32(m: Mods, v: f64) -> u64 {
    flush(m, f32::from_bits(narrow(fp::F32, m, v) as u32)).to_bits() as u64
}

/// To f64: every source is exact.
fn widen_f64(m: Mods, v: f64) -> u64 {
    let v = if m.integral { to_integral(m.round, v) } else { v };
    (if !m.sat {
        v
    } else if v > 0.0 {
        v.min(1.0)
    } else {
        0.0
    })
    .to_bits()
}

/// The first source becomes the upper half.
fn pair(format: Format, m: Mods, a: f64, b: f64, bits: u32) -> u64 {
    narrow(format, m, a) << bits | narrow(format, m, b)
}

fn tf32(m: Mods, a: u64) -> u64 {
    let v = f32_in(m, a);
    if v.is_nan() { 0x7fff_ffff } else { narrow(TF32, m, v) << 13 }
}

fn unpack_fp8(format: Format, m: Mods, a: u64) -> u64 {
    let half = |b: u64| narrow(F16, m, format.decode(b as u8 as u32));
    half(a) | half(a >> 8) << 16
}

fn halves(a: u64) -> (f64, f64) {
    (F16.decode((a >> 16) as u16 as u32), F16.decode(a as u16 as u32))
}

const FLOATS: &[Row] = &[
    row("cvt[.rni|.rzi|.rmi|.rpi][.ftz][.sat].f32.f32", 1, |m, a, _, _, _| narrow_f32(m, f32_in(m, a))),
    row("cvt(.rn|.rz|.rm|.rp)[.ftz][.sat].f32.f64", 1, |m, a, _, _, _| narrow_f32(m, f64_in(m, a))),
    row("cvt[.ftz][.sat].f32.f16", 1, |m, a, _, _, _| narrow_f32(m, f16_in(m, a))),
    row("cvt[.ftz][.sat].f32.bf16", 1, |m, a, _, _, _| narrow_f32(m, bf16_in(m, a))),
    row("cvt[.ftz][.sat].f64.f32", 1, |m, a, _, _, _| widen_f64(m, f32_in(m, a))),
    row("cvt[.sat].f64.f16", 1, |m, a, _, _, _| widen_f64(m, f16_in(m, a))),
    row("cvt[.sat].f64.bf16", 1, |m, a, _, _, _| widen_f64(m, bf16_in(m, a))),
    row("cvt[.rni|.rzi|.rmi|.rpi][.sat].f64.f64", 1, |m, a, _, _, _| widen_f64(m, f64_in(m, a))),
    row("cvt[.rni|.rzi|.rmi|.rpi][.sat].f16.f16", 1, |m, a, _, _, _| narrow(F16, m, f16_in(m, a))),
    row("cvt[.rni|.rzi|.rmi|.rpi].bf16.bf16", 1, |m, a, _, _, _| narrow(BF16, m, bf16_in(m, a))),
    row("cvt(.rn|.rz|.rm|.rp)[.ftz][.sat].f16.f32", 1, |m, a, _, _, _| narrow(F16, m, f32_in(m, a))),
    row("cvt(.rn|.rz)(.relu[.satfinite]|.satfinite).f16.f32", 1, |m, a, _, _, _| narrow(F16, m, f32_in(m, a))),
    row("cvt(.rn|.rz|.rm|.rp)[.sat].f16.f64", 1, |m, a, _, _, _| narrow(F16, m, f64_in(m, a))),
    row("cvt(.rn|.rz|.rm|.rp).f16.bf16", 1, |m, a, _, _, _| narrow(F16, m, bf16_in(m, a))),
    row("cvt(.rn|.rz|.rm|.rp).bf16.f32", 1, |m, a, _, _, _| narrow(BF16, m, f32_in(m, a))),
    row("cvt(.rn|.rz)(.relu[.satfinite]|.satfinite).bf16.f32", 1, |m, a, _, _, _| narrow(BF16, m, f32_in(m, a))),
    row("cvt(.rn|.rz|.rm|.rp).bf16.f64", 1, |m, a, _, _, _| narrow(BF16, m, f64_in(m, a))),
    row("cvt(.rn|.rz|.rm|.rp).bf16.f16", 1, |m, a, _, _, _| narrow(BF16, m, f16_in(m, a))),
    row("cvt(.rn|.rz)[.relu][.satfinite].f16x2.f32", 2, |m, a, b, _, _| pair(F16, m, f32_in(m, a), f32_in(m, b), 16)),
    row("cvt(.rn|.rz)[.relu][.satfinite].bf16x2.f32", 2, |m, a, b, _, _| pair(BF16, m, f32_in(m, a), f32_in(m, b), 16)),
    row("cvt.rna[.satfinite].tf32.f32", 1, |m, a, _, _, _| tf32(m, a)),
    row("cvt(.rn|.rz)[.satfinite][.relu].tf32.f32", 1, |m, a, _, _, _| tf32(m, a)),
    row("cvt.rn.satfinite[.relu].e4m3x2.f32", 2, |m, a, b, _, _| pair(E4M3, m, f32_in(m, a), f32_in(m, b), 8)),
    row("cvt.rn.satfinite[.relu].e5m2x2.f32", 2, |m, a, b, _, _| pair(E5M2, m, f32_in(m, a), f32_in(m, b), 8)),
    row("cvt.rn.satfinite[.relu].e4m3x2.f16x2", 1, |m, a, _, _, _| {
        let (high, low) = halves(a);
        pair(E4M3, m, high, low, 8)
    }),
    row("cvt.rn.satfinite[.relu].e5m2x2.f16x2", 1, |m, a, _, _, _| {
        let (high, low) = halves(a);
        pair(E5M2, m, high, low, 8)
    }),
    row("cvt.rn[.relu].f16x2.e4m3x2", 1, |m, a, _, _, _| unpack_fp8(E4M3, m, a)),
    row("cvt.rn[.relu].f16x2.e5m2x2", 1, |m, a, _, _, _| unpack_fp8(E5M2, m, a)),
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
        "[.ftz][.sat].u8.f32", f32_in, u8, u8, false; "[.ftz][.sat].s8.f32", f32_in, i8, u8, false;
        "[.ftz][.sat].u16.f32", f32_in, u16, u16, false; "[.ftz][.sat].s16.f32", f32_in, i16, u16, false;
        "[.ftz][.sat].u32.f32", f32_in, u32, u32, false; "[.ftz][.sat].s32.f32", f32_in, i32, u32, false;
        "[.ftz][.sat].u64.f32", f32_in, u64, u64, true; "[.ftz][.sat].s64.f32", f32_in, i64, u64, true;
        "[.sat].u8.f64", f64_in, u8, u8, true; "[.sat].s8.f64", f64_in, i8, u8, true;
        "[.sat].u16.f64", f64_in, u16, u16, true; "[.sat].s16.f64", f64_in, i16, u16, true;
        "[.sat].u32.f64", f64_in, u32, u32, true; "[.sat].s32.f64", f64_in, i32, u32, true;
        "[.sat].u64.f64", f64_in, u64, u64, true; "[.sat].s64.f64", f64_in, i64, u64, true;
        "[.sat].u8.f16", f16_in, u8, u8, false; "[.sat].s8.f16", f16_in, i8, u8, false;
        "[.sat].u16.f16", f16_in, u16, u16, false; "[.sat].s16.f16", f16_in, i16, u16, false;
        "[.sat].u32.f16", f16_in, u32, u32, false; "[.sat].s32.f16", f16_in, i32, u32, false;
        "[.sat].u64.f16", f16_in, u64, u64, true; "[.sat].s64.f16", f16_in, i64, u64, true;
        "[.sat].u8.bf16", bf16_in, u8, u8, false; "[.sat].s8.bf16", bf16_in, i8, u8, false;
        "[.sat].u16.bf16", bf16_in, u16, u16, false; "[.sat].s16.bf16", bf16_in, i16, u16, false;
        "[.sat].u32.bf16", bf16_in, u32, u32, false; "[.sat].s32.bf16", bf16_in, i32, u32, false;
        "[.sat].u64.bf16", bf16_in, u64, u64, true; "[.sat].s64.bf16", bf16_in, i64, u64, true;
    },
    FLOATS,
];

/// Bytes of the result type and of the register, where a signed result is narrower than its register.
pub(crate) fn sign_extension(form: &str, width: usize) -> Option<(usize, usize)> {
    let types = form.strip_prefix("cvt.")?;
    let bytes = match types.rsplit('.').nth(1)? {
        "s8" => 1,
        "s16" => 2,
        "s32" => 4,
        _ => return None,
    };
    (bytes < width).then_some((bytes, width))
}
