//! f32 and f64 arithmetic with its roundings; the approximations within their tolerance.

use rustc_apfloat::Round;

use crate::judge;
use crate::support::*;

/// Edge values, and numbers whose exponents lie close enough for sums to round.
fn inputs(format: &str, n: usize, seed: u64) -> Vec<Vec<u64>> {
    let mut out = rows(n, &judge::edges(format), seed);
    let (total, mantissa) = judge::layout(format);
    let mut random = Random(seed);
    let middle = (1u64 << (total - 2 - mantissa)) - 1;
    for _ in 0..200 {
        let row = (0..n).map(|_| {
            let (m, e) = (random.next() & ((1 << mantissa) - 1), middle - 20 + random.next() % 40);
            m | e << mantissa | (random.next() & 1) << (total - 1)
        });
        out.push(row.collect());
    }
    out
}

/// The f32 root by comparing squares, which are exact in f64.
fn root(bits: u64, round: Round) -> u64 {
    let x = f32::from_bits(bits as u32);
    if x.is_nan() || x < 0.0 {
        return judge::nan("f32");
    }
    if x == 0.0 || x.is_infinite() {
        return bits;
    }
    let square = |r: f64| r * r;
    let mut below = (x as f64).sqrt() as f32;
    while square(below as f64) > x as f64 {
        below = below.next_down();
    }
    while square(below.next_up() as f64) <= x as f64 {
        below = below.next_up();
    }
    let exact = square(below as f64) == x as f64;
    let middle = (below as f64 + below.next_up() as f64) / 2.0;
    let up = match round {
        Round::TowardPositive => !exact,
        Round::NearestTiesToEven => square(middle) < x as f64,
        _ => false,
    };
    (if up { below.next_up() } else { below }).to_bits() as u64
}

fn result(format: &str, parts: &[&str], v: &[u64]) -> Option<u64> {
    let round = judge::round_of(parts);
    let ftz = parts.contains(&"ftz");
    let v = v.iter().map(|bits| bits & (judge::nan(format) << 1 | 1));
    let v: Vec<u64> = v.map(|b| if ftz { judge::flush(format, b) } else { b }).collect();
    let sign = 1u64 << (judge::layout(format).0 - 1);
    let one = if format == "f32" { 1f32.to_bits() as u64 } else { 1f64.to_bits() };
    let r = match parts[0] {
        // The payload of a NaN is unspecified.
        "neg" | "abs" if judge::is_nan(format, v[0]) => return None,
        "neg" => v[0] ^ sign,
        "abs" => v[0] & !sign,
        "copysign" => v[0] & sign | v[1] & !sign,
        "min" | "max" => judge::extreme(format, v[0], v[1], parts[0] == "max", parts.contains(&"NaN")),
        "rcp" => judge::arithmetic(format, "div", &[one, v[0]], round),
        "sqrt" if format == "f32" => root(v[0], round),
        "sqrt" if judge::is_nan(format, v[0]) || f64::from_bits(v[0]) < 0.0 => judge::nan(format),
        "sqrt" => f64::from_bits(v[0]).sqrt().to_bits(),
        op => judge::arithmetic(format, op, &v, round),
    };
    let r = if ftz { judge::flush(format, r) } else { r };
    Some(if parts.contains(&"sat") { judge::saturate(format, r) } else { r })
}

pub fn run(t: &mut Tested) {
    for form in forms_of("float") {
        let parts: Vec<&str> = form.split('.').collect();
        let format = parts[parts.len() - 1];
        let width = judge::layout(format).0;
        let sources = match parts[0] {
            "neg" | "abs" | "rcp" | "sqrt" => 1,
            "fma" | "mad" => 3,
            _ => 2,
        };
        t.check(&form, width, &vec![width; sources], &inputs(format, sources, 9), |v| result(format, &parts, v));
    }
}

