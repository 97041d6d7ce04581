//! Dot products along contiguous rows of `[N, K]` weights, a register tile of input rows × weight rows at a time.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use super::ahead::{Ahead, prefetch};
use super::rows::{Lines, Rows, Source};
use super::{Kernel, Panel, ProductRow};
use crate::backend::cpu::isa::{Simd, TILE, Task, Weight};

/// Elements of K summed in registers before they are added to the product: as many as keep a register tile's input
/// rows in the first-level cache.
const K_BLOCK: usize = 1024;

/// Bytes along a weight row that are asked for before they are needed.
const AHEAD: usize = 1024;

/// Multiply and add along K.
pub(in crate::backend::cpu) trait Dot: Copy + Send + Sync {
    /// Packed input.
    type Input: Pod + Send + Sync;
    type Weight: Weight;
    type Vector: Copy;
    type Inputs: Copy;
    type Weights: Copy;

    /// Elements of K in one step.
    const STEP: usize;
    /// Input rows in a register tile.
    const ROWS: usize;
    /// Whether [`Dot::read`] rounds to bf16.
    const ROUNDS: bool;

    fn vectorize(self, task: impl Task);
    fn zero(self) -> Self::Vector;
    fn multiply_add(self, x: Self::Inputs, w: Self::Weights, sum: Self::Vector) -> Self::Vector;
    fn sums(self, vectors: [Self::Vector; TILE]) -> [f32; TILE];
    /// Reads and rounds `to.len()` elements of a row.
    fn read(self, rows: &Rows<'_>, source: Source, to: &mut [Self::Input]);
    /// # Safety
    /// `from` is valid for [`Dot::STEP`] elements.
    unsafe fn inputs(self, from: *const Self::Input) -> Self::Inputs;
    /// # Safety
    /// `from` is valid for [`Dot::STEP`] elements.
    unsafe fn weights(self, from: *const Self::Weight) -> Self::Weights;
}

/// f32 input, weights of any type widened in registers.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Widen<S, W>(S, PhantomData<W>);

impl<S, W> Widen<S, W> {
    pub(in crate::backend::cpu) fn new(simd: S) -> Self {
        Self(simd, PhantomData)
    }
}

impl<S: Simd, W: Weight> Dot for Widen<S, W> {
    type Input = f32;
    type Weight = W;
    type Vector = S::Vector;
    type Inputs = S::Vector;
    type Weights = S::Vector;

    const STEP: usize = S::LANES;
    const ROWS: usize = S::ROWS;
    const ROUNDS: bool = false;

    #[inline(always)]
    fn vectorize(self, task: impl Task) {
        self.0.vectorize(task);
    }

    #[inline(always)]
    fn zero(self) -> S::Vector {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn multiply_add(self, x: S::Vector, w: S::Vector, sum: S::Vector) -> S::Vector {
        self.0.mul_add(x, w, sum)
    }

    #[inline(always)]
    fn sums(self, vectors: [S::Vector; TILE]) -> [f32; TILE] {
        self.0.sums(vectors)
    }

    #[inline(always)]
    fn read(self, rows: &Rows<'_>, source: Source, to: &mut [f32]) {
        rows.read_f32(source, 0, to);
    }

    #[inline(always)]
    unsafe fn inputs(self, from: *const f32) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { self.0.load_f32(from) }
    }

    #[inline(always)]
    unsafe fn weights(self, from: *const W) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { W::load(self.0, from) }
    }
}

/// The kernel for `[N, K]` weights over a [`Dot`].
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct DotKernel<D>(pub(in crate::backend::cpu) D);

impl<D: Dot> DotKernel<D> {
    /// Elements from one packed row to the next: whole steps, and off the powers of two that share cache sets.
    fn stride(k: usize) -> usize {
        k.next_multiple_of(D::STEP) + 32
    }
}

impl<D: Dot> Kernel for DotKernel<D> {
    type Weight = D::Weight;
    type Packed = D::Input;

    const CHUNK: usize = 48;
    const MIN_WIDTH: usize = 16;
    const CONTIGUOUS: bool = true;
    const ROUNDS: bool = D::ROUNDS;

