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
mod form;
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

use std::collections::HashMap;
use std::sync::LazyLock;

pub(crate) use form::Form;
use form::Pattern;

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
pub(crate) type Decode = fn(&mut Cx, &mut Form, &[Operand]) -> Result<Op, String>;

/// The forms of a family.
enum Forms {
    /// Patterns that the family decodes.
    Patterns(&'static [&'static str], Decode),
    /// Rows of pure arithmetic, which say themselves what they do.
    Rows(&'static [&'static [scalar::Row]]),
}

use Forms::{Patterns, Rows};

/// Every form that is accepted, by family. What each does is said in the family's file.
const TABLE: &[(&str, Forms)] = &[
    ("integer", Rows(integer::ROWS)),
    ("carry", Patterns(integer::CARRY_FORMS, integer::decode_carry)),
    ("logic", Rows(logic::ROWS)),
    ("float", Rows(float::ROWS)),
    ("approx", Rows(float::APPROX_ROWS)),
    ("half", Rows(half_float::ROWS)),
    ("convert", Rows(convert::ROWS)),
    ("compare", Patterns(compare::FORMS, compare::decode)),
    ("data", Patterns(data::FORMS, data::decode)),
    ("control", Patterns(control::FORMS, control::decode)),
    ("memory", Patterns(memory::FORMS, memory::decode)),
    ("atomic", Patterns(atomic::FORMS, atomic::decode)),
    ("warp", Patterns(warp::FORMS, warp::decode)),
    ("barrier", Patterns(barrier::FORMS, barrier::decode)),
    ("cp_async", Patterns(cp_async::FORMS, cp_async::decode)),
    ("matrix", Patterns(matrix::FORMS, matrix::decode)),
    ("mma", Patterns(mma::FORMS, mma::decode)),
    ("fence", Patterns(fence::FORMS, fence::decode)),
    ("mbarrier", Patterns(mbarrier::FORMS, mbarrier::decode)),
    ("bulk", Patterns(bulk::FORMS, bulk::decode)),
    ("tensor", Patterns(tensor::FORMS, tensor::decode)),
    ("wgmma", Patterns(wgmma::FORMS, wgmma::decode)),
    ("cluster", Patterns(cluster::FORMS, cluster::decode)),
    ("setmaxnreg", Patterns(setmaxnreg::FORMS, setmaxnreg::decode)),
];

/// The patterns by opcode, and the forms of the rows, which are few enough to be listed.
struct Index {
    patterns: HashMap<&'static str, Vec<(Pattern, Decode)>>,
    rows: HashMap<String, &'static scalar::Row>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut index = Index { patterns: HashMap::new(), rows: HashMap::new() };
    for (_, forms) in TABLE {
        match forms {
            Patterns(patterns, decode) => {
                for text in *patterns {
                    index.patterns.entry(form::base(text)).or_default().push((Pattern::new(text), *decode));
                }
            }
            Rows(rows) => {
                for row in rows.iter().copied().flatten() {
                    index.rows.extend(Pattern::new(row.form).forms().into_iter().map(|form| (form, row)));
                }
            }
        }
    }
    index
});

/// Every accepted form with the name of its family.
pub(crate) fn forms() -> Vec<(&'static str, String)> {
    let mut all = vec![];
    for (family, forms) in TABLE {
        let patterns: Vec<&'static str> = match forms {
            Patterns(patterns, _) => patterns.to_vec(),
            Rows(rows) => rows.iter().copied().flatten().map(|row| row.form).collect(),
        };
        all.extend(patterns.into_iter().flat_map(|text| Pattern::new(text).forms()).map(|form| (*family, form)));
    }
    all
}

/// The row of a form of pure arithmetic.
pub(crate) fn row_of(form: &str) -> Option<&'static scalar::Row> {
    INDEX.rows.get(form).copied()
}

/// Decodes an instruction; an unknown form is an error.
pub(crate) fn decode(cx: &mut Cx, opcode: &str, operands: &[Operand]) -> Result<Op, String> {
    if let Some(row) = row_of(opcode) {
        return scalar::decode_row(cx, row, opcode, operands);
    }
    // A kernel repeats few opcodes: each is matched once.
    if let Some(decode) = cx.decoders.get(opcode).copied() {
        return decode(cx, &mut Form::new(opcode), operands);
    }
    let base = form::base(opcode);
    let Some(patterns) = INDEX.patterns.get(base) else {
        let rows = INDEX.rows.keys().any(|form| form::base(form) == base);
        return Err(if rows { format!("unknown form {opcode}") } else { format!("unknown opcode {base}") });
    };
    let found = patterns.iter().find(|(pattern, _)| pattern.matches(opcode));
    let (_, decode) = found.ok_or_else(|| format!("unknown form {opcode}"))?;
    cx.decoders.insert(opcode.to_string(), *decode);
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

/// Fails unless there are exactly `n` operands.
pub(crate) fn arity(operands: &[Operand], n: usize) -> Result<(), String> {
    if operands.len() == n { Ok(()) } else { Err(format!("expected {n} operands, found {}", operands.len())) }
}
