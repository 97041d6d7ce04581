//! Loads and stores.

use super::data::space;
use super::{Form, Op, arity};
use crate::ir::{Addr, Reg};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, Strength, Target, Wait, lanes, no_poison};
use crate::parse::ast::{Operand, VarSpace};
use crate::report::{FaultKind, Raise};
use crate::types::{Space, sign_extend, truncate};

/// Hints for the first-level cache.
macro_rules! l1 {
    () => {
        "{.L1::evict_normal|.L1::evict_unchanged|.L1::evict_first|.L1::evict_last|.L1::no_allocate}{.L2::cache_hint}"
    };
}

/// Where weak accesses, and those that order, may go.
macro_rules! spaces {
    ($more:literal) => {
        concat!("[.global|.shared|.shared::cta|.shared::cluster", $more, "]")
    };
}

/// Prefetch sizes of loads.
macro_rules! l2 {
    () => {
        "{.L2::64B|.L2::128B|.L2::256B}"
    };
}

/// Types, alone and as vectors of at most 16 bytes.
macro_rules! forms {
    ($($prefix:expr),*) => {
        concat!(
            $($prefix,)*
            "(.v4.(b8|b16|b32|u8|u16|u32|s8|s16|s32|f32)",
            "|[.v2].(b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64))"
        )
    };
}

pub(crate) const FORMS: &[&str] = &[
    forms!(
        "ld[.weak]",
        spaces!("|.local|.const|.param|.param::entry|.param::func"),
        "{.ca|.cg|.cs|.lu|.cv}",
        l1!(),
        l2!()
    ),
    forms!("ld.volatile", spaces!("|.local")),
    forms!("ld(.relaxed|.acquire)(.cta|.cluster|.gpu|.sys)", spaces!(""), l1!(), l2!()),
    forms!("ld.mmio.relaxed.sys[.global]"),
    forms!("ld[.weak].global{.ca|.cg|.cs}.nc", l1!(), l2!()),
    forms!("ldu[.global]"),
    forms!("st[.weak]", spaces!("|.local|.param|.param::func"), "{.wb|.cg|.cs|.wt}", l1!()),
    forms!("st.volatile", spaces!("|.local")),
    forms!("st(.relaxed|.release)(.cta|.cluster|.gpu|.sys)", spaces!(""), l1!()),
    forms!("st.mmio.relaxed.sys[.global]"),
];

/// Memory order of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Weak,
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

impl Order {
    pub fn acquires(self) -> bool {
        matches!(self, Order::Acquire | Order::AcquireRelease)
    }

    pub fn releases(self) -> bool {
        matches!(self, Order::Release | Order::AcquireRelease)
    }

    pub fn strength(self) -> Strength {
        if self == Order::Weak { Strength::Weak } else { Strength::Strong }
    }
}

/// Threads that an order concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Cta,
    Cluster,
    Gpu,
}

impl Scope {
    pub fn parse(word: &str) -> Option<Scope> {
        match word {
            "cta" => Some(Scope::Cta),
            "cluster" => Some(Scope::Cluster),
            "gpu" | "sys" | "gl" => Some(Scope::Gpu),
            _ => None,
        }
    }
}

/// A load or store of one or more elements.
#[derive(Debug)]
pub(crate) struct Access {
    pub load: bool,
    pub space: Space,
    pub order: Order,
    pub scope: Scope,
    /// Read-only data path: no one may write it during the launch.
    pub read_only: bool,
    bytes: usize,
    /// Bytes to sign-extend to, for signed loads.
    extend: Option<usize>,
    regs: Box<[Reg]>,
    addr: Addr,
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    let load = form.next() != "st";
    let mut order = Order::Weak;
    form.take("mmio");
    if form.take("volatile") || form.take("relaxed") {
        order = Order::Relaxed;
    } else if load && form.take("acquire") {
        order = Order::Acquire;
    } else if !load && form.take("release") {
        order = Order::Release;
    } else {
        form.take("weak");
    }
    let scope = form.take_with(Scope::parse).unwrap_or(Scope::Gpu);
    let mut space = form.take_with(space).unwrap_or(Space::Generic);
    let (read_only, policy) = cache_hints(form);
    let count = if form.take("v2") {
        2
    } else if form.take("v4") {
        4
    } else {
        1
    };
    let ty = form.ty()?;
    form.end()?;
    arity(ops, 2 + policy as usize)?;
    let (reg_op, addr_op) = if load { (&ops[0], &ops[1]) } else { (&ops[1], &ops[0]) };
    if cx.symbol_space(addr_op) == Some(VarSpace::Local) && space == Space::Param {
        // Parameters of functions and calls lie in per-thread memory.
        space = Space::Local;
    }
    let regs = if load { cx.dsts(reg_op)? } else { cx.values(reg_op)? };
    let bytes = ty.bytes();
    if regs.len() != count {
        return Err(format!("expected {count} registers, found {}", regs.len()));
    }
    let first = if let Operand::Vector(items) = reg_op { &items[0] } else { reg_op };
    let extend = (load && ty.signed()).then(|| cx.width(first)).filter(|&w| w > bytes);
    let addr = cx.addr(addr_op)?;
    let regs = regs.into();
    Ok(Op::Memory(Access { load, space, order, scope, read_only, bytes, extend, regs, addr }))
}

