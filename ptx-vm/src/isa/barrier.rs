//! bar and barrier: named barriers of a block, with counts and reductions.

use std::rc::Rc;

use super::{Form, Op};
use crate::ir::{Pred, Reg};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, Wait, no_poison};
use crate::mem::shadow::Stamp;
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};

pub(crate) const FORMS: &[&str] = &[
    "bar[.cta].(sync|arrive)",
    "bar[.cta].red.(and|or).pred",
    "bar[.cta].red.popc.u32",
    "barrier[.cta].(sync|arrive)[.aligned]",
    "barrier[.cta].red.(and|or)[.aligned].pred",
    "barrier[.cta].red.popc[.aligned].u32",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sync,
    Arrive,
    /// `.red`: the index of the vote that is the result.
    Reduce(usize),
}

#[derive(Debug)]
pub(crate) struct BarrierOp {
    kind: Kind,
    /// All lanes of a warp execute it together.
    aligned: bool,
    id: Reg,
    count: Option<Reg>,
    dst: Reg,
    pdst: Pred,
    vote: Pred,
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    let always_aligned = form.next() == "bar";
    form.take("cta");
    let kind = match form.next() {
        "sync" => Kind::Sync,
        "arrive" => Kind::Arrive,
        "red" => match form.next() {
            "and" => Kind::Reduce(0),
            "or" => Kind::Reduce(1),
            "popc" => Kind::Reduce(2),
            _ => return Err(form.unknown()),
        },
        _ => return Err(form.unknown()),
    };
    let aligned = form.take("aligned") || always_aligned;
    let (dst, rest, vote) = match kind {
        Kind::Reduce(2) => {
            form.require("u32")?;
            split_votes(ops)?
        }
        Kind::Reduce(_) => {
            form.require("pred")?;
            split_votes(ops)?
        }
        _ => (None, ops, None),
    };
    form.end()?;
    let (id, count) = match rest {
        [id] if kind != Kind::Arrive => (id, None),
        [id, count] => (id, Some(count)),
        _ => return Err("wrong number of operands".into()),
    };
    let id = cx.value(id)?;
    let count = count.map(|c| cx.value(c)).transpose()?;
    let vote = vote.map_or(Ok(Pred::TRUE), |v| cx.pred(v))?;
    let (dst, pdst) = match (dst, kind) {
        (Some(d), Kind::Reduce(2)) => (cx.dst(d)?, Pred::SINK),
        (Some(p), _) => (Reg::SINK, cx.pred_dst(p)?),
        (None, _) => (Reg::SINK, Pred::SINK),
    };
    Ok(Op::Barrier(BarrierOp { kind, aligned, id, count, dst, pdst, vote }))
}

type Votes<'a, 'b> = (Option<&'a Operand<'b>>, &'a [Operand<'b>], Option<&'a Operand<'b>>);

/// `d, id{, count}, p` of a reduction.
fn split_votes<'a, 'b>(ops: &'a [Operand<'b>]) -> Result<Votes<'a, 'b>, String> {
    match ops {
        [d, rest @ .., p] if !rest.is_empty() => Ok((Some(d), rest, Some(p))),
        _ => Err("wrong number of operands".into()),
    }
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &BarrierOp) -> Result<Flow, Raise> {
    let alive = m.warp(at).alive();
    if op.aligned && at.lanes != alive {
        return Ok(Flow::Park(Wait::Lanes(u32::MAX)));
    }
    no_poison(m, m.taint(at, op.id), "is a barrier number")?;
    let lane = at.lanes.trailing_zeros() as usize;
    let id = m.read(at, op.id)[lane];
    let count = op.count.map(|c| m.read(at, c)[lane] as u32);
    if id >= 16 {
        return Err(FaultKind::Barrier(format!("barrier {id} does not exist")).into());
    }
    let id = id as usize;
    let reduction = matches!(op.kind, Kind::Reduce(_));
    if reduction && m.warp(at).voted >> id & 1 == 1 {
        // Second visit: the barrier is complete and its result known.
        return Ok(take_result(m, at, op, id));
    }
    if count.is_some_and(|c| c == 0 || c % 32 != 0) {
        let text = format!("thread count {} is not a multiple of the warp size", count.unwrap_or(0));
        return Err(FaultKind::Barrier(text).into());
    }
    arrive(m, at, op, id, count)?;
    m.counters.barrier_waits += 1;
    let complete = is_complete(m, at.cta, id)?;
    if complete {
        release(m, at.cta, id);
    }
    if op.kind == Kind::Arrive {
        return Ok(Flow::Next);
    }
    if reduction {
        m.warp_mut(at).voted |= 1 << id;
        return Ok(if complete { take_result(m, at, op, id) } else { Flow::Park(Wait::Barrier(id as u32)) });
    }
    if complete {
        let clock = m.ctas[at.cta].last_clock[id].clone();
        m.ctas[at.cta].set_clock(at.warp, at.lanes, &clock);
        return Ok(Flow::Next);
    }
    Ok(Flow::NextThen(Wait::Barrier(id as u32)))
}

