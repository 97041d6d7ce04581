//! A warp: registers in structure-of-arrays form, and its lanes in groups that share a program counter.

use super::SharedClock;
use crate::ir::{Pred, Reg};
use crate::isa::bulk::BulkGroups;
use crate::isa::cp_async::CopyGroups;
use crate::isa::memory::Scope;
use crate::isa::setmaxnreg::Registers;
use crate::isa::wgmma::WgmmaState;
use crate::mem::bytes::Bytes;
use crate::mem::clock::Clock;

/// Why a group of lanes does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Ready,
    /// For these lanes to arrive at the same instruction.
    Lanes(u32),
    /// At a named barrier of the block.
    Barrier(u32),
    /// Until [`super::Machine::progress`] has moved on from this value.
    Progress(u64),
    /// At the barrier of the cluster.
    Cluster,
}

/// Lanes at the same instruction.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub pc: u32,
    pub lanes: u32,
    pub wait: Wait,
    /// The instruction that waits.
    pub waits_at: u32,
    /// Return addresses.
    pub stack: Vec<u32>,
}

/// The state of one warp.
pub(crate) struct Warp {
    regs: Vec<[u64; 32]>,
    taint: Vec<u32>,
    preds: Vec<u32>,
    pred_taint: Vec<u32>,
    pub carry: u32,
    pub carry_taint: u32,
    pub groups: Vec<Group>,
    /// Lanes that have a thread.
    pub threads: u32,
    pub exited: u32,
    /// Per-thread memory, lane after lane.
    pub local: Bytes,
    pub local_bytes: usize,
    /// Epoch of what the lanes do now.
    pub epoch: u32,
    pub clocks: [SharedClock; 32],
    pub priority: u64,
    /// What each lane knew at its last fence, and the fence's scope.
    pub fences: [Option<(SharedClock, Scope)>; 32],
    /// What each lane's relaxed reads have seen since.
    pub seen: [Clock; 32],
    pub copies: CopyGroups,
    pub bulk: BulkGroups,
    pub wgmma: WgmmaState,
    /// Registers per thread, as `setmaxnreg` set them; `None` if the launch bounds do not tell.
    pub max_registers: Option<Registers>,
    /// Lanes that have arrived at the barrier of the cluster and not yet waited, and the phase then.
    pub cluster_arrived: u32,
    pub cluster_phase: [u64; 32],
    /// Last strong load: instruction, value and how often it repeated, to find polling loops.
    pub poll: (u32, u64, u32),
    /// Polls of mbarriers in vain (instruction and lanes) since this progress.
    pub polls: (u64, Vec<(u32, u32)>),
    /// Barriers with a reduction at which the warp has arrived and not yet taken the result.
    pub voted: u32,
    /// Where lanes slept last, and the progress then.
    pub sleeps: (u32, u64),
}

impl Warp {
    pub fn new(num_regs: usize, num_preds: usize, threads: u32, local_bytes: usize) -> Self {
        let clock = SharedClock::default();
        let mut warp = Warp {
            regs: vec![[u64::MAX; 32]; num_regs],
            taint: vec![u32::MAX; num_regs],
            preds: vec![0; num_preds],
            pred_taint: vec![u32::MAX; num_preds],
            carry: 0,
            carry_taint: u32::MAX,
            groups: vec![Group { pc: 0, lanes: threads, wait: Wait::Ready, waits_at: 0, stack: vec![] }],
            threads,
            exited: 0,
            local: Bytes::poisoned(local_bytes * 32),
            local_bytes,
            epoch: 1,
            clocks: std::array::from_fn(|_| clock.clone()),
            priority: 0,
            fences: Default::default(),
            seen: Default::default(),
            copies: CopyGroups::default(),
            bulk: BulkGroups::default(),
            wgmma: WgmmaState::new(num_regs),
            max_registers: None,
            cluster_arrived: 0,
            cluster_phase: [0; 32],
            poll: (0, 0, 0),
            polls: (0, vec![]),
            voted: 0,
            sleeps: (u32::MAX, 0),
        };
        warp.preds[0] = u32::MAX;
        warp.pred_taint[0] = 0;
        warp
    }

    /// Lanes that still run.
    pub fn alive(&self) -> u32 {
        self.threads & !self.exited
    }

    #[inline]
    pub fn read<'a>(&'a self, constants: &'a [[u64; 32]], reg: Reg) -> &'a [u64; 32] {
        match reg.constant_index() {
            Some(index) => &constants[index],
            None => &self.regs[reg.index()],
        }
    }

    /// Lanes in which the register holds poison.
    #[inline]
    pub fn taint(&self, reg: Reg) -> u32 {
        if reg.constant_index().is_some() { 0 } else { self.taint[reg.index()] }
    }

    /// Writes `values` for the lanes of `mask`.
    #[inline]
    pub fn write(&mut self, reg: Reg, mask: u32, values: &[u64; 32], taint: u32) {
        if reg == Reg::SINK {
            return;
        }
        let slot = &mut self.regs[reg.index()];
        if mask == u32::MAX {
            *slot = *values;
        } else {
            for (lane, (old, new)) in slot.iter_mut().zip(values).enumerate() {
                *old = if mask >> lane & 1 == 1 { *new } else { *old };
            }
        }
        let old = &mut self.taint[reg.index()];
        *old = *old & !mask | taint & mask;
    }

    /// Value of a predicate, one bit per lane.
    #[inline]
    pub fn pred(&self, pred: Pred) -> u32 {
        let value = self.preds[pred.index as usize];
        if pred.negated { !value } else { value }
    }

    #[inline]
    pub fn pred_taint(&self, pred: Pred) -> u32 {
        self.pred_taint[pred.index as usize]
    }

    #[inline]
    pub fn write_pred(&mut self, pred: Pred, mask: u32, value: u32, taint: u32) {
        if pred == Pred::SINK {
            return;
        }
        let slot = &mut self.preds[pred.index as usize];
        *slot = *slot & !mask | value & mask;
        let slot = &mut self.pred_taint[pred.index as usize];
        *slot = *slot & !mask | taint & mask;
    }
}
