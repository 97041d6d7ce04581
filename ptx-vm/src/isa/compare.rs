//! Comparison, selection and predicate logic.

use super::{Form, Op, arity};
use crate::fp::{BF16, F16};
use crate::ir::{Pred, Reg};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine};
use crate::parse::ast::Operand;
use crate::report::Raise;
use crate::types::{Ty, sign_extend, truncate};

pub(crate) const FORMS: &[&str] = &[
    "setp(.eq|.ne)[.and|.or|.xor].(b16|b32|b64)",
    "setp(.eq|.ne|.lt|.le|.gt|.ge)[.and|.or|.xor].(s16|s32|s64)",
    "setp(.eq|.ne|.lt|.le|.gt|.ge|.lo|.ls|.hi|.hs)[.and|.or|.xor].(u16|u32|u64)",
    "setp(.eq|.ne|.lt|.le|.gt|.ge|.equ|.neu|.ltu|.leu|.gtu|.geu|.num|.nan)[.and|.or|.xor].(f64|bf16|bf16x2)",
    "setp(.eq|.ne|.lt|.le|.gt|.ge|.equ|.neu|.ltu|.leu|.gtu|.geu|.num|.nan)[.and|.or|.xor][.ftz].(f32|f16|f16x2)",
    "set(.eq|.ne)[.and|.or|.xor].(u32|s32|f32).(b16|b32|b64)",
    "set(.eq|.ne|.lt|.le|.gt|.ge)[.and|.or|.xor].(u32|s32|f32).(s16|s32|s64)",
    "set(.eq|.ne|.lt|.le|.gt|.ge|.lo|.ls|.hi|.hs)[.and|.or|.xor].(u32|s32|f32).(u16|u32|u64)",
    "set(.eq|.ne|.lt|.le|.gt|.ge|.equ|.neu|.ltu|.leu|.gtu|.geu|.num|.nan)[.and|.or|.xor].(u32|s32|f32).f64",
    "set(.eq|.ne|.lt|.le|.gt|.ge|.equ|.neu|.ltu|.leu|.gtu|.geu|.num|.nan)[.and|.or|.xor][.ftz].(u32|s32|f32).(f32|f16)",
    "set(.eq|.ne|.lt|.le|.gt|.ge|.equ|.neu|.ltu|.leu|.gtu|.geu|.num|.nan)[.and|.or|.xor].(u32|s32|f32).bf16",
    "selp.(b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64)",
    "slct.(b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64).s32",
    "slct[.ftz].(b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64).f32",
    "testp.(finite|infinite|number|notanumber|normal|subnormal).(f32|f64)",
    "and.pred",
    "or.pred",
    "xor.pred",
    "not.pred",
    "mov.pred",
];

/// A comparison operator; unordered ones are true for NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cmp {
    less: bool,
    equal: bool,
    greater: bool,
    unordered: bool,
    /// `lo`, `ls`, `hi`, `hs`: unsigned whatever the type says.
    unsigned: bool,
}

impl Cmp {
    fn parse(word: &str) -> Option<Cmp> {
        let cmp = |less, equal, greater| Cmp { less, equal, greater, unordered: false, unsigned: false };
        let base = match word {
            "eq" | "equ" => cmp(false, true, false),
            "ne" | "neu" => cmp(true, false, true),
            "lt" | "ltu" | "lo" => cmp(true, false, false),
            "le" | "leu" | "ls" => cmp(true, true, false),
            "gt" | "gtu" | "hi" => cmp(false, false, true),
            "ge" | "geu" | "hs" => cmp(false, true, true),
            "num" => cmp(true, true, true),
            "nan" => cmp(false, false, false),
            _ => return None,
        };
        let unordered = matches!(word, "equ" | "neu" | "ltu" | "leu" | "gtu" | "geu" | "nan");
        let unsigned = matches!(word, "lo" | "ls" | "hi" | "hs");
        Some(Cmp { unordered, unsigned, ..base })
    }

    fn holds(self, order: Option<std::cmp::Ordering>) -> bool {
        match order {
            Some(std::cmp::Ordering::Less) => self.less,
            Some(std::cmp::Ordering::Equal) => self.equal,
            Some(std::cmp::Ordering::Greater) => self.greater,
            None => self.unordered,
        }
    }

