//! Logic, shifts and bit fields against the pseudo-code of the ISA, bit by bit.

use crate::support::*;

fn bit(v: u64, i: u32) -> bool {
    i < 64 && v >> i & 1 == 1
}

/// A number from its bits.
fn bits(width: u32, f: impl Fn(u32) -> bool) -> u64 {
    (0..width).fold(0, |v, i| v | (f(i) as u64) << i)
}

fn bfe(v: &[u64], width: u32, signed: bool) -> u64 {
    let (pos, len) = ((v[1] & 0xff) as u32, (v[2] & 0xff) as u32);
    let sign = signed && len > 0 && bit(v[0], (pos + len - 1).min(width - 1));
    bits(width, |i| if i < len && pos + i < width { bit(v[0], pos + i) } else { sign })
}

fn bfi(v: &[u64], width: u32) -> u64 {
    let (pos, len) = ((v[2] & 0xff) as u32, (v[3] & 0xff) as u32);
    bits(width, |i| if i >= pos && i - pos < len { bit(v[0], i - pos) } else { bit(v[1], i) })
}

/// The highest bit that is not a sign bit.
fn bfind(v: u64, width: u32, signed: bool) -> Option<u32> {
    let sign = signed && bit(v, width - 1);
    (0..width).rev().find(|&i| bit(v, i) != sign)
}

fn shift(op: &str, v: &[u64], width: u32, signed: bool) -> u64 {
    let amount = v[1] as u32;
    let sign = signed && bit(v[0], width - 1);
    bits(width, |i| {
        if op == "shl" {
            i >= amount && bit(v[0], i - amount)
        } else {
            let from = i as u64 + amount as u64;
            if from < width as u64 { bit(v[0], from as u32) } else { sign }
        }
    })
}

fn funnel(v: &[u64], left: bool, clamp: bool) -> u64 {
    let n = if clamp { (v[2] as u32).min(32) } else { v[2] as u32 & 31 };
    // The 64 bits b:a; left takes the upper word after the shift, right the lower.
    let pair = |i: u32| if i < 32 { bit(v[0], i) } else { bit(v[1], i - 32) };
    bits(32, |i| if left { pair(32 + i - n) } else { i + n < 64 && pair(i + n) })
}

fn fns(v: &[u64]) -> u64 {
    let (mask, base, offset) = (v[0], (v[1] & 31) as i64, v[2] as u32 as i32);
    if offset == 0 {
        return if bit(mask, base as u32) { base as u64 } else { 0xffff_ffff };
    }
    let (mut pos, mut count) = (base, offset.unsigned_abs() - 1);
    while (0..32).contains(&pos) {
        if bit(mask, pos as u32) {
            if count == 0 {
                return pos as u64;
            }
            count -= 1;
        }
        pos += if offset > 0 { 1 } else { -1 };
    }
    0xffff_ffff
}

fn prmt(v: &[u64], mode: &str) -> u64 {
    let byte = |i: u64| ((v[1] << 32 | v[0] & 0xffff_ffff) >> (8 * (i & 7))) & 0xff;
    let n = v[2] & 3;
    let select = |i: u64| match mode {
        "f4e" => n + i,
        "b4e" => n.wrapping_sub(i) & 7,
        "rc8" => n,
        "ecl" => i.max(n),
        "ecr" => i.min(n),
        "rc16" => 2 * (n & 1) + (i & 1),
        _ => v[2] >> (4 * i) & 15,
    };
    (0..4).fold(0, |out, i| {
        let s = select(i);
        let picked = if s & 8 == 0 { byte(s) } else { (byte(s) >> 7) * 0xff };
        out | picked << (8 * i)
    })
}

fn extend(v: &[u64], clamp: bool, signed: bool) -> u64 {
    let width = if clamp { (v[1] as u32).min(32) } else { v[1] as u32 & 31 };
    let sign = signed && width > 0 && bit(v[0], width - 1);
    bits(32, |i| if i < width { bit(v[0], i) } else { sign })
}

fn mask(v: &[u64], clamp: bool) -> u64 {
    let (at, width) = if clamp { (v[0] & 0xffff_ffff, v[1] & 0xffff_ffff) } else { (v[0] & 31, v[1] & 31) };
    bits(32, |i| i as u64 >= at && (i as u64 - at) < width)
}

