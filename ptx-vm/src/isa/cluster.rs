//! Clusters: their barrier, addresses of other blocks' shared memory, and dependent grids.

use std::rc::Rc;

use super::data::space;
use super::{Form, Op, arity};
use crate::ir::Reg;
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, SharedClock, Wait, lanes, map_to_rank, no_poison, rank_of};
use crate::mem::clock::Clock;
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};
use crate::types::{Space, truncate};

pub(crate) const FORMS: &[&str] = &[
    "barrier.cluster.arrive[.release|.relaxed][.aligned]",
    "barrier.cluster.wait[.acquire][.aligned]",
    "mapa.shared::cluster.(u32|u64)",
    "mapa.u64",
    "getctarank.shared::cluster.(u32|u64)",
    "getctarank.u64",
    "griddepcontrol.(wait|launch_dependents)",
];

/// The barrier of a cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterBarrier {
    /// Threads that have arrived in this phase.
    arrived: u32,
    phase: u64,
    clock: Clock,
    complete: SharedClock,
}

#[derive(Debug)]
pub(crate) enum Cluster {
    Arrive {
        relaxed: bool,
        aligned: bool,
    },
    Wait {
        aligned: bool,
    },
    /// The address of the same variable in the block of a rank.
    Map {
        dst: Reg,
        address: Reg,
        rank: Reg,
        bytes: usize,
        generic: bool,
    },
    Rank {
        dst: Reg,
        address: Reg,
    },
    /// The grid before is always over here.
    GridDependency,
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    let cluster = match form.next() {
        "barrier" => {
            form.next();
            match form.next() {
                "arrive" => {
                    let relaxed = form.take("relaxed");
                    form.take("release");
                    Cluster::Arrive { relaxed, aligned: form.take("aligned") }
                }
                "wait" => {
                    form.take("acquire");
                    Cluster::Wait { aligned: form.take("aligned") }
                }
                _ => return Err(form.unknown()),
            }
        }
        "mapa" => {
            let generic = form.take_with(space).is_none();
            let bytes = form.ty()?.bytes();
            arity(ops, 3)?;
            let (address, rank) = (cx.value(&ops[1])?, cx.value(&ops[2])?);
            Cluster::Map { dst: cx.dst(&ops[0])?, address, rank, bytes, generic }
        }
        "getctarank" => {
            form.take_with(space);
            form.ty()?;
            arity(ops, 2)?;
            Cluster::Rank { address: cx.value(&ops[1])?, dst: cx.dst(&ops[0])? }
        }
        _ => {
            if !(form.take("wait") || form.take("launch_dependents")) {
                return Err(form.unknown());
            }
            Cluster::GridDependency
        }
    };
    form.end()?;
    Ok(Op::Cluster(cluster))
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Cluster) -> Result<Flow, Raise> {
    match op {
        Cluster::Arrive { aligned, .. } | Cluster::Wait { aligned } if *aligned && at.lanes != m.warp(at).alive() => {
            return Ok(Flow::Park(Wait::Lanes(u32::MAX)));
        }
        Cluster::Arrive { relaxed, .. } => arrive(m, at, *relaxed)?,
        Cluster::Wait { .. } => return wait(m, at),
        Cluster::Map { dst, address, rank, bytes, generic } => {
            no_poison(m, m.taint(at, *rank), "is a rank in the cluster")?;
            let (values, ranks) = (*m.read(at, *address), *m.read(at, *rank));
            let mut out = [0; 32];
            for lane in lanes(at.lanes) {
                let rank = ranks[lane] as u32;
                if m.member(at.cta, rank).is_none() {
                    let text = format!("rank {rank} in a cluster of {}", m.geometry.cluster_blocks());
                    return Err(Raise::from(FaultKind::Cluster(text)).lane(lane));
                }
                let shared = crate::machine::from_generic(values[lane]).0 == Space::SharedCluster;
                if *generic && !shared {
                    let text = "mapa of an address that is not in shared memory".to_string();
                    return Err(Raise::from(FaultKind::Cluster(text)).lane(lane));
                }
                out[lane] = truncate(map_to_rank(values[lane], rank), *bytes);
            }
            let taint = m.taint(at, *address);
            m.warp_mut(at).write(*dst, at.lanes, &out, taint);
        }
        Cluster::Rank { dst, address } => {
            let own = m.ctas[at.cta].rank;
            let out = m.read(at, *address).map(|a| rank_of(a).unwrap_or(own) as u64);
            let taint = m.taint(at, *address);
            m.warp_mut(at).write(*dst, at.lanes, &out, taint);
        }
        Cluster::GridDependency => {}
    }
    Ok(Flow::Next)
}

/// Resident block that holds the barrier of the cluster of `cta`.
fn first(m: &Machine, cta: usize) -> usize {
    cta - m.ctas[cta].rank as usize
}

fn arrive(m: &mut Machine, at: At, relaxed: bool) -> Result<(), Raise> {
    let first = first(m, at.cta);
    let phase = m.ctas[first].cluster_barrier.phase;
    let warp = m.warp_mut(at);
    if warp.cluster_arrived & at.lanes != 0 {
        let text = "barrier.cluster.arrive twice without a wait between".to_string();
        return Err(FaultKind::Cluster(text).into());
    }
    warp.cluster_arrived |= at.lanes;
    for lane in lanes(at.lanes) {
        warp.cluster_phase[lane] = phase;
    }
    let mut clock = std::mem::take(&mut m.ctas[first].cluster_barrier.clock);
    if !relaxed {
        m.release(at, &mut clock);
    }
    let barrier = &mut m.ctas[first].cluster_barrier;
    barrier.clock = clock;
    barrier.arrived += at.lanes.count_ones();
    complete(m, first);
    Ok(())
}

/// Completes the phase if every running thread of the cluster has arrived.
fn complete(m: &mut Machine, first: usize) {
    let blocks = first..first + m.geometry.cluster_blocks() as usize;
    // Blocks of a cluster become resident together, but one after another.
    if blocks.end > m.ctas.len() {
        return;
    }
    let running: u32 = blocks.clone().map(|cta| m.ctas[cta].running()).sum();
    let barrier = &mut m.ctas[first].cluster_barrier;
    if barrier.arrived == 0 || barrier.arrived < running {
        return;
    }
    barrier.arrived = 0;
    barrier.phase += 1;
    barrier.complete = Rc::new(std::mem::take(&mut barrier.clock));
    for cta in blocks {
        m.wake(cta, Wait::Cluster);
    }
}

fn wait(m: &mut Machine, at: At) -> Result<Flow, Raise> {
    let first = first(m, at.cta);
    let phase = m.ctas[first].cluster_barrier.phase;
    let warp = m.warp(at);
    if at.lanes & !warp.cluster_arrived != 0 {
        let text = "barrier.cluster.wait without an arrive before".to_string();
        return Err(FaultKind::Cluster(text).into());
    }
    if lanes(at.lanes).any(|lane| warp.cluster_phase[lane] == phase) {
        m.counters.barrier_waits += 1;
        return Ok(Flow::Park(Wait::Cluster));
    }
    let clock = m.ctas[first].cluster_barrier.complete.clone();
    m.acquire(at, &clock);
    m.warp_mut(at).cluster_arrived &= !at.lanes;
    Ok(Flow::Next)
}

/// A thread that exits no longer counts.
pub(crate) fn after_exit(m: &mut Machine, cta: usize) {
    let first = first(m, cta);
    complete(m, first);
}