/// The real function, and the relative and absolute error that the ISA allows (a little less exact ones included).
fn exact(parts: &[&str], v: &[f64]) -> (f64, f64, f64) {
    match parts[0] {
        "div" => (v[0] / v[1], 2.5e-7, 0.0),
        "rcp" => (1.0 / v[0], 1.2e-7, 0.0),
        "sqrt" => (v[0].sqrt(), 2.5e-7, 0.0),
        "rsqrt" => (1.0 / v[0].sqrt(), 2.5e-7, 0.0),
        "sin" => (v[0].sin(), 0.0, 5e-7),
        "cos" => (v[0].cos(), 0.0, 5e-7),
        "lg2" => (v[0].log2(), 2.5e-7, 3e-7),
        "ex2" => (v[0].exp2(), 2.5e-7, 0.0),
        _ => (v[0].tanh(), 5e-4, 0.0),
    }
}

/// Results for special inputs, from the tables of the ISA.
fn special(parts: &[&str], v: &[f64]) -> Option<f64> {
    let x = v[0];
    Some(match parts[0] {
        _ if v.iter().any(|x| x.is_nan()) => f64::NAN,
        // For a divisor of 2^126 to 2^128 the result is zero, or a NaN for an infinite dividend.
        "div" if v[1].abs() > 2f64.powi(126) && v[1].is_finite() => {
            if x.is_infinite() {
                f64::NAN
            } else {
                0f64.copysign(x * v[1].signum())
            }
        }
        "sqrt" | "rsqrt" | "lg2" if x < 0.0 => f64::NAN,
        "rcp" | "rsqrt" if x.is_infinite() => 0f64.copysign(x),
        "rcp" | "rsqrt" if x == 0.0 => f64::INFINITY.copysign(x),
        "sqrt" if x == 0.0 => x,
        "sin" | "cos" if x.is_infinite() => f64::NAN,
        "sin" if x == 0.0 => x,
        "lg2" if x == 0.0 => f64::NEG_INFINITY,
        "ex2" if x == f64::NEG_INFINITY => 0.0,
        "ex2" if x == 0.0 => 1.0,
        "sqrt" | "lg2" | "ex2" if x.is_infinite() => f64::INFINITY,
        "tanh" if x == 0.0 => x,
        "tanh" if x.is_infinite() => 1f64.copysign(x),
        _ => return None,
    })
}

pub fn run_approx(t: &mut Tested) {
    for form in forms_of("approx") {
        let parts: Vec<&str> = form.split('.').collect();
        let format = parts[parts.len() - 1];
        let width = judge::layout(format).0;
        let sources = if parts[0] == "div" { 2 } else { 1 };
        let ftz = parts.contains(&"ftz");
        let inputs = inputs(format, sources, 10);
        let results = eval(&form, width, &vec![width; sources], &inputs);
        let real = |bits: u64| if width == 32 { f32::from_bits(bits as u32) as f64 } else { f64::from_bits(bits) };
        let flush = |bits: u64| if ftz { judge::flush(format, bits) } else { bits };
        for (row, got) in inputs.iter().zip(results) {
            let v: Vec<f64> = row.iter().map(|&b| real(flush(b))).collect();
            let (got_value, wanted) = (real(got), special(&parts, &v));
            if let Some(wanted) = wanted {
                let same = wanted.is_nan() && got == judge::nan(format) || got_value.to_bits() == wanted.to_bits();
                assert!(same, "{form} of {v:?}: {got_value} instead of {wanted}");
                continue;
            }
            let (wanted, relative, absolute) = exact(&parts, &v);
            // The gross approximations have 20 bits.
            let relative = if ftz && width == 64 { 2e-6 } else { relative };
            if wanted.is_nan() {
                assert_eq!(got, judge::nan(format), "{form} of {v:?}");
                continue;
            }
            let rounded = judge::encode(format, judge::quad("f64", wanted.to_bits()), Round::NearestTiesToEven);
            let rounded = real(flush(rounded));
            let tiny = match (ftz, width) {
                (_, 64) => 2.3e-308,
                (true, _) => 1.2e-38,
                _ => 1.5e-45,
            };
            let close = (got_value - rounded).abs() <= (relative * rounded.abs()).max(absolute).max(tiny);
            assert!(close || got_value == rounded, "{form} of {v:?}: {got_value} instead of {rounded}");
        }
        t.note(&form);
    }
}
