//! `grouped_gemm` on the CPU: rows are packed once, then every (expert, block of columns) is a task.

use half::{bf16, f16};

use super::Cpu;
use super::epilogue::{Block, finish};
#[cfg(target_arch = "x86_64")]
use super::isa::avx512bf16::Avx512Bf16;
use super::isa::{Isa, Simd, Task};
use super::kernel::broadcast::BroadcastKernel;
#[cfg(target_arch = "x86_64")]
use super::kernel::dot::Dot;
use super::kernel::dot::{DotKernel, Widen};
use super::kernel::rows::{Lines, Rows};
#[cfg(target_arch = "x86_64")]
use super::kernel::tiles::TileKernel;
use super::kernel::{Kernel, MAX_CHUNK, Panel, ProductRow, WIDTH};
use super::pool::{Pool, Shared};
use super::scratch::{Chunk, Group, Scratch};
use crate::backend::host::{self, Floats};
use crate::config::WeightLayout;
use crate::error::{Error, Result};
use crate::ops::{Epilogue, GroupedGemmArgs};
use crate::tensor::{DType, TensorViewMut};

/// Multiply-adds below which waking other threads costs more than they save.
const SMALL: usize = 1 << 17;

pub(super) fn grouped_gemm(cpu: &Cpu, args: GroupedGemmArgs<'_>) -> Result<()> {
    let isa = cpu.isa()?;
    let num_rows = args.output.dims()[0];
    let all_rows =
        [0, u32::try_from(num_rows).map_err(|_| Error::invalid("output", "fewer than 2^32 rows", num_rows))?];
    let expert_offsets = match args.expert_offsets {
        Some(offsets) => host::slice("expert_offsets", offsets)?,
        None => &all_rows,
    };
    host::check_offsets("expert_offsets", expert_offsets, num_rows)?;
    let used = expert_offsets.last().map_or(0, |&rows| rows as usize);
    let rows = Rows::new(args.input, args.rows, used)?;
    let &[_, d1, d2] = args.weight.dims() else { return Err(Error::invalid("weight", "rank 3", args.weight.shape())) };
    let gemm = Gemm {
        pool: cpu.pool(),
        n: if args.weight_layout == WeightLayout::Nk { d1 } else { d2 },
        rows,
        expert_offsets,
        bias: args.bias.map(|bias| host::slice("bias", bias)).transpose()?,
        epilogue: args.epilogue,
        batch_invariant: args.batch_invariant,
    };
    let weight = Floats::new("weight", args.weight)?;
    let mut output = args.output;
    let output = Output::new(&mut output)?;
    cpu.with_scratch(|scratch| match args.weight_layout {
        WeightLayout::Nk => gemm.rows_of_weights(isa, weight, output, scratch),
        WeightLayout::Kn => gemm.columns_of_weights(isa, weight, output, scratch),
    });
    Ok(())
}

/// A grouped GEMM whose arguments are checked, contents included. Every result is a sum over k in a fixed order; it
/// depends on other rows only in whether a kernel that rounds its input may.
#[derive(Debug)]
pub(super) struct Gemm<'a> {
    pub(super) pool: &'a Pool,
    pub(super) n: usize,
    pub(super) rows: Rows<'a>,
    pub(super) expert_offsets: &'a [u32],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) epilogue: Epilogue,
    /// Whether a row's result must not depend on how many rows there are.
    pub(super) batch_invariant: bool,
}

