//! Kernels: packed rows times a panel of one expert's matrix.

mod ahead;
pub(super) mod broadcast;
pub(super) mod dot;
pub(super) mod rows;
#[cfg(target_arch = "x86_64")]
pub(super) mod tiles;

use bytemuck::Pod;

use super::isa::{Task, Weight};
use rows::Lines;

/// The most rows that a kernel takes at a time.
pub(super) const MAX_CHUNK: usize = 64;

/// Columns of the product that a kernel makes at a time.
pub(super) const WIDTH: usize = 128;

/// The product of one row, and room for a whole vector to be written at its end.
pub(super) type ProductRow = [f32; WIDTH];

/// How one instruction set multiplies rows by a matrix of one type and layout.
///
/// Each element of the product is a sum over k in an order that depends on nothing but K. So a row's result is the
/// same bit for bit whatever rows are beside it, and whatever thread makes it.
pub(super) trait Kernel: Copy + Send + Sync {
    type Weight: Weight;
    /// What rows are packed into.
    type Packed: Pod + Send + Sync;

    /// Rows that are packed and multiplied at a time: a multiple of a register tile's, at most [`MAX_CHUNK`].
    const CHUNK: usize;

    /// Columns below which a panel is not made narrower to have work for all threads.
    const MIN_WIDTH: usize;

    /// Whether a panel's weights lie one after the other.
    const CONTIGUOUS: bool;

    /// Whether packing rounds rows to bf16.
    const ROUNDS: bool;

    /// The length of `rows` packed rows.
    fn packed_len(self, rows: usize, k: usize) -> usize;

    /// Packs up to [`Kernel::CHUNK`] rows into `packed`, which is [`Kernel::packed_len`] long.
    fn pack(self, lines: Lines<'_, '_>, packed: &mut [Self::Packed]);

    /// Adds the product of packed rows and a panel to `product`, from its column `column` on.
    fn multiply(
        self,
        packed: &[Self::Packed],
        panel: Panel<'_, Self::Weight>,
        product: &mut [ProductRow],
        column: usize,
    );

    /// Runs `task` compiled for the kernel's instruction set.
    fn vectorize(self, task: impl Task);
}

/// Columns of the product to make, and one expert's matrix for them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel<'a, W> {
    /// `[N, K]` or `[K, N]`, as the kernel wants it.
    pub(super) matrix: &'a [W],
    pub(super) n: usize,
    pub(super) k: usize,
    /// The first column.
    pub(super) first: usize,
    /// How many columns; at most [`WIDTH`].
    pub(super) count: usize,
    /// Weights that this thread will probably want next: to be fetched meanwhile.
    pub(super) next: &'a [W],
}

impl<W> Panel<'_, W> {
    /// Kernels compute addresses from these; see their `SAFETY` comments.
    fn check(&self, product: &[ProductRow], column: usize) {
        assert!(self.matrix.len() == self.n * self.k, "a matrix is N·K elements");
        assert!(self.first + self.count <= self.n, "columns within N");
        assert!(column + self.count <= WIDTH && product.len() <= MAX_CHUNK, "a product fits its buffer");
    }
}
