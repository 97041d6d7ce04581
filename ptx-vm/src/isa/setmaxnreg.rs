//! setmaxnreg: warps hand registers to each other through the pool of the block.

use super::{Form, Op};
use crate::ir::Kernel;
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, Wait, whole_warp};
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};

pub(crate) const FORMS: &[&str] = &["setmaxnreg.(inc|dec).sync.aligned.u32"];

/// Registers of a multiprocessor.
const REGISTER_FILE: u32 = 65536;

#[derive(Debug)]
pub(crate) struct SetMaxNReg {
    increase: bool,
    count: u32,
}

pub(crate) fn decode(_: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    form.next();
    let increase = form.take("inc");
    if !increase {
        form.require("dec")?;
    }
    for part in ["sync", "aligned", "u32"] {
        form.require(part)?;
    }
    form.end()?;
    match ops {
        [Operand::Int(n)] if (24..=256).contains(n) && n % 8 == 0 => {
            Ok(Op::SetMaxNReg(SetMaxNReg { increase, count: *n as u32 }))
        }
        _ => Err("the count must be a multiple of 8 from 24 to 256".into()),
    }
}

/// Registers per thread of a warp.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registers {
    count: u32,
    /// Set by `setmaxnreg`; at launch the compiler may have used fewer.
    exact: bool,
}

/// At launch: as many as fit the bounds of the kernel; unknown without bounds.
pub(crate) fn initial(kernel: &Kernel, threads: u32) -> Option<Registers> {
    let bounds = &kernel.bounds;
    if let Some(count) = bounds.max_registers {
        return Some(Registers { count, exact: true });
    }
    let required = bounds.required_threads.map(|r| r.iter().product());
    bounds.max_threads.or(required)?;
    let resident = threads.next_multiple_of(128) * bounds.min_blocks.unwrap_or(1).max(1);
    let count = (REGISTER_FILE / resident / 8 * 8).min(255);
    Some(Registers { count, exact: false })
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &SetMaxNReg) -> Result<Flow, Raise> {
    if let Some(park) = whole_warp(m, at, "setmaxnreg")? {
        return Ok(park);
    }
    let free = m.ctas[at.cta].free_registers;
    let Some(now) = m.warp(at).max_registers else { return Ok(Flow::Next) };
    let wrong = |what: &str| Raise::from(FaultKind::Registers(format!("{what} to {} from {}", op.count, now.count)));
    if op.increase {
        if op.count < now.count && now.exact {
            return Err(wrong("increase"));
        }
        let more = op.count.saturating_sub(now.count);
        if more > free {
            return Ok(Flow::Park(Wait::Progress(m.progress)));
        }
        m.ctas[at.cta].free_registers -= more;
    } else {
        if op.count > now.count {
            return Err(wrong("decrease"));
        }
        m.ctas[at.cta].free_registers += now.count - op.count;
        m.progress += 1;
    }
    m.warp_mut(at).max_registers = Some(Registers { count: op.count, exact: true });
    Ok(Flow::Next)
}
