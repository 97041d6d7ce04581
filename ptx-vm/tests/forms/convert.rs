//! cvt between every pair of types.

use rustc_apfloat::ieee::Quad;
use rustc_apfloat::{Float, Round};

use crate::judge;
use crate::support::*;

fn is_int(ty: &str) -> bool {
    ty.starts_with(['s', 'u'])
}

fn int_to_int(parts: &[&str], from: &str, to: &str, v: u64) -> u64 {
    let (x, (width, signed)) = (value(v, integer_type(from)), integer_type(to));
    let (min, max) =
        if signed { (-(1i128 << (width - 1)), (1i128 << (width - 1)) - 1) } else { (0, (1i128 << width) - 1) };
    low(if parts.contains(&"sat") { x.clamp(min, max) } else { x }, width)
}

fn float_to_int(parts: &[&str], from: &str, to: &str, v: u64) -> u64 {
    let (width, signed) = integer_type(to);
    let v = if parts.contains(&"ftz") { judge::flush(from, v) } else { v };
    let x = judge::quad(from, v);
    if x.is_nan() {
        return if from == "f64" || width == 64 { 1 << (width - 1) } else { 0 };
    }
    let whole = x.round_to_integral(judge::round_of(parts)).value;
    // Out of range, APFloat gives the nearest end of the range, as cvt does.
    if signed { low(whole.to_i128(width as usize).value, width) } else { whole.to_u128(width as usize).value as u64 }
}

fn int_to_float(parts: &[&str], from: &str, to: &str, v: u64) -> u64 {
    let x = Quad::from_i128(value(v, integer_type(from))).value;
    let r = judge::encode(to, x, judge::round_of(parts));
    if parts.contains(&"sat") { judge::saturate(to, r) } else { r }
}

/// Rounds the low 13 bits of an f32 away.
fn tf32(bits: u64, round: Round) -> u64 {
    let (kept, cut) = (bits >> 13, bits & 0x1fff);
    let up = match round {
        Round::TowardZero => false,
        Round::NearestTiesToAway => cut >= 0x1000,
        _ => cut > 0x1000 || cut == 0x1000 && kept & 1 == 1,
    };
    let exact = bits & 0x7fff_ffff == 0x7f80_0000;
    if exact { bits } else { (kept + up as u64) << 13 }
}

/// The largest finite encoding.
fn largest(format: &str) -> u64 {
    match format {
        "e4m3" => 0x7e,
        "e5m2" => 0x7b,
        "f16" => 0x7bff,
        "bf16" => 0x7f7f,
        _ => 0x7f7f_e000,
    }
}

fn float_to_float(parts: &[&str], from: &str, to: &str, v: u64) -> Option<u64> {
    let has = |m: &str| parts.contains(&m);
    let ftz = has("ftz");
    let v = if ftz && from == "f32" { judge::flush(from, v) } else { v };
    let x = judge::quad(from, v);
    let sign = 1u64 << (judge::layout(to).0 - 1);
    if x.is_nan() {
        // A widened NaN keeps a payload, which is left open.
        return match (has("sat"), to) {
            (true, _) => Some(0),
            (false, "f64") => None,
            _ => Some(judge::nan(to)),
        };
    }
    let x = if ["rni", "rzi", "rmi", "rpi"].iter().any(|r| has(r)) {
        x.round_to_integral(judge::round_of(parts)).value
    } else {
        x
    };
    let mut r =
        if to == "tf32" { tf32(v, judge::round_of(parts)) } else { judge::encode(to, x, judge::round_of(parts)) };
    if has("satfinite") && r & !sign > largest(to) {
        r = largest(to) | if x.is_negative() { sign } else { 0 };
    }
    if has("relu") && x.is_negative() {
        // -0 may stay.
        return (!x.is_zero()).then_some(0);
    }
    if ftz && to == "f32" {
        r = judge::flush(to, r);
    }
    Some(if has("sat") { judge::saturate(to, r) } else { r })
}

