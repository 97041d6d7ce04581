//! Branches, calls and the end of threads.

use super::{Form, Op, arity};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, Wait, lanes};
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};

pub(crate) const FORMS: &[&str] = &[
    "bra[.uni]",
    "call[.uni]",
    "ret[.uni]",
    "exit",
    "trap",
    "nanosleep.u32",
    "pmevent[.mask]",
    "prefetch[.global|.local].(L1|L2)",
    "prefetch.global.L2::(evict_last|evict_normal)",
    "prefetch[.const|.param].tensormap",
    "prefetchu.L1",
    "applypriority[.global].L2::evict_normal",
    "discard[.global].L2",
];

#[derive(Debug)]
pub(crate) enum Control {
    Branch(u32),
    /// Copies arguments to the parameters of the function at `entry` and goes there.
    Call {
        entry: u32,
        copies: Box<[Copy]>,
    },
    Return,
    Exit,
    Trap,
    /// Lets others run.
    Sleep,
    /// Without effect here.
    Nothing,
}

/// Bytes of a call parameter in per-thread memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    from: usize,
    to: usize,
    bytes: usize,
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    let control = match form.next() {
        "bra" => {
            form.take("uni");
            arity(ops, 1)?;
            Control::Branch(cx.label(&ops[0])?)
        }
        "call" => {
            form.take("uni");
            call(cx, ops)?
        }
        "ret" => {
            form.take("uni");
            Control::Return
        }
        "exit" => Control::Exit,
        "trap" => Control::Trap,
        "nanosleep" => {
            form.require("u32")?;
            Control::Sleep
        }
        "pmevent" | "applypriority" | "discard" | "prefetch" | "prefetchu" => {
            while !form.peek().is_empty() {
                form.next();
            }
            Control::Nothing
        }
        _ => return Err(form.unknown()),
    };
    form.end()?;
    Ok(Op::Control(control))
}

/// `call (results), name, (arguments)`, `call name, (arguments)` or `call name`. Parameters lie at
/// fixed places, so results are copied by making caller and callee share them: the callee's return
/// variables are where the caller's are read from.
fn call(cx: &mut Cx, ops: &[Operand]) -> Result<Control, String> {
    let (results, rest) = match ops {
        [Operand::List(results), rest @ ..] => (results.as_slice(), rest),
        rest => (&[][..], rest),
    };
    let (name, arguments) = match rest {
        [name] => (name, &[][..]),
        [name, Operand::List(arguments)] => (name, arguments.as_slice()),
        _ => return Err("indirect calls are not supported".into()),
    };
    let callee = cx.callee(name)?;
    if callee.params.len() != arguments.len() || callee.returns.len() != results.len() {
        return Err("call with another number of parameters than the function has".into());
    }
    let mut copies = vec![];
    for (argument, &(to, bytes)) in arguments.iter().zip(&callee.params) {
        copies.push(Copy { from: cx.call_param(argument)? as usize, to: to as usize, bytes });
    }
    for (result, &(from, _)) in results.iter().zip(&callee.returns) {
        cx.alias_result(result, from)?;
    }
    Ok(Control::Call { entry: callee.entry, copies: copies.into() })
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Control) -> Result<Flow, Raise> {
    Ok(match op {
        Control::Branch(target) => Flow::Jump(*target),
        Control::Call { entry, copies } => {
            let warp = m.warp_mut(at);
            for copy in copies {
                for lane in lanes(at.lanes) {
                    let base = lane * warp.local_bytes;
                    let local = warp.local.clone_range(base + copy.from, copy.bytes);
                    warp.local.copy_from(base + copy.to, &local, 0, copy.bytes);
                }
            }
            Flow::Call(*entry)
        }
        Control::Return => Flow::Return,
        Control::Exit => Flow::Exit,
        Control::Trap => return Err(FaultKind::Trap.into()),
        Control::Sleep => {
            // Others go first; a thread that sleeps in a loop is polling.
            let seen = m.progress;
            let warp = m.warp_mut(at);
            warp.priority = warp.priority.saturating_sub(1 << 40);
            let again = warp.sleeps == (at.pc, seen);
            warp.sleeps = (at.pc, seen);
            if again { Flow::NextThen(Wait::Progress(seen)) } else { Flow::Next }
        }
        Control::Nothing => Flow::Next,
    })
}

/// What must not be left behind when lanes exit.
pub(crate) fn check_exit(m: &mut Machine, at: At) -> Result<(), Raise> {
    super::cp_async::check_exit(m, at)?;
    super::bulk::check_exit(m, at)?;
    super::wgmma::check_exit(m, at)
}