/// Operands, bits of the result, and the result.
fn oracle(parts: &[&str], width: u32, v: &[u64]) -> u64 {
    let all = |v: u64| low(v as i128, width);
    let last = parts[parts.len() - 1];
    let signed = last.starts_with('s');
    match parts[0] {
        "and" => bits(width, |i| bit(v[0], i) && bit(v[1], i)),
        "or" => bits(width, |i| bit(v[0], i) || bit(v[1], i)),
        "xor" => bits(width, |i| bit(v[0], i) != bit(v[1], i)),
        "not" => bits(width, |i| !bit(v[0], i)),
        "cnot" => (all(v[0]) == 0) as u64,
        "shl" | "shr" => shift(parts[0], v, width, signed),
        "bfe" => bfe(v, width, signed),
        "bfi" => bfi(v, width),
        "bfind" => match bfind(v[0], width, signed) {
            None => 0xffff_ffff,
            Some(i) if parts[1] == "shiftamt" => (width - 1 - i) as u64,
            Some(i) => i as u64,
        },
        "popc" => (0..width).filter(|&i| bit(v[0], i)).count() as u64,
        "clz" => (0..width).rev().take_while(|&i| !bit(v[0], i)).count() as u64,
        "brev" => bits(width, |i| bit(v[0], width - 1 - i)),
        "bmsk" => mask(v, parts[1] == "clamp"),
        "szext" => extend(v, parts[1] == "clamp", signed),
        "fns" => fns(v),
        "shf" => funnel(v, parts[1] == "l", parts[2] == "clamp"),
        "prmt" => prmt(v, last),
        _ => panic!("no oracle for {parts:?}"),
    }
}

pub fn run(t: &mut Tested) {
    let amounts: Vec<u64> = (0..70).chain([127, 128, 255, 256, 300, 0xffff_ffff]).collect();
    let mut random = Random(8);
    for form in forms_of("logic") {
        let parts: Vec<&str> = form.split('.').collect();
        if parts[0] == "lop3" {
            logic3(t, &form);
            continue;
        }
        let ty = parts.iter().rev().find(|p| ["8", "16", "32", "64"].iter().any(|n| p[1..] == **n)).unwrap();
        let width: u32 = ty[1..].parse().unwrap();
        let (inputs, out) = match parts[0] {
            "and" | "or" | "xor" => (vec![width, width], width),
            "not" | "cnot" | "brev" => (vec![width], width),
            "popc" | "clz" | "bfind" => (vec![width], 32),
            "shl" | "shr" => (vec![width, 32], width),
            "bfe" => (vec![width, 32, 32], width),
            "bfi" => (vec![width, width, 32, 32], width),
            "bmsk" | "szext" => (vec![32, 32], 32),
            _ => (vec![32; 3], 32),
        };
        // The last operands are mostly positions, lengths and amounts.
        let mut all = rows(inputs.len(), INTEGERS, 7);
        for &n in &amounts {
            let mut row: Vec<u64> = inputs.iter().map(|_| random.next()).collect();
            let len = row.len();
            row[len - 1] = n;
            if len > 2 {
                row[len - 2] = amounts[random.next() as usize % amounts.len()];
            }
            all.push(row);
        }
        // A base beyond the word is not defined.
        if parts[0] == "fns" {
            all.iter_mut().for_each(|row| (row[1], row[2]) = (row[1] & 31, (row[2] % 9).wrapping_sub(4)));
        }
        t.check(&form, out, &inputs, &all, |v| Some(oracle(&parts, width, v)));
    }
}

/// The table is an immediate: all 256 of them.
fn logic3(t: &mut Tested, form: &str) {
    for table in 0..256u32 {
        let out = run_words(
            &format!(
                "ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%d0]; {form} %r4, %r1, %r2, %r3, {table};\n\
                 st.global.b32 [%d0+12], %r4;"
            ),
            1,
            &[0xf0f0_1234, 0xcccc_5678, 0xaaaa_9abc, 0],
        );
        let wanted = bits(32, |i| {
            let index = [out[0], out[1], out[2]].iter().fold(0, |n, &w| n << 1 | (w >> i & 1));
            table >> index & 1 == 1
        });
        assert_eq!(out[3] as u64, wanted, "{form} with table {table:#x}");
    }
    t.note(form);
}
