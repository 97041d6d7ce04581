//! bf16 `[N, K]` weights on AMX tiles.
//!
//! Sixteen weight rows are an A tile as they lie in memory. Input rows, rounded to bf16, are packed into B tiles: pairs
//! of elements of up to 16 rows side by side. So C tiles come out as columns × rows, and are turned on their way out.

use std::ops::Range;

use half::bf16;

use super::ahead::Ahead;
use super::rows::{Rows, Source};
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
    const CONTIGUOUS: bool = true;

    fn packed_len(self, rows: usize, k: usize) -> usize {
        rows.next_multiple_of(columns(rows)) * k.next_multiple_of(DEPTH)
    }

    fn pack(self, rows: &Rows<'_>, range: Range<usize>, packed: &mut [bf16]) {
        self.0.vectorize(Pack { amx: self.0, rows, range, packed });
    }

    fn multiply(self, packed: &[bf16], panel: Panel<'_, bf16>, product: &mut [ProductRow], column: usize) {
        panel.check(product, column);
        assert!(packed.len() == self.packed_len(product.len(), panel.k), "packed rows fit the product");
        assert!(panel.n >= ROWS, "a tile of weight rows");
        let columns = columns(product.len());
        let tiles = product.len().div_ceil(columns) * panel.count.div_ceil(ROWS);
        let ahead = Ahead::new(panel.next, tiles * (panel.k / DEPTH));
        let configured = self.0.configure(columns);
        self.0.vectorize(Multiply { amx: self.0, configured, columns, packed, panel, product, column, ahead });
    }

    fn vectorize(self, task: impl Task) {
        self.0.vectorize(task);
    }
}

struct Pack<'a, 'r> {
    amx: Amx,
    rows: &'a Rows<'r>,
    range: Range<usize>,
    packed: &'a mut [bf16],
}

