//! Integer arithmetic, with the extended-precision forms that use the carry bit.

use super::scalar::{Row, row};
use super::{Form, Op, arity};
use crate::ir::Reg;
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine};
use crate::parse::ast::Operand;
use crate::report::Raise;

/// Rows that exist for every integer type; `$wide` is the unsigned type of twice the width.
macro_rules! common_rows {
    ($name:literal, $t:ident, $u:ident, $bits:literal, $sat:literal, $relu:literal) => {
        &[
            row(concat!("sub", $sat, ".", $name), 2, |m, a, b, _, _| {
                let (a, b) = (a as $t, b as $t);
                (if m.sat { a.saturating_sub(b) } else { a.wrapping_sub(b) }) as $u as u64
            }),
            row(concat!("add", $sat, ".", $name), 2, |m, a, b, _, _| {
                let (a, b) = (a as $t, b as $t);
                (if m.sat { a.saturating_add(b) } else { a.wrapping_add(b) }) as $u as u64
            }),
            row(concat!("mul.lo.", $name), 2, |_, a, b, _, _| (a as $t).wrapping_mul(b as $t) as $u as u64),
            row(concat!("mul.hi.", $name), 2, |_, a, b, _, _| {
                ((a as $t as i128).wrapping_mul(b as $t as i128) >> $bits) as $u as u64
            }),
            row(concat!("mad.lo.", $name), 3, |_, a, b, c, _| {
                (a as $t).wrapping_mul(b as $t).wrapping_add(c as $t) as $u as u64
            }),
            row(concat!("mad.hi", $sat, ".", $name), 3, |m, a, b, c, _| {
                let high = ((a as $t as i128).wrapping_mul(b as $t as i128) >> $bits) as $t;
                let c = c as $t;
                (if m.sat { high.saturating_add(c) } else { high.wrapping_add(c) }) as $u as u64
            }),
            // Division by zero is unspecified by the ISA; hardware gives all ones.
            row(concat!("div.", $name), 2, |_, a, b, _, _| match b as $t {
                0 => $u::MAX as u64,
                b => (a as $t).wrapping_div(b) as $u as u64,
            }),
            row(concat!("rem.", $name), 2, |_, a, b, _, _| match b as $t {
                0 => a as $u as u64,
                b => (a as $t).wrapping_rem(b) as $u as u64,
            }),
            row(concat!("min", $relu, ".", $name), 2, |m, a, b, _, _| {
                let r = (a as $t).min(b as $t);
                (if m.relu { r.max(0) } else { r }) as $u as u64
            }),
            row(concat!("max", $relu, ".", $name), 2, |m, a, b, _, _| {
                let r = (a as $t).max(b as $t);
                (if m.relu { r.max(0) } else { r }) as $u as u64
            }),
            row(concat!("sad.", $name), 3, |_, a, b, c, _| {
                let (a, b) = (a as $t, b as $t);
                (a.abs_diff(b) as $u).wrapping_add(c as $u) as u64
            }),
        ]
    };
}

macro_rules! signed_rows {
    ($name:literal, $t:ident, $u:ident) => {
        &[
            row(concat!("abs.", $name), 1, |_, a, _, _, _| (a as $t).wrapping_abs() as $u as u64),
            row(concat!("neg.", $name), 1, |_, a, _, _, _| (a as $t).wrapping_neg() as $u as u64),
        ]
    };
}

/// Products of full width: `$w` is the wide type, `$wu` its unsigned twin.
macro_rules! wide_rows {
    ($name:literal, $t:ident, $w:ident, $wu:ident) => {
        &[
            row(concat!("mul.wide.", $name), 2, |_, a, b, _, _| {
                (a as $t as $w).wrapping_mul(b as $t as $w) as $wu as u64
            }),
            row(concat!("mad.wide.", $name), 3, |_, a, b, c, _| {
                (a as $t as $w).wrapping_mul(b as $t as $w).wrapping_add(c as $w) as $wu as u64
            }),
        ]
    };
}

/// Two 16-bit halves at once.
macro_rules! packed_rows {
    ($name:literal, $t:ident, $relu:literal) => {
        &[
            row(concat!("add.", $name), 2, |_, a, b, _, _| packed(a, b, |a, b| (a as $t).wrapping_add(b as $t) as u16)),
            row(concat!("min", $relu, ".", $name), 2, |m, a, b, _, _| {
                let low = if m.relu { 0 } else { $t::MIN };
                packed(a, b, |a, b| (a as $t).min(b as $t).max(low) as u16)
            }),
            row(concat!("max", $relu, ".", $name), 2, |m, a, b, _, _| {
                let low = if m.relu { 0 } else { $t::MIN };
                packed(a, b, |a, b| (a as $t).max(b as $t).max(low) as u16)
            }),
        ]
    };
}

