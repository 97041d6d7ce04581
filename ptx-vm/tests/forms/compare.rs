//! Comparison with its boolean operators, selection, classes, predicate logic.

use std::cmp::Ordering;

use crate::judge;
use crate::support::*;

/// How two operands of a type compare; `None` if a NaN takes part.
fn order(ty: &str, unsigned: bool, ftz: bool, a: u64, b: u64) -> Option<Ordering> {
    if ty.starts_with(['b', 's', 'u']) && ty != "bf16" {
        let (width, signed) = (ty[1..].parse().unwrap(), ty.starts_with('s') && !unsigned);
        return Some(value(a, (width, signed)).cmp(&value(b, (width, signed))));
    }
    let real = |bits: u64| {
        let bits = if ftz { judge::flush(ty, bits) } else { bits };
        match ty {
            "f16" => half::f16::from_bits(bits as u16).to_f64(),
            "bf16" => half::bf16::from_bits(bits as u16).to_f64(),
            "f32" => f32::from_bits(bits as u32) as f64,
            _ => f64::from_bits(bits),
        }
    };
    real(a).partial_cmp(&real(b))
}

fn compare(op: &str, ty: &str, ftz: bool, a: u64, b: u64) -> bool {
    use Ordering::*;
    let unsigned = matches!(op, "lo" | "ls" | "hi" | "hs");
    let (ordered, or_unordered) = match op.strip_suffix('u') {
        Some(op) => (op, true),
        None => (op, op == "nan"),
    };
    let Some(order) = order(ty, unsigned, ftz, a, b) else { return or_unordered };
    match ordered {
        "eq" => order == Equal,
        "ne" => order != Equal,
        "lt" | "lo" => order == Less,
        "le" | "ls" => order != Greater,
        "gt" | "hi" => order == Greater,
        "ge" | "hs" => order != Less,
        "num" => true,
        _ => false,
    }
}

fn combine(op: Option<&str>, holds: bool, c: bool) -> bool {
    match op {
        Some("and") => holds && c,
        Some("or") => holds || c,
        Some("xor") => holds != c,
        _ => holds,
    }
}

fn boolean<'a>(parts: &[&'a str]) -> Option<&'a str> {
    parts.iter().find(|p| matches!(**p, "and" | "or" | "xor")).copied()
}

fn width(ty: &str) -> u32 {
    match ty {
        "bf16" | "f16" => 16,
        "bf16x2" | "f16x2" => 32,
        _ => ty[1..].parse().unwrap(),
    }
}

fn inputs(ty: &str) -> Vec<Vec<u64>> {
    let edges = match ty.strip_suffix("x2").unwrap_or(ty) {
        float @ ("f16" | "bf16" | "f32" | "f64") => judge::edges(float),
        _ => INTEGERS.to_vec(),
    };
    let mut out = rows(2, &edges[..edges.len().min(28)], 15);
    if ty.ends_with("x2") {
        out.iter_mut().for_each(|row| (row[0], row[1]) = (row[0] | row[1] << 16, row[1] | 0x3c00 << 16));
    }
    // Equal operands and the third one come along.
    out.extend(edges.iter().map(|&e| vec![e, e]));
    for (i, row) in out.iter_mut().enumerate() {
        row.push(i as u64 & 1);
    }
    out
}

pub fn run(t: &mut Tested) {
    for form in forms_of("compare") {
        let parts: Vec<&str> = form.split('.').collect();
        match parts[0] {
            "setp" => setp(t, &form, &parts),
            "set" => set(t, &form, &parts),
            "selp" => selp(t, &form, parts[1]),
            "slct" => slct(t, &form, &parts),
            "testp" => testp(t, &form, &parts),
            _ => logic(t, &form, parts[0]),
        }
    }
}

