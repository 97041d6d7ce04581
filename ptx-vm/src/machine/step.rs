//! Runs the groups of a warp: guards, divergence, reconvergence, waiting for lanes to come together.

use super::{At, Flow, Group, Machine, Wait, lanes};
use crate::ir::Instr;
use crate::isa::{self, Op, warp::WarpOp};
use crate::mem::shadow::Stamp;
use crate::report::{Fault, FaultKind, Raise};

impl Machine<'_> {
    /// Runs up to `slice` instructions of a warp. `contrary` prefers the group that is furthest on,
    /// which the usual order (lowest first, for early reconvergence) would never show.
    pub fn run_warp(&mut self, cta: usize, warp: usize, slice: u32, contrary: bool) -> Result<(), Box<Fault>> {
        let mut current = None;
        for _ in 0..slice {
            let groups = &self.ctas[cta].warps[warp].groups;
            let index = match current {
                Some(index) => index,
                None => match pick(groups, contrary) {
                    Some(index) => index,
                    None => return Ok(()),
                },
            };
            let alone = groups.len() == 1;
            let stay = self.step(cta, warp, index)?;
            // A group alone in its warp runs on without being chosen again.
            current = (alone && stay).then_some(0);
        }
        Ok(())
    }

    /// Runs one instruction of a group. Returns whether the group simply goes on.
    fn step(&mut self, cta: usize, warp: usize, index: usize) -> Result<bool, Box<Fault>> {
        let kernel = self.kernel;
        let state = &self.ctas[cta].warps[warp];
        let group = &state.groups[index];
        let (pc, all) = (group.pc, group.lanes);
        let instr = &kernel.code[pc as usize];
        let at = At { cta, warp, lanes: all, pc };
        let active = match instr.guard {
            None => all,
            Some(guard) => {
                let poisoned = state.pred_taint(guard) & all;
                if poisoned != 0 && self.checks.poison {
                    let raise = Raise::from(FaultKind::Poison { used: "decides control flow" });
                    return Err(self.fault(at, raise.lane(poisoned.trailing_zeros() as usize)));
                }
                all & state.pred(guard)
            }
        };
        self.counters.instructions += all.count_ones() as u64;
        if self.counters.instructions > self.budget {
            return Err(self.fault(at, FaultKind::Livelock(self.budget).into()));
        }
        if active == 0 {
            self.ctas[cta].warps[warp].groups[index].pc += 1;
            return Ok(true);
        }
        let at = At { lanes: active, ..at };
        let flow = self.execute(at, instr).map_err(|raise| self.fault(at, raise))?;
        self.apply(at, index, all, flow)
    }

    fn execute(&mut self, at: At, instr: &Instr) -> Result<Flow, Raise> {
        if !self.kernel.uses_wgmma {
            return isa::execute(self, at, &instr.op);
        }
        isa::wgmma::before(self, at, instr)?;
        let flow = isa::execute(self, at, &instr.op)?;
        isa::wgmma::after(self, at, instr);
        Ok(flow)
    }

    /// Moves the lanes of a group as `flow` says.
    fn apply(&mut self, at: At, index: usize, all: u32, flow: Flow) -> Result<bool, Box<Fault>> {
        let rest = all & !at.lanes;
        let next = at.pc + 1;
        let groups = &mut self.warp_mut(at).groups;
        let group = &mut groups[index];
        match flow {
            Flow::Next => {
                group.pc = next;
                if groups.len() > 1 {
                    self.merge(at, index);
                }
                return Ok(true);
            }
            Flow::Jump(target) => return Ok(self.split(at, index, at.lanes, target, rest, next)),
            Flow::Call(target) => {
                let mut stack = group.stack.clone();
                stack.push(next);
                self.replace(
                    at,
                    index,
                    [(target, at.lanes, Wait::Ready, Some(stack)), (next, rest, Wait::Ready, None)],
                );
            }
            Flow::Return => {
                let mut stack = group.stack.clone();
                match stack.pop() {
                    Some(back) => {
                        let back = (back, at.lanes, Wait::Ready, Some(stack));
                        self.replace(at, index, [back, (next, rest, Wait::Ready, None)]);
                    }
                    None => return self.exit(at, index, rest),
                }
            }
            Flow::Exit => return self.exit(at, index, rest),
            Flow::Park(wait) => {
                self.replace(at, index, [(at.pc, at.lanes, wait, None), (next, rest, Wait::Ready, None)]);
                self.gather(at)?;
            }
            Flow::NextThen(wait) => {
                self.replace(at, index, [(next, at.lanes, wait, None), (next, rest, Wait::Ready, None)]);
            }
            Flow::Partial { done, wait } => {
                let stuck = at.lanes & !done;
                self.replace(at, index, [(next, done | rest, Wait::Ready, None), (at.pc, stuck, wait, None)]);
                self.gather(at)?;
            }
        }
        Ok(false)
    }

    fn split(&mut self, at: At, index: usize, taken: u32, target: u32, rest: u32, next: u32) -> bool {
        let groups = &mut self.warp_mut(at).groups;
        if taken == 0 || rest == 0 {
            groups[index].pc = if rest == 0 { target } else { next };
            if groups.len() > 1 {
                self.merge(at, index);
            }
            return true;
        }
        self.replace(at, index, [(target, taken, Wait::Ready, None), (next, rest, Wait::Ready, None)]);
        false
    }

    /// Replaces a group by up to two; a missing stack is that of the old group.
    fn replace(&mut self, at: At, index: usize, parts: [(u32, u32, Wait, Option<Vec<u32>>); 2]) {
        let old = self.warp_mut(at).groups.swap_remove(index);
        for (pc, lanes, wait, stack) in parts {
            if lanes != 0 {
                let stack = stack.unwrap_or_else(|| old.stack.clone());
                let groups = &mut self.warp_mut(at).groups;
                groups.push(Group { pc, lanes, wait, waits_at: at.pc, stack });
                let last = groups.len() - 1;
                self.merge(at, last);
            }
        }
    }

    /// Reconvergence: a ready group joins another one at the same instruction.
    fn merge(&mut self, at: At, index: usize) {
        let groups = &mut self.warp_mut(at).groups;
        let (pc, lanes) = (groups[index].pc, groups[index].lanes);
        if groups[index].wait != Wait::Ready {
            return;
        }
        let other = (0..groups.len()).find(|&i| {
            let g = &groups[i];
            i != index && g.pc == pc && g.wait == Wait::Ready && g.stack == groups[index].stack
        });
        if let Some(other) = other {
            groups[other].lanes |= lanes;
            groups.swap_remove(index);
        }
    }

    fn exit(&mut self, at: At, index: usize, rest: u32) -> Result<bool, Box<Fault>> {
        isa::control::check_exit(self, at).map_err(|raise| self.fault(at, raise))?;
        self.warp_mut(at).exited |= at.lanes;
        self.replace(at, index, [(at.pc + 1, rest, Wait::Ready, None), (0, 0, Wait::Ready, None)]);
        self.progress += 1;
        isa::barrier::after_exit(self, at.cta);
        isa::cluster::after_exit(self, at.cta);
        self.gather(at)?;
        Ok(false)
    }

    /// Lets groups go on whose lanes have all arrived at the same instruction; finds lanes that can
    /// never come together.
    fn gather(&mut self, at: At) -> Result<(), Box<Fault>> {
        let warp = self.warp_mut(at);
        let alive = warp.alive();
        let waiting = |g: &Group| matches!(g.wait, Wait::Lanes(_));
        let mut released = false;
        for i in 0..warp.groups.len() {
            let Wait::Lanes(mask) = warp.groups[i].wait else {
                continue;
            };
            let pc = warp.groups[i].pc;
            let here = |g: &&mut Group| waiting(g) && g.pc == pc;
            let arrived = warp.groups.iter_mut().filter(here).fold(0, |all, g| all | g.lanes);
            if mask & alive & !arrived == 0 {
                let mut groups = warp.groups.iter_mut().filter(here);
                groups.by_ref().for_each(|g| g.wait = Wait::Ready);
                released = true;
            }
        }
        if released {
            self.merge_ready(at);
            return Ok(());
        }
        // `bar.warp.sync` may be reached by different paths.
        if let Some(mask) = self.paths_meet(at) {
            let met = At { lanes: mask, ..at };
            self.synchronize(met);
            for g in &mut self.warp_mut(at).groups {
                if waiting(g) && g.lanes & mask != 0 {
                    g.wait = Wait::Ready;
                    g.pc += 1;
                }
            }
            self.merge_ready(at);
            return Ok(());
        }
        let groups = &self.warp(at).groups;
        if groups.is_empty() || !groups.iter().all(waiting) {
            return Ok(());
        }
        let describe = |g: &Group| {
            let place = self.place(g.pc);
            format!("lanes {:#010x} wait at {place}", g.lanes)
        };
        let text = groups.iter().map(describe).collect::<Vec<_>>().join("; ");
        let text = format!("lanes wait for each other at different instructions: {text}");
        let first = At { lanes: groups[0].lanes, pc: groups[0].pc, ..at };
        let raise = Raise::from(FaultKind::Divergent(text));
        let other = groups.get(1).map(|g| Stamp::by(self.who(first, g.lanes.trailing_zeros() as usize), g.pc));
        Err(self.fault(first, other.into_iter().fold(raise, Raise::other)))
    }

    fn merge_ready(&mut self, at: At) {
        let mut index = 0;
        while index < self.warp(at).groups.len() {
            let before = self.warp(at).groups.len();
            self.merge(at, index);
            if self.warp(at).groups.len() == before {
                index += 1;
            }
        }
    }

    /// Mask of a `bar.warp.sync` that all its lanes have reached, at whatever instruction.
    fn paths_meet(&self, at: At) -> Option<u32> {
        let warp = self.warp(at);
        let code = &self.kernel.code;
        let is_sync = |i: &Instr| matches!(i.op, Op::Warp(WarpOp::Sync { .. }));
        for g in &warp.groups {
            let Wait::Lanes(mask) = g.wait else { continue };
            let arrived = warp
                .groups
                .iter()
                .filter(|o| o.wait == g.wait && is_sync(&code[o.pc as usize]))
                .fold(0, |all, o| all | o.lanes);
            if is_sync(&code[g.pc as usize]) && mask & warp.alive() & !arrived == 0 {
                return Some(mask & warp.alive());
            }
        }
        None
    }

    /// Wakes the groups of a block that wait at a barrier.
    pub fn wake(&mut self, cta: usize, wait: Wait) {
        for warp in 0..self.ctas[cta].warps.len() {
            let mut woken = 0;
            for group in &mut self.ctas[cta].warps[warp].groups {
                if group.wait == wait {
                    group.wait = Wait::Ready;
                    woken |= group.lanes;
                }
            }
            if woken != 0 {
                self.merge_ready(At { cta, warp, lanes: woken, pc: 0 });
            }
        }
        self.progress += 1;
    }

    /// Lanes of a block that wait so, per warp.
    pub fn waiting(&self, cta: usize, wait: Wait) -> Vec<(usize, u32)> {
        let warps = self.ctas[cta].warps.iter().enumerate();
        warps
            .map(|(i, w)| {
                let groups = w.groups.iter().filter(|g| g.wait == wait);
                (i, groups.fold(0, |all, g| all | g.lanes))
            })
            .filter(|(_, lanes)| *lanes != 0)
            .collect()
    }
}

