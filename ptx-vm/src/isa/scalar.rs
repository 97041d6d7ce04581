//! Pure per-lane arithmetic: every form is a row of a table that maps it to a function of up to four values.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::{Form, Op, arity, convert, float, half_float, integer, logic};
use crate::ir::Reg;
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine};
use crate::parse::ast::Operand;
use crate::report::Raise;
use crate::types::{sign_extend, truncate};

/// Rounding of a floating-point result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Round {
    #[default]
    Nearest,
    /// Ties away from zero; only for conversions to tf32.
    NearestAway,
    Zero,
    Down,
    Up,
}

/// Modifiers that change a result without changing the type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mods {
    pub round: Round,
    /// Subnormal inputs and results are zero.
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    /// min/max: NaN wins.
    pub nan: bool,
    /// cvt: round to an integral value.
    pub integral: bool,
}

/// What a form computes. Inputs may carry bits above the operand type; results never do.
pub(crate) type LaneFn = fn(Mods, u64, u64, u64, u64) -> u64;

/// A row of the table: a form, the modifiers it takes, its operand count and its meaning.
pub(crate) struct Row {
    /// Opcode and types, modifiers left out: `mad.wide.u32`.
    pub form: &'static str,
    pub modifiers: &'static [&'static str],
    pub sources: usize,
    pub run: LaneFn,
}

/// Shorthand for the tables.
pub(crate) const fn row(form: &'static str, modifiers: &'static [&'static str], sources: usize, run: LaneFn) -> Row {
    Row { form, modifiers, sources, run }
}

/// All scalar rows by form.
static TABLE: LazyLock<HashMap<&'static str, &'static Row>> = LazyLock::new(|| {
    let tables = [integer::ROWS, logic::ROWS, float::ROWS, float::APPROX_ROWS, half_float::ROWS, convert::ROWS];
    tables.into_iter().flatten().copied().flatten().map(|row| (row.form, row)).collect()
});

/// Opcodes whose forms are rows.
pub(crate) const OPCODES: &[&str] = &[
    "add", "sub", "mul", "mul24", "mad", "mad24", "sad", "div", "rem", "abs", "neg", "min", "max", "popc", "clz",
    "bfind", "brev", "bfe", "bfi", "bmsk", "szext", "fns", "dp4a", "dp2a", "fma", "rcp", "sqrt", "rsqrt", "sin", "cos",
    "lg2", "ex2", "tanh", "copysign", "and", "or", "xor", "not", "cnot", "lop3", "shl", "shr", "shf", "prmt", "cvt",
];

/// A decoded scalar operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar {
    run: LaneFn,
    mods: Mods,
    /// From and to how many bytes to sign-extend: a narrow signed result in a wider register (ISA,
    /// "Operand Size Exceeding Instruction-Type Size").
    widen: Option<(usize, usize)>,
    dst: Reg,
    src: [Reg; 4],
}

/// The row of a form and the modifiers found in it.
pub(crate) fn lookup(full: &str) -> Result<(&'static Row, Mods), String> {
    let mut mods = Mods::default();
    let mut key = String::with_capacity(full.len());
    let mut seen = vec![];
    for part in full.split('.') {
        if set_modifier(&mut mods, part) {
            seen.push(part);
        } else {
            if !key.is_empty() {
                key.push('.');
            }
            key.push_str(part);
        }
    }
    let row = TABLE.get(key.as_str()).ok_or_else(|| format!("unknown form {full}"))?;
    match seen.iter().find(|part| !row.modifiers.contains(part)) {
        Some(part) => Err(format!("unknown form {full}: .{part} does not go with {}", row.form)),
        None => Ok((row, mods)),
    }
}

fn set_modifier(mods: &mut Mods, part: &str) -> bool {
    match part {
        "rn" | "rni" => mods.round = Round::Nearest,
        "rna" => mods.round = Round::NearestAway,
        "rz" | "rzi" => mods.round = Round::Zero,
        "rm" | "rmi" => mods.round = Round::Down,
        "rp" | "rpi" => mods.round = Round::Up,
        "ftz" => mods.ftz = true,
        "sat" | "satfinite" => mods.sat = true,
        "relu" => mods.relu = true,
        "NaN" => mods.nan = true,
        _ => return false,
    }
    mods.integral |= matches!(part, "rni" | "rzi" | "rmi" | "rpi");
    true
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, operands: &[Operand]) -> Result<Op, String> {
    if form.full().ends_with(".pred") {
        return super::compare::decode_predicate_logic(cx, form, operands);
    }
    let (row, mods) = lookup(form.full())?;
    arity(operands, row.sources + 1)?;
    let mut src = [cx.constant(0); 4];
    for (slot, operand) in src.iter_mut().zip(&operands[1..]) {
        *slot = cx.value(operand)?;
    }
    let dst = cx.dst(&operands[0])?;
    let widen = convert::sign_extension(row.form, cx.width(&operands[0]));
    Ok(Op::Scalar(Scalar { run: row.run, mods, widen, dst, src }))
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Scalar) -> Result<Flow, Raise> {
    let (consts, warp) = m.registers(at);
    let [a, b, c, d] = op.src.map(|r| warp.read(consts, r));
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = (op.run)(op.mods, a[lane], b[lane], c[lane], d[lane]);
    }
    if let Some((from, to)) = op.widen {
        out = out.map(|v| truncate(sign_extend(v, from) as u64, to));
    }
    let taint = op.src.iter().fold(0, |t, &r| t | warp.taint(r));
    warp.write(op.dst, at.lanes, &out, taint);
    Ok(Flow::Next)
}
