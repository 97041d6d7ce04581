//! `[K, N]` weights: each input element times a run of contiguous columns.

use std::marker::PhantomData;
use std::ops::Range;

use super::rows::Lines;
use super::{Kernel, Panel, ProductRow, WIDTH};
use crate::backend::cpu::isa::{MAX_LANES, Simd, TILE, Task, Weight};

/// Elements of K for which the columns of a panel are passed through: so that a matrix is read in runs, not in slivers.
const K_BLOCK: usize = 16;

/// The kernel for `[K, N]` weights.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct BroadcastKernel<S, W>(S, PhantomData<W>);

impl<S, W> BroadcastKernel<S, W> {
    pub(in crate::backend::cpu) fn new(simd: S) -> Self {
        Self(simd, PhantomData)
    }
}

impl<S: Simd, W: Weight> Kernel for BroadcastKernel<S, W> {
    type Weight = W;
    type Packed = f32;

    const CHUNK: usize = 48;
    const MIN_WIDTH: usize = 64;
    const CONTIGUOUS: bool = false;
    const ROUNDS: bool = false;

    fn packed_len(self, rows: usize, k: usize) -> usize {
        rows * k
    }

    fn pack(self, lines: Lines<'_, '_>, packed: &mut [f32]) {
        self.0.vectorize(Pack { lines, packed });
    }

    fn multiply(self, packed: &[f32], panel: Panel<'_, W>, product: &mut [ProductRow], column: usize) {
        panel.check(product, column);
        assert!(packed.len() == self.packed_len(product.len(), panel.k), "packed rows fit the product");
        self.0.vectorize(Multiply { simd: self.0, packed, panel, product, column });
    }

    fn vectorize(self, task: impl Task) {
        self.0.vectorize(task);
    }
}

struct Pack<'a, 'r> {
    lines: Lines<'a, 'r>,
    packed: &'a mut [f32],
}

impl Task for Pack<'_, '_> {
    #[inline(always)]
    fn run(self) {
        let rows = self.lines.rows;
        for (i, packed) in (0..self.lines.len()).zip(self.packed.chunks_exact_mut(rows.k().max(1))) {
            rows.read_f32(self.lines.source(i), 0, packed);
        }
    }
}

struct Multiply<'a, S, W> {
    simd: S,
    packed: &'a [f32],
    panel: Panel<'a, W>,
    product: &'a mut [ProductRow],
    column: usize,
}

impl<S: Simd, W: Weight> Task for Multiply<'_, S, W> {
    #[inline(always)]
    fn run(mut self) {
        for start in (0..self.panel.k).step_by(K_BLOCK) {
            let block = start..self.panel.k.min(start + K_BLOCK);
            for row in (0..self.product.len()).step_by(S::ROWS) {
                match self.product.len() - row {
                    1 => self.row_tile::<1>(row, block.clone()),
                    2 => self.row_tile::<2>(row, block.clone()),
                    3 if S::ROWS >= 3 => self.row_tile::<3>(row, block.clone()),
                    4 if S::ROWS >= 6 => self.row_tile::<4>(row, block.clone()),
                    5 if S::ROWS >= 6 => self.row_tile::<5>(row, block.clone()),
                    _ if S::ROWS >= 6 => self.row_tile::<6>(row, block.clone()),
                    _ if S::ROWS >= 3 => self.row_tile::<3>(row, block.clone()),
                    _ => self.row_tile::<2>(row, block.clone()),
                }
            }
        }
    }
}

impl<S: Simd, W: Weight> Multiply<'_, S, W> {
    /// `ROWS` rows from `row` on times the whole panel, over a block of K.
    #[inline(always)]
    fn row_tile<const ROWS: usize>(&mut self, row: usize, block: Range<usize>) {
        let Panel { matrix, n, k, first, count, .. } = self.panel;
        let x: [&[f32]; ROWS] = std::array::from_fn(|r| &self.packed[(row + r) * k..(row + r + 1) * k]);
        let step = TILE * S::LANES;
        let whole = count / step * step;
        for at in (0..whole).step_by(step) {
            let weights = |k: usize| &matrix[k * n + first + at..][..step];
            let column = self.column + at;
            register_tile(self.simd, x, block.clone(), weights, &mut self.product[row..row + ROWS], column);
        }
        if whole < count {
            self.edge_tile(row, x, block, whole);
        }
    }

    /// The columns from `at` on, fewer than a register tile: copies of weights and sums, filled up with zeros.
    #[inline(always)]
    fn edge_tile<const ROWS: usize>(&mut self, row: usize, x: [&[f32]; ROWS], block: Range<usize>, at: usize) {
        let Panel { matrix, n, first, count, .. } = self.panel;
        let used = count - at;
        let mut weights = [[W::zeroed(); TILE * MAX_LANES]; K_BLOCK];
        for (k, weights) in block.clone().zip(&mut weights) {
            weights[..used].copy_from_slice(&matrix[k * n + first + at..][..used]);
        }
        let mut product = [[0.0; WIDTH]; ROWS];
        let columns = self.column + at..self.column + count;
        for (copy, row) in product.iter_mut().zip(&self.product[row..]) {
            copy[..used].copy_from_slice(&row[columns.clone()]);
        }
        let start = block.start;
        register_tile(self.simd, x, block, |k| &weights[k - start], &mut product, 0);
        for (copy, row) in product.iter().zip(&mut self.product[row..]) {
            row[columns.clone()].copy_from_slice(&copy[..used]);
        }
    }
}

/// Adds to [`TILE`] vectors from `column` on of each row the products of its `x` and the weights of each k.
#[inline(always)]
fn register_tile<'w, S: Simd, W: Weight, const ROWS: usize>(
    simd: S,
    x: [&[f32]; ROWS],
    block: Range<usize>,
    weights: impl Fn(usize) -> &'w [W],
    product: &mut [ProductRow],
    column: usize,
) {
    let step = TILE * S::LANES;
    assert!(product.len() == ROWS && column + step <= WIDTH, "a register tile within the product");
    let mut sums = [[simd.splat(0.0); TILE]; ROWS];
    for (sums, row) in sums.iter_mut().zip(&*product) {
        for (v, sum) in sums.iter_mut().enumerate() {
            // SAFETY: asserted: TILE vectors from `column` on are within the row.
            *sum = unsafe { simd.load_f32(row.as_ptr().add(column + v * S::LANES)) };
        }
    }
    for k in block {
        let weights = &weights(k)[..step];
        let mut w = [simd.splat(0.0); TILE];
        for (v, w) in w.iter_mut().enumerate() {
            // SAFETY: TILE vectors are within the slice just taken.
            *w = unsafe { W::load(simd, weights.as_ptr().add(v * S::LANES)) };
        }
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = simd.splat(x[k]);
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = simd.mul_add(x, w, *sum);
            }
        }
    }
    for (sums, row) in sums.into_iter().zip(product) {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: as the load.
            unsafe { simd.store(row.as_mut_ptr().add(column + v * S::LANES), sum) };
        }
    }
}
