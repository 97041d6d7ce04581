//! The schedule: a priority per warp, lowered at random moments (PCT), so that orders which a fair
//! scheduler would hardly show come up within a few seeds.

use super::{Machine, Wait};
use crate::report::{Fault, FaultKind};

/// Instructions a warp runs before the schedule is looked at again.
const SLICE: u64 = 256;
/// One slice in this many ends with its warp falling behind all others.
const DEMOTION: u64 = 24;
/// One slice in this many runs the groups of a divergent warp in the unusual order.
const CONTRARY: u64 = 6;

impl Machine<'_> {
    /// Runs the grid to its end.
    pub fn run(&mut self) -> Result<(), Box<Fault>> {
        let mut next_block = 0;
        let mut lowest = u64::MAX / 2;
        self.admit(&mut next_block)?;
        loop {
            let Some((cta, warp)) = self.highest() else {
                if self.finished() {
                    if let Some(op) = self.async_ops.first() {
                        let text = "block ends with a copy under way".to_string();
                        return Err(self.fault(op.at, FaultKind::Copy(text).into()));
                    }
                    self.ctas.clear();
                    self.locations.retire();
                    match self.admit(&mut next_block)? {
                        true => continue,
                        false => return Ok(()),
                    }
                }
                if self.wake_pollers() || self.advance_async()? {
                    continue;
                }
                if self.has_room() && self.admit(&mut next_block)? {
                    continue;
                }
                return Err(self.deadlock());
            };
            if self.rng.one_in(DEMOTION) {
                lowest -= 1;
                self.ctas[cta].warps[warp].priority = lowest;
            }
            let slice = 1 + self.rng.below(SLICE) as u32;
            let contrary = self.rng.one_in(CONTRARY);
            self.run_warp(cta, warp, slice, contrary)?;
            if self.rng.one_in(2) {
                self.advance_async()?;
            }
        }
    }

    /// The ready warp of highest priority.
    fn highest(&self) -> Option<(usize, usize)> {
        let mut best = None;
        for (c, cta) in self.ctas.iter().enumerate() {
            for (w, warp) in cta.warps.iter().enumerate() {
                let ready = warp.groups.iter().any(|g| g.wait == Wait::Ready);
                if ready && best.is_none_or(|(priority, _, _)| warp.priority > priority) {
                    best = Some((warp.priority, c, w));
                }
            }
        }
        best.map(|(_, c, w)| (c, w))
    }

    /// Groups that poll try again when something has happened since they looked.
    fn wake_pollers(&mut self) -> bool {
        let mut woken = false;
        for cta in 0..self.ctas.len() {
            for warp in &mut self.ctas[cta].warps {
                for group in &mut warp.groups {
                    if matches!(group.wait, Wait::Progress(seen) if seen != self.progress) {
                        group.wait = Wait::Ready;
                        woken = true;
                    }
                }
            }
        }
        woken
    }

    /// Lets one asynchronous operation happen. Returns whether there was one.
    fn advance_async(&mut self) -> Result<bool, Box<Fault>> {
        if self.async_ops.is_empty() {
            return Ok(false);
        }
        let index = self.rng.below(self.async_ops.len() as u64) as usize;
        let op = self.async_ops.swap_remove(index);
        self.finish(op)?;
        Ok(true)
    }

    /// Whether every resident block has ended.
    fn finished(&self) -> bool {
        self.ctas.iter().all(|cta| cta.warps.iter().all(|w| w.alive() == 0))
    }
}