    fn packed_len(self, rows: usize, k: usize) -> usize {
        rows * Self::stride(k)
    }

    fn pack(self, lines: Lines<'_, '_>, packed: &mut [D::Input]) {
        self.0.vectorize(Pack { dot: self.0, lines, packed });
    }

    fn multiply(self, packed: &[D::Input], panel: Panel<'_, D::Weight>, product: &mut [ProductRow], column: usize) {
        panel.check(product, column);
        assert!(packed.len() == self.packed_len(product.len(), panel.k), "packed rows fit the product");
        let (k, groups) = (panel.k, panel.count.div_ceil(TILE));
        let blocks = || (0..k).step_by(K_BLOCK).map(|start| start..k.min(start + K_BLOCK));
        let product_rows = product.len();
        let few = product_rows <= D::ROWS;
        let mut ahead = match few {
            true => Ahead::nothing(),
            false => Ahead::new(panel.next, product.len().div_ceil(D::ROWS) * groups * k.div_ceil(K_BLOCK)),
        };
        let mut tile = |row: usize, groups: Range<usize>, block: Range<usize>| {
            let product = &mut product[row..];
            let rows = product.len().min(D::ROWS);
            let packed = &packed[row * Self::stride(k)..(row + rows) * Self::stride(k)];
            let product = &mut product[..rows];
            let ahead = &mut ahead;
            self.0.vectorize(RowTile { dot: self.0, packed, panel, product, column, groups, block, ahead });
        };
        // For few rows weight rows from end to end, as memory likes to be read; for many in blocks along K, so that a
        // register tile's input rows stay in the first-level cache. The sums are the same.
        if few {
            (0..groups).for_each(|group| blocks().for_each(|block| tile(0, group..group + 1, block)));
        } else {
            blocks().for_each(|block| {
                (0..product_rows).step_by(D::ROWS).for_each(|row| tile(row, 0..groups, block.clone()));
            });
        }
    }

    fn vectorize(self, task: impl Task) {
        self.0.vectorize(task);
    }
}

struct Pack<'a, 'r, D: Dot> {
    dot: D,
    lines: Lines<'a, 'r>,
    packed: &'a mut [D::Input],
}

impl<D: Dot> Task for Pack<'_, '_, D> {
    #[inline(always)]
    fn run(self) {
        let rows = self.lines.rows;
        let stride = DotKernel::<D>::stride(rows.k());
        for (i, packed) in (0..self.lines.len()).zip(self.packed.chunks_exact_mut(stride)) {
            let (used, padding) = packed.split_at_mut(rows.k());
            self.dot.read(rows, self.lines.source(i), used);
            padding.fill(bytemuck::Zeroable::zeroed());
        }
    }
}

/// A register tile's rows times groups of the panel's weight rows, over a block of K.
struct RowTile<'a, 'w, D: Dot> {
    dot: D,
    packed: &'a [D::Input],
    panel: Panel<'w, D::Weight>,
    product: &'a mut [ProductRow],
    column: usize,
    groups: Range<usize>,
    block: Range<usize>,
    ahead: &'a mut Ahead,
}

impl<D: Dot> Task for RowTile<'_, '_, D> {
    #[inline(always)]
    fn run(self) {
        match self.product.len() {
            1 => self.tile::<1>(),
            2 => self.tile::<2>(),
            3 if D::ROWS >= 3 => self.tile::<3>(),
            4 if D::ROWS >= 6 => self.tile::<4>(),
            5 if D::ROWS >= 6 => self.tile::<5>(),
            6 if D::ROWS >= 6 => self.tile::<6>(),
            rows => unreachable!("{rows} rows in a register tile"),
        }
    }
}

