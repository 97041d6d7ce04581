//! cp.async.bulk: copies of many bytes by one thread, and their groups.

use std::collections::VecDeque;

use super::memory::addresses;
use super::scalar::LaneFn;
use super::{Form, Op, mbarrier};
use crate::ir::{Addr, Reg};
use crate::lower::Cx;
use crate::machine::{AsyncOp, At, Flow, Machine, Segment, Signal, Target, lanes, no_poison};
use crate::mem::clock::{ASYNC_LANE, ASYNC_READ_LANE, Who};
use crate::mem::shadow::Stamp;
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};
use crate::types::{Space, Ty};

pub(crate) const FORMS: &[&str] = &[
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes[.multicast::cluster]{.L2::cache_hint}",
    "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes{.L2::cache_hint}",
    "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes",
    "cp.async.bulk.global.shared::cta.bulk_group{.L2::cache_hint}",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group{.L2::cache_hint}.(and|or|xor).(b32|b64)",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group{.L2::cache_hint}.add.(u32|s32|u64|f32|f64)",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group{.L2::cache_hint}.add.noftz.(f16|bf16)",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group{.L2::cache_hint}.(min|max).(u32|s32|u64|s64|f16|bf16)",
    "cp.async.bulk.commit_group",
    "cp.async.bulk.wait_group[.read]",
    "cp.async.bulk.prefetch.L2.global{.L2::cache_hint}",
];

/// How a reduction combines what is there with what arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reduce {
    run: LaneFn,
    bytes: usize,
}

#[derive(Debug)]
pub(crate) enum Bulk {
    /// Global (or shared) to shared, announced to an mbarrier.
    Load {
        dst: Addr,
        src: Addr,
        from_shared: bool,
        bytes: Reg,
        bar: Addr,
        multicast: Option<Reg>,
    },
    /// Shared to global, in a group of the thread.
    Store {
        dst: Addr,
        src: Addr,
        bytes: Reg,
        reduce: Option<Reduce>,
    },
    Commit,
    /// `read`: only the sources must be read.
    Wait {
        left: Reg,
        read: bool,
    },
    /// No effect, but of memory that is there.
    Prefetch {
        src: Addr,
        bytes: Reg,
    },
}

/// Stores of the lanes of a warp: open, and in committed groups.
#[derive(Debug, Default)]
pub(crate) struct BulkGroups {
    lanes: [LaneGroups; 32],
}

#[derive(Debug, Default)]
struct LaneGroups {
    open: Vec<AsyncOp>,
    groups: VecDeque<Vec<AsyncOp>>,
    /// Stores that have read their source and whose writes no one has waited for.
    unwaited: Vec<AsyncOp>,
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    form.next();
    let reduces = form.take("reduce");
    form.require("async")?;
    form.require("bulk")?;
    if form.take("commit_group") {
        form.end()?;
        return Ok(Op::Bulk(Bulk::Commit));
    }
    if form.take("wait_group") {
        let read = form.take("read");
        form.end()?;
        let [left] = ops else { return Err("expected a count".into()) };
        return Ok(Op::Bulk(Bulk::Wait { left: cx.value(left)?, read }));
    }
    if form.take("prefetch") {
        form.require("L2")?;
        form.require("global")?;
        let hint = form.take("L2::cache_hint");
        form.end()?;
        let [src, bytes, rest @ ..] = ops else { return Err("wrong number of operands".into()) };
        expect_rest(rest, hint as usize)?;
        return Ok(Op::Bulk(Bulk::Prefetch { src: cx.addr(src)?, bytes: cx.value(bytes)? }));
    }
    let bulk = if form.take("global") {
        form.require("shared::cta")?;
        form.require("bulk_group")?;
        let hint = form.take("L2::cache_hint");
        let reduce = if reduces { Some(reduction(form, true)?) } else { None };
        let [dst, src, bytes, rest @ ..] = ops else { return Err("wrong number of operands".into()) };
        expect_rest(rest, hint as usize)?;
        Bulk::Store { dst: cx.addr(dst)?, src: cx.addr(src)?, bytes: cx.value(bytes)?, reduce }
    } else {
        load(cx, form, ops, reduces)?
    };
    form.end()?;
    Ok(Op::Bulk(bulk))
}

fn load(cx: &mut Cx, form: &mut Form, ops: &[Operand], reduces: bool) -> Result<Bulk, String> {
    if reduces || !(form.take("shared::cluster") || form.take("shared::cta")) {
        return Err(form.unknown());
    }
    let from_shared = form.take("shared::cta");
    if !from_shared {
        form.require("global")?;
    }
    form.require("mbarrier::complete_tx::bytes")?;
    let multicast = form.take("multicast::cluster");
    let hint = form.take("L2::cache_hint");
    let [dst, src, bytes, bar, rest @ ..] = ops else { return Err("wrong number of operands".into()) };
    expect_rest(rest, multicast as usize + hint as usize)?;
    let multicast = if multicast { Some(cx.value(&rest[0])?) } else { None };
    let (dst, src, bar) = (cx.addr(dst)?, cx.addr(src)?, cx.addr(bar)?);
    Ok(Bulk::Load { dst, src, from_shared, bytes: cx.value(bytes)?, bar, multicast })
}

