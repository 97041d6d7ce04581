//! cp.async: copies of 4, 8 or 16 bytes per thread from global to shared memory.

use std::collections::VecDeque;

use super::{Form, Op, mbarrier};
use crate::ir::{Addr, Pred, Reg};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, Segment, Signal, Strength, Target, conflict, lanes, no_poison};
use crate::mem::shadow::Stamp;
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};
use crate::types::Space;

pub(crate) const FORMS: &[&str] = &[
    "cp.async.(ca|cg).(shared|shared::cta).global{.L2::cache_hint}{.L2::64B|.L2::128B|.L2::256B}",
    "cp.async.commit_group",
    "cp.async.wait_group",
    "cp.async.wait_all",
    "cp.async.mbarrier.arrive[.noinc][.shared|.shared::cta].b64",
];

#[derive(Debug)]
pub(crate) enum CpAsync {
    Copy {
        dst: Addr,
        src: Addr,
        bytes: usize,
        limit: Limit,
    },
    Commit,
    /// Waits until at most so many groups are under way.
    Wait {
        left: Reg,
    },
    WaitAll,
    /// Arrives at an mbarrier when the copies so far are done.
    Arrive {
        addr: Addr,
        noinc: bool,
    },
}

/// How many bytes come from the source; the rest is zero.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    Full,
    Bytes(Reg),
    /// All or, where the predicate holds, none.
    Ignore(Pred),
}

/// A copy under way.
#[derive(Clone, Debug)]
struct Copy {
    dst: Target,
    /// `None` if all bytes are zero-filled.
    src: Option<Target>,
    bytes: usize,
    from_source: usize,
    pc: u32,
    landed: bool,
}

#[derive(Debug, Default)]
struct LaneCopies {
    open: Vec<Copy>,
    groups: VecDeque<Vec<Copy>>,
}

/// The copies of the lanes of a warp.
#[derive(Debug, Default)]
pub(crate) struct CopyGroups {
    lanes: [LaneCopies; 32],
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    form.next();
    form.require("async")?;
    let op = match form.next() {
        "commit_group" => CpAsync::Commit,
        "wait_group" => CpAsync::Wait { left: cx.value(ops.first().ok_or("expected a count")?)? },
        "wait_all" => CpAsync::WaitAll,
        "mbarrier" => {
            form.require("arrive")?;
            let noinc = form.take("noinc");
            let _ = form.take("shared") || form.take("shared::cta");
            form.require("b64")?;
            CpAsync::Arrive { addr: cx.addr(ops.first().ok_or("expected an address")?)?, noinc }
        }
        "ca" | "cg" => copy(cx, form, ops)?,
        _ => return Err(form.unknown()),
    };
    form.end()?;
    Ok(Op::CpAsync(op))
}