fn packed(a: u64, b: u64, f: impl Fn(u16, u16) -> u16) -> u64 {
    let low = f(a as u16, b as u16) as u64;
    low | (f((a >> 16) as u16, (b >> 16) as u16) as u64) << 16
}

/// The low 24 bits, sign-extended for signed forms.
fn low24(a: u64, signed: bool) -> i64 {
    let a = (a & 0xff_ffff) as i64;
    if signed { (a << 40) >> 40 } else { a }
}

macro_rules! row24 {
    ($name:literal, $signed:literal, $sat:literal) => {
        &[
            row(concat!("mul24.lo.", $name), 2, |_, a, b, _, _| (low24(a, $signed) * low24(b, $signed)) as u32 as u64),
            row(concat!("mul24.hi.", $name), 2, |_, a, b, _, _| {
                ((low24(a, $signed) * low24(b, $signed)) >> 16) as u32 as u64
            }),
            row(concat!("mad24.lo.", $name), 3, |_, a, b, c, _| {
                ((low24(a, $signed) * low24(b, $signed)) as u32).wrapping_add(c as u32) as u64
            }),
            row(concat!("mad24.hi", $sat, ".", $name), 3, |m, a, b, c, _| {
                let high = ((low24(a, $signed) * low24(b, $signed)) >> 16) as u32;
                match m.sat {
                    true => (high as i32).saturating_add(c as i32) as u32 as u64,
                    false => high.wrapping_add(c as u32) as u64,
                }
            }),
        ]
    };
}

fn byte(a: u64, i: u32, signed: bool) -> i32 {
    let b = (a >> (8 * i)) as u8;
    if signed { b as i8 as i32 } else { b as i32 }
}

fn dp4a(a: u64, sa: bool, b: u64, sb: bool, c: u64) -> u64 {
    let sum: i32 = (0..4).map(|i| byte(a, i, sa) * byte(b, i, sb)).sum();
    (c as u32).wrapping_add(sum as u32) as u64
}

fn dp2a(a: u64, sa: bool, b: u64, sb: bool, c: u64, high: u32) -> u64 {
    let half = |i: u32| {
        let h = (a >> (16 * i)) as u16;
        if sa { h as i16 as i64 } else { h as i64 }
    };
    let sum: i64 = (0..2).map(|i| half(i) * byte(b, 2 * high + i, sb) as i64).sum();
    (c as u32).wrapping_add(sum as u32) as u64
}

macro_rules! dot_rows {
    ($types:literal, $sa:literal, $sb:literal) => {
        &[
            row(concat!("dp4a.", $types), 3, |_, a, b, c, _| dp4a(a, $sa, b, $sb, c)),
            row(concat!("dp2a.lo.", $types), 3, |_, a, b, c, _| dp2a(a, $sa, b, $sb, c, 0)),
            row(concat!("dp2a.hi.", $types), 3, |_, a, b, c, _| dp2a(a, $sa, b, $sb, c, 1)),
        ]
    };
}

/// The table of this family.
pub(crate) const ROWS: &[&[Row]] = &[
    common_rows!("u16", u16, u16, 16, "", ""),
    common_rows!("s16", i16, u16, 16, "", ""),
    common_rows!("u32", u32, u32, 32, "", ""),
    common_rows!("s32", i32, u32, 32, "[.sat]", "[.relu]"),
    common_rows!("u64", u64, u64, 64, "", ""),
    common_rows!("s64", i64, u64, 64, "", ""),
    signed_rows!("s16", i16, u16),
    signed_rows!("s32", i32, u32),
    signed_rows!("s64", i64, u64),
    wide_rows!("u16", u16, u32, u32),
    wide_rows!("s16", i16, i32, u32),
    wide_rows!("u32", u32, u64, u64),
    wide_rows!("s32", i32, i64, u64),
    packed_rows!("u16x2", u16, ""),
    packed_rows!("s16x2", i16, "[.relu]"),
    row24!("u32", false, ""),
    row24!("s32", true, "[.sat]"),
    dot_rows!("u32.u32", false, false),
    dot_rows!("u32.s32", false, true),
    dot_rows!("s32.u32", true, false),
    dot_rows!("s32.s32", true, true),
];

