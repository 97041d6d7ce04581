//! Turns what a family raised into a fault with names and places.

use super::{At, Machine, lanes};
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

    /// Nothing can run: says where everyone waits; the first two are the parties.
    pub fn deadlock(&self) -> Box<Fault> {
        let mut waiting = vec![];
        for cta in &self.ctas {
            for (w, warp) in cta.warps.iter().enumerate() {
                for group in &warp.groups {
                    let lane = lanes(group.lanes).next().unwrap_or(0) as u32;
                    let place = self.place(group.waits_at);
                    let thread = self.geometry.thread(w as u32 * 32 + lane);
                    let party = Party { block: cta.index, thread, asynchronous: false, place };
                    waiting.push((party, group.lanes.count_ones()));
                }
            }
        }
        let more = waiting.len().saturating_sub(8);
        let mut text: Vec<String> =
            waiting[..waiting.len().min(8)].iter().map(|(party, lanes)| format!("{party} ({lanes} lanes)")).collect();
        if more > 0 {
            text.push(format!("and {more} more"));
        }
        let mut parties = waiting.into_iter().map(|(party, _)| party);
        let (party, other) = (parties.next(), parties.next());
        Box::new(Fault { kind: FaultKind::Deadlock(text), kernel: self.kernel.name.clone(), party, other })
    }
}