/// Skips cache and prefetch hints; whether `.nc` was among them, and one that takes a cache policy as an operand.
fn cache_hints(form: &mut Form) -> (bool, bool) {
    let (mut read_only, mut policy) = (false, false);
    loop {
        let word = form.peek();
        let known = matches!(word, "nc" | "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt")
            || word.starts_with("L1::")
            || word.starts_with("L2::");
        if !known {
            return (read_only, policy);
        }
        read_only |= word == "nc";
        policy |= word == "L2::cache_hint";
        form.next();
    }
}

/// Address of each lane.
pub(crate) fn addresses(m: &Machine, at: At, addr: Addr) -> Result<[u64; 32], Raise> {
    no_poison(m, m.taint(at, addr.base), "is used as an address")?;
    Ok(m.read(at, addr.base).map(|v| v.wrapping_add(addr.offset as u64)))
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Access) -> Result<Flow, Raise> {
    let address = addresses(m, at, op.addr)?;
    let total = op.bytes * op.regs.len();
    let mut targets = [None; 32];
    for lane in lanes(at.lanes) {
        targets[lane] = Some(m.resolve(at, lane, op.space, address[lane], total, total)?);
    }
    count(m, at, op.load, total, &targets, &address);
    if op.load { load(m, at, op, total, &targets) } else { store(m, at, op, total, &targets) }
}

fn load(m: &mut Machine, at: At, op: &Access, total: usize, targets: &[Option<Target>; 32]) -> Result<Flow, Raise> {
    let mut seen = 0u64;
    for lane in lanes(at.lanes) {
        let Some(target) = targets[lane] else {
            continue;
        };
        m.note_read(at, lane, target, total, op.order.strength())?;
        if op.read_only {
            check_read_only(m, at, lane, target, total)?;
        }
        if op.order != Order::Weak {
            m.observe(at, lane, target, op.order, op.scope);
        }
    }
    for (i, &reg) in op.regs.iter().enumerate() {
        let (mut out, mut taint) = ([0; 32], 0);
        for lane in lanes(at.lanes) {
            let Some(target) = targets[lane] else {
                continue;
            };
            let (value, poison) = m.read_bytes(at, target.plus(i * op.bytes), op.bytes);
            out[lane] = match op.extend {
                Some(width) => truncate(sign_extend(value, op.bytes) as u64, width),
                None => value,
            };
            taint |= (poison as u32) << lane;
            seen = seen.rotate_left(5) ^ value;
        }
        m.warp_mut(at).write(reg, at.lanes, &out, taint);
    }
    Ok(if op.order == Order::Weak { Flow::Next } else { poll(m, at, seen) })
}

/// The non-coherent path may only read what no one writes during the launch.
fn check_read_only(m: &mut Machine, at: At, lane: usize, target: Target, bytes: usize) -> Result<(), Raise> {
    let written = m.with_shadow(at, lane, target, Strength::Weak, |s, o, _| Ok(s.last_write(o, bytes)));
    match written {
        Ok(Some(stamp)) => {
            let what = "non-coherent load (ld.global.nc) of bytes that this launch writes".to_string();
            Err(Raise::from(FaultKind::Illegal(what)).lane(lane).other(stamp))
        }
        _ => Ok(()),
    }
}