impl<D: Dot> RowTile<'_, '_, D> {
    #[inline(always)]
    fn tile<const ROWS: usize>(self) {
        let Panel { matrix, k, first, count, .. } = self.panel;
        let x = &self.packed[self.block.start..];
        // Weight rows of a group lie apart: then each of several places is read on and on, which the hardware
        // prefetches across the ends of rows.
        let apart = count.div_ceil(TILE);
        for group in self.groups {
            // Past the panel's end a row is computed again, and not used.
            let row = |i: usize| {
                let start = (first + (group + i * apart).min(count - 1)) * k;
                &matrix[start + self.block.start..start + self.block.end]
            };
            let weights = [row(0), row(1), row(2), row(3)];
            let sums = register_tile::<D, ROWS>(self.dot, x, DotKernel::<D>::stride(k), weights);
            for (product, sums) in self.product.iter_mut().zip(sums) {
                let columns = product[self.column + group..self.column + count].iter_mut().step_by(apart);
                for (column, sum) in columns.zip(sums) {
                    *column += sum;
                }
            }
            self.ahead.turn();
        }
    }
}

/// The dot products of `ROWS` rows, `stride` apart in `x`, and [`TILE`] weight rows of one length.
#[inline(always)]
fn register_tile<D: Dot, const ROWS: usize>(
    dot: D,
    x: &[D::Input],
    stride: usize,
    weights: [&[D::Weight]; TILE],
) -> [[f32; TILE]; ROWS] {
    let len = weights[0].len();
    let whole = len / D::STEP * D::STEP;
    assert!(weights.iter().all(|w| w.len() == len), "weight rows of one length");
    assert!(x.len() >= (ROWS - 1) * stride + len.next_multiple_of(D::STEP), "packed rows are padded to whole steps");
    let mut sums = [[dot.zero(); TILE]; ROWS];
    for at in (0..whole).step_by(D::STEP) {
        for row in weights {
            prefetch(row.as_ptr().wrapping_add(at + AHEAD / size_of::<D::Weight>()).cast());
        }
        // SAFETY: `at + STEP <= whole <= len`, the length of each weight row.
        let w = unsafe { load(dot, weights, at) };
        // SAFETY: asserted: row `r` has whole steps up to `len` from `r * stride` on.
        unsafe { step::<D, ROWS>(dot, x.as_ptr().add(at), stride, w, &mut sums) };
    }
    if whole < len {
        let [a, b, c, d] = weights;
        let tail = [&a[whole..], &b[whole..], &c[whole..], &d[whole..]];
        let tail = [partial(dot, tail[0]), partial(dot, tail[1]), partial(dot, tail[2]), partial(dot, tail[3])];
        // SAFETY: as above: the padding makes the last step whole.
        unsafe { step::<D, ROWS>(dot, x.as_ptr().add(whole), stride, tail, &mut sums) };
    }
    let mut totals = [[0.0; TILE]; ROWS];
    for (total, sums) in totals.iter_mut().zip(sums) {
        *total = dot.sums(sums);
    }
    totals
}

/// One step of weights of each row, from element `at` on.
///
/// # Safety
/// `at + STEP` is within each row.
#[inline(always)]
unsafe fn load<D: Dot>(dot: D, [a, b, c, d]: [&[D::Weight]; TILE], at: usize) -> [D::Weights; TILE] {
    // SAFETY: the caller's promise.
    unsafe {
        [
            dot.weights(a.as_ptr().add(at)),
            dot.weights(b.as_ptr().add(at)),
            dot.weights(c.as_ptr().add(at)),
            dot.weights(d.as_ptr().add(at)),
        ]
    }
}

/// One step along K.
///
/// # Safety
/// `x` is valid for [`Dot::STEP`] elements in each of `ROWS` rows that are `stride` apart.
#[inline(always)]
unsafe fn step<D: Dot, const ROWS: usize>(
    dot: D,
    x: *const D::Input,
    stride: usize,
    w: [D::Weights; TILE],
    sums: &mut [[D::Vector; TILE]; ROWS],
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let x = unsafe { dot.inputs(x.add(r * stride)) };
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum = dot.multiply_add(x, w, *sum);
        }
    }
}

/// Fewer than [`Dot::STEP`] weights, filled up with zeros.
#[inline(always)]
fn partial<D: Dot>(dot: D, weights: &[D::Weight]) -> D::Weights {
    const { assert!(D::STEP <= 32) };
    let mut padded = [bytemuck::Zeroable::zeroed(); 32];
    padded[..weights.len()].copy_from_slice(weights);
    // SAFETY: 32 elements hold a step.
    unsafe { dot.weights(padded.as_ptr()) }
}
