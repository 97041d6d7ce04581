//! mbarrier: phases that complete when enough threads have arrived and enough bytes have landed.

use std::rc::Rc;

use super::data::space;
use super::memory::{Order, addresses};
use super::{Form, Op};
use crate::ir::{Addr, Pred, Reg};
use crate::lower::Cx;
use crate::machine::{AsyncOp, At, Flow, Machine, SharedClock, Target, Wait, lanes, no_poison};
use crate::mem::clock::{ASYNC_LANE, Clock, Who};
use crate::mem::shadow::Stamp;
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};
use crate::types::Space;

pub(crate) const FORMS: &[&str] = &[
    "mbarrier.(init|inval)[.shared|.shared::cta].b64",
    "mbarrier.(expect_tx|complete_tx)[.relaxed][.cta|.cluster][.shared|.shared::cta|.shared::cluster].b64",
    "mbarrier.(arrive|arrive_drop)[.release|.relaxed][.cta|.cluster][.shared|.shared::cta|.shared::cluster].b64",
    "mbarrier.arrive.expect_tx[.release|.relaxed][.cta|.cluster][.shared|.shared::cta|.shared::cluster].b64",
    "mbarrier.(test_wait|try_wait)[.parity][.acquire|.relaxed][.cta|.cluster][.shared|.shared::cta].b64",
    "mbarrier.pending_count.b64",
];

const MAX_COUNT: u64 = (1 << 20) - 1;

/// A live mbarrier object.
#[derive(Debug)]
pub(crate) struct Mbarrier {
    /// Arrivals per phase.
    expected: u32,
    /// Arrivals still missing in this phase.
    pending: u32,
    /// Bytes announced and not yet landed.
    tx: i64,
    pub phase: u64,
    /// What the threads that arrived knew.
    clock: Clock,
    /// The same at the last completion.
    complete: SharedClock,
    /// Who initialised it, when and where: others must be ordered after that.
    init: (Who, u32, u32),
    /// Who arrived or announced bytes last, and where.
    last: Stamp,
}

impl Mbarrier {
    /// Completes the phase if nothing is missing.
    fn check(&mut self) -> bool {
        let done = self.pending == 0 && self.tx == 0;
        if done {
            self.phase += 1;
            self.pending = self.expected;
            self.complete = Rc::new(self.clock.clone());
        }
        done
    }

    /// Opaque state: the phase, and the pending count for `pending_count`.
    fn state(&self) -> u64 {
        self.phase << 20 | self.pending as u64
    }
}