fn copy(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<CpAsync, String> {
    if !(form.take("shared") || form.take("shared::cta")) {
        return Err(form.unknown());
    }
    form.require("global")?;
    let hint = form.take("L2::cache_hint");
    let _ = form.take("L2::64B") || form.take("L2::128B") || form.take("L2::256B");
    let ops = if hint { &ops[..ops.len().saturating_sub(1)] } else { ops };
    let (limit, [dst, src, size]) = match ops {
        [d, s, n] => (Limit::Full, [d, s, n]),
        [d, s, n, p] if cx.is_pred(p) => (Limit::Ignore(cx.pred(p)?), [d, s, n]),
        [d, s, n, k] => (Limit::Bytes(cx.value(k)?), [d, s, n]),
        _ => return Err("wrong number of operands".into()),
    };
    let bytes = match size {
        Operand::Int(n @ (4 | 8 | 16)) => *n as usize,
        _ => return Err("cp.async copies 4, 8 or 16 bytes".into()),
    };
    Ok(CpAsync::Copy { dst: cx.addr(dst)?, src: cx.addr(src)?, bytes, limit })
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &CpAsync) -> Result<Flow, Raise> {
    match op {
        CpAsync::Copy { dst, src, bytes, limit } => {
            let dst = super::memory::addresses(m, at, *dst)?;
            let src = super::memory::addresses(m, at, *src)?;
            for lane in lanes(at.lanes) {
                issue(m, at, lane, (dst[lane], src[lane]), *bytes, *limit)?;
            }
            m.counters.copied += *bytes as u64 * at.lanes.count_ones() as u64;
        }
        CpAsync::Commit => {
            for lane in lanes(at.lanes) {
                let copies = &mut m.warp_mut(at).copies.lanes[lane];
                let mut group = std::mem::take(&mut copies.open);
                // It may all arrive at once, or not before it is waited for.
                if m.rng.one_in(2) {
                    group.iter_mut().for_each(|copy| land(m, copy));
                }
                m.warp_mut(at).copies.lanes[lane].groups.push_back(group);
            }
        }
        CpAsync::Wait { left } => {
            let left = m.read(at, *left)[at.lanes.trailing_zeros() as usize] as usize;
            lanes(at.lanes).for_each(|lane| wait(m, at, lane, left));
        }
        CpAsync::WaitAll => {
            for lane in lanes(at.lanes) {
                let copies = &mut m.warp_mut(at).copies.lanes[lane];
                let open = std::mem::take(&mut copies.open);
                copies.groups.push_back(open);
                wait(m, at, lane, 0);
            }
        }
        CpAsync::Arrive { addr, noinc } => {
            let address = super::memory::addresses(m, at, *addr)?;
            for lane in lanes(at.lanes) {
                arrive(m, at, lane, address[lane], *noinc)?;
            }
        }
    }
    Ok(Flow::Next)
}

fn issue(
    m: &mut Machine,
    at: At,
    lane: usize,
    (dst, src): (u64, u64),
    bytes: usize,
    limit: Limit,
) -> Result<(), Raise> {
    let dst = m.resolve(at, lane, Space::Shared, dst, bytes, bytes)?;
    let from_source = match limit {
        Limit::Full => bytes,
        Limit::Ignore(p) => {
            no_poison(m, m.warp(at).pred_taint(p) & 1 << lane, "decides what is copied")?;
            if m.warp(at).pred(p) >> lane & 1 == 1 { 0 } else { bytes }
        }
        Limit::Bytes(reg) => {
            no_poison(m, m.taint(at, reg) & 1 << lane, "decides what is copied")?;
            m.read(at, reg)[lane] as u32 as usize
        }
    };
    if from_source > bytes {
        let text = format!("source size {from_source} is above the copy size {bytes}");
        return Err(Raise::from(FaultKind::Copy(text)).lane(lane));
    }
    let src = match from_source {
        0 => None,
        n => {
            if src % bytes as u64 != 0 {
                let space = Space::Global;
                let fault = FaultKind::Misaligned { space, address: src, align: bytes };
                return Err(Raise::from(fault).lane(lane));
            }
            let target = m.resolve(at, lane, Space::Global, src, n, 1)?;
            m.note_read(at, lane, target, n, Strength::Weak)?;
            Some(target)
        }
    };
    let begun = m.with_shadow(at, lane, dst, Strength::Weak, |s, o, a| s.begin_copy(o, bytes, a));
    begun.map_err(|c| conflict("copy", dst, c).lane(lane))?;
    if let Target::Shared(cta, offset) = dst {
        m.ctas[cta].shared.poison(offset, bytes);
    }
    let copy = Copy { dst, src, bytes, from_source, pc: at.pc, landed: false };
    m.warp_mut(at).copies.lanes[lane].open.push(copy);
    Ok(())
}

/// The bytes arrive.
fn land(m: &mut Machine, copy: &mut Copy) {
    let Target::Shared(cta, offset) = copy.dst else {
        return;
    };
    let shared = &mut m.ctas[cta].shared;
    shared.fill_zero(offset, copy.bytes);
    if let Some(Target::Global(buffer, from)) = copy.src {
        shared.copy_from(offset, &m.global.buffer(buffer).bytes, from, copy.from_source);
    }
    copy.landed = true;
}

/// All copies of the lane so far become one operation that arrives at an mbarrier when it has landed.
fn arrive(m: &mut Machine, at: At, lane: usize, address: u64, noinc: bool) -> Result<(), Raise> {
    let (cta, offset) = mbarrier::locate(m, at, lane, Space::Shared, address)?;
    if !noinc {
        mbarrier::add_pending(m, (cta, offset));
    }
    let mut op = m.new_async(at, lane);
    let copies = &mut m.warp_mut(at).copies.lanes[lane];
    let groups = std::mem::take(&mut copies.groups).into_iter().flatten();
    let all: Vec<Copy> = groups.chain(std::mem::take(&mut copies.open)).collect();
    for copy in all {
        let (dst, fill) = (copy.dst, 0);
        let (bytes, rest) = (copy.from_source, copy.bytes - copy.from_source);
        if bytes > 0 {
            op.segments.push(Segment { dst, src: copy.src, bytes, fill });
        }
        if rest > 0 {
            op.segments.push(Segment { dst: dst.plus(bytes), src: None, bytes: rest, fill });
        }
    }
    op.signals.push(Signal { cta, offset, phase: 0, bytes: 0 });
    op.arrivals = 1;
    op.generic = true;
    m.async_ops.push(op);
    Ok(())
}

/// The lane sees all but the newest `left` groups.
fn wait(m: &mut Machine, at: At, lane: usize, left: usize) {
    while m.warp(at).copies.lanes[lane].groups.len() > left {
        let group = m.warp_mut(at).copies.lanes[lane].groups.pop_front();
        for mut copy in group.into_iter().flatten() {
            if !copy.landed {
                land(m, &mut copy);
            }
            let then = At { pc: copy.pc, ..at };
            let done: Result<(), _> = m.with_shadow(then, lane, copy.dst, Strength::Weak, |s, o, a| {
                s.land(o, copy.bytes, a);
                Ok(())
            });
            debug_assert!(done.is_ok());
        }
    }
}

/// Copies that no one waited for may write into memory of another block.
pub(crate) fn check_exit(m: &Machine, at: At) -> Result<(), Raise> {
    for lane in lanes(at.lanes) {
        let copies = &m.warp(at).copies.lanes[lane];
        if let Some(copy) = copies.groups.iter().flatten().chain(&copies.open).next() {
            let text = "thread exits with cp.async copies never waited for".to_string();
            let other = Stamp::by(m.who(at, lane), copy.pc);
            return Err(Raise::from(FaultKind::Copy(text)).lane(lane).other(other));
        }
    }
    Ok(())
}
