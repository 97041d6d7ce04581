//! atom and red: read-modify-write with order and scope.

use super::data::space;
use super::memory::{Order, Scope, addresses, poll};
use super::scalar::LaneFn;
use super::{Form, Op, arity};
use crate::ir::{Addr, Reg};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, Strength, Target, lanes, no_poison};
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};
use crate::types::{Space, Ty, truncate};

/// Order, scope and space of `atom`.
macro_rules! atom {
    ($operations:expr) => {
        concat!(
            "atom[.relaxed|.acquire|.release|.acq_rel][.cta|.cluster|.gpu|.sys]",
            "[.global|.shared|.shared::cta|.shared::cluster]",
            $operations
        )
    };
}

macro_rules! red {
    ($operations:expr) => {
        concat!(
            "red[.relaxed|.release][.cta|.cluster|.gpu|.sys][.global|.shared|.shared::cta|.shared::cluster]",
            $operations
        )
    };
}

/// Operations that need no old value.
macro_rules! common {
    () => {
        concat!(
            "(.and.(b32|b64)|.or.(b32|b64)|.xor.(b32|b64)|.inc.u32|.dec.u32|.add.(u32|s32|u64|f32|f64)",
            "|.add.noftz.(f16|f16x2|bf16|bf16x2)|.min.(u32|s32|u64|s64)|.max.(u32|s32|u64|s64))"
        )
    };
}

/// Vectors, in global memory only.
macro_rules! vectors {
    () => {
        "[.global](.add.(v2|v4).f32|(.add|.min|.max).noftz.(v2|v4).(f16|f16x2|bf16|bf16x2))"
    };
}

pub(crate) const FORMS: &[&str] = &[
    atom!(common!()),
    atom!("(.exch.(b32|b64)|.cas.(b16|b32|b64))"),
    concat!("atom[.relaxed|.acquire|.release|.acq_rel][.cta|.cluster|.gpu|.sys]", vectors!()),
    red!(common!()),
    concat!("red[.relaxed|.release][.cta|.cluster|.gpu|.sys]", vectors!()),
];

/// What happens to the value in memory.
#[derive(Clone, Copy, Debug)]
enum Rmw {
    /// A scalar form: `and`, `or`, `xor`, `add`, `min`, `max`.
    Form(LaneFn),
    Exchange,
    CompareAndSwap,
    /// `old >= b ? 0 : old + 1`
    Increment,
    /// `old == 0 || old > b ? b : old - 1`
    Decrement,
}

#[derive(Debug)]
pub(crate) struct Atomic {
    space: Space,
    order: Order,
    scope: Scope,
    rmw: Rmw,
    bytes: usize,
    /// Old values; sinks for red.
    dst: Box<[Reg]>,
    addr: Addr,
    b: Box<[Reg]>,
    c: Reg,
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    let atom = form.next() == "atom";
    let order = match form.peek() {
        "acquire" => Order::Acquire,
        "release" => Order::Release,
        "acq_rel" => Order::AcquireRelease,
        _ => Order::Relaxed,
    };
    if order != Order::Relaxed || form.peek() == "relaxed" {
        form.next();
    }
    let scope = form.take_with(Scope::parse).unwrap_or(Scope::Gpu);
    let space = form.take_with(space).unwrap_or(Space::Generic);
    let word = form.next();
    form.take("noftz");
    let count = form
        .take_with(|w| {
            Some(match w {
                "v2" => 2,
                "v4" => 4,
                _ => return None,
            })
        })
        .unwrap_or(1);
    let ty = form.ty()?;
    form.end()?;
    let rmw = operation(word, ty).ok_or_else(|| format!("unknown form {}", form.full()))?;
    let compare = matches!(rmw, Rmw::CompareAndSwap);
    arity(ops, atom as usize + 2 + compare as usize)?;
    let (old, rest) = if atom { (Some(&ops[0]), &ops[1..]) } else { (None, ops) };
    let addr = cx.addr(&rest[0])?;
    let b = cx.values(&rest[1])?;
    let c = if compare { cx.value(&rest[2])? } else { cx.constant(0) };
    let dst = match old {
        Some(operand) => cx.dsts(operand)?,
        None => vec![Reg::SINK; count],
    };
    if dst.len() != count || b.len() != count {
        return Err(form.unknown());
    }
    let (dst, b) = (dst.into(), b.into());
    Ok(Op::Atomic(Atomic { space, order, scope, rmw, bytes: ty.bytes(), dst, addr, b, c }))
}

