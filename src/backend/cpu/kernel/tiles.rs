//! bf16 `[N, K]` weights on AMX tiles.
//!
//! Sixteen weight rows are an A tile as they lie in memory. Input rows, rounded to bf16, are packed into B tiles: pairs
//! of elements of up to 16 rows side by side. So C tiles come out as columns × rows, and are turned on their way out.

use half::bf16;

use super::rows::{Lines, Source};
use super::{Kernel, Panel, ProductRow};
use crate::backend::cpu::isa::Task;
use crate::backend::cpu::isa::amx::{Amx, Configured, DEPTH, Inputs, ROWS, Tile, Weights};

/// The kernel for bf16 `[N, K]` weights, N at least 16.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct TileKernel(Amx);

impl TileKernel {
    /// `None` where a matrix has fewer rows than a tile.
    pub(in crate::backend::cpu) fn new(amx: Amx, n: usize) -> Option<Self> {
        (n >= ROWS).then_some(Self(amx))
    }
}

/// Columns of the B tiles for `rows` rows: few where there are few, so that decoding packs no air.
fn columns(rows: usize) -> usize {
    rows.next_power_of_two().min(ROWS)
}

impl Kernel for TileKernel {
    type Weight = bf16;
    type Packed = bf16;

    const CHUNK: usize = 64;
    const MIN_WIDTH: usize = 64;
    const CONTIGUOUS: bool = false;
    const ROUNDS: bool = true;

    fn packed_len(self, rows: usize, k: usize) -> usize {
        rows.next_multiple_of(columns(rows)) * k.next_multiple_of(DEPTH)
    }

    fn pack(self, lines: Lines<'_, '_>, packed: &mut [bf16]) {
        self.0.vectorize(Pack { amx: self.0, lines, packed });
    }

    fn multiply(self, packed: &[bf16], panel: Panel<'_, bf16>, product: &mut [ProductRow], column: usize) {
        panel.check(product, column);
        assert!(packed.len() == self.packed_len(product.len(), panel.k), "packed rows fit the product");
        assert!(panel.n >= ROWS, "a tile of weight rows");
        let columns = columns(product.len());
        let configured = self.0.configure(columns);
        self.0.vectorize(Multiply { amx: self.0, configured, columns, packed, panel, product, column });
    }

    fn vectorize(self, task: impl Task) {
        self.0.vectorize(task);
    }
}

struct Pack<'a, 'r> {
    amx: Amx,
    lines: Lines<'a, 'r>,
    packed: &'a mut [bf16],
}

impl Task for Pack<'_, '_> {
    #[inline(always)]
    fn run(self) {
        let len = self.lines.len();
        let columns = columns(len);
        let k = self.lines.rows.k();
        let run = columns * k.next_multiple_of(DEPTH);
        for (start, packed) in (0..len).step_by(columns).zip(self.packed.chunks_exact_mut(run.max(1))) {
            let used = columns.min(len - start);
            let mut sources = [Source::default(); ROWS];
            sources[..used].iter_mut().enumerate().for_each(|(i, source)| *source = self.lines.source(start + i));
            for (step, tile) in packed.chunks_exact_mut(columns * DEPTH).enumerate() {
                let mut rows = [[bf16::ZERO; DEPTH]; ROWS];
                let depth = DEPTH.min(k - step * DEPTH);
                for (row, source) in rows.iter_mut().zip(&sources[..used]) {
                    self.lines.rows.read_bf16(*source, step * DEPTH, &mut row[..depth]);
                }
                interleave(self.amx, &rows, columns, tile);
            }
        }
    }
}

/// Rows side by side: pairs of elements of each of the first `columns` rows, then the next pairs.
#[inline(always)]
fn interleave(amx: Amx, rows: &[[bf16; DEPTH]; ROWS], columns: usize, tile: &mut [bf16]) {
    if columns == ROWS {
        let pairs: &[f32] = bytemuck::cast_slice(rows.as_flattened());
        let tile: &mut [f32] = bytemuck::cast_slice_mut(tile);
        return amx.avx512bf16().avx512().transpose_tile(pairs, tile);
    }
    for (pair, to) in tile.chunks_exact_mut(2 * columns).enumerate() {
        for (row, to) in rows.iter().zip(to.chunks_exact_mut(2)) {
            to.copy_from_slice(&row[2 * pair..2 * pair + 2]);
        }
    }
}

struct Multiply<'a> {
    amx: Amx,
    configured: Configured,
    columns: usize,
    packed: &'a [bf16],
    panel: Panel<'a, bf16>,
    product: &'a mut [ProductRow],
    column: usize,
}

