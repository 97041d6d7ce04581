//! wgmma: asynchronous matrix multiplication by a warpgroup, operands in shared memory.
//!
//! Each warp runs its own 16 of the 64 rows. An operation reads shared memory when it is issued, as
//! far as the race detector is concerned, and computes when it is waited for.

mod compute;

use std::collections::{BTreeMap, VecDeque};

use super::{Form, Op};
use crate::ir::{Instr, Pred, Reg};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, no_poison, whole_warp};
use crate::mem::clock::{ASYNC_LANE, Who};
use crate::mem::shadow::Stamp;
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};
use crate::types::Ty;
use compute::{compute_all, touch};

/// A multiplication of any width behind its opcode.
macro_rules! mma_async {
    ($rest:literal) => {
        concat!(
            "wgmma.mma_async.sync.aligned.m64(n8|n16|n24|n32|n40|n48|n56|n64|n72|n80|n88|n96|n104|n112|n120|n128",
            "|n136|n144|n152|n160|n168|n176|n184|n192|n200|n208|n216|n224|n232|n240|n248|n256)",
            $rest
        )
    };
}

pub(crate) const FORMS: &[&str] = &[
    mma_async!("k16.f32.bf16.bf16"),
    mma_async!("k16.(f32|f16).f16.f16"),
    mma_async!("k8.f32.tf32.tf32"),
    mma_async!("k32.(f32|f16).(e4m3|e5m2).(e4m3|e5m2)"),
    "wgmma.(fence|commit_group|wait_group).sync.aligned",
];

#[derive(Debug)]
pub(crate) enum Wgmma {
    Fence,
    Commit,
    Wait { left: Reg },
    Multiply(Multiply),
}

#[derive(Clone, Debug)]
pub(crate) struct Multiply {
    n: usize,
    ty_a: Ty,
    ty_b: Ty,
    half_result: bool,
    d: Box<[Reg]>,
    a: OperandA,
    b: Reg,
    scale_d: Pred,
    negate_a: bool,
    negate_b: bool,
    /// MN-major instead of K-major.
    trans_a: bool,
    trans_b: bool,
}

#[derive(Clone, Debug)]
enum OperandA {
    Registers(Box<[Reg]>),
    Descriptor(Reg),
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    form.next();
    let name = form.next();
    cx.uses_wgmma = true;
    form.require("sync")?;
    form.require("aligned")?;
    let op = match (name, ops) {
        ("fence", []) => Wgmma::Fence,
        ("commit_group", []) => Wgmma::Commit,
        ("wait_group", [left]) => Wgmma::Wait { left: cx.value(left)? },
        ("mma_async", _) => Wgmma::Multiply(multiply(cx, form, ops)?),
        _ => return Err(form.unknown()),
    };
    form.end()?;
    Ok(Op::Wgmma(op))
}