/// Both results of setp as bits of one register. The third operand is negated where there is one.
fn setp(t: &mut Tested, form: &str, parts: &[&str]) {
    let (op, ty, ftz) = (parts[1], parts[parts.len() - 1], parts.contains(&"ftz"));
    let combined = boolean(parts);
    let third = if combined.is_some() { ", !%p9" } else { "" };
    let (bits, r) = (
        width(ty),
        if width(ty) == 16 {
            "h"
        } else if width(ty) == 32 {
            "r"
        } else {
            "d"
        },
    );
    let results = eval_with(
        &format!(
            "{{\n.reg .pred %q<3>;\nsetp.ne.b32 %p9, %r3, 0;\n{form} %q1|%q2, %{r}1, %{r}2{third};\n\
             selp.u32 %r9, 1, 0, %q1; selp.u32 %r10, 2, 0, %q2; or.b32 %r9, %r9, %r10;\n}}"
        ),
        bits,
        &inputs(ty),
    );
    for (row, got) in inputs(ty).iter().zip(results) {
        let c = row[2] == 0;
        let (p, q) = match ty.strip_suffix("x2") {
            Some(half) => {
                let holds = |at: u32| compare(op, half, ftz, row[0] >> at & 0xffff, row[1] >> at & 0xffff);
                (combine(combined, holds(0), c), combine(combined, holds(16), c))
            }
            None => {
                let holds = compare(op, ty, ftz, row[0], row[1]);
                (combine(combined, holds, c), combine(combined, !holds, c))
            }
        };
        assert_eq!(got, p as u32 | (q as u32) << 1, "{form} of {row:x?}");
    }
    t.note(form);
}

/// Runs a body over rows of two operands and a flag in `%r3`; the result is `%r9`.
fn eval_with(body: &str, bits: u32, rows: &[Vec<u64>]) -> Vec<u32> {
    let r = if bits == 16 {
        "h"
    } else if bits == 32 {
        "r"
    } else {
        "d"
    };
    let text = format!(
        "mov.u32 %r60, %tid.x; mul.wide.u32 %d60, %r60, 32; add.s64 %d0, %d0, %d60;\n\
         ld.global.b{bits} %{r}1, [%d0]; ld.global.b{bits} %{r}2, [%d0+8]; ld.global.b32 %r3, [%d0+16];\n\
         {body}\nst.global.b32 [%d0+24], %r9;"
    );
    let module = kernel(&text);
    let mut out = vec![];
    for chunk in rows.chunks(1024) {
        let data: Vec<u8> =
            chunk.iter().flat_map(|r| [r[0], r[1], r[2], 0]).flat_map(|v: u64| v.to_le_bytes()).collect();
        let (bytes, _) = launch(&module, ptx_vm::Launch::new(1, chunk.len() as u32), &data, &[], 1);
        out.extend(bytes.chunks_exact(32).map(|c| words(c)[6]));
    }
    out
}

fn set(t: &mut Tested, form: &str, parts: &[&str]) {
    let (op, to, ty) = (parts[1], parts[parts.len() - 2], parts[parts.len() - 1]);
    let (combined, ftz) = (boolean(parts), parts.contains(&"ftz"));
    let third = if combined.is_some() { ", %p9" } else { "" };
    let r = if width(ty) == 16 {
        "h"
    } else if width(ty) == 32 {
        "r"
    } else {
        "d"
    };
    let body = format!("setp.ne.b32 %p9, %r3, 0;\n{form} %r9, %{r}1, %{r}2{third};");
    for (row, got) in inputs(ty).iter().zip(eval_with(&body, width(ty), &inputs(ty))) {
        let holds = combine(combined, compare(op, ty, ftz, row[0], row[1]), row[2] != 0);
        let yes = if to == "f32" { 1f32.to_bits() } else { u32::MAX };
        assert_eq!(got, if holds { yes } else { 0 }, "{form} of {row:x?}");
    }
    t.note(form);
}

