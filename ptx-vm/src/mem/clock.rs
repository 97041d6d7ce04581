//! Vector clocks: what a thread knows of the others' past.
//!
//! Time is counted per warp: every release by any of its lanes starts a new epoch. A clock holds, for
//! each warp of each block heard of, the epoch up to which each lane is known. Lanes of a warp mostly
//! know the same, so one number stands for all 32 and an array exists only where they differ.

use std::rc::Rc;

use smallvec::SmallVec;

/// Lane number of what runs asynchronously on behalf of a warp.
pub(crate) const ASYNC_LANE: u8 = 32;
/// The same for the reads of bulk stores, which can be waited for alone.
pub(crate) const ASYNC_READ_LANE: u8 = 33;

/// A thread of the grid, or the asynchronous side of its warp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Who {
    /// Linear index of the block in the grid.
    pub cta: u32,
    pub warp: u8,
    pub lane: u8,
}

/// Epochs known of one warp.
#[derive(Clone, Debug, Default)]
struct WarpClock {
    /// Every lane is known up to here.
    all: u32,
    /// Of the two asynchronous lanes.
    asynchronous: [u32; 2],
    /// Lanes known further than `all`.
    lanes: Option<Rc<[u32; 32]>>,
}

impl WarpClock {
    fn knows(&self, lane: u8, epoch: u32) -> bool {
        if lane >= ASYNC_LANE {
            return epoch <= self.asynchronous[(lane - ASYNC_LANE) as usize];
        }
        epoch <= self.all || self.lanes.as_ref().is_some_and(|l| epoch <= l[lane as usize])
    }

    fn lane(&self, lane: usize) -> u32 {
        self.lanes.as_ref().map_or(self.all, |l| l[lane])
    }

    fn join(&mut self, other: &WarpClock) {
        for (mine, theirs) in self.asynchronous.iter_mut().zip(other.asynchronous) {
            *mine = (*mine).max(theirs);
        }
        if self.lanes.is_none() && other.lanes.is_none() {
            self.all = self.all.max(other.all);
        } else if let (Some(a), Some(b)) = (&self.lanes, &other.lanes)
            && Rc::ptr_eq(a, b)
        {
        } else {
            self.set(std::array::from_fn(|l| self.lane(l).max(other.lane(l))));
        }
    }

    fn set(&mut self, lanes: [u32; 32]) {
        self.all = lanes.iter().copied().min().unwrap_or(0);
        let same = lanes.iter().all(|&e| e == self.all);
        self.lanes = if same { None } else { Some(Rc::new(lanes)) };
    }

    fn raise(&mut self, mask: u32, epoch: u32) {
        if mask == u32::MAX {
            self.all = self.all.max(epoch);
            self.lanes = None;
        } else {
            self.set(std::array::from_fn(|l| {
                let old = self.lane(l);
                if mask >> l & 1 == 1 { old.max(epoch) } else { old }
            }));
        }
    }
}

/// Epochs known of one block: all of them, and those behind a `fence.proxy.async`.
#[derive(Clone, Debug)]
struct CtaClock {
    known: Vec<WarpClock>,
    fenced: Vec<WarpClock>,
}

/// What a thread knows. Its own newest epoch is not in it: a thread always knows itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    ctas: SmallVec<[(u32, Rc<CtaClock>); 1]>,
}

impl Clock {
    fn cta(&self, cta: u32) -> Option<&Rc<CtaClock>> {
        self.ctas.iter().find(|(id, _)| *id == cta).map(|(_, clock)| clock)
    }

    fn cta_mut(&mut self, cta: u32, warp: u8) -> &mut CtaClock {
        let at = match self.ctas.iter().position(|(id, _)| *id == cta) {
            Some(at) => at,
            None => {
                let empty = CtaClock { known: vec![], fenced: vec![] };
                self.ctas.push((cta, Rc::new(empty)));
                self.ctas.len() - 1
            }
        };
        let clock = Rc::make_mut(&mut self.ctas[at].1);
        if clock.known.len() <= warp as usize {
            clock.known.resize(warp as usize + 1, WarpClock::default());
            clock.fenced.resize(warp as usize + 1, WarpClock::default());
        }
        clock
    }

    /// Whether everything `who` did up to `epoch` is known.
    pub fn knows(&self, who: Who, epoch: u32) -> bool {
        let clock = self.cta(who.cta).and_then(|c| c.known.get(who.warp as usize));
        clock.is_some_and(|c| c.knows(who.lane, epoch))
    }

