//! Instructions by which the lanes of a warp exchange values or meet.

use super::{Form, Op, arity};
use crate::ir::{Pred, Reg};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, Wait, lanes, no_poison};
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};
use crate::types::{Ty, truncate};

pub(crate) const FORMS: &[&str] = &[
    "shfl.sync.(up|down|bfly|idx).b32",
    "vote.sync.(all|any|uni).pred",
    "vote.sync.ballot.b32",
    "match.(any|all).sync.(b32|b64)",
    "redux.sync.(add|min|max).(u32|s32)",
    "redux.sync.(and|or|xor).b32",
    "activemask.b32",
    "elect.sync",
    "bar.warp.sync",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

#[derive(Debug)]
pub(crate) enum WarpOp {
    Shuffle { mode: Shuffle, dst: Reg, ok: Pred, src: Reg, lane: Reg, clamp: Reg, mask: Reg },
    Vote { vote: Vote, dst: Reg, pdst: Pred, src: Pred, mask: Reg },
    MatchAny { dst: Reg, src: Reg, bytes: usize, mask: Reg },
    MatchAll { dst: Reg, pdst: Pred, src: Reg, bytes: usize, mask: Reg },
    Redux { op: Reduce, signed: bool, dst: Reg, src: Reg, mask: Reg },
    Elect { dst: Reg, pdst: Pred, mask: Reg },
    Sync { mask: Reg },
    ActiveMask { dst: Reg },
}

impl WarpOp {
    /// The member mask; none for `activemask`.
    fn mask(&self) -> Option<Reg> {
        match self {
            WarpOp::Shuffle { mask, .. }
            | WarpOp::Vote { mask, .. }
            | WarpOp::MatchAny { mask, .. }
            | WarpOp::MatchAll { mask, .. }
            | WarpOp::Redux { mask, .. }
            | WarpOp::Elect { mask, .. }
            | WarpOp::Sync { mask } => Some(*mask),
            WarpOp::ActiveMask { .. } => None,
        }
    }
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    let op = match form.next() {
        "shfl" => shuffle(cx, form, ops)?,
        "vote" => vote(cx, form, ops)?,
        "match" => matching(cx, form, ops)?,
        "redux" => redux(cx, form, ops)?,
        "elect" => {
            form.require("sync")?;
            arity(ops, 2)?;
            let (d, p) = pair(&ops[0]).ok_or("elect.sync needs d|p")?;
            WarpOp::Elect { mask: cx.value(&ops[1])?, dst: cx.dst(d)?, pdst: cx.pred_dst(p)? }
        }
        "bar" => {
            form.next();
            form.require("sync")?;
            arity(ops, 1)?;
            WarpOp::Sync { mask: cx.value(&ops[0])? }
        }
        _ => {
            form.require("b32")?;
            arity(ops, 1)?;
            WarpOp::ActiveMask { dst: cx.dst(&ops[0])? }
        }
    };
    form.end()?;
    Ok(Op::Warp(op))
}

fn pair<'a, 'b>(operand: &'a Operand<'b>) -> Option<(&'a Operand<'b>, &'a Operand<'b>)> {
    match operand {
        Operand::Pair(a, b) => Some((a, b)),
        _ => None,
    }
}

fn shuffle(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<WarpOp, String> {
    form.require("sync")?;
    let mode = form.take_with(|w| {
        Some(match w {
            "up" => Shuffle::Up,
            "down" => Shuffle::Down,
            "bfly" => Shuffle::Butterfly,
            "idx" => Shuffle::Index,
            _ => return None,
        })
    });
    let mode = mode.ok_or_else(|| form.unknown())?;
    form.require("b32")?;
    arity(ops, 5)?;
    let (src, lane) = (cx.value(&ops[1])?, cx.value(&ops[2])?);
    let (clamp, mask) = (cx.value(&ops[3])?, cx.value(&ops[4])?);
    let (dst, ok) = match pair(&ops[0]) {
        Some((d, p)) => (cx.dst(d)?, cx.pred_dst(p)?),
        None => (cx.dst(&ops[0])?, Pred::SINK),
    };
    Ok(WarpOp::Shuffle { mode, dst, ok, src, lane, clamp, mask })
}

fn vote(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<WarpOp, String> {
    form.require("sync")?;
    let vote = match form.next() {
        "all" => Vote::All,
        "any" => Vote::Any,
        "uni" => Vote::Uniform,
        "ballot" => Vote::Ballot,
        _ => return Err(form.unknown()),
    };
    form.require(if vote == Vote::Ballot { "b32" } else { "pred" })?;
    arity(ops, 3)?;
    let (src, mask) = (cx.pred(&ops[1])?, cx.value(&ops[2])?);
    let (dst, pdst) = match vote {
        Vote::Ballot => (cx.dst(&ops[0])?, Pred::SINK),
        _ => (Reg::SINK, cx.pred_dst(&ops[0])?),
    };
    Ok(WarpOp::Vote { vote, dst, pdst, src, mask })
}

fn matching(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<WarpOp, String> {
    let all = form.take("all");
    if !all {
        form.require("any")?;
    }
    form.require("sync")?;
    let bytes = match form.ty()? {
        ty @ (Ty::B32 | Ty::B64) => ty.bytes(),
        _ => return Err(form.unknown()),
    };
    arity(ops, 3)?;
    let (src, mask) = (cx.value(&ops[1])?, cx.value(&ops[2])?);
    Ok(match pair(&ops[0]) {
        Some((d, p)) if all => WarpOp::MatchAll { dst: cx.dst(d)?, pdst: cx.pred_dst(p)?, src, bytes, mask },
        None if all => WarpOp::MatchAll { dst: cx.dst(&ops[0])?, pdst: Pred::SINK, src, bytes, mask },
        _ => WarpOp::MatchAny { dst: cx.dst(&ops[0])?, src, bytes, mask },
    })
}

fn redux(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<WarpOp, String> {
    form.require("sync")?;
    let op = match form.next() {
        "add" => Reduce::Add,
        "min" => Reduce::Min,
        "max" => Reduce::Max,
        "and" => Reduce::And,
        "or" => Reduce::Or,
        "xor" => Reduce::Xor,
        _ => return Err(form.unknown()),
    };
    let ty = form.ty()?;
    let logical = matches!(op, Reduce::And | Reduce::Or | Reduce::Xor);
    if logical != (ty == Ty::B32) || !matches!(ty, Ty::B32 | Ty::U32 | Ty::S32) {
        return Err(form.unknown());
    }
    arity(ops, 3)?;
    let (src, mask) = (cx.value(&ops[1])?, cx.value(&ops[2])?);
    Ok(WarpOp::Redux { op, signed: ty.signed(), dst: cx.dst(&ops[0])?, src, mask })
}

/// Runs for each set of lanes that share a member mask; sets that are not complete wait.
pub(crate) fn execute(m: &mut Machine, at: At, op: &WarpOp) -> Result<Flow, Raise> {
    let Some(mask) = op.mask() else {
        if let WarpOp::ActiveMask { dst } = op {
            m.warp_mut(at).write(*dst, at.lanes, &[at.lanes as u64; 32], 0);
        }
        return Ok(Flow::Next);
    };
    no_poison(m, m.taint(at, mask), "is a member mask")?;
    let masks = *m.read(at, mask);
    let threads = m.warp(at).threads;
    let alive = m.warp(at).alive();
    let (mut left, mut done, mut wait) = (at.lanes, 0, 0);
    while left != 0 {
        let first = left.trailing_zeros() as usize;
        let members = masks[first] as u32;
        let same = lanes(left).filter(|&l| masks[l] as u32 == members).fold(0, |s, l| s | 1 << l);
        left &= !same;
        if let Some(lane) = lanes(same & !members).next() {
            let text = format!("lane {lane} is not in its own member mask {members:#010x}");
            return Err(Raise::from(FaultKind::Divergent(text)).lane(lane));
        }
        // Bits of lanes beyond the end of the block are harmless; compilers write full masks.
        if members & threads & alive == same {
            perform(m, At { lanes: same, ..at }, op)?;
            done |= same;
        } else {
            wait |= members;
        }
    }
    Ok(match (done, wait) {
        (_, 0) => Flow::Next,
        (0, mask) => Flow::Park(Wait::Lanes(mask)),
        (done, mask) => Flow::Partial { done, wait: Wait::Lanes(mask) },
    })
}

/// The operation for lanes that are all members of one mask.
fn perform(m: &mut Machine, at: At, op: &WarpOp) -> Result<(), Raise> {
    match op {
        WarpOp::Shuffle { .. } => return perform_shuffle(m, at, op),
        WarpOp::Vote { vote, dst, pdst, src, .. } => {
            let warp = m.warp_mut(at);
            let taint = spread(warp.pred_taint(*src) & at.lanes);
            let ballot = warp.pred(*src) & at.lanes;
            let holds = match vote {
                Vote::All => ballot == at.lanes,
                Vote::Any => ballot != 0,
                Vote::Uniform => ballot == 0 || ballot == at.lanes,
                Vote::Ballot => false,
            };
            warp.write_pred(*pdst, at.lanes, spread(holds as u32), taint);
            warp.write(*dst, at.lanes, &[ballot as u64; 32], taint);
        }
        WarpOp::MatchAny { dst, src, bytes, .. } => {
            let values = m.read(at, *src).map(|v| truncate(v, *bytes));
            let mut out = [0; 32];
            for lane in lanes(at.lanes) {
                let same = lanes(at.lanes).filter(|&o| values[o] == values[lane]);
                out[lane] = same.fold(0, |s, o| s | 1 << o);
            }
            let taint = spread(m.taint(at, *src));
            m.warp_mut(at).write(*dst, at.lanes, &out, taint);
        }
        WarpOp::MatchAll { dst, pdst, src, bytes, .. } => {
            let values = m.read(at, *src).map(|v| truncate(v, *bytes));
            let first = values[at.lanes.trailing_zeros() as usize];
            let all = lanes(at.lanes).all(|l| values[l] == first);
            let taint = spread(m.taint(at, *src));
            let out = if all { at.lanes as u64 } else { 0 };
            let warp = m.warp_mut(at);
            warp.write(*dst, at.lanes, &[out; 32], taint);
            warp.write_pred(*pdst, at.lanes, spread(all as u32), taint);
        }
        WarpOp::Redux { op, signed, dst, src, .. } => {
            let values = m.read(at, *src);
            let all = lanes(at.lanes).map(|l| values[l] as u32);
            let out = all.reduce(|a, b| reduce(*op, *signed, a, b)).unwrap_or(0);
            let taint = spread(m.taint(at, *src));
            m.warp_mut(at).write(*dst, at.lanes, &[out as u64; 32], taint);
        }
        WarpOp::Elect { dst, pdst, .. } => {
            let leader = at.lanes.trailing_zeros();
            let warp = m.warp_mut(at);
            warp.write(*dst, at.lanes, &[leader as u64; 32], 0);
            warp.write_pred(*pdst, at.lanes, 1 << leader, 0);
        }
        WarpOp::Sync { .. } => m.synchronize(at),
        WarpOp::ActiveMask { .. } => {}
    }
    Ok(())
}

/// All lanes, if there is a bit in `mask`.
fn spread(mask: u32) -> u32 {
    if mask == 0 { 0 } else { u32::MAX }
}

fn reduce(op: Reduce, signed: bool, a: u32, b: u32) -> u32 {
    match op {
        Reduce::Add => a.wrapping_add(b),
        Reduce::Min if signed => (a as i32).min(b as i32) as u32,
        Reduce::Max if signed => (a as i32).max(b as i32) as u32,
        Reduce::Min => a.min(b),
        Reduce::Max => a.max(b),
        Reduce::And => a & b,
        Reduce::Or => a | b,
        Reduce::Xor => a ^ b,
    }
}

/// Source lane of a shuffle and whether it is in range, by the pseudo-code of the ISA.
fn source_lane(mode: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let max = lane & segment | clamp & !segment;
    let min = lane & segment;
    let (from, ok) = match mode {
        Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= max as i32),
        Shuffle::Down => (lane + b, lane + b <= max),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= max),
        Shuffle::Index => (min | b & !segment, (min | b & !segment) <= max),
    };
    if ok { (from & 31, true) } else { (lane, false) }
}

fn perform_shuffle(m: &mut Machine, at: At, op: &WarpOp) -> Result<(), Raise> {
    let WarpOp::Shuffle { mode, dst, ok, src, lane: b, clamp, .. } = op else {
        return Ok(());
    };
    no_poison(m, m.taint(at, *b) | m.taint(at, *clamp), "chooses a lane to shuffle from")?;
    let (values, b, c) = (*m.read(at, *src), *m.read(at, *b), *m.read(at, *clamp));
    let source_taint = m.taint(at, *src);
    let (mut out, mut oks, mut taint) = ([0; 32], 0, 0);
    for lane in lanes(at.lanes) {
        let (from, in_range) = source_lane(*mode, lane as u32, b[lane] as u32, c[lane] as u32);
        // The value of a lane that does not take part is undefined: poison, until it is used.
        let absent = at.lanes >> from & 1 == 0;
        out[lane] = truncate(values[from as usize], 4);
        oks |= (in_range as u32) << lane;
        taint |= (absent as u32 | source_taint >> from & 1) << lane;
    }
    let warp = m.warp_mut(at);
    warp.write(*dst, at.lanes, &out, taint);
    warp.write_pred(*ok, at.lanes, oks, 0);
    Ok(())
}
