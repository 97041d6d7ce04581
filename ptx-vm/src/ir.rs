//! Decoded kernels: typed instructions whose operands are register slots.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::isa::Op;
use crate::parse::ast::Bounds;

/// A register slot of a warp, or of the constant bank of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reg(pub u32);

impl Reg {
    /// `_`: what is written here is dropped.
    pub const SINK: Reg = Reg(u32::MAX);
    const CONST: u32 = 1 << 31;

    pub fn constant(index: usize) -> Reg {
        Reg(Self::CONST | index as u32)
    }

    /// Index into the constant bank, if the slot is one.
    pub fn constant_index(self) -> Option<usize> {
        (self.0 & Self::CONST != 0 && self != Self::SINK).then_some((self.0 & !Self::CONST) as usize)
    }

    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A predicate register; one bit per lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pred {
    pub index: u32,
    pub negated: bool,
}

impl Pred {
    /// Always true; the value of slot 0.
    pub const TRUE: Pred = Pred { index: 0, negated: false };
    pub const FALSE: Pred = Pred { index: 0, negated: true };
    /// `_`
    pub const SINK: Pred = Pred { index: u32::MAX, negated: false };
}

/// `[base + offset]`; symbols are an offset to a constant zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addr {
    pub base: Reg,
    pub offset: i64,
}

/// A decoded instruction.
#[derive(Debug)]
pub(crate) struct Instr {
    pub guard: Option<Pred>,
    pub op: Op,
    /// Registers read and written, for the hazards of asynchronous instructions.
    pub uses: Box<[Reg]>,
    pub defs: Box<[Reg]>,
}

/// Where an instruction comes from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    pub ptx_line: u32,
    pub opcode: String,
    /// Index into [`Kernel::files`] and line, from `.loc`.
    pub file: u32,
    pub line: u32,
}

/// A special register whose value does not change while a thread runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    WarpId,
    NumWarps,
    LaneMask(LaneMask),
    SmId,
    NumSms,
    GridId,
    ClusterId(usize),
    NumClusters(usize),
    ClusterCtaid(usize),
    ClusterNctaid(usize),
    ClusterCtaRank,
    ClusterNctaRank,
    IsExplicitCluster,
    DynamicSharedBytes,
    TotalSharedBytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneMask {
    Eq,
    Lt,
    Le,
    Gt,
    Ge,
}

/// A kernel parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Param {
    pub offset: usize,
    pub bytes: usize,
}

/// A kernel ready to launch.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub name: String,
    pub code: Vec<Instr>,
    pub sources: Vec<Source>,
    pub files: BTreeMap<u32, Arc<str>>,
    pub num_regs: usize,
    pub num_preds: usize,
    pub constants: Vec<u64>,
    pub specials: Vec<(Reg, Special)>,
    pub params: Vec<Param>,
    pub param_bytes: usize,
    /// End of the static shared variables; addresses start at [`SHARED_BASE`].
    pub static_shared_end: usize,
    /// Where dynamic shared memory starts.
    pub dynamic_shared: usize,
    pub local_bytes: usize,
    pub bounds: Bounds,
    pub uses_wgmma: bool,
}

/// Address of the first byte of shared memory: zero stays invalid, so that null pointers are found.
pub(crate) const SHARED_BASE: usize = 1024;
