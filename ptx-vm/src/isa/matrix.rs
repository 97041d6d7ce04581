//! ldmatrix, stmatrix, movmatrix: 8x8 matrices of 16-bit elements across a warp.

use super::{Form, Op, arity};
use crate::ir::{Addr, Reg};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, Strength, lanes, no_poison, whole_warp};
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};
use crate::types::Space;

pub(crate) const FORMS: &[&str] = &[
    "ldmatrix.sync.aligned.m8n8.(x1|x2|x4)[.trans][.shared|.shared::cta].b16",
    "stmatrix.sync.aligned.m8n8.(x1|x2|x4)[.trans][.shared|.shared::cta].b16",
    "movmatrix.sync.aligned.m8n8.trans.b16",
];

#[derive(Debug)]
pub(crate) enum Matrix {
    Load { regs: Box<[Reg]>, addr: Addr, trans: bool },
    Store { regs: Box<[Reg]>, addr: Addr, trans: bool },
    Transpose { dst: Reg, src: Reg },
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    let name = form.next();
    form.require("sync")?;
    form.require("aligned")?;
    form.require("m8n8")?;
    arity(ops, 2)?;
    let matrix = if name == "movmatrix" {
        form.require("trans")?;
        Matrix::Transpose { src: cx.value(&ops[1])?, dst: cx.dst(&ops[0])? }
    } else {
        let count = match form.next() {
            "x1" => 1,
            "x2" => 2,
            "x4" => 4,
            _ => return Err(form.unknown()),
        };
        let trans = form.take("trans");
        let _ = form.take("shared") || form.take("shared::cta");
        let (reg_op, addr) = if name == "ldmatrix" { (&ops[0], &ops[1]) } else { (&ops[1], &ops[0]) };
        let regs = if name == "ldmatrix" { cx.dsts(reg_op)? } else { cx.values(reg_op)? };
        if regs.len() != count {
            return Err(format!("expected {count} registers"));
        }
        let (regs, addr) = (regs.into(), cx.addr(addr)?);
        if name == "ldmatrix" { Matrix::Load { regs, addr, trans } } else { Matrix::Store { regs, addr, trans } }
    };
    form.require("b16")?;
    form.end()?;
    Ok(Op::Matrix(matrix))
}

/// 8 rows of 8 elements, and which elements are poison.
type Rows = [[(u16, bool); 8]; 8];

/// Row and column of the two elements that a lane holds.
fn element(lane: usize, half: usize, trans: bool) -> (usize, usize) {
    let (row, column) = (lane / 4, lane % 4 * 2 + half);
    if trans { (column, row) } else { (row, column) }
}

/// One register of every lane, from a matrix.
fn gather(rows: &Rows, trans: bool) -> ([u64; 32], u32) {
    let (mut out, mut taint) = ([0; 32], 0);
    for (lane, slot) in out.iter_mut().enumerate() {
        for half in 0..2 {
            let (row, column) = element(lane, half, trans);
            let (value, poison) = rows[row][column];
            *slot |= (value as u64) << (16 * half);
            taint |= (poison as u32) << lane;
        }
    }
    (out, taint)
}

/// The matrix that one register of every lane holds.
fn scatter(values: &[u64; 32], taint: u32, trans: bool) -> Rows {
    let mut rows = Rows::default();
    for (lane, value) in values.iter().enumerate() {
        for half in 0..2 {
            let (row, column) = element(lane, half, trans);
            rows[row][column] = ((value >> (16 * half)) as u16, taint >> lane & 1 == 1);
        }
    }
    rows
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Matrix) -> Result<Flow, Raise> {
    if let Some(park) = whole_warp(m, at, "a matrix instruction")? {
        return Ok(park);
    }
    match op {
        Matrix::Load { regs, addr, trans } => {
            let address = row_addresses(m, at, *addr, regs.len())?;
            for (i, &reg) in regs.iter().enumerate() {
                let rows = load(m, at, i, &address)?;
                let (out, taint) = gather(&rows, *trans);
                m.warp_mut(at).write(reg, at.lanes, &out, taint);
            }
            m.counters.shared_read += 128 * regs.len() as u64;
        }
        Matrix::Store { regs, addr, trans } => {
            let address = row_addresses(m, at, *addr, regs.len())?;
            for (i, &reg) in regs.iter().enumerate() {
                if m.checks.poison_in_shared {
                    no_poison(m, m.taint(at, reg), "is stored")?;
                }
                let rows = scatter(m.read(at, reg), m.taint(at, reg), *trans);
                store(m, at, i, &address, &rows)?;
            }
            m.counters.shared_written += 128 * regs.len() as u64;
        }
        Matrix::Transpose { dst, src } => {
            let rows = scatter(m.read(at, *src), m.taint(at, *src), false);
            let (out, taint) = gather(&rows, true);
            m.warp_mut(at).write(*dst, at.lanes, &out, taint);
        }
    }
    Ok(Flow::Next)
}

/// Row addresses: lane i gives row i. Only the first 8 lanes per matrix need a valid one.
fn row_addresses(m: &mut Machine, at: At, addr: Addr, matrices: usize) -> Result<[u64; 32], Raise> {
    let giving = At { lanes: ((1u64 << (8 * matrices)) - 1) as u32, ..at };
    let address = super::memory::addresses(m, giving, addr)?;
    for first in (0..8 * matrices).step_by(8) {
        let rows = address[first..first + 8].iter().copied();
        m.counters.ldmatrix_conflicts += super::memory::bank_conflicts(rows, 16);
    }
    Ok(address)
}

fn load(m: &mut Machine, at: At, matrix: usize, address: &[u64; 32]) -> Result<Rows, Raise> {
    let mut rows = Rows::default();
    for (r, row) in rows.iter_mut().enumerate() {
        let lane = matrix * 8 + r;
        let target = m.resolve(at, lane, Space::Shared, address[lane], 16, 16)?;
        m.note_read(at, lane, target, 16, Strength::Weak)?;
        for (c, element) in row.iter_mut().enumerate() {
            let (value, poison) = m.read_bytes(at, target.plus(2 * c), 2);
            *element = (value as u16, poison);
        }
    }
    Ok(rows)
}

fn store(m: &mut Machine, at: At, matrix: usize, address: &[u64; 32], rows: &Rows) -> Result<(), Raise> {
    for lane in lanes(0xff << (8 * matrix)) {
        let target = m.resolve(at, lane, Space::Shared, address[lane], 16, 16)?;
        m.check_write(at, lane, target, 16, Strength::Weak)?;
        if m.commit_write(at, lane, target, 16, Strength::Weak) {
            let what = "stmatrix writes one row twice".to_string();
            return Err(Raise::from(FaultKind::Illegal(what)).lane(lane));
        }
        for (c, &(value, poison)) in rows[lane % 8].iter().enumerate() {
            m.write_bytes(at, target.plus(2 * c), 2, value as u64, poison);
        }
    }
    Ok(())
}