/// The ready group to run.
fn pick(groups: &[Group], contrary: bool) -> Option<usize> {
    let ready = groups.iter().enumerate().filter(|(_, g)| g.wait == Wait::Ready);
    let chosen = if contrary { ready.max_by_key(|(_, g)| g.pc) } else { ready.min_by_key(|(_, g)| g.pc) };
    chosen.map(|(i, _)| i)
}

/// Fails unless the lanes of `at` are the whole warp; the flow parks those that are early.
pub(crate) fn whole_warp(m: &Machine, at: At, what: &str) -> Result<Option<Flow>, Raise> {
    let warp = m.warp(at);
    if at.lanes == u32::MAX {
        return Ok(None);
    }
    if warp.alive() != u32::MAX {
        let text = format!("{what} needs all 32 lanes of the warp, {} run", warp.alive().count_ones());
        return Err(FaultKind::Divergent(text).into());
    }
    Ok(Some(Flow::Park(Wait::Lanes(u32::MAX))))
}

/// Fails if a lane of the mask holds poison in `taint`.
pub(crate) fn no_poison(m: &Machine, taint: u32, used: &'static str) -> Result<(), Raise> {
    match lanes(taint).next() {
        Some(lane) if m.checks.poison => Err(Raise::from(FaultKind::Poison { used }).lane(lane)),
        _ => Ok(()),
    }
}
