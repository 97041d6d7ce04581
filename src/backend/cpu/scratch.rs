//! Memory that grouped GEMMs use again from call to call.

use std::ops::Range;

use super::grouped_gemm::Gemm;
use super::kernel::Kernel;

/// Bytes of packed rows in one pass over the experts, beyond which there is another.
const PACKED_BYTES: usize = 128 << 20;

/// Rows of one expert in a task, beyond which there is another: so that threads share an expert that has most rows.
const GROUP_ROWS: usize = 512;

/// Rows of an expert up to which a kernel that rounds rows to bf16 takes what it rounds away as rows of their own. So
/// few are waited for in memory anyway, and have few neighbours for errors to average out with. Twice as many are a
/// register tile.
const SPLIT_ROWS: usize = 3;

/// Elements of a matrix up to which such a kernel always does so: the time is nothing, and few columns average out as
/// little as few rows do.
const SPLIT_MATRIX: usize = 1 << 16;

/// How a pass is cut, and its packed rows.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) chunks: Vec<Chunk>,
    pub(super) groups: Vec<Group>,
    pub(super) packed: Vec<CacheLine>,
    /// Elements of `packed` in use.
    pub(super) packed_len: usize,
}

/// Rows that are packed and multiplied together.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) rows: Range<usize>,
    /// Whether they are packed as [`Lines`](super::kernel::rows::Lines) that are split.
    pub(super) split: bool,
    /// Where its packed rows start.
    pub(super) packed: usize,
}

impl Chunk {
    /// How many rows are packed for it.
    pub(super) fn packed_rows(&self) -> usize {
        self.rows.len() << u8::from(self.split)
    }
}

/// Chunks of one expert that are one task for each block of columns.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) expert: usize,
    pub(super) chunks: Range<usize>,
}

/// Memory on a cache-line boundary.
#[derive(Clone, Copy, Debug, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub(super) struct CacheLine([u8; 64]);

impl Scratch {
    /// Cuts the rows from `start` on into chunks and groups, as many as fit a pass; returns where the next pass starts.
    pub(super) fn plan<K: Kernel>(&mut self, kernel: K, gemm: &Gemm<'_>, start: usize) -> usize {
        self.chunks.clear();
        self.groups.clear();
        self.packed_len = 0;
        let limit = PACKED_BYTES / size_of::<K::Packed>();
        let mut end = start;
        for (expert, rows) in gemm.expert_offsets.windows(2).enumerate() {
            let rows = (rows[0] as usize).max(start)..rows[1] as usize;
            for group in pieces(rows, GROUP_ROWS) {
                if self.packed_len >= limit {
                    break;
                }
                end = group.end;
                self.group(kernel, gemm, expert, group);
            }
        }
        let bytes = self.packed_len * size_of::<K::Packed>();
        let lines = bytes.div_ceil(size_of::<CacheLine>());
        if self.packed.len() < lines {
            self.packed.resize(lines, bytemuck::Zeroable::zeroed());
        }
        end
    }

    fn group<K: Kernel>(&mut self, kernel: K, gemm: &Gemm<'_>, expert: usize, rows: Range<usize>) {
        let first = self.chunks.len();
        // Whether rows are split must not depend on how many there are where results must not.
        let few = rows.len() <= SPLIT_ROWS || gemm.n.saturating_mul(gemm.rows.k()) <= SPLIT_MATRIX;
        let split = K::ROUNDS && (gemm.batch_invariant || few);
        for rows in pieces(rows, if split { K::CHUNK / 2 } else { K::CHUNK }) {
            let chunk = Chunk { rows, split, packed: self.packed_len };
            let len = kernel.packed_len(chunk.packed_rows(), gemm.rows.k());
            self.chunks.push(chunk);
            // Each chunk on a cache line of its own.
            self.packed_len = (self.packed_len + len).next_multiple_of(size_of::<CacheLine>());
        }
        self.groups.push(Group { expert, chunks: first..self.chunks.len() });
    }
}

/// A range in pieces of `len`, and a rest.
fn pieces(range: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(len).map(move |start| start..range.end.min(start + len))
}
