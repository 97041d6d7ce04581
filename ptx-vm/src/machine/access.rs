//! Memory accesses of one lane: address to place, bounds, alignment, history, poison.

use super::{At, Machine};
use crate::ir::SHARED_BASE;
use crate::mem::clock::Who;
use crate::mem::shadow::{Actor, Conflict};
use crate::report::{FaultKind, Raise};
use crate::types::Space;

/// Windows of the generic address space.
const SHARED_WINDOW: u64 = 0x7000_0000_0000;
const LOCAL_WINDOW: u64 = 0x7100_0000_0000;
const PARAM_WINDOW: u64 = 0x7200_0000_0000;
const WINDOW: u64 = 0xffff_ffff;
/// Parts of a shared address: offset in the block, rank in the cluster plus one.
const OFFSET: u64 = 0xff_ffff;
const RANK_SHIFT: u32 = 24;

/// Place of an access, bounds checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Index of the resident block, offset in its shared memory.
    Shared(usize, usize),
    /// Index of the buffer, offset in it.
    Global(usize, usize),
    Param(usize),
    Local(usize),
}

/// How an access counts for the race detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strength {
    Weak,
    /// Atomic, volatile, relaxed and stronger.
    Strong,
}

/// Generic address of an address in a space.
pub(crate) fn to_generic(space: Space, address: u64) -> u64 {
    match space {
        Space::Shared | Space::SharedCluster => SHARED_WINDOW | address & WINDOW,
        Space::Local => LOCAL_WINDOW | address & WINDOW,
        Space::Param => PARAM_WINDOW | address & WINDOW,
        Space::Generic | Space::Global | Space::Const => address,
    }
}

/// Space and address in it of a generic address.
pub(crate) fn from_generic(address: u64) -> (Space, u64) {
    match address & !WINDOW {
        SHARED_WINDOW => (Space::SharedCluster, address & WINDOW),
        LOCAL_WINDOW => (Space::Local, address & WINDOW),
        PARAM_WINDOW => (Space::Param, address & WINDOW),
        _ => (Space::Global, address),
    }
}

/// The shared address that stands for `address` in the block of a rank.
pub(crate) fn map_to_rank(address: u64, rank: u32) -> u64 {
    address & !(WINDOW & !OFFSET) | (rank as u64 + 1) << RANK_SHIFT
}

/// Rank in a shared address, if `mapa` made it.
pub(crate) fn rank_of(address: u64) -> Option<u32> {
    let rank = ((address & WINDOW) >> RANK_SHIFT).checked_sub(1);
    rank.map(|rank| rank as u32)
}