    fn lane(self, ty: Ty, ftz: bool, a: u64, b: u64) -> bool {
        let flush = |bits: u64| {
            let v = f32::from_bits(bits as u32);
            if ftz && v.is_subnormal() { 0.0 } else { v }
        };
        let half = |bits: u64| {
            let v = F16.decode(bits as u16 as u32);
            if ftz && v.abs() < f64::powi(2.0, -14) { 0.0 } else { v }
        };
        let bhalf = |bits: u64| BF16.decode(bits as u16 as u32);
        self.holds(match ty {
            Ty::F32 => flush(a).partial_cmp(&flush(b)),
            Ty::F64 => f64::from_bits(a).partial_cmp(&f64::from_bits(b)),
            Ty::F16 => half(a).partial_cmp(&half(b)),
            Ty::BF16 => bhalf(a).partial_cmp(&bhalf(b)),
            _ if ty.signed() && !self.unsigned => Some(sign_extend(a, ty.bytes()).cmp(&sign_extend(b, ty.bytes()))),
            _ => Some(truncate(a, ty.bytes()).cmp(&truncate(b, ty.bytes()))),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bool {
    And,
    Or,
    Xor,
}

impl Bool {
    fn parse(word: &str) -> Option<Bool> {
        match word {
            "and" => Some(Bool::And),
            "or" => Some(Bool::Or),
            "xor" => Some(Bool::Xor),
            _ => None,
        }
    }

    fn apply(self, a: u32, b: u32) -> u32 {
        match self {
            Bool::And => a & b,
            Bool::Or => a | b,
            Bool::Xor => a ^ b,
        }
    }
}

/// The classes of `testp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

#[derive(Debug)]
pub(crate) enum Compare {
    /// `setp`: p = (a cmp b) op c, q = !(a cmp b) op c.
    Setp {
        cmp: Cmpr,
        combine: Option<(Bool, Pred)>,
        dst: Pred,
        other: Pred,
    },
    /// `setp` of two halves: the lower decides p, the upper q.
    SetpPair {
        low: Cmpr,
        combine: Option<(Bool, Pred)>,
        dst: Pred,
        other: Pred,
    },
    /// `set`: the result is all ones or 1.0.
    Set {
        cmp: Cmpr,
        combine: Option<(Bool, Pred)>,
        dst: Reg,
        one: u64,
    },
    Selp {
        dst: Reg,
        a: Reg,
        b: Reg,
        p: Pred,
        bytes: usize,
    },
    /// `slct`: a where c >= 0.
    Slct {
        dst: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
        float: bool,
        ftz: bool,
        bytes: usize,
    },
    Test {
        dst: Pred,
        a: Reg,
        class: Class,
        double: bool,
    },
    Logic {
        op: Bool,
        dst: Pred,
        a: Pred,
        b: Pred,
    },
}

/// A comparison with its operands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cmpr {
    cmp: Cmp,
    ty: Ty,
    ftz: bool,
    a: Reg,
    b: Reg,
}

fn comparable(ty: Ty) -> bool {
    ty.integer() && ty.bytes() > 1 || matches!(ty, Ty::F16 | Ty::BF16 | Ty::F32 | Ty::F64)
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    if form.full().ends_with(".pred") {
        return decode_predicate_logic(cx, form, ops);
    }
    let compare = match form.next() {
        "setp" => {
            let (cmp, boolean, ftz) = comparison(form)?;
            let ty = form.ty()?;
            let one = match ty {
                Ty::F16x2 => Ty::F16,
                Ty::BF16x2 => Ty::BF16,
                ty => ty,
            };
            let (cmp, combine) = operands(cx, (cmp, boolean, ftz, one), ops)?;
            let (dst, other) = match &ops[0] {
                Operand::Pair(p, q) => (cx.pred_dst(p)?, cx.pred_dst(q)?),
                p => (cx.pred_dst(p)?, Pred::SINK),
            };
            if one == ty {
                Compare::Setp { cmp, combine, dst, other }
            } else if let Operand::Pair(..) = ops[0] {
                Compare::SetpPair { low: cmp, combine, dst, other }
            } else {
                return Err("a comparison of two halves needs two predicates".into());
            }
        }
        "set" => {
            let (cmp, boolean, ftz) = comparison(form)?;
            let to = form.ty()?;
            let ty = form.ty()?;
            let one = match to {
                Ty::U32 | Ty::S32 => u32::MAX as u64,
                Ty::F32 => 1f32.to_bits() as u64,
                _ => return Err(form.unknown()),
            };
            let (cmp, combine) = operands(cx, (cmp, boolean, ftz, ty), ops)?;
            Compare::Set { cmp, combine, dst: cx.dst(&ops[0])?, one }
        }
        "selp" => {
            let ty = form.ty()?;
            arity(ops, 4)?;
            let (a, b) = (cx.typed_value(&ops[1], ty)?, cx.typed_value(&ops[2], ty)?);
            Compare::Selp { dst: cx.dst(&ops[0])?, a, b, p: cx.pred(&ops[3])?, bytes: ty.bytes() }
        }
        "slct" => {
            let ftz = form.take("ftz");
            let ty = form.ty()?;
            let float = match form.ty()? {
                Ty::F32 => true,
                Ty::S32 => false,
                _ => return Err(form.unknown()),
            };
            arity(ops, 4)?;
            let (a, b, c) = (cx.value(&ops[1])?, cx.value(&ops[2])?, cx.value(&ops[3])?);
            Compare::Slct { dst: cx.dst(&ops[0])?, a, b, c, float, ftz, bytes: ty.bytes() }
        }
        _ => {
            let class = form.take_with(class).ok_or_else(|| form.unknown())?;
            let ty = form.ty()?;
            if !matches!(ty, Ty::F32 | Ty::F64) {
                return Err(form.unknown());
            }
            arity(ops, 2)?;
            let a = cx.value(&ops[1])?;
            Compare::Test { dst: cx.pred_dst(&ops[0])?, a, class, double: ty == Ty::F64 }
        }
    };
    form.end()?;
    Ok(Op::Compare(compare))
}

fn class(word: &str) -> Option<Class> {
    Some(match word {
        "finite" => Class::Finite,
        "infinite" => Class::Infinite,
        "number" => Class::Number,
        "notanumber" => Class::NotANumber,
        "normal" => Class::Normal,
        "subnormal" => Class::Subnormal,
        _ => return None,
    })
}

/// `.cmp{.boolop}{.ftz}`
fn comparison(form: &mut Form) -> Result<(Cmp, Option<Bool>, bool), String> {
    let cmp = form.take_with(Cmp::parse).ok_or_else(|| form.unknown())?;
    let boolean = form.take_with(Bool::parse);
    Ok((cmp, boolean, form.take("ftz")))
}

type Combine = Option<(Bool, Pred)>;

fn operands(
    cx: &mut Cx,
    (cmp, boolean, ftz, ty): (Cmp, Option<Bool>, bool, Ty),
    ops: &[Operand],
) -> Result<(Cmpr, Combine), String> {
    if !comparable(ty) {
        return Err(format!("comparison of {ty:?} is not supported"));
    }
    arity(ops, if boolean.is_some() { 4 } else { 3 })?;
    let (a, b) = (cx.typed_value(&ops[1], ty)?, cx.typed_value(&ops[2], ty)?);
    let combine = match boolean {
        Some(op) => Some((op, cx.pred(&ops[3])?)),
        None => None,
    };
    Ok((Cmpr { cmp, ty, ftz, a, b }, combine))
}

/// `and.pred`, `or.pred`, `xor.pred`, `not.pred`; `mov.pred` comes here too.
pub(crate) fn decode_predicate_logic(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    let word = form.next();
    form.require("pred")?;
    form.end()?;
    let compare = match Bool::parse(word) {
        Some(op) => {
            arity(ops, 3)?;
            let (a, b) = (cx.pred(&ops[1])?, cx.pred(&ops[2])?);
            Compare::Logic { op, dst: cx.pred_dst(&ops[0])?, a, b }
        }
        None => {
            arity(ops, 2)?;
            let mut a = cx.pred(&ops[1])?;
            match word {
                "not" => a.negated = !a.negated,
                "mov" => {}
                _ => return Err(form.unknown()),
            }
            Compare::Logic { op: Bool::And, dst: cx.pred_dst(&ops[0])?, a, b: Pred::TRUE }
        }
    };
    Ok(Op::Compare(compare))
}

/// Result of a comparison of the bits from `shift`, its complement, and the lanes where they are poison.
fn compare_lanes(m: &Machine, at: At, c: &Cmpr, combine: Combine, shift: u32) -> (u32, u32, u32) {
    let warp = m.warp(at);
    let (a, b) = (warp.read(&m.constants, c.a), warp.read(&m.constants, c.b));
    let mut holds = 0;
    for lane in 0..32 {
        holds |= (c.cmp.lane(c.ty, c.ftz, a[lane] >> shift, b[lane] >> shift) as u32) << lane;
    }
    let taint = warp.taint(c.a) | warp.taint(c.b);
    match combine {
        None => (holds, !holds, taint),
        Some((op, p)) => {
            let other = warp.pred(p);
            (op.apply(holds, other), op.apply(!holds, other), taint | warp.pred_taint(p))
        }
    }
}

fn classify(class: Class, bits: u64, double: bool) -> bool {
    use std::num::FpCategory::{Infinite, Nan, Normal, Subnormal};
    let category = if double { f64::from_bits(bits).classify() } else { f32::from_bits(bits as u32).classify() };
    match class {
        Class::Finite => !matches!(category, Nan | Infinite),
        Class::Infinite => category == Infinite,
        Class::Number => category != Nan,
        Class::NotANumber => category == Nan,
        Class::Normal => category == Normal,
        Class::Subnormal => category == Subnormal,
    }
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Compare) -> Result<Flow, Raise> {
    match op {
        Compare::Setp { cmp, combine, dst, other } => {
            let (holds, not, taint) = compare_lanes(m, at, cmp, *combine, 0);
            let warp = m.warp_mut(at);
            warp.write_pred(*dst, at.lanes, holds, taint);
            warp.write_pred(*other, at.lanes, not, taint);
        }
        Compare::SetpPair { low, combine, dst, other } => {
            let (p, _, taint) = compare_lanes(m, at, low, *combine, 0);
            let (q, _, _) = compare_lanes(m, at, low, *combine, 16);
            let warp = m.warp_mut(at);
            warp.write_pred(*dst, at.lanes, p, taint);
            warp.write_pred(*other, at.lanes, q, taint);
        }
        Compare::Set { cmp, combine, dst, one } => {
            let (holds, _, taint) = compare_lanes(m, at, cmp, *combine, 0);
            let out = std::array::from_fn(|l| if holds >> l & 1 == 1 { *one } else { 0 });
            m.warp_mut(at).write(*dst, at.lanes, &out, taint);
        }
        Compare::Selp { dst, a, b, p, bytes } => {
            let warp = m.warp(at);
            let choice = warp.pred(*p);
            select(m, at, choice, warp.pred_taint(*p), (*dst, *a, *b, *bytes));
        }
        Compare::Slct { dst, a, b, c, float, ftz, bytes } => {
            let taint = m.taint(at, *c);
            let choice = (0..32).fold(0, |mask, lane| {
                let v = m.read(at, *c)[lane] as u32;
                let f = f32::from_bits(v);
                let yes = if *float { f >= 0.0 || *ftz && f.is_subnormal() } else { v as i32 >= 0 };
                mask | (yes as u32) << lane
            });
            select(m, at, choice, taint, (*dst, *a, *b, *bytes));
        }
        Compare::Test { dst, a, class, double } => {
            let values = m.read(at, *a);
            let holds = (0..32).fold(0, |h, l| h | (classify(*class, values[l], *double) as u32) << l);
            let taint = m.taint(at, *a);
            m.warp_mut(at).write_pred(*dst, at.lanes, holds, taint);
        }
        Compare::Logic { op, dst, a, b } => {
            let warp = m.warp_mut(at);
            let (va, vb) = (warp.pred(*a), warp.pred(*b));
            let (ta, tb) = (warp.pred_taint(*a), warp.pred_taint(*b));
            // A known false (and) or true (or) decides, whatever the other side holds.
            let taint = match op {
                Bool::And => ta & tb | ta & vb | tb & va,
                Bool::Or => ta & tb | ta & !vb | tb & !va,
                Bool::Xor => ta | tb,
            };
            warp.write_pred(*dst, at.lanes, op.apply(va, vb), taint);
        }
    }
    Ok(Flow::Next)
}

/// Writes `a` where `choice` is set, else `b`; only the chosen value can be poison.
fn select(m: &mut Machine, at: At, choice: u32, taint: u32, (dst, a, b, bytes): (Reg, Reg, Reg, usize)) {
    let (va, vb) = (*m.read(at, a), *m.read(at, b));
    let out = std::array::from_fn(|l| truncate(if choice >> l & 1 == 1 { va[l] } else { vb[l] }, bytes));
    let taint = taint | m.taint(at, a) & choice | m.taint(at, b) & !choice;
    m.warp_mut(at).write(dst, at.lanes, &out, taint);
}
