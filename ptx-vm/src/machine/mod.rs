//! The machine: resident blocks, their warps, and the memories they share.

mod access;
mod asynchronous;
mod cta;
mod launch;
mod report;
mod schedule;
mod step;
mod sync;
mod warp;

use std::rc::Rc;

pub(crate) use access::{Strength, Target, conflict, from_generic, map_to_rank, rank_of, to_generic};
pub(crate) use asynchronous::{AsyncOp, Segment, Signal};
pub(crate) use cta::Cta;
pub(crate) use launch::{Geometry, run};
pub(crate) use step::{no_poison, whole_warp};
pub(crate) use warp::{Group, Wait, Warp};

use crate::counters::Counters;
use crate::gpu::Checks;
use crate::ir::Kernel;
use crate::mem::global::Global;
use crate::rng::Rng;

/// The lanes that execute an instruction, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    /// Index into [`Machine::ctas`].
    pub cta: usize,
    pub warp: usize,
    pub lanes: u32,
    pub pc: u32,
}

/// What happens to the lanes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// On to the next instruction.
    Next,
    /// They go to an instruction.
    Jump(u32),
    Call(u32),
    Return,
    Exit,
    /// Try this instruction again when the wait is over.
    Park(Wait),
    /// Go on behind this instruction when the wait is over.
    NextThen(Wait),
    /// These lanes are done; the others try again when their lanes have come together.
    Partial {
        done: u32,
        wait: Wait,
    },
}

/// A launch being executed.
pub(crate) struct Machine<'a> {
    pub kernel: &'a Kernel,
    pub constants: Vec<[u64; 32]>,
    pub global: &'a mut Global,
    pub params: Vec<u8>,
    pub geometry: Geometry,
    pub ctas: Vec<Cta>,
    pub checks: Checks,
    pub rng: Rng,
    pub counters: Counters,
    /// Counts events that can end a wait.
    pub progress: u64,
    pub budget: u64,
    pub locations: sync::Locations,
    /// Copies under way that an mbarrier will announce.
    pub async_ops: Vec<AsyncOp>,
}

impl Machine<'_> {
    /// The constant bank and the registers of the warp of `at`.
    #[inline]
    pub fn registers(&mut self, at: At) -> (&[[u64; 32]], &mut Warp) {
        (&self.constants, &mut self.ctas[at.cta].warps[at.warp])
    }

    #[inline]
    pub fn warp(&self, at: At) -> &Warp {
        &self.ctas[at.cta].warps[at.warp]
    }

    #[inline]
    pub fn warp_mut(&mut self, at: At) -> &mut Warp {
        &mut self.ctas[at.cta].warps[at.warp]
    }

    /// Values of a register for all lanes.
    #[inline]
    pub fn read(&self, at: At, reg: crate::ir::Reg) -> &[u64; 32] {
        self.warp(at).read(&self.constants, reg)
    }

    #[inline]
    pub fn taint(&self, at: At, reg: crate::ir::Reg) -> u32 {
        self.warp(at).taint(reg) & at.lanes
    }
}

/// The lanes of a mask, rising.
#[inline]
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}

/// A clock shared by the threads that know the same.
pub(crate) type SharedClock = Rc<crate::mem::clock::Clock>;