impl Machine<'_> {
    /// Place of `bytes` bytes at `address`; `align` is what the access requires.
    pub fn resolve(
        &mut self,
        at: At,
        lane: usize,
        space: Space,
        address: u64,
        bytes: usize,
        align: usize,
    ) -> Result<Target, Raise> {
        let (space, address) = match space {
            Space::Generic => from_generic(address),
            Space::Shared | Space::SharedCluster => (space, address & WINDOW),
            _ => (space, address),
        };
        if address & (align as u64 - 1) != 0 {
            return Err(Raise::from(FaultKind::Misaligned { space, address, align }).lane(lane));
        }
        let out_of =
            |limit: Option<u64>| Raise::from(FaultKind::OutOfBounds { space, address, bytes, limit }).lane(lane);
        let fits = |start: usize, len: usize| {
            let end = address.checked_add(bytes as u64);
            address >= start as u64 && end.is_some_and(|end| end <= len as u64)
        };
        match space {
            Space::Shared | Space::SharedCluster => {
                let found = self.shared_of(at.cta, space, address);
                let (cta, offset) = found.ok_or_else(|| out_of(None))?;
                if cta != at.cta && self.ctas[cta].running() == 0 {
                    let text = format!("shared memory of block {:?}, which has ended", self.ctas[cta].index);
                    return Err(Raise::from(FaultKind::Cluster(text)).lane(lane));
                }
                let len = self.ctas[cta].shared.len();
                if offset < SHARED_BASE || offset + bytes > len {
                    return Err(out_of(Some(len as u64)));
                }
                Ok(Target::Shared(cta, offset))
            }
            Space::Global | Space::Const | Space::Generic => {
                let found = self.global.locate(address, bytes).ok_or_else(|| out_of(None))?;
                Ok(Target::Global(found.0, found.1))
            }
            Space::Param => {
                let len = self.params.len();
                if fits(0, len) { Ok(Target::Param(address as usize)) } else { Err(out_of(Some(len as u64))) }
            }
            Space::Local => {
                let len = self.warp(at).local_bytes;
                if !fits(1, len) {
                    return Err(out_of(Some(len as u64)));
                }
                Ok(Target::Local(lane * len + address as usize))
            }
        }
    }

    /// Resident block and offset of a shared address. Addresses that `mapa` made carry the rank of
    /// their block plus one above bit 24.
    fn shared_of(&self, cta: usize, space: Space, address: u64) -> Option<(usize, usize)> {
        let offset = (address & OFFSET) as usize;
        let owner = match (address >> RANK_SHIFT).checked_sub(1) {
            None => cta,
            Some(rank) => self.member(cta, rank as u32)?,
        };
        (owner == cta || space == Space::SharedCluster).then_some((owner, offset))
    }

    /// Resident block of a rank in the cluster of `cta`.
    pub fn member(&self, cta: usize, rank: u32) -> Option<usize> {
        let first = cta - self.ctas[cta].rank as usize;
        (rank < self.geometry.cluster_blocks()).then_some(first + rank as usize)
    }

    pub fn who(&self, at: At, lane: usize) -> Who {
        Who { cta: self.ctas[at.cta].id, warp: at.warp as u8, lane: lane as u8 }
    }

    /// Runs a shadow operation on `target` on behalf of a lane.
    pub fn with_shadow<T: Default>(
        &mut self,
        at: At,
        lane: usize,
        target: Target,
        strength: Strength,
        run: impl FnOnce(&mut crate::mem::shadow::Shadow, usize, &Actor) -> Result<T, Conflict>,
    ) -> Result<T, Conflict> {
        if !self.checks.races {
            return Ok(T::default());
        }
        let who = self.who(at, lane);
        let warp = &self.ctas[at.cta].warps[at.warp];
        let clock = warp.clocks[lane].clone();
        let actor = Actor {
            who,
            epoch: warp.epoch,
            pc: at.pc,
            strong: strength == Strength::Strong,
            proxy: false,
            clock: &clock,
            issuer: who,
        };
        self.with_actor(target, &actor, run)
    }

    /// Runs a shadow operation on `target`.
    pub fn with_actor<T: Default>(
        &mut self,
        target: Target,
        actor: &Actor,
        run: impl FnOnce(&mut crate::mem::shadow::Shadow, usize, &Actor) -> Result<T, Conflict>,
    ) -> Result<T, Conflict> {
        if !self.checks.races {
            return Ok(T::default());
        }
        match target {
            Target::Shared(cta, offset) => run(&mut self.ctas[cta].shadow, offset, actor),
            Target::Global(buffer, offset) => {
                let buffer = self.global.buffer_mut(buffer);
                if buffer.read_only { Ok(T::default()) } else { run(&mut buffer.shadow, offset, actor) }
            }
            Target::Param(_) | Target::Local(_) => Ok(T::default()),
        }
    }

    /// Checks and notes a read.
    pub fn note_read(
        &mut self,
        at: At,
        lane: usize,
        target: Target,
        bytes: usize,
        strength: Strength,
    ) -> Result<(), Raise> {
        let done = self.with_shadow(at, lane, target, strength, |s, o, a| s.read(o, bytes, a));
        done.map_err(|c| conflict("read", target, c).lane(lane))
    }

    /// Checks a write; `commit` notes it.
    pub fn check_write(
        &mut self,
        at: At,
        lane: usize,
        target: Target,
        bytes: usize,
        strength: Strength,
    ) -> Result<(), Raise> {
        match target {
            Target::Global(buffer, _) if self.global.buffer(buffer).read_only => {
                let what = "write to constant memory".to_string();
                return Err(Raise::from(FaultKind::Illegal(what)).lane(lane));
            }
            Target::Param(_) => {
                let what = "write to a kernel parameter".to_string();
                return Err(Raise::from(FaultKind::Illegal(what)).lane(lane));
            }
            _ => {}
        }
        let done = self.with_shadow(at, lane, target, strength, |s, o, a| s.check_write(o, bytes, a));
        done.map_err(|c| conflict("write", target, c).lane(lane))
    }

    /// Notes a checked write; see [`crate::mem::shadow::Shadow::commit_write`].
    pub fn commit_write(&mut self, at: At, lane: usize, target: Target, bytes: usize, strength: Strength) -> bool {
        let done = self.with_shadow(at, lane, target, strength, |s, o, a| Ok(s.commit_write(o, bytes, a)));
        done.unwrap_or(false)
    }

    /// Reads up to eight bytes and whether they are poison.
    #[inline]
    pub fn read_bytes(&self, at: At, target: Target, bytes: usize) -> (u64, bool) {
        match target {
            Target::Shared(cta, offset) => self.ctas[cta].shared.read(offset, bytes),
            Target::Global(buffer, offset) => self.global.buffer(buffer).bytes.read(offset, bytes),
            Target::Local(offset) => self.warp(at).local.read(offset, bytes),
            Target::Param(offset) => {
                let mut value = [0; 8];
                value[..bytes].copy_from_slice(&self.params[offset..offset + bytes]);
                (u64::from_le_bytes(value), false)
            }
        }
    }

    /// Writes up to eight bytes.
    #[inline]
    pub fn write_bytes(&mut self, at: At, target: Target, bytes: usize, value: u64, poison: bool) {
        match target {
            Target::Shared(cta, offset) => {
                self.ctas[cta].shared.write(offset, bytes, value, poison);
            }
            Target::Global(buffer, offset) => {
                self.global.buffer_mut(buffer).bytes.write(offset, bytes, value, poison);
            }
            Target::Local(offset) => self.warp_mut(at).local.write(offset, bytes, value, poison),
            Target::Param(_) => {}
        }
    }
}