impl Task for Multiply<'_> {
    /// One pass over the weights for all rows, so that they are read as evenly as they are computed with.
    #[inline(always)]
    fn run(mut self) {
        // Rows of a tile lie apart where they can: then each of 16 places is read on and on, which the hardware
        // prefetches across the ends of rows.
        let count = self.panel.count;
        let apart = if count.is_multiple_of(ROWS) { count / ROWS } else { 1 };
        for i in 0..count.div_ceil(ROWS) {
            let first = if apart > 1 { i } else { i * ROWS };
            self.weight_rows(first, apart);
        }
    }
}

impl Multiply<'_> {
    /// The panel's columns `first`, `first + apart`, …, 16 of them, times all rows.
    #[inline(always)]
    fn weight_rows(&mut self, first: usize, apart: usize) {
        let Panel { matrix, k, n, .. } = self.panel;
        let runs = self.product.len().div_ceil(self.columns);
        // At the matrix's end from earlier rows on, which are computed again and not used.
        let start = (self.panel.first + first).min(n - (ROWS - 1) * apart - 1);
        let rows = &matrix[start * k..(start + (ROWS - 1) * apart + 1) * k];
        let whole = k / DEPTH;
        let weights = Weights { start: rows.as_ptr(), stride: apart * k * 2 };
        let tail = self.tail(rows, apart);
        let mut sums = [[0.0; ROWS * ROWS]; 4];
        // SAFETY: `rows` holds 16 rows, `apart` apart, and `inputs` all steps of each run; both have `whole` steps,
        // and `tail` and the last step of `inputs` are a tile each. Inputs are as wide as is configured.
        unsafe {
            if runs == 1 {
                let [sum, ..] = &mut sums;
                self.configured.multiply_1x1(weights, self.inputs([0], 0), whole, sum);
                if let Some(tail) = tail {
                    self.configured.multiply_1x1(tail_weights(&tail), self.inputs([0], whole), 1, sum);
                }
            } else {
                let all = [0, 1, 2, 3].map(|run: usize| run.min(runs - 1));
                self.configured.multiply_1x4(weights, self.inputs(all, 0), whole, &mut sums);
                if let Some(tail) = tail {
                    self.configured.multiply_1x4(tail_weights(&tail), self.inputs(all, whole), 1, &mut sums);
                }
            }
        }
        for (run, sums) in sums.iter().enumerate().take(runs) {
            let skip = self.panel.first + first - start;
            self.add(run, first, apart, skip, sums);
        }
    }

    /// The packed runs from step `step` on.
    #[inline(always)]
    fn inputs<const N: usize>(&self, runs: [usize; N], step: usize) -> Inputs<N> {
        let len = self.columns * self.panel.k.next_multiple_of(DEPTH);
        let start = step * self.columns * DEPTH;
        Inputs {
            starts: runs.map(|run| self.packed[run * len..(run + 1) * len][start..].as_ptr()),
            stride: self.columns * 4,
        }
    }

    /// What is left of rows after whole steps, filled up with zeros.
    #[inline(always)]
    fn tail(&self, rows: &[bf16], apart: usize) -> Option<[[bf16; DEPTH]; ROWS]> {
        let k = self.panel.k;
        let whole = k / DEPTH * DEPTH;
        if whole == k {
            return None;
        }
        let mut tile = [[bf16::ZERO; DEPTH]; ROWS];
        for (r, to) in tile.iter_mut().enumerate() {
            to[..k - whole].copy_from_slice(&rows[r * apart * k..][whole..k]);
        }
        Some(tile)
    }

    /// Adds a C tile to the product: of run `run`, for the panel's columns `first`, `first + apart`, …, of which the
    /// tile has `skip` others before.
    #[inline(always)]
    fn add(&mut self, run: usize, first: usize, apart: usize, skip: usize, sums: &Tile) {
        let mut turned = [0.0; ROWS * ROWS];
        if self.columns == ROWS {
            self.amx.avx512bf16().avx512().transpose_tile(sums, &mut turned);
        } else {
            for (n, sums) in sums.chunks_exact(self.columns).take(ROWS).enumerate() {
                for (row, sum) in sums.iter().enumerate() {
                    turned[row * ROWS + n] = *sum;
                }
            }
        }
        let product = self.product.iter_mut().skip(run * self.columns).take(self.columns);
        for (row, sums) in product.zip(turned.chunks_exact(ROWS)) {
            let columns = row[self.column + first..self.column + self.panel.count].iter_mut().step_by(apart);
            for (column, sum) in columns.zip(&sums[skip..]) {
                *column += sum;
            }
        }
    }
}

fn tail_weights(tail: &[[bf16; DEPTH]; ROWS]) -> Weights {
    Weights { start: tail.as_ptr().cast(), stride: DEPTH * 2 }
}
