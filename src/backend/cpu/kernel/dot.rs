//! Dot products along contiguous rows of `[N, K]` weights, a register tile of input rows × weight rows at a time.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use super::ahead::Ahead;
use super::rows::{Rows, Source};
use super::{Kernel, Panel, ProductRow};
use crate::backend::cpu::isa::{Simd, TILE, Task, Weight};

/// Elements of K summed in registers before they are added to the product: as many as keep a register tile's input
/// rows in the first-level cache.
const K_BLOCK: usize = 1024;

/// Steps along K between turns of fetching ahead.
const STEPS_PER_TURN: usize = 8;

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

    fn packed_len(self, rows: usize, k: usize) -> usize {
        rows * Self::stride(k)
    }

    fn pack(self, rows: &Rows<'_>, range: Range<usize>, packed: &mut [D::Input]) {
        self.0.vectorize(Pack { dot: self.0, rows, range, packed });
    }

    fn multiply(self, packed: &[D::Input], panel: Panel<'_, D::Weight>, product: &mut [ProductRow], column: usize) {
        panel.check(product, column);
        assert!(packed.len() == self.packed_len(product.len(), panel.k), "packed rows fit the product");
        self.0.vectorize(Multiply { dot: self.0, packed, panel, product, column });
    }

    fn vectorize(self, task: impl Task) {
        self.0.vectorize(task);
    }
}

struct Pack<'a, 'r, D: Dot> {
    dot: D,
    rows: &'a Rows<'r>,
    range: Range<usize>,
    packed: &'a mut [D::Input],
}

impl<D: Dot> Task for Pack<'_, '_, D> {
    #[inline(always)]
    fn run(self) {
        let k = self.rows.k();
        for (row, packed) in self.range.zip(self.packed.chunks_exact_mut(DotKernel::<D>::stride(k))) {
            let (used, padding) = packed.split_at_mut(k);
            self.dot.read(self.rows, self.rows.source(row), used);
            padding.fill(bytemuck::Zeroable::zeroed());
        }
    }
}

struct Multiply<'a, D: Dot> {
    dot: D,
    packed: &'a [D::Input],
    panel: Panel<'a, D::Weight>,
    product: &'a mut [ProductRow],
    column: usize,
}

impl<D: Dot> Task for Multiply<'_, D> {
    #[inline(always)]
    fn run(mut self) {
        let tiles = self.product.len().div_ceil(D::ROWS) * self.panel.count.div_ceil(TILE);
        let mut ahead = Ahead::new(self.panel.next, tiles * self.panel.k.div_ceil(D::STEP * STEPS_PER_TURN));
        for start in (0..self.panel.k).step_by(K_BLOCK) {
            let block = start..self.panel.k.min(start + K_BLOCK);
            for row in (0..self.product.len()).step_by(D::ROWS) {
                match self.product.len() - row {
                    1 => self.row_tile::<1>(row, block.clone(), &mut ahead),
                    2 => self.row_tile::<2>(row, block.clone(), &mut ahead),
                    3 if D::ROWS >= 3 => self.row_tile::<3>(row, block.clone(), &mut ahead),
                    4 if D::ROWS >= 6 => self.row_tile::<4>(row, block.clone(), &mut ahead),
                    5 if D::ROWS >= 6 => self.row_tile::<5>(row, block.clone(), &mut ahead),
                    _ if D::ROWS >= 6 => self.row_tile::<6>(row, block.clone(), &mut ahead),
                    _ if D::ROWS >= 3 => self.row_tile::<3>(row, block.clone(), &mut ahead),
                    _ => self.row_tile::<2>(row, block.clone(), &mut ahead),
                }
            }
        }
    }
}

impl<D: Dot> Multiply<'_, D> {
    /// `ROWS` rows from `row` on times the whole panel, over a block of K.
    #[inline(always)]
    fn row_tile<const ROWS: usize>(&mut self, row: usize, block: Range<usize>, ahead: &mut Ahead) {
        let Panel { k, first, count, .. } = self.panel;
        let stride = DotKernel::<D>::stride(k);
        let x = &self.packed[row * stride..(row + ROWS) * stride][block.start..];
        for n in (0..count).step_by(TILE) {
            let used = TILE.min(count - n);
            // Past the panel's end a row is computed again, and not used.
            let weights = std::array::from_fn(|i| {
                let at = (first + n + i.min(used - 1)) * k;
                &self.panel.matrix[at + block.start..at + block.end]
            });
            let sums = register_tile::<D, ROWS>(self.dot, x, stride, weights, ahead);
            for (row, sums) in self.product[row..row + ROWS].iter_mut().zip(sums) {
                let columns = &mut row[self.column + n..self.column + n + used];
                columns.iter_mut().zip(sums).for_each(|(column, sum)| *column += sum);
            }
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
    ahead: &mut Ahead,
) -> [[f32; TILE]; ROWS] {
    let len = weights[0].len();
    let whole = len / D::STEP * D::STEP;
    assert!(weights.iter().all(|w| w.len() == len), "weight rows of one length");
    assert!(x.len() >= (ROWS - 1) * stride + len.next_multiple_of(D::STEP), "packed rows are padded to whole steps");
    let mut sums = [[dot.zero(); TILE]; ROWS];
    for turn in (0..whole).step_by(D::STEP * STEPS_PER_TURN) {
        for at in (turn..whole.min(turn + D::STEP * STEPS_PER_TURN)).step_by(D::STEP) {
            // SAFETY: `at + STEP <= whole <= len`, the length of each weight row.
            let w = std::array::from_fn(|i| unsafe { dot.weights(weights[i].as_ptr().add(at)) });
            // SAFETY: asserted: row `r` has whole steps up to `len` from `r * stride` on.
            unsafe { step::<D, ROWS>(dot, x.as_ptr().add(at), stride, w, &mut sums) };
        }
        ahead.turn();
    }
    if whole < len {
        let tail = std::array::from_fn(|i| partial(dot, &weights[i][whole..]));
        // SAFETY: as above: the padding makes the last step whole.
        unsafe { step::<D, ROWS>(dot, x.as_ptr().add(whole), stride, tail, &mut sums) };
    }
    sums.map(|sums| dot.sums(sums))
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
