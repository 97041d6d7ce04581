//! f16 and bf16, alone and in pairs.

use rustc_apfloat::Round;

use crate::judge;
use crate::support::*;

/// One half. The payload of a NaN that only changes its sign is unspecified.
fn result(format: &str, parts: &[&str], v: &[u64]) -> Option<u64> {
    let ftz = parts.contains(&"ftz") && format == "f16";
    let v: Vec<u64> = v.iter().map(|b| b & 0xffff).map(|b| if ftz { judge::flush(format, b) } else { b }).collect();
    let r = match parts[0] {
        "neg" | "abs" if judge::is_nan(format, v[0]) => return None,
        "neg" => v[0] ^ 0x8000,
        "abs" => v[0] & 0x7fff,
        "min" | "max" => judge::extreme(format, v[0], v[1], parts[0] == "max", parts.contains(&"NaN")),
        op => judge::arithmetic(format, op, &v, Round::NearestTiesToEven),
    };
    let r = if ftz { judge::flush(format, r) } else { r };
    let negative = r >> 15 == 1 && !judge::is_nan(format, r);
    Some(if parts.contains(&"sat") {
        judge::saturate(format, r)
    } else if parts.contains(&"relu") && negative {
        0
    } else {
        r
    })
}

/// `ex2` and `tanh`: within two units in the last place of the rounded value.
fn approximate(format: &str, parts: &[&str], v: u64, got: u64) {
    let v = v & 0xffff;
    let real = |bits: u64| match format {
        "f16" => half::f16::from_bits(bits as u16).to_f64(),
        _ => half::bf16::from_bits(bits as u16).to_f64(),
    };
    let v = if parts.contains(&"ftz") { judge::flush(format, v) } else { v };
    if judge::is_nan(format, v) {
        assert_eq!(got, judge::nan(format));
        return;
    }
    let x = real(v);
    let wanted = if parts[0] == "ex2" { x.exp2() } else { x.tanh() };
    let wanted = judge::encode(format, judge::quad("f64", wanted.to_bits()), Round::NearestTiesToEven);
    let wanted = if parts.contains(&"ftz") { judge::flush(format, wanted) } else { wanted };
    let off = (got as i64 - wanted as i64).abs();
    // A flushed result may lie on the other side of the smallest normal number.
    assert!(off <= 2 || parts.contains(&"ftz") && real(got.max(wanted)) < 1.3e-38, "{parts:?} of {x}: {got:x}");
}

pub fn run(t: &mut Tested) {
    for form in forms_of("half") {
        let parts: Vec<&str> = form.split('.').collect();
        let last = parts[parts.len() - 1];
        let format = last.strip_suffix("x2").unwrap_or(last);
        let (width, halves) = if last.ends_with("x2") { (32, vec![0, 16]) } else { (16, vec![0]) };
        let sources = match parts[0] {
            "neg" | "abs" | "ex2" | "tanh" => 1,
            "fma" => 3,
            _ => 2,
        };
        // Both halves get edge values, in different order.
        let edges = judge::edges(format);
        let packed: Vec<u64> =
            edges.iter().zip(edges.iter().rev()).map(|(a, b)| if width == 32 { a | b << 16 } else { *a }).collect();
        let mut inputs = rows(sources, &packed, 11);
        let mut random = Random(12);
        inputs.extend((0..300).map(|_| {
            (0..sources).map(|_| random.next() & 0x3fff_3fff | random.next() & 0x8000_8000).collect::<Vec<_>>()
        }));
        if matches!(parts[0], "ex2" | "tanh") {
            let results = eval(&form, width, &[width], &inputs);
            for (row, got) in inputs.iter().zip(results) {
                halves.iter().for_each(|h| approximate(format, &parts, row[0] >> h, got >> h & 0xffff));
            }
            t.note(&form);
            continue;
        }
        t.check(&form, width, &vec![width; sources], &inputs, |v| {
            halves.iter().try_fold(0, |out, h| {
                let lane: Vec<u64> = v.iter().map(|x| x >> h).collect();
                Some(out | result(format, &parts, &lane)? << h)
            })
        });
    }
}