fn selp(t: &mut Tested, form: &str, ty: &str) {
    let bits = width(ty);
    let body = |p: &str| {
        let r = if bits == 16 {
            "h"
        } else if bits == 32 {
            "r"
        } else {
            "d"
        };
        let high = if bits == 64 { "shr.u64 %d8, %d8, 32; cvt.u32.u64 %r9, %d8;" } else { "" };
        let widen = match bits {
            16 => "cvt.u32.u16 %r9, %h8;",
            32 => "mov.b32 %r9, %r8;",
            _ => high,
        };
        format!("setp.ne.b32 %p9, %r3, 0;\n{form} %{r}8, %{r}1, %{r}2, {p};\n{widen}")
    };
    for negated in [false, true] {
        let text = body(if negated { "!%p9" } else { "%p9" });
        // A negated guard is not an operand of selp, so it is made before.
        let text =
            if negated { text.replace("!%p9", "%p8").replace("%r3, 0;", "%r3, 0; not.pred %p8, %p9;") } else { text };
        for (row, got) in inputs("u64").iter().zip(eval_with(&text, bits, &inputs("u64"))) {
            let chosen = if (row[2] != 0) != negated { row[0] } else { row[1] };
            let wanted = if bits == 64 { chosen >> 32 } else { low(chosen as i128, bits) };
            assert_eq!(got as u64, wanted, "{form} of {row:x?}");
        }
    }
    t.note(form);
}

fn slct(t: &mut Tested, form: &str, parts: &[&str]) {
    let (ty, by, ftz) = (parts[parts.len() - 2], parts[parts.len() - 1], parts.contains(&"ftz"));
    let bits = width(ty);
    let third: Vec<u64> = if by == "f32" { judge::edges("f32") } else { INTEGERS.to_vec() };
    let all: Vec<Vec<u64>> = third.iter().map(|&c| vec![0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00, c]).collect();
    t.check(form, bits, &[bits, bits, 32], &all, |v| {
        let first = match by {
            "s32" => v[2] as u32 as i32 >= 0,
            _ => f32::from_bits(if ftz { judge::flush("f32", v[2]) } else { v[2] } as u32) >= 0.0,
        };
        Some(low(if first { v[0] } else { v[1] } as i128, bits))
    });
}

fn testp(t: &mut Tested, form: &str, parts: &[&str]) {
    let (class, ty) = (parts[1], parts[2]);
    let r = if ty == "f32" { "r" } else { "d" };
    let (_, mantissa) = judge::layout(ty);
    let all: Vec<Vec<u64>> = judge::edges(ty).into_iter().map(|e| vec![e, 0, 0]).collect();
    let results = eval_with(&format!("{form} %p1, %{r}1; selp.u32 %r9, 1, 0, %p1;"), width(ty), &all);
    for (row, got) in all.iter().zip(results) {
        let magnitude = row[0] & judge::nan(ty);
        let exponent = magnitude >> mantissa;
        let top = judge::nan(ty) >> mantissa;
        let fraction = magnitude & ((1 << mantissa) - 1) != 0;
        let holds = match class {
            "finite" => exponent != top,
            "infinite" => exponent == top && !fraction,
            "number" => exponent != top || !fraction,
            "notanumber" => exponent == top && fraction,
            "normal" => exponent != 0 && exponent != top,
            _ => exponent == 0 && fraction,
        };
        assert_eq!(got, holds as u32, "{form} of {:x}", row[0]);
    }
    t.note(form);
}

fn logic(t: &mut Tested, form: &str, op: &str) {
    let all: Vec<Vec<u64>> = (0..4).map(|i| vec![i & 1, i >> 1, 0]).collect();
    let second = if matches!(op, "not" | "mov") { "" } else { ", %p2" };
    let body = format!(
        "setp.ne.b32 %p1, %r1, 0; setp.ne.b32 %p2, %r2, 0;\n{form} %p3, %p1{second};\nselp.u32 %r9, 1, 0, %p3;"
    );
    for (row, got) in all.iter().zip(eval_with(&body, 32, &all)) {
        let (a, b) = (row[0] == 1, row[1] == 1);
        let wanted = match op {
            "and" => a && b,
            "or" => a || b,
            "xor" => a != b,
            "not" => !a,
            _ => a,
        };
        assert_eq!(got, wanted as u32, "{form} of {a} and {b}");
    }
    t.note(form);
}
