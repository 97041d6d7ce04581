//! Moving values: mov with packing, address conversion, clocks.

use super::{Form, Op, arity};
use crate::ir::{Pred, Reg};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, lanes, no_poison};
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};
use crate::types::{Space, Ty, truncate};

pub(crate) const FORMS: &[&str] = &[
    "mov.(b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64)",
    "cvta.(const|global|local|shared|shared::cta|shared::cluster|param|param::entry).u64",
    "cvta.to.(const|global|local|shared|shared::cta|shared::cluster|param|param::entry).u64",
    "isspacep.(const|global|local|shared|shared::cta|shared::cluster|param|param::entry)",
    "createpolicy.fractional(.L2::evict_last|.L2::evict_normal|.L2::evict_first|.L2::evict_unchanged)\
     [.L2::evict_first|.L2::evict_unchanged].b64",
];

#[derive(Debug)]
pub(crate) enum Data {
    Mov {
        dst: Reg,
        src: Reg,
        bytes: usize,
    },
    /// `{a, b, ...}` from one register, lowest first.
    Unpack {
        dst: Box<[Reg]>,
        src: Reg,
        bytes: usize,
    },
    Pack {
        dst: Reg,
        src: Box<[Reg]>,
        bytes: usize,
    },
    /// A clock: thread-instructions so far.
    Clock {
        dst: Reg,
        bytes: usize,
    },
    ToGeneric {
        dst: Reg,
        src: Reg,
        space: Space,
        bytes: usize,
    },
    FromGeneric {
        dst: Reg,
        src: Reg,
        space: Space,
        bytes: usize,
    },
    IsSpace {
        dst: Pred,
        src: Reg,
        space: Space,
    },
}

/// A state space as instructions name it.
pub(crate) fn space(word: &str) -> Option<Space> {
    Some(match word {
        "global" => Space::Global,
        "shared" | "shared::cta" => Space::Shared,
        "shared::cluster" => Space::SharedCluster,
        "param" | "param::entry" | "param::func" => Space::Param,
        "local" => Space::Local,
        "const" => Space::Const,
        _ => return None,
    })
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    let data = match form.next() {
        "mov" => mov(cx, form, ops)?,
        // A cache policy is opaque and has no effect here.
        "createpolicy" => {
            while form.take_with(|w| (w != "b64").then_some(())).is_some() {}
            form.require("b64")?;
            if !(1..=2).contains(&ops.len()) {
                return Err("wrong number of operands".into());
            }
            Data::Mov { dst: cx.dst(&ops[0])?, src: cx.constant(0), bytes: 8 }
        }
        "cvta" => {
            let to = form.take("to");
            let space = form.take_with(space).ok_or_else(|| form.unknown())?;
            let bytes = form.ty()?.bytes();
            arity(ops, 2)?;
            let (src, dst) = (cx.value(&ops[1])?, cx.dst(&ops[0])?);
            if to { Data::FromGeneric { dst, src, space, bytes } } else { Data::ToGeneric { dst, src, space, bytes } }
        }
        _ => {
            let space = form.take_with(space).ok_or_else(|| form.unknown())?;
            arity(ops, 2)?;
            Data::IsSpace { src: cx.value(&ops[1])?, dst: cx.pred_dst(&ops[0])?, space }
        }
    };
    form.end()?;
    Ok(Op::Data(data))
}

