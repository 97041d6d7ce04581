//! The instruction set: one file per family, each with its rows of the table, its decoding and its execution.

pub(crate) mod atomic;
pub(crate) mod barrier;
pub(crate) mod bulk;
pub(crate) mod cluster;
pub(crate) mod compare;
pub(crate) mod control;
pub(crate) mod convert;
pub(crate) mod cp_async;
pub(crate) mod data;
pub(crate) mod fence;
pub(crate) mod float;
pub(crate) mod half_float;
pub(crate) mod integer;
pub(crate) mod logic;
pub(crate) mod matrix;
pub(crate) mod mbarrier;
pub(crate) mod memory;
pub(crate) mod mma;
pub(crate) mod scalar;
pub(crate) mod setmaxnreg;
pub(crate) mod tensor;
pub(crate) mod warp;
pub(crate) mod wgmma;

use crate::lower::Cx;
use crate::machine::{At, Flow, Machine};
use crate::parse::ast::Operand;
use crate::report::Raise;

/// A decoded operation; the variants are the families.
#[derive(Debug)]
pub(crate) enum Op {
    Scalar(scalar::Scalar),
    Carry(integer::Carry),
    Compare(compare::Compare),
    Data(data::Data),
    Control(control::Control),
    Memory(memory::Access),
    Atomic(atomic::Atomic),
    Warp(warp::WarpOp),
    Barrier(barrier::BarrierOp),
    CpAsync(cp_async::CpAsync),
    Matrix(matrix::Matrix),
    Mma(mma::Mma),
    Fence(fence::Fence),
    Mbarrier(mbarrier::MbarrierOp),
    Bulk(bulk::Bulk),
    Tensor(tensor::Tensor),
    Wgmma(wgmma::Wgmma),
    Cluster(cluster::Cluster),
    SetMaxNReg(setmaxnreg::SetMaxNReg),
}

/// How a family decodes one opcode: the modifiers behind the opcode, then the operands.
type Decode = fn(&mut Cx, &mut Form, &[Operand]) -> Result<Op, String>;

/// Opcode → family. What each form does is said by the rows of the family's file.
const TABLE: &[(&[&str], Decode)] = &[
    (scalar::OPCODES, scalar::decode),
    (integer::CARRY_OPCODES, integer::decode_carry),
    (compare::OPCODES, compare::decode),
    (data::OPCODES, data::decode),
    (control::OPCODES, control::decode),
    (memory::OPCODES, memory::decode),
    (atomic::OPCODES, atomic::decode),
    (warp::OPCODES, warp::decode),
    (barrier::OPCODES, barrier::decode),
    (cp_async::OPCODES, cp_async::decode),
    (matrix::OPCODES, matrix::decode),
    (mma::OPCODES, mma::decode),
    (fence::OPCODES, fence::decode),
    (mbarrier::OPCODES, mbarrier::decode),
    (bulk::OPCODES, bulk::decode),
    (wgmma::OPCODES, wgmma::decode),
    (cluster::OPCODES, cluster::decode),
    (setmaxnreg::OPCODES, setmaxnreg::decode),
];

/// Decodes an instruction; an unknown form is an error.
pub(crate) fn decode(cx: &mut Cx, opcode: &str, operands: &[Operand]) -> Result<Op, String> {
    let base = opcode.split('.').next().unwrap_or("");
    let mut found = None;
    for (opcodes, decode) in TABLE {
        for entry in *opcodes {
            // An entry may name several parts (`bar.warp`); the longest match wins.
            let matches = opcode == *entry || opcode.strip_prefix(entry).is_some_and(|rest| rest.starts_with('.'));
            if matches && found.is_none_or(|(len, _)| entry.len() > len) {
                found = Some((entry.len(), *decode));
            }
        }
    }
    let Some((_, decode)) = found else {
        return Err(format!("unknown opcode {base}"));
    };
    decode(cx, &mut Form::new(opcode), operands)
}

/// Runs one instruction for the lanes of `at`.
pub(crate) fn execute(m: &mut Machine, at: At, op: &Op) -> Result<Flow, Raise> {
    match op {
        Op::Scalar(op) => scalar::execute(m, at, op),
        Op::Carry(op) => integer::execute_carry(m, at, op),
        Op::Compare(op) => compare::execute(m, at, op),
        Op::Data(op) => data::execute(m, at, op),
        Op::Control(op) => control::execute(m, at, op),
        Op::Memory(op) => memory::execute(m, at, op),
        Op::Atomic(op) => atomic::execute(m, at, op),
        Op::Warp(op) => warp::execute(m, at, op),
        Op::Barrier(op) => barrier::execute(m, at, op),
        Op::CpAsync(op) => cp_async::execute(m, at, op),
        Op::Matrix(op) => matrix::execute(m, at, op),
        Op::Mma(op) => mma::execute(m, at, op),
        Op::Fence(op) => fence::execute(m, at, op),
        Op::Mbarrier(op) => mbarrier::execute(m, at, op),
        Op::Bulk(op) => bulk::execute(m, at, op),
        Op::Tensor(op) => tensor::execute(m, at, op),
        Op::Wgmma(op) => wgmma::execute(m, at, op),
        Op::Cluster(op) => cluster::execute(m, at, op),
        Op::SetMaxNReg(op) => setmaxnreg::execute(m, at, op),
    }
}

/// The dotted parts of an opcode, taken from the front as a family recognises them.
pub(crate) struct Form<'a> {
    full: &'a str,
    parts: Vec<&'a str>,
    at: usize,
}

impl<'a> Form<'a> {
    pub fn new(full: &'a str) -> Self {
        Form { full, parts: full.split('.').collect(), at: 0 }
    }

    pub fn full(&self) -> &'a str {
        self.full
    }

    /// The next part, or "" at the end.
    pub fn peek(&self) -> &'a str {
        self.parts.get(self.at).copied().unwrap_or("")
    }

    pub fn next(&mut self) -> &'a str {
        let part = self.peek();
        self.at += 1;
        part
    }

    /// Takes the next part if it is `word`.
    pub fn take(&mut self, word: &str) -> bool {
        let found = self.peek() == word && !word.is_empty();
        self.at += found as usize;
        found
    }

    /// Takes the next part if `parse` knows it.
    pub fn take_with<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let found = parse(self.peek());
        self.at += found.is_some() as usize;
        found
    }

    pub fn require(&mut self, word: &str) -> Result<(), String> {
        if self.take(word) { Ok(()) } else { Err(self.unknown()) }
    }

    pub fn ty(&mut self) -> Result<crate::types::Ty, String> {
        self.take_with(crate::types::Ty::parse).ok_or_else(|| self.unknown())
    }

    /// Fails if parts are left that no one has recognised.
    pub fn end(&self) -> Result<(), String> {
        if self.at >= self.parts.len() { Ok(()) } else { Err(self.unknown()) }
    }

    pub fn unknown(&self) -> String {
        format!("unknown form of {} at .{}", self.parts[0], self.peek())
    }
}

/// Fails unless there are exactly `n` operands.
pub(crate) fn arity(operands: &[Operand], n: usize) -> Result<(), String> {
    if operands.len() == n { Ok(()) } else { Err(format!("expected {n} operands, found {}", operands.len())) }
}