pub(crate) fn expect_rest(rest: &[Operand], n: usize) -> Result<(), String> {
    if rest.len() == n { Ok(()) } else { Err("wrong number of operands".into()) }
}

/// `.op{.type}` of a reduction.
pub(crate) fn reduction(form: &mut Form, typed: bool) -> Result<Reduce, String> {
    let word = form.next();
    form.take("noftz");
    let ty = if typed { form.ty()? } else { Ty::B32 };
    reduction_of(word, ty).ok_or_else(|| form.unknown())
}

/// The scalar form that combines elements of a type.
pub(crate) fn reduction_of(word: &str, ty: Ty) -> Option<Reduce> {
    if !matches!(word, "add" | "min" | "max" | "and" | "or" | "xor") {
        return None;
    }
    let row = super::row_of(&format!("{word}.{ty:?}").to_lowercase())?;
    Some(Reduce { run: row.run, bytes: ty.bytes() })
}

fn fault(text: impl Into<String>) -> Raise {
    FaultKind::Copy(text.into()).into()
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Bulk) -> Result<Flow, Raise> {
    match op {
        Bulk::Load { dst, src, from_shared, bytes, bar, multicast } => {
            let (dst, src, bar) = (addresses(m, at, *dst)?, addresses(m, at, *src)?, addresses(m, at, *bar)?);
            no_poison(m, m.taint(at, *bytes), "is the size of a copy")?;
            for lane in lanes(at.lanes) {
                let space = if *from_shared { Space::Shared } else { Space::Global };
                let n = m.read(at, *bytes)[lane] as u32 as usize;
                check_size(n).map_err(|r| r.lane(lane))?;
                let from = m.resolve(at, lane, space, src[lane], n, 16)?;
                let mut op = m.new_async(at, lane);
                for cta in destinations(m, at, lane, *multicast)? {
                    let to = m.resolve(at, lane, Space::SharedCluster, dst[lane], n, 16)?;
                    let segment = Segment { dst: moved(to, cta), src: Some(from), bytes: n, fill: 0 };
                    op.segments.push(segment);
                    let signal = signal(m, at, lane, bar[lane], cta, n)?;
                    op.signals.push(signal);
                }
                launch(m, op, lane)?;
            }
        }
        Bulk::Store { dst, src, bytes, reduce } => {
            let (dst, src) = (addresses(m, at, *dst)?, addresses(m, at, *src)?);
            no_poison(m, m.taint(at, *bytes), "is the size of a copy")?;
            for lane in lanes(at.lanes) {
                let n = m.read(at, *bytes)[lane] as u32 as usize;
                check_size(n).map_err(|r| r.lane(lane))?;
                let to = m.resolve(at, lane, Space::Global, dst[lane], n, 16)?;
                let from = m.resolve(at, lane, Space::Shared, src[lane], n, 16)?;
                let mut op = m.new_async(at, lane);
                op.segments.push(Segment { dst: to, src: Some(from), bytes: n, fill: 0 });
                op.reduce = *reduce;
                store(m, op, lane)?;
            }
        }
        Bulk::Commit => {
            for lane in lanes(at.lanes) {
                let mut group = std::mem::take(&mut m.warp_mut(at).bulk.lanes[lane].open);
                if m.rng.one_in(2) {
                    group.iter_mut().try_for_each(|op| m.land(op)).map_err(|r| r.lane(lane))?;
                }
                m.warp_mut(at).bulk.lanes[lane].groups.push_back(group);
            }
        }
        Bulk::Wait { left, read } => {
            let left = m.read(at, *left)[at.lanes.trailing_zeros() as usize] as usize;
            for lane in lanes(at.lanes) {
                wait(m, at, lane, left, *read).map_err(|r| r.lane(lane))?;
            }
        }
        Bulk::Prefetch { src, bytes } => {
            let src = addresses(m, at, *src)?;
            no_poison(m, m.taint(at, *bytes), "is the size of a copy")?;
            for lane in lanes(at.lanes) {
                let n = m.read(at, *bytes)[lane] as u32 as usize;
                check_size(n).map_err(|r| r.lane(lane))?;
                m.resolve(at, lane, Space::Global, src[lane], n, 16)?;
            }
        }
    }
    Ok(Flow::Next)
}

fn check_size(bytes: usize) -> Result<(), Raise> {
    if bytes.is_multiple_of(16) { Ok(()) } else { Err(fault(format!("{bytes} bytes are not a multiple of 16"))) }
}