fn mov(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Data, String> {
    let ty = form.ty()?;
    let bytes = ty.bytes();
    arity(ops, 2)?;
    if let Operand::Name { name: "%clock" | "%clock_hi" | "%clock64" | "%globaltimer" | "%globaltimer_lo", .. } = ops[1]
    {
        return Ok(Data::Clock { dst: cx.dst(&ops[0])?, bytes });
    }
    let part = |n: usize| {
        if n > 0 && bytes.is_multiple_of(n) && bytes <= 8 {
            Ok(bytes / n)
        } else {
            Err(format!("mov.{ty:?} of {n} parts"))
        }
    };
    Ok(match (&ops[0], &ops[1]) {
        (Operand::Vector(d), src) if !matches!(src, Operand::Vector(_)) => {
            let bytes = part(d.len())?;
            let src = cx.value(src)?;
            Data::Unpack { dst: cx.dsts(&ops[0])?.into(), src, bytes }
        }
        (dst, Operand::Vector(s)) if !matches!(dst, Operand::Vector(_)) => {
            let bytes = part(s.len())?;
            let src = cx.values(&ops[1])?.into();
            Data::Pack { dst: cx.dst(dst)?, src, bytes }
        }
        (dst, src) if ty != Ty::B128 => {
            let src = cx.typed_value(src, ty)?;
            Data::Mov { dst: cx.dst(dst)?, src, bytes }
        }
        _ => return Err(form.unknown()),
    })
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Data) -> Result<Flow, Raise> {
    match op {
        Data::Mov { dst, src, bytes } => {
            let (constants, warp) = m.registers(at);
            let out = warp.read(constants, *src).map(|v| truncate(v, *bytes));
            let taint = warp.taint(*src);
            warp.write(*dst, at.lanes, &out, taint);
        }
        Data::Unpack { dst, src, bytes } => {
            let (constants, warp) = m.registers(at);
            let value = *warp.read(constants, *src);
            let taint = warp.taint(*src);
            for (i, dst) in dst.iter().enumerate() {
                let out = value.map(|v| truncate(v >> (8 * bytes * i), *bytes));
                warp.write(*dst, at.lanes, &out, taint);
            }
        }
        Data::Pack { dst, src, bytes } => {
            let (constants, warp) = m.registers(at);
            let (mut out, mut taint) = ([0; 32], 0);
            for (i, src) in src.iter().enumerate() {
                let part = warp.read(constants, *src);
                for lane in 0..32 {
                    out[lane] |= truncate(part[lane], *bytes) << (8 * bytes * i);
                }
                taint |= warp.taint(*src);
            }
            warp.write(*dst, at.lanes, &out, taint);
        }
        Data::Clock { dst, bytes } => {
            let out = [truncate(m.counters.instructions, *bytes); 32];
            m.warp_mut(at).write(*dst, at.lanes, &out, 0);
        }
        Data::ToGeneric { dst, src, space, bytes } => {
            let out = m.read(at, *src).map(|v| crate::machine::to_generic(*space, v));
            let taint = m.taint(at, *src);
            m.warp_mut(at).write(*dst, at.lanes, &out.map(|v| truncate(v, *bytes)), taint);
        }
        Data::FromGeneric { dst, src, space, bytes } => {
            no_poison(m, m.taint(at, *src), "is converted as an address")?;
            let values = *m.read(at, *src);
            let mut out = [0; 32];
            for lane in lanes(at.lanes) {
                let (found, address) = crate::machine::from_generic(values[lane]);
                if !same_space(found, *space) && values[lane] != 0 {
                    let text = format!("cvta.to.{space:?} of 0x{:x}, which is {found:?}", values[lane]);
                    return Err(Raise::from(FaultKind::Illegal(text)).lane(lane));
                }
                out[lane] = truncate(address, *bytes);
            }
            m.warp_mut(at).write(*dst, at.lanes, &out, 0);
        }
        Data::IsSpace { dst, src, space } => {
            let values = m.read(at, *src);
            let holds = (0..32).fold(0, |h, l| {
                let found = crate::machine::from_generic(values[l]).0;
                h | (same_space(found, *space) as u32) << l
            });
            let taint = m.taint(at, *src);
            m.warp_mut(at).write_pred(*dst, at.lanes, holds, taint);
        }
    }
    Ok(Flow::Next)
}

/// Constant memory lies in the global window, shared memory of blocks and clusters in one.
fn same_space(a: Space, b: Space) -> bool {
    let class = |s| match s {
        Space::Shared | Space::SharedCluster => 0,
        Space::Global | Space::Const | Space::Generic => 1,
        Space::Local => 2,
        Space::Param => 3,
    };
    class(a) == class(b)
}