impl Gemm<'_> {
    /// `[E, N, K]`.
    fn rows_of_weights(&self, isa: Isa, weight: Floats<'_>, output: Output<'_>, scratch: &mut Scratch) {
        #[cfg(target_arch = "x86_64")]
        if let Floats::BF16(weight) = weight {
            let avx512bf16 = match isa {
                Isa::Amx(amx) => match TileKernel::new(amx, self.n) {
                    Some(kernel) if !self.is_decode() => return self.run(kernel, weight, output, scratch),
                    _ => Some(amx.avx512bf16()),
                },
                Isa::Avx512Bf16(avx512bf16) => Some(avx512bf16),
                _ => None,
            };
            if let Some(avx512bf16) = avx512bf16 {
                return self.run(DotKernel(avx512bf16), weight, output, scratch);
            }
        }
        self.exact(isa, weight, output, scratch);
    }

    /// `[E, N, K]`, with the input in f32 whatever the weights are.
    pub(super) fn exact(&self, isa: Isa, weight: Floats<'_>, output: Output<'_>, scratch: &mut Scratch) {
        match isa {
            Isa::Portable(simd) => self.dot(simd, weight, output, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(simd) => self.dot(simd, weight, output, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(simd) => self.dot(simd, weight, output, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(isa) => self.dot(isa.avx512(), weight, output, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(isa) => self.dot(isa.avx512bf16().avx512(), weight, output, scratch),
        }
    }

    /// `[E, K, N]`.
    fn columns_of_weights(&self, isa: Isa, weight: Floats<'_>, output: Output<'_>, scratch: &mut Scratch) {
        match isa {
            Isa::Portable(simd) => self.broadcast(simd, weight, output, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(simd) => self.broadcast(simd, weight, output, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(simd) => self.broadcast(simd, weight, output, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(isa) => self.broadcast(isa.avx512(), weight, output, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(isa) => self.broadcast(isa.avx512bf16().avx512(), weight, output, scratch),
        }
    }

    fn dot<S: Simd>(&self, simd: S, weight: Floats<'_>, output: Output<'_>, scratch: &mut Scratch) {
        match weight {
            Floats::F32(weight) => self.run(DotKernel(Widen::<S, f32>::new(simd)), weight, output, scratch),
            Floats::BF16(weight) => self.run(DotKernel(Widen::<S, bf16>::new(simd)), weight, output, scratch),
            Floats::F16(weight) => self.run(DotKernel(Widen::<S, f16>::new(simd)), weight, output, scratch),
        }
    }

    fn broadcast<S: Simd>(&self, simd: S, weight: Floats<'_>, output: Output<'_>, scratch: &mut Scratch) {
        match weight {
            Floats::F32(weight) => self.run(BroadcastKernel::<S, f32>::new(simd), weight, output, scratch),
            Floats::BF16(weight) => self.run(BroadcastKernel::<S, bf16>::new(simd), weight, output, scratch),
            Floats::F16(weight) => self.run(BroadcastKernel::<S, f16>::new(simd), weight, output, scratch),
        }
    }

    fn run<K: Kernel>(&self, kernel: K, weight: &[K::Weight], output: Output<'_>, scratch: &mut Scratch) {
        let mut next = 0;
        let used = self.expert_offsets.last().map_or(0, |&rows| rows as usize);
        while next < used {
            next = scratch.plan(kernel, self, next);
            let Scratch { chunks, groups, packed, packed_len } = scratch;
            let packed = &mut bytemuck::cast_slice_mut(packed)[..*packed_len];
            let pass = Pass { gemm: self, kernel, weight, output: &output, chunks, groups };
            pass.pack(packed);
            pass.multiply(packed);
        }
    }

    /// Whether no expert has more rows than one register tile of dot products. The weights' way from memory is all there
    /// is to it then, and rows read from end to end come a little faster than tiles across 16 of them.
    #[cfg(target_arch = "x86_64")]
    fn is_decode(&self) -> bool {
        let few = |offsets: &[u32]| (offsets[1] - offsets[0]) as usize <= <Avx512Bf16 as Dot>::ROWS;
        // One kernel for all where a row's result must not depend on how many there are.
        !self.batch_invariant && self.expert_offsets.windows(2).all(few)
    }

    fn is_small(&self, rows: usize) -> bool {
        rows.saturating_mul(self.n).saturating_mul(self.rows.k()) <= SMALL
    }
}

/// As many rows as are packed at a time.
struct Pass<'a, K: Kernel> {
    gemm: &'a Gemm<'a>,
    kernel: K,
    weight: &'a [K::Weight],
    output: &'a Output<'a>,
    chunks: &'a [Chunk],
    groups: &'a [Group],
}

impl<K: Kernel> Pass<'_, K> {
    fn pack(&self, packed: &mut [K::Packed]) {
        let k = self.gemm.rows.k();
        let rows: usize = self.chunks.iter().map(|chunk| chunk.rows.len()).sum();
        let packed = Shared::new(packed);
        let pack = |i: usize| {
            let chunk = &self.chunks[i];
            let len = self.kernel.packed_len(chunk.packed_rows(), k);
            // SAFETY: chunks are packed one after the other: their ranges do not overlap.
            let packed = unsafe { packed.range(chunk.packed..chunk.packed + len) };
            let lines = Lines { rows: &self.gemm.rows, range: chunk.rows.clone(), split: chunk.split };
            self.kernel.pack(lines, packed);
        };
        if rows.saturating_mul(k) <= SMALL {
            (0..self.chunks.len()).for_each(pack);
        } else {
            self.gemm.pool.for_each(self.chunks.len(), pack);
        }
    }

    fn multiply(&self, packed: &[K::Packed]) {
        let columns = self.gemm.epilogue.output_size(self.gemm.n);
        let mut width = Block::max_count(self.gemm.epilogue);
        let enough = 4 * self.gemm.pool.threads();
        while width > K::MIN_WIDTH && self.groups.len() * columns.div_ceil(width) < enough {
            width /= 2;
        }
        let blocks = columns.div_ceil(width);
        let tasks = self.groups.len() * blocks;
        let nth = |i: usize| {
            let first = i % blocks * width;
            let block = Block::new(self.gemm.epilogue, self.gemm.n, first, width.min(columns - first));
            (&self.groups[i / blocks], block)
        };
        let task = |i: usize| {
            let (group, block) = nth(i);
            let next = if i + 1 < tasks { self.first_run(nth(i + 1)) } else { &[] };
            let chunks = &self.chunks[group.chunks.clone()];
            if chunks.iter().all(|chunk| chunk.packed_rows() <= FEW) {
                self.block::<FEW>(packed, group, &block, next);
            } else {
                self.block::<MAX_CHUNK>(packed, group, &block, next);
            }
        };
        let rows = self.chunks.iter().map(|chunk| chunk.rows.len()).sum();
        if self.gemm.is_small(rows) {
            (0..tasks).for_each(task);
        } else {
            self.gemm.pool.for_each(tasks, task);
        }
    }

    /// The weights with which a task begins, where they are in one piece.
    fn first_run(&self, (group, block): (&Group, Block)) -> &[K::Weight] {
        block.runs[0].map_or(&[], |(first, _)| self.run(group.expert, first, block.run_len))
    }

    /// The weights of `count` columns, where they are in one piece.
    fn run(&self, expert: usize, first: usize, count: usize) -> &[K::Weight] {
        let start = expert * self.gemm.n + first;
        let k = self.gemm.rows.k();
        if K::CONTIGUOUS { &self.weight[start * k..(start + count) * k] } else { &[] }
    }

    /// A block of columns of one expert, in a buffer for `ROWS` rows of products; `next` is what the next block begins
    /// with.
    fn block<const ROWS: usize>(&self, packed: &[K::Packed], group: &Group, block: &Block, next: &[K::Weight]) {
        let Gemm { n, epilogue, ref rows, bias, .. } = *self.gemm;
        let (k, expert) = (rows.k(), group.expert);
        let matrix = &self.weight[expert * n * k..(expert + 1) * n * k];
        let mut products = Products([[0.0; WIDTH]; ROWS]);
        for (i, chunk) in self.chunks[group.chunks.clone()].iter().enumerate() {
            let mut products = &mut products.0[..chunk.packed_rows()];
            if i > 0 {
                products.fill([0.0; WIDTH]);
            }
            let packed = &packed[chunk.packed..][..self.kernel.packed_len(products.len(), k)];
            for (j, (first, column)) in block.runs.into_iter().flatten().enumerate() {
                // The first chunk brings the weights into the cache; what comes next is fetched beside it.
                let next = match block.runs.get(j + 1) {
                    _ if i > 0 => &[],
                    Some(&Some((first, _))) => self.run(expert, first, block.run_len),
                    _ => next,
                };
                let panel = Panel { matrix, n, k, first, count: block.run_len, next };
                self.kernel.multiply(packed, panel, products, column);
            }
            if chunk.split {
                let (rounded, rest) = products.split_at_mut(chunk.rows.len());
                // An infinite weight is in the rounded product; times a rest it would be anything.
                let pairs = rounded.as_flattened_mut().iter_mut().zip(rest.as_flattened());
                pairs.for_each(|(sum, &rest)| *sum += if rest.is_finite() { rest } else { 0.0 });
                products = rounded;
            }
            let bias = bias.map(|bias| &bias[expert * n..(expert + 1) * n]);
            let row = chunk.rows.start;
            let columns = epilogue.output_size(n);
            self.kernel.vectorize(Finish { epilogue, block, bias, products, output: self.output, row, columns });
        }
    }
}

/// A few rows, for which zeroing room for many would show.
const FEW: usize = 8;

#[repr(align(64))]
struct Products<const ROWS: usize>([ProductRow; ROWS]);

/// The epilogue of a block.
struct Finish<'a> {
    epilogue: Epilogue,
    block: &'a Block,
    bias: Option<&'a [f32]>,
    products: &'a mut [ProductRow],
    output: &'a Output<'a>,
    /// The first row.
    row: usize,
    /// The output's columns.
    columns: usize,
}

impl Task for Finish<'_> {
    #[inline(always)]
    fn run(self) {
        let Block { first, count, .. } = *self.block;
        for (i, product) in self.products.iter_mut().enumerate() {
            finish(self.epilogue, self.block, self.bias, product);
            let at = (self.row + i) * self.columns + first;
            // SAFETY: tasks differ in their group, whose rows are its own, or in their block, whose columns are.
            unsafe { self.output.write(at, &product[..count]) };
        }
    }
}

/// The output's elements.
#[derive(Debug)]
pub(super) enum Output<'a> {
    F32(Shared<'a, f32>),
    BF16(Shared<'a, bf16>),
    F16(Shared<'a, f16>),
}

impl<'a> Output<'a> {
    pub(super) fn new(view: &'a mut TensorViewMut<'_>) -> Result<Self> {
        match view.dtype() {
            DType::F32 => host::slice_mut("output", view).map(|s| Self::F32(Shared::new(s))),
            DType::BF16 => host::slice_mut("output", view).map(|s| Self::BF16(Shared::new(s))),
            DType::F16 => host::slice_mut("output", view).map(|s| Self::F16(Shared::new(s))),
            DType::U32 => Err(Error::invalid("output", "a floating-point type", DType::U32)),
        }
    }

    /// Writes `values`, rounded, from element `at` on.
    ///
    /// # Safety
    /// Nobody else reads or writes these elements meanwhile.
    #[inline(always)]
    unsafe fn write(&self, at: usize, values: &[f32]) {
        use half::slice::HalfFloatSliceExt;
        let range = at..at + values.len();
        // SAFETY: the caller's promise, in all three.
        unsafe {
            match self {
                Self::F32(output) => output.range(range).copy_from_slice(values),
                Self::BF16(output) => output.range(range).convert_from_f32_slice(values),
                Self::F16(output) => output.range(range).convert_from_f32_slice(values),
            }
        }
    }
}
