//! Copies that happen on their own: issued by a thread, landing at a random later moment.

use super::{At, Machine, SharedClock, Target, conflict};
use crate::isa::mbarrier;
use crate::mem::clock::{ASYNC_LANE, ASYNC_READ_LANE, Who};
use crate::mem::shadow::Actor;
use crate::report::{Fault, FaultKind, Raise};

/// Contiguous bytes of a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub dst: Target,
    /// `None`: filled with a pattern.
    pub src: Option<Target>,
    pub bytes: usize,
    /// Byte that fills what has no source.
    pub fill: u8,
}

/// An mbarrier that learns of the bytes of a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signal {
    pub cta: usize,
    pub offset: usize,
    /// Phase at issue; the copy must land in it.
    pub phase: u64,
    pub bytes: usize,
}

/// A copy under way.
#[derive(Clone, Debug)]
pub(crate) struct AsyncOp {
    /// Where it was issued; one lane.
    pub at: At,
    /// What the issuing thread knew.
    pub clock: SharedClock,
    pub epoch: u32,
    pub segments: Vec<Segment>,
    pub signals: Vec<Signal>,
    /// Value combination instead of a plain copy, for `cp.reduce`.
    pub reduce: Option<crate::isa::bulk::Reduce>,
    /// Arrivals on the signalled mbarriers, for `cp.async.mbarrier.arrive`.
    pub arrivals: u32,
    /// Through the generic proxy: `cp.async` is not of the async proxy.
    pub generic: bool,
    pub landed: bool,
}

impl Machine<'_> {
    /// An operation issued by one lane; the lane starts a new epoch.
    pub fn new_async(&mut self, at: At, lane: usize) -> AsyncOp {
        let warp = self.warp_mut(at);
        let epoch = warp.epoch;
        warp.epoch += 1;
        AsyncOp {
            at: At { lanes: 1 << lane, ..at },
            clock: warp.clocks[lane].clone(),
            epoch,
            segments: vec![],
            signals: vec![],
            reduce: None,
            arrivals: 0,
            generic: false,
            landed: false,
        }
    }

    fn actor<'a>(&self, op: &'a AsyncOp, lane: u8) -> Actor<'a> {
        let issuer = self.who(op.at, op.at.lanes.trailing_zeros() as usize);
        Actor {
            who: Who { lane, ..issuer },
            epoch: op.epoch,
            pc: op.at.pc,
            strong: false,
            proxy: !op.generic,
            clock: &op.clock,
            issuer,
        }
    }

    /// Checks the reads of an operation: global sources of loads, shared sources of stores.
    pub fn begin_reads(&mut self, op: &AsyncOp) -> Result<(), Raise> {
        for segment in &op.segments {
            let Some(src) = segment.src else { continue };
            let lane = if matches!(src, Target::Shared(..)) { ASYNC_READ_LANE } else { ASYNC_LANE };
            let actor = self.actor(op, lane);
            self.with_actor(src, &actor, |s, o, a| s.read(o, segment.bytes, a))
                .map_err(|c| conflict("read", src, c))?;
        }
        Ok(())
    }

    /// Checks the writes of an operation and marks their bytes as in flight.
    pub fn begin_writes(&mut self, op: &AsyncOp) -> Result<(), Raise> {
        let actor = self.actor(op, ASYNC_LANE);
        let reduces = op.reduce.is_some();
        let actor = Actor { strong: reduces, ..actor };
        for segment in &op.segments {
            let (dst, bytes) = (segment.dst, segment.bytes);
            self.with_actor(
                dst,
                &actor,
                |s, o, a| {
                    if reduces { s.check_write(o, bytes, a) } else { s.begin_copy(o, bytes, a) }
                },
            )
            .map_err(|c| conflict("write", dst, c))?;
            if let Target::Shared(cta, offset) = dst
                && let Some((at, _)) = self.ctas[cta].mbarrier_in(offset, bytes)
            {
                let text = format!("a copy overwrites the mbarrier at 0x{at:x}");
                return Err(FaultKind::Mbarrier(text).into());
            }
            if !reduces {
                self.poison(dst, bytes);
            }
        }
        Ok(())
    }

    fn poison(&mut self, target: Target, bytes: usize) {
        match target {
            Target::Shared(cta, offset) => self.ctas[cta].shared.poison(offset, bytes),
            Target::Global(buffer, offset) => {
                self.global.buffer_mut(buffer).bytes.poison(offset, bytes);
            }
            Target::Param(_) | Target::Local(_) => {}
        }
    }

    /// Moves the bytes.
    pub fn land(&mut self, op: &mut AsyncOp) -> Result<(), Raise> {
        op.landed = true;
        for segment in &op.segments {
            self.counters.copied += segment.bytes as u64;
            match op.reduce {
                Some(reduce) => crate::isa::bulk::combine(self, op.at, segment, reduce)?,
                None => self.move_bytes(op.at, segment)?,
            }
        }
        self.progress += 1;
        Ok(())
    }

    fn move_bytes(&mut self, at: At, segment: &Segment) -> Result<(), Raise> {
        let (mut done, step) = (0, 8);
        while done < segment.bytes {
            let n = step.min(segment.bytes - done);
            let (value, poison) = match segment.src {
                Some(src) => self.read_bytes(at, src.plus(done), n),
                None => (u64::from_le_bytes([segment.fill; 8]), false),
            };
            if poison && self.checks.poison && matches!(segment.dst, Target::Global(..)) {
                return Err(FaultKind::Poison { used: "is stored by an asynchronous copy" }.into());
            }
            self.write_bytes(at, segment.dst.plus(done), n, value, poison);
            done += n;
        }
        Ok(())
    }

    /// The writes of an operation count from now on as made at its epoch.
    pub fn end_writes(&mut self, op: &AsyncOp) {
        let actor = Actor { strong: op.reduce.is_some(), ..self.actor(op, ASYNC_LANE) };
        for segment in &op.segments {
            let done: Result<(), _> = self.with_actor(segment.dst, &actor, |s, o, a| {
                s.land(o, segment.bytes, a);
                Ok(())
            });
            debug_assert!(done.is_ok());
        }
    }

    /// An operation lands and tells its mbarriers.
    pub fn finish(&mut self, mut op: AsyncOp) -> Result<(), Box<Fault>> {
        let at = op.at;
        let result = self.land(&mut op).and_then(|()| {
            self.end_writes(&op);
            mbarrier::complete(self, &op)
        });
        result.map_err(|raise| self.fault(at, raise))
    }
}
