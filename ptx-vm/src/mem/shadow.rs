//! Who last wrote and who since read each cell of memory, to find accesses that nothing orders.
//!
//! Cells are 16 bytes at first; a 512-byte block whose accesses are finer is split into smaller cells.

use smallvec::SmallVec;

use super::clock::{ASYNC_LANE, Clock, Who};

const BLOCK: usize = 512;
const COARSE: u32 = 4;

/// An access that was: by whom, when and at which instruction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stamp {
    pub who: Who,
    pub epoch: u32,
    pub pc: u32,
    /// Atomic or otherwise strong: two such accesses do not race.
    strong: bool,
    /// Made through the async proxy.
    proxy: bool,
    /// Destination of a copy that no one has waited for.
    pending: bool,
}

impl Stamp {
    /// Someone at an instruction, to be named in a report.
    pub fn by(who: Who, pc: u32) -> Stamp {
        Stamp { who, pc, ..Stamp::default() }
    }
}

/// Reads by lanes of one warp in one epoch.
#[derive(Clone, Copy, Debug)]
struct Reads {
    cta: u32,
    warp: u8,
    strong: bool,
    epoch: u32,
    pc: u32,
    /// From bit 32 the asynchronous lanes.
    lanes: u64,
}

#[derive(Clone, Debug, Default)]
struct Cell {
    /// Epoch 0: never written.
    write: Stamp,
    reads: SmallVec<[Reads; 1]>,
}

#[derive(Clone, Debug)]
struct Block {
    /// log2 of the cell size.
    shift: u32,
    cells: Vec<Cell>,
}

/// The history of one memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shadow {
    blocks: Vec<Option<Box<Block>>>,
}

/// An access about to be made.
#[derive(Clone, Copy)]
pub(crate) struct Actor<'a> {
    pub who: Who,
    pub epoch: u32,
    pub pc: u32,
    pub strong: bool,
    /// Through the async proxy.
    pub proxy: bool,
    /// What the thread that issues the access knows.
    pub clock: &'a Clock,
    /// That thread: its own past is always known.
    pub issuer: Who,
}

/// Why an access may not be made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Conflict {
    Unordered { at: usize, earlier: Stamp, earlier_writes: bool },
    Proxy { at: usize, earlier: Stamp },
    Pending { at: usize, earlier: Stamp },
}

impl Actor<'_> {
    fn stamp(&self) -> Stamp {
        Stamp { who: self.who, epoch: self.epoch, pc: self.pc, strong: self.strong, proxy: self.proxy, pending: false }
    }

    fn after_write(&self, at: usize, w: &Stamp) -> Result<(), Conflict> {
        if w.epoch == 0 {
            return Ok(());
        }
        if w.pending {
            return Err(Conflict::Pending { at, earlier: *w });
        }
        let own = w.who == self.issuer;
        let ordered = own || self.strong && w.strong || self.clock.knows(w.who, w.epoch);
        if !ordered {
            return Err(Conflict::Unordered { at, earlier: *w, earlier_writes: true });
        }
        if self.proxy && !w.proxy && !self.clock.fenced(w.who, w.epoch) {
            return Err(Conflict::Proxy { at, earlier: *w });
        }
        Ok(())
    }

    fn after_reads(&self, at: usize, reads: &[Reads]) -> Result<(), Conflict> {
        for r in reads {
            if self.strong && r.strong {
                continue;
            }
            let same_warp = r.cta == self.issuer.cta && r.warp == self.issuer.warp;
            let lanes = if same_warp { r.lanes & !(1 << self.issuer.lane) } else { r.lanes };
            if lanes == 0 {
                continue;
            }
            if let Some(lane) = self.clock.unknown_lane(r.cta, r.warp, lanes, r.epoch) {
                let who = Who { cta: r.cta, warp: r.warp, lane };
                let proxy = lane >= ASYNC_LANE;
                let earlier = Stamp { who, epoch: r.epoch, pc: r.pc, strong: r.strong, proxy, pending: false };
                return Err(Conflict::Unordered { at, earlier, earlier_writes: false });
            }
        }
        Ok(())
    }
}

