//! Pure per-lane arithmetic: every form is a row of a table that maps it to a function of up to four values.

use super::{Op, arity, convert};
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
    /// Clamped to [0, 1], or an integer to the range of its type.
    pub sat: bool,
    /// What overflows is the largest finite value.
    pub finite: bool,
    pub relu: bool,
    /// min/max: NaN wins.
    pub nan: bool,
    /// cvt: round to an integral value.
    pub integral: bool,
}

/// What a form computes. Inputs may carry bits above the operand type; results never do.
pub(crate) type LaneFn = fn(Mods, u64, u64, u64, u64) -> u64;

/// A row of the table: forms, their operand count and their meaning.
pub(crate) struct Row {
    /// A pattern; see [`super::form`].
    pub form: &'static str,
    pub sources: usize,
    pub run: LaneFn,
}

/// Shorthand for the tables.
pub(crate) const fn row(form: &'static str, sources: usize, run: LaneFn) -> Row {
    Row { form, sources, run }
}

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

/// The modifiers among the parts of a form.
fn modifiers(form: &str) -> Mods {
    let mut mods = Mods::default();
    for part in form.split('.') {
        match part {
            "rn" | "rni" => mods.round = Round::Nearest,
            "rna" => mods.round = Round::NearestAway,
            "rz" | "rzi" => mods.round = Round::Zero,
            "rm" | "rmi" => mods.round = Round::Down,
            "rp" | "rpi" => mods.round = Round::Up,
            "ftz" => mods.ftz = true,
            "sat" => mods.sat = true,
            "satfinite" => mods.finite = true,
            "relu" => mods.relu = true,
            "NaN" => mods.nan = true,
            _ => {}
        }
        mods.integral |= matches!(part, "rni" | "rzi" | "rmi" | "rpi");
    }
    mods
}

/// Decodes one of the forms of `row`.
pub(crate) fn decode_row(cx: &mut Cx, row: &Row, form: &str, operands: &[Operand]) -> Result<Op, String> {
    arity(operands, row.sources + 1)?;
    let mut src = [cx.constant(0); 4];
    for (slot, operand) in src.iter_mut().zip(&operands[1..]) {
        *slot = cx.value(operand)?;
    }
    let dst = cx.dst(&operands[0])?;
    let widen = convert::sign_extension(form, cx.width(&operands[0]));
    Ok(Op::Scalar(Scalar { run: row.run, mods: modifiers(form), widen, dst, src }))
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
