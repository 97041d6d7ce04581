//! mma.sync of every type and shape: the product of small numbers is exact in f32, so it must agree to the bit.

use ptx_vm::Launch;

use crate::judge;
use crate::support::*;

/// Bits of an element type in a register.
fn width(ty: &str) -> usize {
    match ty {
        "tf32" => 32,
        "e4m3" | "e5m2" | "s8" | "u8" => 8,
        _ => 16,
    }
}

/// Encodings of small values of a type; sums of products of them are exact.
pub fn samples(ty: &str, n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random(seed);
    (0..n)
        .map(|_| {
            let v = random.next();
            match ty {
                "s8" | "u8" => v as u8 as u32,
                _ => {
                    // Multiples of 1/8 up to 15/8: four bits of mantissa at most. fp8 has fewer: steps of 1/4, 1/2.
                    let steps = match ty {
                        "e4m3" => 8.0,
                        "e5m2" => 2.0,
                        _ => 8.0,
                    };
                    let x = (v % 16) as f64 / steps * if v >> 20 & 1 == 1 { -1.0 } else { 1.0 };
                    let x = if ty == "e5m2" { x.clamp(-3.5, 3.5) } else { x };
                    let format = if ty == "tf32" { "f32" } else { ty };
                    judge::encode(format, judge::quad("f64", x.to_bits()), rustc_apfloat::Round::NearestTiesToEven)
                        as u32
                }
            }
        })
        .collect()
}

/// The number an encoding stands for.
pub fn real(ty: &str, bits: u32) -> f64 {
    match ty {
        "s8" => bits as u8 as i8 as f64,
        "u8" => bits as u8 as f64,
        "f16" => half::f16::from_bits(bits as u16).to_f64(),
        "bf16" => half::bf16::from_bits(bits as u16).to_f64(),
        "tf32" | "f32" => f32::from_bits(bits) as f64,
        _ => {
            let double = judge::encode("f64", judge::quad(ty, bits as u64), rustc_apfloat::Round::NearestTiesToEven);
            f64::from_bits(double)
        }
    }
}

pub fn run(t: &mut Tested) {
    for form in forms_of("mma") {
        let parts: Vec<&str> = form.split('.').collect();
        let n = parts.len();
        let k: usize = parts[3].strip_prefix("m16n8k").unwrap().parse().unwrap();
        let types = [parts[n - 4], parts[n - 3], parts[n - 2], parts[n - 1]];
        product(&form, k, types, parts.contains(&"satfinite"));
        t.note(&form);
    }
}

/// Registers of A: 16 rows, of B: 8 columns, by the figures of the ISA, which agree for all widths: a register holds
/// `per` elements next to each other along k; lane / 4 is the row (or column), lane % 4 chooses the run of k.
fn product(form: &str, k: usize, [d, a, b, c]: [&str; 4], saturate: bool) {
    let per = 32 / width(a);
    let (va, vb) = (samples(a, 16 * k, 21), samples(b, 8 * k, 22));
    let mut random = Random(23);
    let vc: Vec<f64> = (0..128).map(|_| (random.next() % 64) as f64 - 32.0).collect();
    let vc: Vec<f64> =
        if saturate { vc.iter().map(|v| if *v > 0.0 { 2147483647.0 } else { -2147483648.0 }).collect() } else { vc };
    let pack = |values: &[u32], at: usize| (0..per).fold(0, |r, h| r | values[at + h] << (h * width(a) % 32));
    let (ra, rb) = (16 * k / 32 / per, 8 * k / 32 / per);
    let accumulators = |ty: &str| if ty == "f16" { 2 } else { 4 };
    let place = |lane: usize, i: usize| (lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2);
    let encode = |ty: &str, v: f64| match ty {
        "f32" => (v as f32).to_bits(),
        "f16" => half::f16::from_f64(v).to_bits() as u32,
        _ => v as i32 as u32,
    };
    let mut data: Vec<u32> = vec![];
    for lane in 0..32 {
        for r in 0..ra {
            let (row, column) = (lane / 4 + 8 * (r % 2), lane % 4 * per + r / 2 * 4 * per);
            data.push(pack(&va, row * k + column));
        }
        for r in 0..rb {
            data.push(pack(&vb, lane / 4 * k + lane % 4 * per + r * 4 * per));
        }
        let value = |i: usize| {
            let (row, column) = place(lane, i);
            encode(c, vc[row * 8 + column])
        };
        match c {
            "f16" => data.extend((0..2).map(|i| value(2 * i) | value(2 * i + 1) << 16)),
            _ => data.extend((0..4).map(value)),
        }
    }
    let (rc, rd) = (accumulators(c), accumulators(d));
    let per_lane = ra + rb + rc;
    let mut body = format!("mov.u32 %r1, %laneid; mul.wide.u32 %d1, %r1, {}; add.s64 %d1, %d1, %d0;\n", 4 * per_lane);
    let list = |first: usize, n: usize| (0..n).map(|i| format!("%r{}", first + i)).collect::<Vec<_>>().join(", ");
    for i in 0..per_lane {
        body += &format!("ld.global.b32 %r{}, [%d1+{}];\n", 10 + i, 4 * i);
    }
    body += &format!(
        "{form} {{{}}}, {{{}}}, {{{}}}, {{{}}};\n",
        list(60, rd),
        list(10, ra),
        list(10 + ra, rb),
        list(10 + ra + rb, rc)
    );
    // The results go where the fragments were.
    for i in 0..rd {
        body += &format!("st.global.b32 [%d1+{}], %r{};\n", 4 * i, 60 + i);
    }
    let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (out, counters) = launch(&kernel(&body), Launch::new(1, 32), &bytes, &[], 1);
    assert_eq!(counters.mma, 1);
    for (lane, regs) in words(&out).chunks(per_lane).enumerate() {
        for i in 0..4 {
            let (row, column) = place(lane, i);
            let dot: f64 = (0..k).map(|x| real(a, va[row * k + x]) * real(b, vb[column * k + x])).sum();
            let sum = dot + vc[row * 8 + column];
            let wanted = match d {
                "f16" => half::f16::from_f64(sum).to_bits() as u32,
                "f32" => (sum as f32).to_bits(),
                _ if saturate => sum.clamp(i32::MIN as f64, i32::MAX as f64) as i32 as u32,
                _ => sum as i64 as u32,
            };
            let got = if d == "f16" { regs[i / 2] >> (16 * (i % 2)) & 0xffff } else { regs[i] };
            assert_eq!(got, wanted, "{form} row {row} column {column}: sum {sum}");
        }
    }
}