impl Task for Pack<'_, '_> {
    #[inline(always)]
    fn run(self) {
        let columns = columns(self.range.len());
        let k = self.rows.k();
        let run = columns * k.next_multiple_of(DEPTH);
        for (start, packed) in self.range.clone().step_by(columns).zip(self.packed.chunks_exact_mut(run.max(1))) {
            let used = columns.min(self.range.end - start);
            let mut sources = [Source::default(); ROWS];
            sources[..used].iter_mut().enumerate().for_each(|(i, source)| *source = self.rows.source(start + i));
            for (step, tile) in packed.chunks_exact_mut(columns * DEPTH).enumerate() {
                let mut rows = [[bf16::ZERO; DEPTH]; ROWS];
                let depth = DEPTH.min(k - step * DEPTH);
                for (row, source) in rows.iter_mut().zip(&sources[..used]) {
                    self.rows.read_bf16(*source, step * DEPTH, &mut row[..depth]);
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
    ahead: Ahead,
}

impl Task for Multiply<'_> {
    #[inline(always)]
    fn run(mut self) {
        let runs = self.product.len().div_ceil(self.columns);
        for run in (0..runs).step_by(2) {
            if run + 1 < runs {
                (0..self.panel.count).step_by(2 * ROWS).for_each(|n| self.two_by_two(run, n));
            } else {
                (0..self.panel.count).step_by(4 * ROWS).for_each(|n| self.four_by_one(run, n));
            }
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn four_by_one(&mut self, run: usize, n: usize) {
        let mut sums = [[0.0; ROWS * ROWS]; 4];
        let ahead = self.ahead.take(4);
        let starts = self.starts::<4>(n);
        let whole = self.panel.k / DEPTH;
        let weights = self.weights(starts);
        let inputs = self.inputs([run], 0);
        // SAFETY: `weights` and `inputs` have `whole` steps, and inputs are as wide as configured.
        unsafe { self.configured.multiply_4x1(weights, inputs, whole, &mut sums, ahead) };
        if let Some(tail) = self.tail(starts) {
            let inputs = self.inputs([run], whole);
            // SAFETY: `tail` and the last step of `inputs` are one tile each.
            unsafe { self.configured.multiply_4x1(tail_weights(&tail), inputs, 1, &mut sums, NOTHING) };
        }
        for (i, sums) in sums.iter().enumerate() {
            self.add(run, n + i * ROWS, sums);
        }
    }

    #[inline(always)]
    fn two_by_two(&mut self, run: usize, n: usize) {
        let mut sums = [[0.0; ROWS * ROWS]; 4];
        let ahead = self.ahead.take(4);
        let starts = self.starts::<2>(n);
        let whole = self.panel.k / DEPTH;
        let weights = self.weights(starts);
        let inputs = self.inputs([run, run + 1], 0);
        // SAFETY: as in `four_by_one`.
        unsafe { self.configured.multiply_2x2(weights, inputs, whole, &mut sums, ahead) };
        if let Some(tail) = self.tail(starts) {
            let inputs = self.inputs([run, run + 1], whole);
            // SAFETY: as in `four_by_one`.
            unsafe { self.configured.multiply_2x2(tail_weights(&tail), inputs, 1, &mut sums, NOTHING) };
        }
        for (i, sums) in sums.iter().enumerate() {
            self.add(run + i % 2, n + i / 2 * ROWS, sums);
        }
    }

    /// The matrix rows at which tiles for the panel's columns from `n` on start: whole tiles, if need be from earlier
    /// rows on.
    #[inline(always)]
    fn starts<const N: usize>(&self, n: usize) -> [usize; N] {
        std::array::from_fn(|i| (self.panel.first + n + i * ROWS).min(self.panel.n - ROWS))
    }

    /// All whole steps of the tiles that start at these matrix rows.
    #[inline(always)]
    fn weights<const N: usize>(&self, starts: [usize; N]) -> Weights<N> {
        let Panel { matrix, k, .. } = self.panel;
        Weights { tiles: starts.map(|start| matrix[start * k..(start + ROWS) * k].as_ptr()), stride: k * 2 }
    }

    /// The packed runs from step `step` on.
    #[inline(always)]
    fn inputs<const N: usize>(&self, runs: [usize; N], step: usize) -> Inputs<N> {
        let len = self.columns * self.panel.k.next_multiple_of(DEPTH);
        let start = step * self.columns * DEPTH;
        Inputs {
            tiles: runs.map(|run| self.packed[run * len..(run + 1) * len][start..].as_ptr()),
            stride: self.columns * 4,
        }
    }

    /// What is left of the tiles after whole steps, filled up with zeros.
    #[inline(always)]
    fn tail<const N: usize>(&self, starts: [usize; N]) -> Option<[[[bf16; DEPTH]; ROWS]; N]> {
        let Panel { matrix, k, .. } = self.panel;
        let whole = k / DEPTH * DEPTH;
        if whole == k {
            return None;
        }
        let mut tiles = [[[bf16::ZERO; DEPTH]; ROWS]; N];
        for (tile, start) in tiles.iter_mut().zip(starts) {
            for (r, row) in tile.iter_mut().enumerate() {
                row[..k - whole].copy_from_slice(&matrix[(start + r) * k + whole..(start + r + 1) * k]);
            }
        }
        Some(tiles)
    }

    /// Adds a C tile to the product: of run `run`, for the panel's columns from `n` on.
    #[inline(always)]
    fn add(&mut self, run: usize, n: usize, sums: &Tile) {
        let Panel { n: rows, first, count, .. } = self.panel;
        if n >= count {
            return;
        }
        let mut turned = [0.0; ROWS * ROWS];
        if self.columns == ROWS {
            self.amx.avx512bf16().avx512().transpose_tile(sums, &mut turned);
        } else {
            for (n, sums) in sums.chunks_exact(self.columns).take(ROWS).enumerate() {
                sums.iter().enumerate().for_each(|(row, sum)| turned[row * ROWS + n] = *sum);
            }
        }
        let skip = (first + n).saturating_sub(rows - ROWS);
        let used = ROWS.min(count - n);
        let product = self.product.iter_mut().skip(run * self.columns).take(self.columns);
        for (row, sums) in product.zip(turned.chunks_exact(ROWS)) {
            let columns = &mut row[self.column + n..self.column + n + used];
            columns.iter_mut().zip(&sums[skip..]).for_each(|(column, sum)| *column += sum);
        }
    }
}

/// No cache line to ask for.
const NOTHING: (*const u8, usize) = (std::ptr::null(), 0);

fn tail_weights<const N: usize>(tail: &[[[bf16; DEPTH]; ROWS]; N]) -> Weights<N> {
    Weights { tiles: std::array::from_fn(|i| tail[i].as_ptr().cast()), stride: DEPTH * 2 }
}