/// Inputs of a type: edges, every small encoding, numbers around the ranges of the integer types.
fn inputs(from: &str, n: usize) -> Vec<Vec<u64>> {
    if is_int(from) {
        return rows(1, INTEGERS, 13);
    }
    let (total, mantissa) = judge::layout(from);
    let mut values = judge::edges(from);
    for x in
        [0.5, 1.5, 2.5, 127.5, 128.0, 255.5, 256.0, 448.0, 464.0, 465.0, 57344.0, 61440.0, 65504.0, 65519.0, 65520.0]
    {
        for x in [x, x * 128.0, x * 65536.0, x * 65536.0 * 65536.0, x / 65536.0, x * 0.999] {
            for x in [x, -x] {
                values.push(judge::encode(from, judge::quad("f64", f64::to_bits(x)), Round::TowardZero));
            }
        }
    }
    let mut random = Random(14);
    let middle = (1u64 << (total - 2 - mantissa)) - 1;
    values.extend((0..300).map(|_| {
        let e = middle - middle.min(40) + random.next() % (2 * middle.min(40));
        random.next() & ((1 << mantissa) - 1) | e << mantissa | (random.next() & 1) << (total - 1)
    }));
    values.chunks(n).map(|c| c.iter().copied().chain([0, 0]).take(n).collect()).collect()
}

pub fn run(t: &mut Tested) {
    for form in forms_of("convert") {
        let parts: Vec<&str> = form.split('.').collect();
        let (to, from) = (parts[parts.len() - 2], parts[parts.len() - 1]);
        if let (Some(to), Some(from)) = (to.strip_suffix("x2"), from.strip_suffix("x2")) {
            pairs(t, &form, &parts, to, from);
        } else if let Some(to) = to.strip_suffix("x2") {
            // The first source becomes the upper half.
            let width = judge::layout(to).0;
            t.check(&form, 2 * width, &[32, 32], &inputs(from, 2), |v| {
                Some(float_to_float(&parts, from, to, v[0])? << width | float_to_float(&parts, from, to, v[1])?)
            });
        } else {
            let width = |ty: &str| if is_int(ty) { integer_type(ty).0 } else { judge::layout(ty).0 };
            t.check(&form, width(to), &[width(from)], &inputs(from, 1), |v| match (is_int(from), is_int(to)) {
                (true, true) => Some(widened(to, int_to_int(&parts, from, to, v[0]))),
                (true, false) => Some(int_to_float(&parts, from, to, v[0])),
                (false, true) => Some(widened(to, float_to_int(&parts, from, to, v[0]))),
                (false, false) => float_to_float(&parts, from, to, v[0]),
            });
        }
    }
    narrow_results_in_wide_registers();
}

/// An 8-bit result lies in a 32-bit register here: signed ones are sign-extended to it.
fn widened(to: &str, r: u64) -> u64 {
    if to == "s8" { low(value(r, (8, true)), 32) } else { r }
}

/// Two values in one register on both sides.
fn pairs(t: &mut Tested, form: &str, parts: &[&str], to: &str, from: &str) {
    let (out, width) = (judge::layout(to).0, judge::layout(from).0);
    let mut all = vec![];
    for low in 0..1u64 << width.min(8) {
        let spread = if width == 8 { low } else { low << 8 | low };
        all.push(vec![spread | (spread ^ 0x81) << width]);
    }
    t.check(form, 2 * out, &[2 * width], &all, |v| {
        let half = |bits: u64| float_to_float(parts, from, to, bits & ((1 << width) - 1));
        Some(half(v[0])? | half(v[0] >> width)? << out)
    });
}

/// "Operand Size Exceeding Instruction-Type Size": signed results fill the register with their sign.
fn narrow_results_in_wide_registers() {
    let out = run_words(
        "ld.global.b32 %r1, [%d0]; cvt.s16.s32 %r2, %r1; cvt.u16.u32 %r3, %r1; cvt.rni.s8.f32 %r4, 0fC2F60000;\n\
         st.global.v2.b32 [%d0+8], {%r2, %r3}; st.global.b32 [%d0+16], %r4;",
        1,
        &[0x1234_8765, 0, 0, 0, 0],
    );
    assert_eq!(out[2..], [0xffff_8765, 0x8765, (-123i32) as u32]);
}