fn multiply(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Multiply, String> {
    let shape = form.next().strip_prefix("m64n").and_then(|s| s.split_once('k'));
    let (n, k) = shape.ok_or_else(|| form.unknown())?;
    let number = |s: &str| s.parse::<usize>().map_err(|_| form.unknown());
    let (n, k) = (number(n)?, number(k)?);
    let (d_ty, ty_a, ty_b) = (form.ty()?, form.ty()?, form.ty()?);
    let fp8 = |t| matches!(t, Ty::E4M3 | Ty::E5M2);
    let types_fit = match ty_a {
        Ty::BF16 | Ty::TF32 => ty_b == ty_a && d_ty == Ty::F32,
        Ty::F16 => ty_b == ty_a && matches!(d_ty, Ty::F32 | Ty::F16),
        _ => fp8(ty_a) && fp8(ty_b) && matches!(d_ty, Ty::F32 | Ty::F16),
    };
    if !types_fit || k * ty_a.bytes() != 32 || n % 8 != 0 || !(8..=256).contains(&n) {
        return Err(format!("unknown form {}", form.full()));
    }
    let [d, a, b, scale_d, rest @ ..] = ops else { return Err("wrong number of operands".into()) };
    let half_result = d_ty == Ty::F16;
    let d = cx.accumulators(d)?;
    if d.len() != if half_result { n / 4 } else { n / 2 } {
        return Err(format!("{} registers for a 64x{n} accumulator", d.len()));
    }
    let a = match a {
        Operand::Vector(items) if items.len() == 4 => OperandA::Registers(cx.values(a)?.into()),
        Operand::Vector(_) => return Err("A takes four registers".into()),
        _ => OperandA::Descriptor(cx.value(a)?),
    };
    let numbers: Option<Vec<i64>> =
        rest.iter().map(|o| if let Operand::Int(n) = o { Some(*n) } else { None }).collect();
    let numbers = numbers.ok_or("scales and transpositions must be literals")?;
    let registers = matches!(a, OperandA::Registers(_));
    let (negate, trans_a, trans_b) = match numbers.as_slice() {
        [sa, sb] => ([sa, sb], 0, 0),
        [sa, sb, tb] if registers => ([sa, sb], 0, *tb),
        [sa, sb, ta, tb] if !registers => ([sa, sb], *ta, *tb),
        _ => return Err("wrong number of operands".into()),
    };
    if ty_a.bytes() != 2 && (trans_a != 0 || trans_b != 0) {
        return Err("only 16-bit operands can be transposed".into());
    }
    Ok(Multiply {
        n,
        ty_a,
        ty_b,
        half_result,
        d: d.into(),
        a,
        b: cx.value(b)?,
        scale_d: cx.pred(scale_d)?,
        negate_a: *negate[0] < 0,
        negate_b: *negate[1] < 0,
        trans_a: trans_a != 0,
        trans_b: trans_b != 0,
    })
}

/// A multiplication under way.
#[derive(Debug)]
struct Pending {
    op: Multiply,
    a_descriptor: u64,
    /// Fragments of A, read at issue.
    a_registers: Vec<([u64; 32], u32)>,
    b_descriptor: u64,
    accumulate: bool,
    epoch: u32,
    at: At,
    computed: bool,
}

/// No write since the last fence.
const CLEAN: u32 = u32::MAX;
/// Before the first fence.
const NEVER_FENCED: u32 = u32::MAX - 1;

/// What a warp has under way.
#[derive(Debug)]
pub(crate) struct WgmmaState {
    open: Vec<Pending>,
    groups: VecDeque<Vec<Pending>>,
    /// Registers written by other instructions since the last fence: where, or [`CLEAN`].
    dirty: Vec<u32>,
    /// Registers under way: accumulators (true) may not be touched, fragments of A not be written.
    busy: BTreeMap<u32, bool>,
    fenced: bool,
}

impl WgmmaState {
    pub fn new(num_regs: usize) -> Self {
        let dirty = vec![NEVER_FENCED; num_regs];
        WgmmaState { open: vec![], groups: VecDeque::new(), dirty, busy: BTreeMap::new(), fenced: false }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Pending> {
        self.groups.iter_mut().flatten().chain(&mut self.open)
    }

    /// A multiplication under way that uses one of `regs`.
    fn user(&self, regs: &[Reg]) -> Option<&Pending> {
        let mut all = self.groups.iter().flatten().chain(&self.open);
        all.find(|p| {
            let fragments: &[Reg] = if let OperandA::Registers(a) = &p.op.a { a } else { &[] };
            regs.iter().any(|r| p.op.d.contains(r) || fragments.contains(r))
        })
    }

    fn note_busy(&mut self) {
        let mut busy = BTreeMap::new();
        for pending in self.all() {
            if let OperandA::Registers(regs) = &pending.op.a {
                for reg in regs.iter().filter(|r| r.constant_index().is_none()) {
                    busy.entry(reg.0).or_insert(false);
                }
            }
            busy.extend(pending.op.d.iter().map(|r| (r.0, true)));
        }
        self.busy = busy;
    }
}

fn fault(text: impl Into<String>) -> Raise {
    FaultKind::Wgmma(text.into()).into()
}

/// A fault whose other party is a multiplication under way that uses one of `regs`.
fn hazard(m: &Machine, at: At, regs: &[Reg], text: &str) -> Raise {
    match m.warp(at).wgmma.user(regs) {
        Some(p) => fault(text).other(asynchronous(m, p)),
        None => fault(text),
    }
}

fn asynchronous(m: &Machine, p: &Pending) -> Stamp {
    Stamp::by(Who { lane: ASYNC_LANE, ..m.who(p.at, 0) }, p.at.pc)
}

/// Checks an instruction of a kernel that uses wgmma before it runs: registers under way are left
/// alone. A plain move of an accumulator is how compilers rename it: it completes the work early.
pub(crate) fn before(m: &mut Machine, at: At, instr: &Instr) -> Result<(), Raise> {
    if matches!(instr.op, Op::Wgmma(_)) || m.warp(at).wgmma.busy.is_empty() {
        return Ok(());
    }
    let busy = |m: &Machine, r: &Reg| m.warp(at).wgmma.busy.get(&r.0).copied();
    let renames = matches!(&instr.op, Op::Data(super::data::Data::Mov { bytes: 4, .. }));
    if instr.uses.iter().any(|r| busy(m, r) == Some(true)) {
        if !renames {
            return Err(hazard(m, at, &instr.uses, "reads an accumulator before wgmma.wait_group"));
        }
        compute_all(m, at)?;
    }
    if instr.defs.iter().any(|r| busy(m, r).is_some()) {
        return Err(hazard(m, at, &instr.defs, "writes a register that a wgmma under way uses"));
    }
    Ok(())
}

/// Notes what an instruction has written.
pub(crate) fn after(m: &mut Machine, at: At, instr: &Instr) {
    if matches!(instr.op, Op::Wgmma(_)) {
        return;
    }
    let state = &mut m.warp_mut(at).wgmma;
    let renames = matches!(&instr.op, Op::Data(super::data::Data::Mov { bytes: 4, .. }));
    let clean = renames && instr.uses.iter().all(|r| state.dirty.get(r.index()) == Some(&CLEAN));
    for reg in instr.defs.iter() {
        state.dirty[reg.index()] = if clean { CLEAN } else { at.pc };
    }
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Wgmma) -> Result<Flow, Raise> {
    if let Some(park) = whole_warp(m, at, "wgmma")? {
        return Ok(park);
    }
    match op {
        Wgmma::Fence => {
            let state = &mut m.warp_mut(at).wgmma;
            state.dirty.fill(CLEAN);
            state.fenced = true;
        }
        Wgmma::Commit => {
            let state = &mut m.warp_mut(at).wgmma;
            let group = std::mem::take(&mut state.open);
            state.groups.push_back(group);
        }
        Wgmma::Wait { left } => {
            let left = m.read(at, *left)[0] as usize;
            if m.warp(at).wgmma.groups.len() > left {
                compute_all(m, at)?;
            }
            let mut last = None;
            let state = &mut m.warp_mut(at).wgmma;
            while state.groups.len() > left {
                let group = state.groups.pop_front().unwrap_or_default();
                last = group.last().map(|p| p.epoch).or(last);
            }
            state.note_busy();
            if let Some(epoch) = last {
                let mut clock = crate::mem::clock::Clock::default();
                clock.raise_async(m.ctas[at.cta].id, at.warp as u8, ASYNC_LANE, epoch);
                m.acquire(at, &clock);
            }
        }
        Wgmma::Multiply(op) => issue(m, at, op)?,
    }
    Ok(Flow::Next)
}

fn uniform(m: &Machine, at: At, reg: Reg) -> Result<u64, Raise> {
    no_poison(m, m.taint(at, reg), "is a wgmma descriptor")?;
    let values = m.read(at, reg);
    if values.iter().any(|v| v != &values[0]) {
        return Err(fault("the lanes of the warp give different descriptors"));
    }
    Ok(values[0])
}

fn issue(m: &mut Machine, at: At, op: &Multiply) -> Result<(), Raise> {
    check_registers(m, at, op)?;
    no_poison(m, m.warp(at).pred_taint(op.scale_d), "is the scale of a wgmma")?;
    let scale = m.warp(at).pred(op.scale_d);
    if scale != 0 && scale != u32::MAX {
        return Err(fault("the lanes of the warp give different scale-d"));
    }
    let (mut a_descriptor, mut a_registers) = (0, vec![]);
    match &op.a {
        OperandA::Descriptor(reg) => a_descriptor = uniform(m, at, *reg)?,
        OperandA::Registers(regs) => {
            a_registers = regs.iter().map(|&r| (*m.read(at, r), m.taint(at, r))).collect();
        }
    }
    let b_descriptor = uniform(m, at, op.b)?;
    let epoch = m.warp(at).epoch;
    m.warp_mut(at).epoch += 1;
    let pending = Pending {
        op: op.clone(),
        a_descriptor,
        a_registers,
        b_descriptor,
        accumulate: scale != 0,
        epoch,
        at,
        computed: false,
    };
    touch(m, &pending)?;
    m.counters.mma += 1;
    let state = &mut m.warp_mut(at).wgmma;
    state.open.push(pending);
    state.note_busy();
    Ok(())
}

/// Registers must be behind a fence; accumulators under way may only be used in the same way again.
fn check_registers(m: &Machine, at: At, op: &Multiply) -> Result<(), Raise> {
    let state = &m.warp(at).wgmma;
    let fragments: &[Reg] = if let OperandA::Registers(regs) = &op.a { regs } else { &[] };
    let written = |r: &&Reg| r.constant_index().is_none() && state.dirty[r.index()] != CLEAN;
    if let Some(reg) = op.d.iter().chain(fragments).find(written) {
        let raise = fault("no wgmma.fence between writing its registers and this wgmma");
        return Err(match state.dirty[reg.index()] {
            NEVER_FENCED => raise,
            pc => raise.other(Stamp::by(m.who(at, 0), pc)),
        });
    }
    if !state.fenced {
        return Err(fault("no wgmma.fence before the first wgmma"));
    }
    if fragments.iter().any(|r| state.busy.get(&r.0) == Some(&true)) {
        return Err(hazard(m, at, fragments, "A is an accumulator under way"));
    }
    let under_way = state.groups.iter().flatten().chain(&state.open);
    for other in under_way {
        let shared = op.d.iter().any(|r| other.op.d.contains(r));
        if shared && other.op.d != op.d {
            let text = "accumulators overlap those of a wgmma under way of another shape";
            return Err(fault(text).other(asynchronous(m, other)));
        }
    }
    Ok(())
}

/// Accumulators under way would be lost.
pub(crate) fn check_exit(m: &Machine, at: At) -> Result<(), Raise> {
    let state = &m.warp(at).wgmma;
    match state.groups.iter().flatten().chain(&state.open).next() {
        None => Ok(()),
        Some(p) => Err(fault("warp exits with wgmma never waited for").other(asynchronous(m, p))),
    }
}