    /// Whether it is known and made visible to the async proxy.
    pub fn fenced(&self, who: Who, epoch: u32) -> bool {
        let clock = self.cta(who.cta).and_then(|c| c.fenced.get(who.warp as usize));
        clock.is_some_and(|c| c.knows(who.lane, epoch))
    }

    /// Whether the lanes of `mask` (from bit 32 the asynchronous ones) are known up to `epoch`; if
    /// not, one that is not.
    pub fn unknown_lane(&self, cta: u32, warp: u8, mask: u64, epoch: u32) -> Option<u8> {
        let clock = self.cta(cta).and_then(|c| c.known.get(warp as usize));
        let Some(clock) = clock else {
            return Some(mask.trailing_zeros() as u8);
        };
        if epoch <= clock.all && mask >> ASYNC_LANE == 0 {
            return None;
        }
        (0..=ASYNC_READ_LANE).find(|&lane| mask >> lane & 1 == 1 && !clock.knows(lane, epoch))
    }

    pub fn join(&mut self, other: &Clock) {
        for (cta, theirs) in &other.ctas {
            match self.ctas.iter().position(|(id, _)| id == cta) {
                None => self.ctas.push((*cta, theirs.clone())),
                Some(at) if Rc::ptr_eq(&self.ctas[at].1, theirs) => {}
                Some(at) => {
                    let warps = theirs.known.len();
                    let mine = Rc::make_mut(&mut self.ctas[at].1);
                    if mine.known.len() < warps {
                        mine.known.resize(warps, WarpClock::default());
                        mine.fenced.resize(warps, WarpClock::default());
                    }
                    mine.known.iter_mut().zip(&theirs.known).for_each(|(a, b)| a.join(b));
                    mine.fenced.iter_mut().zip(&theirs.fenced).for_each(|(a, b)| a.join(b));
                }
            }
        }
    }

    /// Learns the lanes of `mask` of a warp up to `epoch`.
    pub fn raise(&mut self, cta: u32, warp: u8, mask: u32, epoch: u32) {
        self.cta_mut(cta, warp).known[warp as usize].raise(mask, epoch);
    }

    /// Learns what one asynchronous lane of a warp was given up to `epoch`.
    pub fn raise_async(&mut self, cta: u32, warp: u8, lane: u8, epoch: u32) {
        let clock = &mut self.cta_mut(cta, warp).known[warp as usize];
        let slot = &mut clock.asynchronous[(lane - ASYNC_LANE) as usize];
        *slot = (*slot).max(epoch);
    }

    /// Everything known is from now on visible to the async proxy.
    pub fn fence_proxy(&mut self) {
        for (_, clock) in &mut self.ctas {
            let clock = Rc::make_mut(clock);
            clock.fenced.clone_from(&clock.known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(warp: u8, lane: u8) -> Who {
        Who { cta: 0, warp, lane }
    }

    #[test]
    fn joins_take_the_later_epoch_of_each_lane() {
        let (mut a, mut b) = (Clock::default(), Clock::default());
        a.raise(0, 1, 1 << 3, 5);
        b.raise(0, 1, 1 << 4, 7);
        a.join(&b);
        assert!(a.knows(who(1, 3), 5) && a.knows(who(1, 4), 7));
        assert!(!a.knows(who(1, 3), 6) && !a.knows(who(1, 5), 1));
        assert_eq!(a.unknown_lane(0, 1, 0b11000, 5), None);
        assert_eq!(a.unknown_lane(0, 1, 0b11000, 6), Some(3));
    }

    #[test]
    fn the_async_side_and_the_proxy_are_learnt_separately() {
        let mut a = Clock::default();
        a.raise(0, 0, u32::MAX, 4);
        assert!(a.knows(who(0, 9), 4) && !a.knows(who(0, ASYNC_LANE), 1));
        a.raise_async(0, 0, ASYNC_LANE, 2);
        assert!(a.knows(who(0, ASYNC_LANE), 2));
        assert!(!a.fenced(who(0, 9), 4));
        a.fence_proxy();
        a.raise(0, 0, u32::MAX, 5);
        assert!(a.fenced(who(0, 9), 4) && !a.fenced(who(0, 9), 5));
    }
}