impl Target {
    /// The same place `bytes` further on.
    pub fn plus(self, bytes: usize) -> Target {
        match self {
            Target::Shared(cta, o) => Target::Shared(cta, o + bytes),
            Target::Global(buffer, o) => Target::Global(buffer, o + bytes),
            Target::Param(o) => Target::Param(o + bytes),
            Target::Local(o) => Target::Local(o + bytes),
        }
    }

    pub fn space(self) -> Space {
        match self {
            Target::Shared(..) => Space::Shared,
            Target::Global(..) => Space::Global,
            Target::Param(_) => Space::Param,
            Target::Local(_) => Space::Local,
        }
    }
}

/// A conflict as a fault. `at` of global conflicts is the offset in the buffer.
pub(crate) fn conflict(access: &'static str, target: Target, conflict: Conflict) -> Raise {
    let space = target.space();
    match conflict {
        Conflict::Unordered { at, earlier, earlier_writes } => {
            let before = if earlier_writes { "write" } else { "read" };
            Raise::from(FaultKind::Race { access, earlier: before, space, address: at as u64 }).other(earlier)
        }
        Conflict::Proxy { at, earlier } => {
            Raise::from(FaultKind::MissingProxyFence { access, address: at as u64 }).other(earlier)
        }
        Conflict::Pending { at, earlier } => {
            Raise::from(FaultKind::InFlight { access, space, address: at as u64 }).other(earlier)
        }
    }
}