fn operation(word: &str, ty: Ty) -> Option<Rmw> {
    let bits = matches!(ty, Ty::B32 | Ty::B64);
    Some(match word {
        "exch" if bits => Rmw::Exchange,
        "cas" if bits || ty == Ty::B16 => Rmw::CompareAndSwap,
        "inc" if ty == Ty::U32 => Rmw::Increment,
        "dec" if ty == Ty::U32 => Rmw::Decrement,
        "and" | "or" | "xor" if bits => Rmw::Form(row(word, ty)?),
        "add" | "min" | "max" if ty != Ty::S64 || word != "add" => Rmw::Form(row(word, ty)?),
        _ => return None,
    })
}

/// The scalar function of the same name.
fn row(word: &str, ty: Ty) -> Option<LaneFn> {
    let name = format!("{word}.{ty:?}").to_lowercase();
    super::row_of(&name).map(|row| row.run)
}

impl Atomic {
    fn new_value(&self, old: u64, b: u64, c: u64) -> u64 {
        let (old32, b32) = (old as u32, b as u32);
        truncate(
            match self.rmw {
                Rmw::Form(run) => run(Default::default(), old, b, 0, 0),
                Rmw::Exchange => b,
                Rmw::CompareAndSwap if old == truncate(b, self.bytes) => c,
                Rmw::CompareAndSwap => old,
                Rmw::Increment => (if old32 >= b32 { 0 } else { old32 + 1 }) as u64,
                Rmw::Decrement => (if old32 == 0 || old32 > b32 { b32 } else { old32 - 1 }) as u64,
            },
            self.bytes,
        )
    }
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Atomic) -> Result<Flow, Raise> {
    let address = addresses(m, at, op.addr)?;
    for &reg in op.b.iter().chain([&op.c]) {
        no_poison(m, m.taint(at, reg), "goes into an atomic operation")?;
    }
    let total = op.bytes * op.b.len();
    let mut olds = vec![[0; 32]; op.b.len()];
    let (mut changed, mut seen) = (false, 0u64);
    for lane in lanes(at.lanes) {
        let target = m.resolve(at, lane, op.space, address[lane], total, total)?;
        if matches!(target, Target::Local(_) | Target::Param(_)) {
            let what = "atomic operation on local or parameter memory".to_string();
            return Err(Raise::from(FaultKind::Illegal(what)).lane(lane));
        }
        m.check_write(at, lane, target, total, Strength::Strong)?;
        m.commit_write(at, lane, target, total, Strength::Strong);
        m.observe(at, lane, target, op.order, op.scope);
        for (i, &b) in op.b.iter().enumerate() {
            let place = target.plus(i * op.bytes);
            let (old, poison) = m.read_bytes(at, place, op.bytes);
            if poison && m.checks.poison && !matches!(op.rmw, Rmw::Exchange) {
                let used = "in memory meets an atomic operation";
                return Err(Raise::from(FaultKind::Poison { used }).lane(lane));
            }
            let new = op.new_value(old, m.read(at, b)[lane], m.read(at, op.c)[lane]);
            m.write_bytes(at, place, op.bytes, new, false);
            olds[i][lane] = old;
            changed |= new != old;
            seen = seen.rotate_left(5) ^ old;
        }
        m.publish(at, lane, target, op.order, op.scope, true);
    }
    for (dst, old) in op.dst.iter().zip(&olds) {
        m.warp_mut(at).write(*dst, at.lanes, old, 0);
    }
    if changed {
        m.progress += 1;
        return Ok(Flow::Next);
    }
    // An atomic that changes nothing again and again is a lock that is taken.
    Ok(poll(m, at, seen))
}