/// Which extended-precision operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CarryKind {
    Add,
    Sub,
    MadLow,
    MadHigh,
}

/// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`.
#[derive(Debug)]
pub(crate) struct Carry {
    kind: CarryKind,
    bytes: usize,
    signed: bool,
    carry_in: bool,
    carry_out: bool,
    dst: Reg,
    src: [Reg; 3],
}

pub(crate) const CARRY_FORMS: &[&str] = &[
    "add.cc.(u32|s32|u64|s64)",
    "addc[.cc].(u32|s32|u64|s64)",
    "sub.cc.(u32|s32|u64|s64)",
    "subc[.cc].(u32|s32|u64|s64)",
    "mad.(lo|hi).cc.(u32|s32|u64|s64)",
    "madc.(lo|hi)[.cc].(u32|s32|u64|s64)",
];

pub(crate) fn decode_carry(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    let base = form.next();
    let kind = match base {
        "add" | "addc" => CarryKind::Add,
        "sub" | "subc" => CarryKind::Sub,
        _ if form.take("lo") => CarryKind::MadLow,
        _ => {
            form.require("hi")?;
            CarryKind::MadHigh
        }
    };
    let carry_in = base.ends_with('c');
    let carry_out = form.take("cc");
    let ty = form.ty()?;
    form.end()?;
    if !ty.integer() || ty.bytes() < 4 {
        return Err("carry forms take 32- and 64-bit integers".into());
    }
    let n = if matches!(kind, CarryKind::Add | CarryKind::Sub) { 2 } else { 3 };
    arity(ops, n + 1)?;
    let mut src = [cx.constant(0); 3];
    for (slot, operand) in src.iter_mut().zip(&ops[1..]) {
        *slot = cx.value(operand)?;
    }
    let dst = cx.dst(&ops[0])?;
    let (bytes, signed) = (ty.bytes(), ty.signed());
    Ok(Op::Carry(Carry { kind, bytes, signed, carry_in, carry_out, dst, src }))
}

/// Result and carry-out (borrow for subtraction) of one lane.
fn carry_lane(op: &Carry, src: [u64; 3], carry: bool) -> (u64, bool) {
    let bits = 8 * op.bytes as u32;
    let mask = if bits == 64 { u64::MAX as u128 } else { (1 << bits) - 1 };
    let [a, b, c] = src.map(|v| v as u128 & mask);
    let carry = carry as u128;
    let product = |high: bool| {
        let wide = if op.signed {
            let s = |v: u128| crate::types::sign_extend(v as u64, op.bytes) as i128;
            (s(a) * s(b)) as u128
        } else {
            a * b
        };
        (if high { wide >> bits } else { wide }) & mask
    };
    match op.kind {
        CarryKind::Add => ((((a + b + carry) & mask) as u64), a + b + carry > mask),
        CarryKind::Sub => ((a.wrapping_sub(b + carry) & mask) as u64, b + carry > a),
        CarryKind::MadLow | CarryKind::MadHigh => {
            let sum = product(op.kind == CarryKind::MadHigh) + c + carry;
            ((sum & mask) as u64, sum > mask)
        }
    }
}

pub(crate) fn execute_carry(m: &mut Machine, at: At, op: &Carry) -> Result<Flow, Raise> {
    let (consts, warp) = m.registers(at);
    let [a, b, c] = op.src.map(|r| *warp.read(consts, r));
    let taint = op.src.iter().fold(0, |t, &r| t | warp.taint(r));
    let taint = taint | if op.carry_in { warp.carry_taint } else { 0 };
    let mut out = [0; 32];
    let mut carry_out = warp.carry;
    for lane in crate::machine::lanes(at.lanes) {
        let carry = op.carry_in && warp.carry >> lane & 1 == 1;
        let (value, carry) = carry_lane(op, [a[lane], b[lane], c[lane]], carry);
        out[lane] = value;
        carry_out = carry_out & !(1 << lane) | (carry as u32) << lane;
    }
    if op.carry_out {
        warp.carry = carry_out;
        warp.carry_taint = warp.carry_taint & !at.lanes | taint & at.lanes;
    }
    warp.write(op.dst, at.lanes, &out, taint);
    Ok(Flow::Next)
}
