//! Happens-before edges: releases give away what lanes know, acquires take it.

use std::collections::HashMap;
use std::rc::Rc;

use super::{At, Machine, SharedClock, Target, lanes};
use crate::isa::memory::{Order, Scope};
use crate::mem::clock::Clock;

impl Machine<'_> {
    /// Joins into `clock` all that the lanes of `at` know and have done; they start a new epoch.
    pub fn release(&mut self, at: At, clock: &mut Clock) {
        let cta = &mut self.ctas[at.cta];
        let id = cta.id;
        let warp = &mut cta.warps[at.warp];
        let mut last: Option<&SharedClock> = None;
        for lane in lanes(at.lanes) {
            let known = &warp.clocks[lane];
            if last.is_none_or(|l| !Rc::ptr_eq(l, known)) {
                clock.join(known);
                last = Some(known);
            }
        }
        // Lanes without a thread do nothing that could be unknown.
        clock.raise(id, at.warp as u8, at.lanes | !warp.threads, warp.epoch);
        warp.epoch += 1;
    }

    /// The lanes of `at` learn what is in `clock`.
    pub fn acquire(&mut self, at: At, clock: &Clock) {
        let warp = self.warp_mut(at);
        let mut last: Option<(SharedClock, SharedClock)> = None;
        for lane in lanes(at.lanes) {
            let known = &mut warp.clocks[lane];
            match &last {
                Some((before, after)) if Rc::ptr_eq(before, known) => *known = after.clone(),
                _ => {
                    let before = known.clone();
                    Rc::make_mut(known).join(clock);
                    last = Some((before, known.clone()));
                }
            }
        }
    }

    /// `bar.warp.sync`: the lanes learn all that any of them knows and has done.
    pub fn synchronize(&mut self, at: At) {
        let mut clock = Clock::default();
        self.release(at, &mut clock);
        let clock = Rc::new(clock);
        self.ctas[at.cta].set_clock(at.warp, at.lanes, &clock);
    }

    /// `fence.proxy.async`: what each lane knows becomes visible to the async proxy.
    pub fn fence_proxy(&mut self, at: At) {
        let cta = &mut self.ctas[at.cta];
        let id = cta.id;
        let warp = &mut cta.warps[at.warp];
        for lane in lanes(at.lanes) {
            let clock = Rc::make_mut(&mut warp.clocks[lane]);
            clock.raise(id, at.warp as u8, 1 << lane, warp.epoch);
            clock.fence_proxy();
        }
        warp.epoch += 1;
    }
}

/// What was released at a memory location.
#[derive(Debug, Default)]
pub(crate) struct Published {
    clock: Clock,
    cta: u32,
    scope: Option<Scope>,
}

/// A location that strong accesses have touched: (block id or u32::MAX for global, place).
type Location = (u32, usize, usize);

/// Locations through which threads synchronise.
#[derive(Debug, Default)]
pub(crate) struct Locations(HashMap<Location, Published>);

impl Locations {
    /// Forgets the shared memory of blocks that ended.
    pub fn retire(&mut self) {
        self.0.retain(|&(cta, ..), _| cta == u32::MAX);
    }
}

impl Machine<'_> {
    fn location(&self, target: Target) -> Option<Location> {
        match target {
            Target::Shared(cta, offset) => Some((self.ctas[cta].id, 0, offset)),
            Target::Global(buffer, offset) => Some((u32::MAX, buffer, offset)),
            Target::Param(_) | Target::Local(_) => None,
        }
    }

    /// A strong write: gives away what the lane knows (release), or what it knew at its last fence.
    pub fn publish(&mut self, at: At, lane: usize, target: Target, order: Order, scope: Scope, rmw: bool) {
        if !self.checks.races {
            return;
        }
        let Some(location) = self.location(target) else {
            return;
        };
        let cta = self.ctas[at.cta].id;
        let mut given = Clock::default();
        let mut reach = Some(scope);
        if order.releases() {
            self.release(At { lanes: 1 << lane, ..at }, &mut given);
        } else if let Some((clock, fence_scope)) = &self.warp(at).fences[lane] {
            given.join(clock);
            reach = Some(scope.min(*fence_scope));
        } else {
            reach = None;
        }
        let entry = self.locations.0.entry(location).or_default();
        if rmw {
            entry.clock.join(&given);
            entry.scope = reach.max(entry.scope);
        } else {
            *entry = Published { clock: given, cta, scope: reach };
        }
        entry.cta = cta;
    }

    /// A strong read: takes what was given away there, at once (acquire) or at the next fence.
    pub fn observe(&mut self, at: At, lane: usize, target: Target, order: Order, scope: Scope) {
        if !self.checks.races {
            return;
        }
        let cta = self.ctas[at.cta].id;
        let Some(location) = self.location(target) else {
            return;
        };
        let Some(found) = self.locations.0.get(&location) else {
            return;
        };
        let reaches = |s: Scope| s != Scope::Cta || found.cta == cta;
        if !found.scope.is_some_and(reaches) || !reaches(scope) {
            return;
        }
        let clock = found.clock.clone();
        if order.acquires() {
            self.acquire(At { lanes: 1 << lane, ..at }, &clock);
        } else {
            self.warp_mut(at).seen[lane].join(&clock);
        }
    }

    /// A memory fence: what was seen before it is known after it, and later strong writes give away
    /// what is known now.
    pub fn fence(&mut self, at: At, scope: Scope) {
        for lane in lanes(at.lanes) {
            let seen = std::mem::take(&mut self.warp_mut(at).seen[lane]);
            self.acquire(At { lanes: 1 << lane, ..at }, &seen);
        }
        let id = self.ctas[at.cta].id;
        let warp = self.warp_mut(at);
        for lane in lanes(at.lanes) {
            let mut clock = (*warp.clocks[lane]).clone();
            clock.raise(id, at.warp as u8, 1 << lane, warp.epoch);
            warp.fences[lane] = Some((Rc::new(clock), scope));
        }
        warp.epoch += 1;
    }
}