impl crate::machine::Cta {
    /// A live mbarrier that a range of shared memory touches.
    pub fn mbarrier_in(&self, at: usize, bytes: usize) -> Option<(usize, &Mbarrier)> {
        let found = self.mbarriers.range(at.saturating_sub(7)..at + bytes).next();
        found.map(|(&at, barrier)| (at, barrier))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Init,
    Invalidate,
    Arrive,
    ArriveExpect,
    /// The thread also leaves the barrier for later phases.
    ArriveDrop,
    Expect,
    Complete,
    /// Returns at once, or after a while, with what it found.
    Wait {
        parity: bool,
    },
}

#[derive(Debug)]
pub(crate) enum MbarrierOp {
    At {
        kind: Kind,
        space: Space,
        order: Order,
        addr: Addr,
        /// Count, bytes, parity or state.
        value: Reg,
        /// Arrivals of an `arrive_drop.expect_tx`.
        state: Reg,
        done: Pred,
    },
    PendingCount {
        dst: Reg,
        state: Reg,
    },
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    form.next();
    let name = form.next();
    if name == "pending_count" {
        form.require("b64")?;
        form.end()?;
        let [dst, state] = ops else { return Err("expected 2 operands".into()) };
        let (state, dst) = (cx.value(state)?, cx.dst(dst)?);
        return Ok(Op::Mbarrier(MbarrierOp::PendingCount { dst, state }));
    }
    let expect = form.take("expect_tx");
    let parity = form.take("parity");
    let no_complete = form.take("noComplete");
    let order = match form.peek() {
        "release" | "acquire" => form.next(),
        "relaxed" => form.next(),
        _ => "",
    };
    let relaxed = order == "relaxed";
    let _ = form.take("cta") || form.take("cluster");
    let space = form.take_with(space).unwrap_or(Space::Generic);
    form.require("b64")?;
    form.end()?;
    if no_complete {
        return Err(form.unknown());
    }
    let kind = match (name, expect) {
        ("init", false) => Kind::Init,
        ("inval", false) => Kind::Invalidate,
        ("arrive", false) => Kind::Arrive,
        ("arrive", true) => Kind::ArriveExpect,
        ("arrive_drop", false) => Kind::ArriveDrop,
        ("expect_tx", false) => Kind::Expect,
        ("complete_tx", false) => Kind::Complete,
        ("test_wait" | "try_wait", false) => Kind::Wait { parity },
        _ => return Err(form.unknown()),
    };
    let order = match (relaxed, kind) {
        (true, _) | (_, Kind::Expect | Kind::Complete | Kind::Init | Kind::Invalidate) => Order::Relaxed,
        (_, Kind::Wait { .. }) => Order::Acquire,
        _ => Order::Release,
    };
    operands(cx, kind, space, order, ops)
}

fn operands(cx: &mut Cx, kind: Kind, space: Space, order: Order, ops: &[Operand]) -> Result<Op, String> {
    let one = cx.constant(1);
    let (mut value, mut state, mut done) = (one, Reg::SINK, Pred::SINK);
    let addr = match (kind, ops) {
        (Kind::Invalidate, [a]) => a,
        (Kind::Init | Kind::Expect | Kind::Complete, [a, v]) => {
            value = cx.value(v)?;
            a
        }
        (Kind::Arrive | Kind::ArriveDrop, [s, a]) => {
            state = cx.dst(s)?;
            a
        }
        (Kind::Arrive | Kind::ArriveDrop | Kind::ArriveExpect, [s, a, v]) => {
            state = cx.dst(s)?;
            value = cx.value(v)?;
            a
        }
        // The last operand is a hint how long to wait.
        (Kind::Wait { .. }, [p, a, v] | [p, a, v, _]) => {
            done = cx.pred_dst(p)?;
            value = cx.value(v)?;
            a
        }
        _ => return Err("wrong number of operands".into()),
    };
    let addr = cx.addr(addr)?;
    Ok(Op::Mbarrier(MbarrierOp::At { kind, space, order, addr, value, state, done }))
}

fn fault(text: impl Into<String>) -> Raise {
    FaultKind::Mbarrier(text.into()).into()
}

/// Block and offset of an mbarrier that exists and whose initialisation the lane knows of.
pub(crate) fn locate(
    m: &mut Machine,
    at: At,
    lane: usize,
    space: Space,
    address: u64,
) -> Result<(usize, usize), Raise> {
    let target = m.resolve(at, lane, space, address, 8, 8)?;
    let Target::Shared(cta, offset) = target else {
        return Err(fault("not in shared memory").lane(lane));
    };
    let who = m.who(at, lane);
    let Some(barrier) = m.ctas[cta].mbarriers.get(&offset) else {
        return Err(fault(format!("no mbarrier was initialised at 0x{offset:x}")).lane(lane));
    };
    let (init, epoch, pc) = barrier.init;
    if m.checks.races && init != who && !m.warp(at).clocks[lane].knows(init, epoch) {
        let text = format!("use of the mbarrier at 0x{offset:x} is not ordered after its initialisation");
        return Err(fault(text).lane(lane).other(Stamp::by(init, pc)));
    }
    Ok((cta, offset))
}

/// Fails unless the initialisation was made visible to the async proxy.
pub(crate) fn check_visible(m: &Machine, at: At, lane: usize, cta: usize, offset: usize) -> Result<(), Raise> {
    let Some(barrier) = m.ctas[cta].mbarriers.get(&offset) else { return Ok(()) };
    let (init, epoch, pc) = barrier.init;
    if m.checks.races && !m.warp(at).clocks[lane].fenced(init, epoch) {
        let text = "initialised without fence.mbarrier_init or fence.proxy.async before an asynchronous copy uses it";
        return Err(fault(text).lane(lane).other(Stamp::by(init, pc)));
    }
    Ok(())
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &MbarrierOp) -> Result<Flow, Raise> {
    let (kind, space, order, addr, value, state, done) = match op {
        MbarrierOp::PendingCount { dst, state } => {
            let out = m.read(at, *state).map(|s| s & MAX_COUNT);
            let taint = m.taint(at, *state);
            m.warp_mut(at).write(*dst, at.lanes, &out, taint);
            return Ok(Flow::Next);
        }
        MbarrierOp::At { kind, space, order, addr, value, state, done } => {
            (*kind, *space, *order, *addr, *value, *state, *done)
        }
    };
    no_poison(m, m.taint(at, value), "is used by an mbarrier operation")?;
    let address = addresses(m, at, addr)?;
    let values = *m.read(at, value);
    match kind {
        Kind::Init | Kind::Invalidate => {
            for lane in lanes(at.lanes) {
                if kind == Kind::Init {
                    init(m, at, lane, space, address[lane], values[lane])?;
                } else {
                    let (cta, offset) = locate(m, at, lane, space, address[lane])?;
                    m.ctas[cta].mbarriers.remove(&offset);
                    m.ctas[cta].shared.poison(offset, 8);
                }
            }
            Ok(Flow::Next)
        }
        Kind::Wait { parity } => wait(m, at, (space, &address), &values, (parity, order), done),
        _ => {
            let states = arrive_all(m, at, kind, order, (space, &address), &values)?;
            m.warp_mut(at).write(state, at.lanes, &states, 0);
            Ok(Flow::Next)
        }
    }
}

fn init(m: &mut Machine, at: At, lane: usize, space: Space, address: u64, count: u64) -> Result<(), Raise> {
    if count as u32 == 0 || count as u32 as u64 > MAX_COUNT {
        return Err(fault(format!("count {}", count as u32)).lane(lane));
    }
    let target = m.resolve(at, lane, space, address, 8, 8)?;
    m.check_write(at, lane, target, 8, crate::machine::Strength::Weak)?;
    m.commit_write(at, lane, target, 8, crate::machine::Strength::Weak);
    let Target::Shared(cta, offset) = target else {
        return Err(fault("not in shared memory").lane(lane));
    };
    if let Some((_, first)) = m.ctas[cta].mbarrier_in(offset, 8) {
        let first = Stamp::by(first.init.0, first.init.2);
        return Err(fault(format!("initialised twice at 0x{offset:x}")).lane(lane).other(first));
    }
    let init = (m.who(at, lane), m.warp(at).epoch, at.pc);
    let last = Stamp::by(init.0, at.pc);
    m.write_bytes(at, target, 8, 0, false);
    let expected = count as u32;
    let (clock, complete) = (Clock::default(), SharedClock::default());
    let barrier = Mbarrier { expected, pending: expected, tx: 0, phase: 0, clock, complete, init, last };
    m.ctas[cta].mbarriers.insert(offset, barrier);
    Ok(())
}

/// Arrivals and byte counts; the opaque state of each lane before its own.
fn arrive_all(
    m: &mut Machine,
    at: At,
    kind: Kind,
    order: Order,
    (space, address): (Space, &[u64; 32]),
    values: &[u64; 32],
) -> Result<[u64; 32], Raise> {
    let mut given = Clock::default();
    if order == Order::Release && m.checks.races {
        m.release(at, &mut given);
    }
    let mut states = [0; 32];
    let mut joined = None;
    for lane in lanes(at.lanes) {
        let place = locate(m, at, lane, space, address[lane])?;
        let who = m.who(at, lane);
        let barrier = m.ctas[place.0].mbarriers.get_mut(&place.1).ok_or_else(|| fault("gone"))?;
        if joined != Some(place) {
            barrier.clock.join(&given);
            joined = Some(place);
        }
        states[lane] = barrier.state();
        arrive(barrier, kind, values[lane] as u32).map_err(|text| {
            let text = format!("{text} (at 0x{:x}, phase {})", place.1, barrier.phase);
            fault(text).lane(lane).other(barrier.last)
        })?;
        barrier.last = Stamp::by(who, at.pc);
        if barrier.check() {
            m.progress += 1;
        }
    }
    Ok(states)
}

fn arrive(barrier: &mut Mbarrier, kind: Kind, value: u32) -> Result<(), String> {
    let count = match kind {
        Kind::Arrive | Kind::ArriveDrop => value,
        Kind::ArriveExpect => 1,
        _ => 0,
    };
    match kind {
        Kind::Expect | Kind::ArriveExpect => barrier.tx += value as i64,
        Kind::Complete => barrier.tx -= value as i64,
        _ => {}
    }
    if barrier.tx.unsigned_abs() > MAX_COUNT {
        return Err(format!("{} bytes are more than an mbarrier counts", barrier.tx));
    }
    if count > barrier.pending {
        return Err(format!("{count} arrivals, but only {} are missing", barrier.pending));
    }
    barrier.pending -= count;
    if kind == Kind::ArriveDrop {
        barrier.expected -= count;
    }
    Ok(())
}

fn wait(
    m: &mut Machine,
    at: At,
    (space, address): (Space, &[u64; 32]),
    values: &[u64; 32],
    (parity, order): (bool, Order),
    done: Pred,
) -> Result<Flow, Raise> {
    let mut holds = 0;
    let mut last: Option<((usize, usize), u32)> = None;
    let mut learn: Vec<(SharedClock, u32)> = vec![];
    for lane in lanes(at.lanes) {
        let place = locate(m, at, lane, space, address[lane])?;
        let barrier = &m.ctas[place.0].mbarriers[&place.1];
        let complete = match parity {
            // The phase of this parity is over when the current one has the other.
            true => barrier.phase & 1 != values[lane] & 1,
            false => barrier.phase > values[lane] >> 20,
        };
        if complete {
            holds |= 1 << lane;
            match (&mut last, learn.last_mut()) {
                (Some((before, _)), Some((_, mask))) if *before == place => *mask |= 1 << lane,
                _ => {
                    learn.push((barrier.complete.clone(), 1 << lane));
                    last = Some((place, 0));
                }
            }
        }
    }
    for (clock, lanes) in learn.into_iter().filter(|_| order.acquires()) {
        m.acquire(At { lanes, ..at }, &clock);
    }
    m.warp_mut(at).write_pred(done, at.lanes, holds, 0);
    if holds == at.lanes {
        return Ok(Flow::Next);
    }
    m.counters.mbarrier_polls += 1;
    // Lanes that found their phase complete go on; others that ask again in vain have something to wait for.
    let progress = m.progress;
    let polls = &mut m.warp_mut(at).polls;
    if polls.0 != progress {
        *polls = (progress, vec![]);
    }
    let again = polls.1.contains(&(at.pc, at.lanes));
    if !again {
        polls.1.push((at.pc, at.lanes));
    }
    Ok(if holds == 0 && again { Flow::NextThen(Wait::Progress(progress)) } else { Flow::Next })
}

/// A copy has landed: its mbarriers learn of the bytes (or arrivals).
pub(crate) fn complete(m: &mut Machine, op: &AsyncOp) -> Result<(), Raise> {
    let who = m.who(op.at, op.at.lanes.trailing_zeros() as usize);
    for signal in &op.signals {
        let Some(barrier) = m.ctas[signal.cta].mbarriers.get_mut(&signal.offset) else {
            return Err(fault("a copy lands after its mbarrier was invalidated"));
        };
        if barrier.phase != signal.phase && op.arrivals == 0 {
            let text = format!(
                "the phase completed while a copy of {} bytes on it was under way: fewer bytes were expected than copied",
                signal.bytes
            );
            return Err(fault(text).other(barrier.last));
        }
        barrier.clock.join(&op.clock);
        barrier.clock.raise_async(who.cta, who.warp, ASYNC_LANE, op.epoch);
        barrier.tx -= signal.bytes as i64;
        if op.arrivals > barrier.pending {
            return Err(fault("more arrivals than the mbarrier waits for").other(barrier.last));
        }
        barrier.pending -= op.arrivals;
        barrier.check();
        m.progress += 1;
    }
    Ok(())
}

/// `cp.async.mbarrier.arrive` without `.noinc` adds the arrival it will make.
pub(crate) fn add_pending(m: &mut Machine, (cta, offset): (usize, usize)) {
    if let Some(barrier) = m.ctas[cta].mbarriers.get_mut(&offset) {
        barrier.pending += 1;
    }
}