impl Cell {
    fn note_read(&mut self, a: &Actor) {
        let bit = 1u64 << a.who.lane;
        let (cta, warp) = (a.who.cta, a.who.warp);
        for r in self.reads.iter_mut().filter(|r| r.cta == cta && r.warp == warp) {
            if r.epoch == a.epoch && r.strong == a.strong {
                r.lanes |= bit;
                r.pc = a.pc;
                return;
            }
            // A later read of the same thread stands for the earlier one.
            r.lanes &= !bit;
        }
        self.reads.retain(|r| r.lanes != 0);
        let (epoch, pc) = (a.epoch, a.pc);
        self.reads.push(Reads { cta, warp, strong: a.strong, epoch, pc, lanes: bit });
    }
}

impl Shadow {
    pub fn new(bytes: usize) -> Self {
        Shadow { blocks: vec![None; bytes.div_ceil(BLOCK)] }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.blocks.fill_with(|| None);
    }

    /// Calls `f` for each cell of `at..at + len`, with the address of the cell.
    fn cells<E>(
        &mut self,
        at: usize,
        len: usize,
        mut f: impl FnMut(usize, &mut Cell) -> Result<(), E>,
    ) -> Result<(), E> {
        let fine = (at | len | 1 << COARSE).trailing_zeros();
        let mut from = at;
        let end = at + len;
        while from < end {
            let index = from / BLOCK;
            let block = self.blocks[index].get_or_insert_with(|| {
                Box::new(Block { shift: COARSE, cells: vec![Cell::default(); BLOCK >> COARSE] })
            });
            if block.shift > fine {
                block.refine(fine);
            }
            let stop = end.min((index + 1) * BLOCK);
            let (first, last) = ((from % BLOCK) >> block.shift, ((stop - 1) % BLOCK) >> block.shift);
            for (i, cell) in block.cells[first..=last].iter_mut().enumerate() {
                f(index * BLOCK + ((first + i) << block.shift), cell)?;
            }
            from = stop;
        }
        Ok(())
    }

    /// Checks and notes a read.
    pub fn read(&mut self, at: usize, len: usize, a: &Actor) -> Result<(), Conflict> {
        self.cells(at, len, |at, cell| {
            a.after_write(at, &cell.write)?;
            cell.note_read(a);
            Ok(())
        })
    }

    /// Checks a write without noting it.
    pub fn check_write(&mut self, at: usize, len: usize, a: &Actor) -> Result<(), Conflict> {
        self.cells(at, len, |at, cell| {
            a.after_write(at, &cell.write)?;
            a.after_reads(at, &cell.reads)
        })
    }

    /// Notes a write that was checked. Returns whether another lane wrote the same cell in the same
    /// instruction: the check of all lanes came first, so nothing else can have left such a stamp.
    pub fn commit_write(&mut self, at: usize, len: usize, a: &Actor) -> bool {
        let mut overlap = false;
        let done: Result<(), ()> = self.cells(at, len, |_, cell| {
            let w = cell.write;
            overlap |= w.epoch == a.epoch && w.pc == a.pc && w.who.warp == a.who.warp && w.who != a.who;
            cell.write = a.stamp();
            cell.reads.clear();
            Ok(())
        });
        done.is_ok() && overlap
    }

    /// A write in the history of a range.
    pub fn last_write(&mut self, at: usize, len: usize) -> Option<Stamp> {
        let found = self.cells(at, len, |_, cell| match cell.write.epoch {
            0 => Ok(()),
            _ => Err(cell.write),
        });
        found.err()
    }

    /// Checks a write and marks its bytes as in flight: no one may touch them until [`Shadow::land`].
    pub fn begin_copy(&mut self, at: usize, len: usize, a: &Actor) -> Result<(), Conflict> {
        self.check_write(at, len, a)?;
        let stamp = Stamp { pending: true, ..a.stamp() };
        self.cells(at, len, |_, cell| {
            cell.write = stamp;
            cell.reads.clear();
            Ok(())
        })
    }

    /// The bytes of a copy are in place as a write of `a`.
    pub fn land(&mut self, at: usize, len: usize, a: &Actor) {
        self.commit_write(at, len, a);
    }
}

impl Block {
    fn refine(&mut self, shift: u32) {
        let copies = 1 << (self.shift - shift);
        self.cells = self.cells.iter().flat_map(|c| std::iter::repeat_n(c.clone(), copies)).collect();
        self.shift = shift;
    }
}