fn take_result(m: &mut Machine, at: At, op: &BarrierOp, id: usize) -> Flow {
    let clock = m.ctas[at.cta].last_clock[id].clone();
    m.ctas[at.cta].set_clock(at.warp, at.lanes, &clock);
    let votes = m.ctas[at.cta].reductions[id];
    let warp = m.warp_mut(at);
    warp.voted &= !(1 << id);
    if let Kind::Reduce(which) = op.kind {
        let holds = if votes[which] != 0 { u32::MAX } else { 0 };
        warp.write(op.dst, at.lanes, &[votes[which] as u64; 32], 0);
        warp.write_pred(op.pdst, at.lanes, holds, 0);
    }
    Flow::Next
}

fn arrive(m: &mut Machine, at: At, op: &BarrierOp, id: usize, count: Option<u32>) -> Result<(), Raise> {
    no_poison(m, m.warp(at).pred_taint(op.vote) & at.lanes, "is voted with")?;
    let vote = m.warp(at).pred(op.vote) & at.lanes;
    let threads = m.warp(at).threads;
    let lanes = at.lanes;
    let who = m.who(at, lanes.trailing_zeros() as usize);
    let barrier = &mut m.ctas[at.cta].barriers[id];
    if barrier.arrived > 0 && barrier.expected != count {
        let show = |c: Option<u32>| c.map_or("all threads".to_string(), |n| format!("{n} threads"));
        let text = format!("barrier {id} waits for {} here and {} elsewhere", show(count), show(barrier.expected));
        return Err(Raise::from(FaultKind::Barrier(text)).other(barrier.first));
    }
    if barrier.arrived == 0 {
        barrier.first = Stamp::by(who, at.pc);
        barrier.votes = [1, 0, 0];
    }
    barrier.expected = count;
    // A warp counts as a whole, also when some of its lanes do not exist or have exited.
    barrier.arrived += match (op.aligned, count) {
        (true, Some(_)) => 32,
        _ => (lanes & threads).count_ones(),
    };
    barrier.votes[0] &= (vote == lanes) as u32;
    barrier.votes[1] |= (vote != 0) as u32;
    barrier.votes[2] += vote.count_ones();
    let mut clock = std::mem::take(&mut barrier.clock);
    m.release(at, &mut clock);
    m.ctas[at.cta].barriers[id].clock = clock;
    Ok(())
}

fn is_complete(m: &Machine, cta: usize, id: usize) -> Result<bool, Raise> {
    let cta = &m.ctas[cta];
    let barrier = &cta.barriers[id];
    let expected = barrier.expected.unwrap_or_else(|| cta.running());
    if barrier.arrived > expected {
        let text = format!("{} threads arrive at barrier {id}, which waits for {expected}", barrier.arrived);
        return Err(Raise::from(FaultKind::Barrier(text)).other(barrier.first));
    }
    Ok(barrier.arrived == expected)
}

/// Everyone has arrived: the waiting threads know what any of them knew.
fn release(m: &mut Machine, cta: usize, id: usize) {
    let block = &mut m.ctas[cta];
    let barrier = std::mem::take(&mut block.barriers[id]);
    let clock = Rc::new(barrier.clock);
    block.reductions[id] = barrier.votes;
    block.last_clock[id] = clock.clone();
    let wait = Wait::Barrier(id as u32);
    for (warp, lanes) in m.waiting(cta, wait) {
        m.ctas[cta].set_clock(warp, lanes, &clock);
    }
    m.wake(cta, wait);
}

/// A thread that exits no longer counts for barriers that wait for all.
pub(crate) fn after_exit(m: &mut Machine, cta: usize) {
    for id in 0..16 {
        let barrier = &m.ctas[cta].barriers[id];
        if barrier.arrived > 0 && barrier.expected.is_none() && barrier.arrived == m.ctas[cta].running() {
            release(m, cta, id);
        }
    }
}