/// Resident blocks that get a copy: those of the multicast mask, or none to move to.
pub(crate) fn destinations(
    m: &Machine,
    at: At,
    lane: usize,
    multicast: Option<Reg>,
) -> Result<Vec<Option<usize>>, Raise> {
    let Some(reg) = multicast else { return Ok(vec![None]) };
    no_poison(m, m.taint(at, reg) & 1 << lane, "is a multicast mask")?;
    let mask = m.read(at, reg)[lane] as u16;
    let ranks = (0..16).filter(|r| mask >> r & 1 == 1);
    let found: Option<Vec<_>> = ranks.map(|rank| m.member(at.cta, rank).map(Some)).collect();
    found.filter(|f| !f.is_empty()).ok_or_else(|| {
        Raise::from(FaultKind::Cluster(format!("multicast mask {mask:#06x} names no block of the cluster"))).lane(lane)
    })
}

/// The same offset in another block, for multicast.
pub(crate) fn moved(target: Target, cta: Option<usize>) -> Target {
    match (target, cta) {
        (Target::Shared(_, offset), Some(cta)) => Target::Shared(cta, offset),
        _ => target,
    }
}

/// The mbarrier that a copy announces itself to, in the block that gets the bytes.
pub(crate) fn signal(
    m: &mut Machine,
    at: At,
    lane: usize,
    address: u64,
    cta: Option<usize>,
    bytes: usize,
) -> Result<Signal, Raise> {
    let (own, offset) = mbarrier::locate(m, at, lane, Space::SharedCluster, address)?;
    let cta = cta.unwrap_or(own);
    mbarrier::check_visible(m, at, lane, cta, offset)?;
    let Some(barrier) = m.ctas[cta].mbarriers.get(&offset) else {
        let text = format!("no mbarrier at 0x{offset:x} in a block of the multicast");
        return Err(Raise::from(FaultKind::Mbarrier(text)).lane(lane));
    };
    Ok(Signal { cta, offset, phase: barrier.phase, bytes })
}

/// Checks a load and lets it go.
pub(crate) fn launch(m: &mut Machine, op: AsyncOp, lane: usize) -> Result<(), Raise> {
    m.begin_reads(&op).map_err(|r| r.lane(lane))?;
    m.begin_writes(&op).map_err(|r| r.lane(lane))?;
    m.async_ops.push(op);
    Ok(())
}

/// Checks a store and adds it to the open group of the lane.
pub(crate) fn store(m: &mut Machine, op: AsyncOp, lane: usize) -> Result<(), Raise> {
    m.begin_reads(&op).map_err(|r| r.lane(lane))?;
    m.begin_writes(&op).map_err(|r| r.lane(lane))?;
    let at = op.at;
    m.warp_mut(at).bulk.lanes[lane].open.push(op);
    Ok(())
}

fn wait(m: &mut Machine, at: At, lane: usize, left: usize, read: bool) -> Result<(), Raise> {
    let mut done = vec![];
    while m.warp(at).bulk.lanes[lane].groups.len() > left {
        let group = m.warp_mut(at).bulk.lanes[lane].groups.pop_front();
        for mut op in group.into_iter().flatten() {
            if !op.landed {
                m.land(&mut op)?;
            }
            done.push(op);
        }
    }
    let id = m.ctas[at.cta].id;
    let learn = |m: &mut Machine, op: &AsyncOp, which: u8| {
        let clock = std::rc::Rc::make_mut(&mut m.warp_mut(at).clocks[lane]);
        clock.raise_async(id, at.warp as u8, which, op.epoch);
    };
    for op in &done {
        learn(m, op, ASYNC_READ_LANE);
    }
    if read {
        m.warp_mut(at).bulk.lanes[lane].unwaited.extend(done);
        return Ok(());
    }
    done.extend(std::mem::take(&mut m.warp_mut(at).bulk.lanes[lane].unwaited));
    for op in &done {
        m.end_writes(op);
        learn(m, op, ASYNC_LANE);
    }
    Ok(())
}

/// Adds, maximises, ... the bytes of a segment into its destination.
pub(crate) fn combine(m: &mut Machine, at: At, segment: &Segment, reduce: Reduce) -> Result<(), Raise> {
    let Some(src) = segment.src else { return Ok(()) };
    for i in (0..segment.bytes).step_by(reduce.bytes) {
        let (a, a_poison) = m.read_bytes(at, segment.dst.plus(i), reduce.bytes);
        let (b, b_poison) = m.read_bytes(at, src.plus(i), reduce.bytes);
        if (a_poison || b_poison) && m.checks.poison {
            return Err(FaultKind::Poison { used: "meets a reducing copy" }.into());
        }
        let value = (reduce.run)(Default::default(), a, b, 0, 0);
        m.write_bytes(at, segment.dst.plus(i), reduce.bytes, value, false);
    }
    Ok(())
}

/// Shared memory must stay until stores have read it.
pub(crate) fn check_exit(m: &Machine, at: At) -> Result<(), Raise> {
    for lane in lanes(at.lanes) {
        let groups = &m.warp(at).bulk.lanes[lane];
        if let Some(op) = groups.groups.iter().flatten().chain(&groups.open).next() {
            let other = Stamp::by(Who { lane: ASYNC_LANE, ..m.who(at, lane) }, op.at.pc);
            return Err(fault("thread exits with bulk stores never waited for").lane(lane).other(other));
        }
    }
    Ok(())
}