/// A strong load that keeps giving the same value is a loop that waits for another thread: it goes
/// on when something has happened.
pub(crate) fn poll(m: &mut Machine, at: At, seen: u64) -> Flow {
    let progress = m.progress;
    let warp = m.warp_mut(at);
    let (pc, value, repeats) = warp.poll;
    let repeats = if (pc, value) == (at.pc, seen) { repeats + 1 } else { 0 };
    warp.poll = (at.pc, seen, repeats);
    if repeats > 2 { Flow::NextThen(Wait::Progress(progress)) } else { Flow::Next }
}

fn store(m: &mut Machine, at: At, op: &Access, total: usize, targets: &[Option<Target>; 32]) -> Result<Flow, Raise> {
    for lane in lanes(at.lanes) {
        let Some(target) = targets[lane] else {
            continue;
        };
        m.check_write(at, lane, target, total, op.order.strength())?;
    }
    for lane in lanes(at.lanes) {
        let Some(target) = targets[lane] else {
            continue;
        };
        let overlap = m.commit_write(at, lane, target, total, op.order.strength());
        for (i, &reg) in op.regs.iter().enumerate() {
            let value = truncate(m.read(at, reg)[lane], op.bytes);
            let poison = m.taint(at, reg) >> lane & 1 == 1;
            let place = target.plus(i * op.bytes);
            if poison && poison_matters(m, target) {
                return Err(Raise::from(FaultKind::Poison { used: "is stored" }).lane(lane));
            }
            if overlap && op.order == Order::Weak {
                let (old, _) = m.read_bytes(at, place, op.bytes);
                if old != value {
                    let what = "two lanes of one store write different values to one place";
                    return Err(Raise::from(FaultKind::Illegal(what.into())).lane(lane));
                }
            }
            m.write_bytes(at, place, op.bytes, value, poison);
        }
        if op.order != Order::Weak {
            m.publish(at, lane, target, op.order, op.scope, false);
        }
    }
    if matches!(targets.iter().flatten().next(), Some(Target::Global(..) | Target::Shared(..))) {
        m.progress += 1;
    }
    Ok(Flow::Next)
}

/// Poison may be spilled to per-thread memory, and to shared memory where the checks allow it.
fn poison_matters(m: &Machine, target: Target) -> bool {
    m.checks.poison
        && match target {
            Target::Global(..) => true,
            Target::Shared(..) => m.checks.poison_in_shared,
            Target::Local(_) | Target::Param(_) => false,
        }
}

/// Counts bytes and bank conflicts.
fn count(m: &mut Machine, at: At, load: bool, bytes: usize, targets: &[Option<Target>; 32], address: &[u64; 32]) {
    let total = bytes as u64 * at.lanes.count_ones() as u64;
    let c = &mut m.counters;
    match targets[at.lanes.trailing_zeros() as usize] {
        Some(Target::Global(..)) if load => c.global_read += total,
        Some(Target::Global(..)) => c.global_written += total,
        Some(Target::Shared(..)) => {
            if load {
                c.shared_read += total;
            } else {
                c.shared_written += total;
            }
            // Wide accesses are served in parts of the warp that fill the 32 banks once.
            let part = (128 / bytes.max(4)).min(32);
            for first in (0..32).step_by(part) {
                let lanes = lanes(at.lanes).filter(|l| (first..first + part).contains(l));
                c.shared_conflicts += bank_conflicts(lanes.map(|l| address[l]), bytes);
            }
        }
        Some(Target::Local(_)) => c.local += total,
        _ => {}
    }
}

/// Passes beyond the first that the accesses need: the most distinct 4-byte words in one bank.
pub(crate) fn bank_conflicts(addresses: impl Iterator<Item = u64>, bytes: usize) -> u64 {
    let mut words: smallvec::SmallVec<[u64; 64]> = smallvec::SmallVec::new();
    for address in addresses {
        words.extend((0..bytes.div_ceil(4) as u64).map(|i| address / 4 + i));
    }
    words.sort_unstable();
    words.dedup();
    let mut banks = [0u8; 32];
    for word in words {
        banks[word as usize % 32] += 1;
    }
    banks.iter().copied().max().unwrap_or(0).saturating_sub(1) as u64
}
