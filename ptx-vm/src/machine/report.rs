//! Turns what a family raised into a fault with names and places.

use super::{At, Machine, Wait, lanes};
use crate::mem::clock::ASYNC_LANE;
use crate::mem::shadow::Stamp;
use crate::report::{Fault, FaultKind, Party, Place, Raise};

impl Machine<'_> {
    /// Source place of an instruction.
    pub fn place(&self, pc: u32) -> Place {
        let Some(source) = self.kernel.sources.get(pc as usize) else {
            return Place::default();
        };
        Place {
            file: self.kernel.files.get(&source.file).cloned(),
            line: source.line,
            ptx_line: source.ptx_line,
            opcode: source.opcode.clone(),
        }
    }

    /// Completes a fault.
    pub fn fault(&self, at: At, raise: Raise) -> Box<Fault> {
        let raised = *raise.0;
        let lane = raised.lane.unwrap_or(at.lanes.trailing_zeros());
        let block = self.ctas[at.cta].index;
        let thread = self.geometry.thread(at.warp as u32 * 32 + lane);
        let place = self.place(at.pc);
        Box::new(Fault {
            kind: raised.kind,
            kernel: self.kernel.name.clone(),
            party: Some(Party { block, thread, asynchronous: false, place }),
            other: raised.other.map(|stamp| self.party(&stamp)),
        })
    }

    fn party(&self, stamp: &Stamp) -> Party {
        let asynchronous = stamp.who.lane >= ASYNC_LANE;
        let lane = if asynchronous { 0 } else { stamp.who.lane as u32 };
        Party {
            block: self.geometry.block_index(stamp.who.cta),
            thread: self.geometry.thread(stamp.who.warp as u32 * 32 + lane),
            asynchronous,
            place: self.place(stamp.pc),
        }
    }

    /// A fault of the grid as a whole.
    pub fn grid_fault(&self, kind: FaultKind) -> Box<Fault> {
        Box::new(Fault { kind, kernel: self.kernel.name.clone(), party: None, other: None })
    }

    /// Nothing can run: says where everyone waits.
    pub fn deadlock(&self) -> Box<Fault> {
        let mut waiting = vec![];
        for cta in &self.ctas {
            for (w, warp) in cta.warps.iter().enumerate() {
                for group in &warp.groups {
                    let lane = lanes(group.lanes).next().unwrap_or(0) as u32;
                    let thread = self.geometry.thread(w as u32 * 32 + lane);
                    // The instruction that waits is the one before, where waiting comes after it.
                    let behind = matches!(group.wait, Wait::Barrier(_) | Wait::Progress(_) | Wait::Cluster);
                    let place = self.place(group.pc.saturating_sub(behind as u32));
                    waiting.push(format!(
                        "block {:?} thread {:?} ({} lanes) at {place}",
                        cta.index,
                        thread,
                        group.lanes.count_ones()
                    ));
                }
            }
        }
        let more = waiting.len().saturating_sub(8);
        waiting.truncate(8);
        if more > 0 {
            waiting.push(format!("and {more} more"));
        }
        self.grid_fault(FaultKind::Deadlock(waiting))
    }
}
