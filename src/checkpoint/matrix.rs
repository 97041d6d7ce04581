//! A matrix on disk, in whatever coding, and how its values are read.

use std::sync::Arc;

use half::{bf16, f16, slice::HalfFloatSliceExt};
use safetensors::tensor::Dtype;

use super::error::Result;
use super::files::TensorRef;
use crate::tensor::DType;

/// A matrix `[rows, cols]`: a tensor on disk, or some rows of one.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    tensor: Arc<TensorRef>,
    coding: Coding,
    /// Rows of the tensor above this matrix.
    first_row: usize,
    rows: usize,
    cols: usize,
    /// Whether the matrix meant is this one's transpose.
    transposed: bool,
}

/// How values are coded.
#[derive(Clone, Debug)]
enum Coding {
    F32,
    F16,
    BF16,
    F64,
    /// 8-bit floats with an f32 scale for each block of rows and columns (DeepSeek-V3).
    Fp8 {
        scales: Arc<TensorRef>,
        block: [usize; 2],
        matrix_rows: usize,
    },
    /// 4-bit floats in blocks of 32 columns with an 8-bit exponent each (gpt-oss).
    Mxfp4 {
        scales: Arc<TensorRef>,
    },
}

/// Columns of a block of 4-bit floats, and the bytes they take.
const MXFP4_BLOCK: usize = 32;
const MXFP4_BYTES: usize = 16;

/// Rows that are transposed together, so that the strided side is read in runs.
const TRANSPOSE_ROWS: usize = 32;

impl Matrix {
    /// All rows of a tensor of plain numbers, `[rows, cols]` in row-major order whatever its shape.
    pub fn plain(tensor: TensorRef, rows: usize, cols: usize) -> Result<Self> {
        let coding = match tensor.dtype {
            Dtype::F32 => Coding::F32,
            Dtype::F16 => Coding::F16,
            Dtype::BF16 => Coding::BF16,
            Dtype::F64 => Coding::F64,
            other => return Err(tensor.wrong("f32, bf16, f16 or f64", format!("{other:?}"))),
        };
        Ok(Self::whole(tensor, coding, rows, cols))
    }

    /// All rows of a tensor of 8-bit floats, with one scale in `scales` for each block of rows and columns. A stack of
    /// several matrices has a grid of scales for each.
    pub fn fp8(tensor: TensorRef, scales: TensorRef, block: [usize; 2], dims: [usize; 3]) -> Result<Self> {
        let [count, rows, cols] = dims;
        let grid = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
        let stacked = [count, grid[0], grid[1]];
        scales.expect_shape(if tensor.shape.len() == 3 { &stacked } else { &grid })?;
        if scales.dtype != Dtype::F32 {
            return Err(scales.wrong("F32", format!("{:?}", scales.dtype)));
        }
        let coding = Coding::Fp8 { scales: Arc::new(scales), block, matrix_rows: rows };
        Ok(Self::whole(tensor, coding, count * rows, cols))
    }

    /// All rows of `_blocks` `[E, N, K/32, 16]` with `_scales` `[E, N, K/32]`.
    pub fn mxfp4(blocks: TensorRef, scales: TensorRef, [count, rows, cols]: [usize; 3]) -> Result<Self> {
        if !cols.is_multiple_of(MXFP4_BLOCK) {
            return Err(blocks.wrong(format!("a multiple of {MXFP4_BLOCK} columns"), format!("{cols} columns")));
        }
        blocks.expect_shape(&[count, rows, cols / MXFP4_BLOCK, MXFP4_BYTES])?;
        scales.expect_shape(&[count, rows, cols / MXFP4_BLOCK])?;
        for tensor in [&blocks, &scales] {
            if tensor.dtype != Dtype::U8 {
                return Err(tensor.wrong("U8", format!("{:?}", tensor.dtype)));
            }
        }
        let coding = Coding::Mxfp4 { scales: Arc::new(scales) };
        Ok(Self::whole(blocks, coding, count * rows, cols))
    }

    fn whole(tensor: TensorRef, coding: Coding, rows: usize, cols: usize) -> Self {
        Self { tensor: Arc::new(tensor), coding, first_row: 0, rows, cols, transposed: false }
    }

    /// Rows on disk.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `rows` rows from the `first`-th on.
    pub fn slice(&self, first: usize, rows: usize) -> Self {
        debug_assert!(first + rows <= self.rows);
        Self { first_row: self.first_row + first, rows, ..self.clone() }
    }

    /// The transpose.
    pub fn transpose(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// The type that holds every value exactly, or as the checkpoint means it: quantised ones are bf16.
    pub fn dtype(&self) -> DType {
        match self.coding {
            Coding::F32 | Coding::F64 => DType::F32,
            Coding::F16 => DType::F16,
            Coding::BF16 | Coding::Fp8 { .. } | Coding::Mxfp4 { .. } => DType::BF16,
        }
    }

    /// Whether the bytes on disk are the values as `dtype`, in order.
    pub fn is_plain(&self, dtype: DType) -> bool {
        let is_copy = match self.coding {
            Coding::F32 | Coding::F16 | Coding::BF16 => self.dtype() == dtype,
            Coding::F64 | Coding::Fp8 { .. } | Coding::Mxfp4 { .. } => false,
        };
        is_copy && !self.transposed
    }

    /// Writes the values as `dtype`, row by row, to memory aligned for it.
    pub fn write(&self, dtype: DType, target: &mut [u8]) {
        if self.is_plain(dtype) {
            target.copy_from_slice(self.plain_bytes(dtype.size()));
            return;
        }
        match dtype {
            DType::F32 => {
                self.write_as(bytemuck::cast_slice_mut::<_, f32>(target), |to, from| to.copy_from_slice(from))
            }
            DType::F16 => {
                self.write_as(bytemuck::cast_slice_mut::<_, f16>(target), |to, from| to.convert_from_f32_slice(from));
            }
            DType::BF16 => {
                self.write_as(bytemuck::cast_slice_mut::<_, bf16>(target), |to, from| to.convert_from_f32_slice(from));
            }
            DType::U32 => unreachable!("weights are asked for in a floating-point type"),
        }
    }

    fn write_as<T>(&self, target: &mut [T], convert: impl Fn(&mut [T], &[f32])) {
        if !self.transposed {
            let mut row = vec![0.0; self.cols];
            for (r, target) in target.chunks_exact_mut(self.cols).enumerate() {
                self.read(r, 0, &mut row);
                convert(target, &row);
            }
            return;
        }
        // Written rows are read columns: gather a few at a time.
        let mut row = [0.0; TRANSPOSE_ROWS];
        let mut block = vec![0.0; TRANSPOSE_ROWS * self.rows];
        for (b, target) in target.chunks_mut(TRANSPOSE_ROWS * self.rows).enumerate() {
            let row = &mut row[..target.len() / self.rows];
            for r in 0..self.rows {
                self.read(r, b * TRANSPOSE_ROWS, row);
                for (c, x) in row.iter().enumerate() {
                    block[c * self.rows + r] = *x;
                }
            }
            convert(target, &block[..target.len()]);
        }
    }

    /// The bytes of a matrix of plain numbers.
    fn plain_bytes(&self, size: usize) -> &[u8] {
        &self.tensor.bytes()[self.first_row * self.cols * size..][..self.len() * size]
    }

    /// The values of a row from column `first` on; a whole number of blocks from the start where there are blocks.
    fn read(&self, row: usize, first: usize, values: &mut [f32]) {
        let row = self.first_row + row;
        let at = row * self.cols + first;
        let len = values.len();
        let bytes = |size: usize| &self.tensor.bytes()[at * size..][..len * size];
        match &self.coding {
            Coding::F32 => decode(bytes(4), f32::from_le_bytes, values),
            Coding::F16 => decode(bytes(2), |b| f16::from_le_bytes(b).to_f32(), values),
            Coding::BF16 => decode(bytes(2), |b| bf16::from_le_bytes(b).to_f32(), values),
            Coding::F64 => decode(bytes(8), |b| f64::from_le_bytes(b) as f32, values),
            Coding::Fp8 { scales, block: [block_rows, block_cols], matrix_rows } => {
                let (matrix, row) = (row / matrix_rows, row % matrix_rows);
                let grid = [matrix_rows.div_ceil(*block_rows), self.cols.div_ceil(*block_cols)];
                let grid_row = (matrix * grid[0] + row / block_rows) * grid[1];
                for (i, (value, &code)) in values.iter_mut().zip(bytes(1)).enumerate() {
                    let scale = f32_at(scales.bytes(), grid_row + (first + i) / block_cols);
                    *value = bf16::from_f32(E4M3[usize::from(code)] * scale).to_f32();
                }
            }
            Coding::Mxfp4 { scales } => {
                let block = at / MXFP4_BLOCK;
                let codes = &self.tensor.bytes()[block * MXFP4_BYTES..];
                let blocks = values.chunks_mut(MXFP4_BLOCK).zip(codes.chunks_exact(MXFP4_BYTES));
                for ((values, codes), &scale) in blocks.zip(&scales.bytes()[block..]) {
                    read_mxfp4_block(codes, scale, values);
                }
            }
        }
    }
}

fn decode<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32, values: &mut [f32]) {
    let (numbers, _) = bytes.as_chunks::<N>();
    for (to, from) in values.iter_mut().zip(numbers) {
        *to = value(*from);
    }
}

fn f32_at(bytes: &[u8], index: usize) -> f32 {
    bytes[4 * index..].first_chunk().map_or(f32::NAN, |b| f32::from_le_bytes(*b))
}

/// Two values in a byte, the first in its low half; all times `2^(scale − 127)`.
fn read_mxfp4_block(codes: &[u8], scale: u8, values: &mut [f32]) {
    let scale = f64::from_bits((u64::from(scale) + 1023 - 127) << 52);
    for (pair, code) in values.chunks_mut(2).zip(codes) {
        for (value, code) in pair.iter_mut().zip([code & 15, code >> 4]) {
            *value = bf16::from_f64(E2M1[usize::from(code)] * scale).to_f32();
        }
    }
}

/// Every 4-bit float: a sign, two bits of exponent, one of mantissa.
const E2M1: [f64; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Every 8-bit float with a sign, four bits of exponent and three of mantissa; no infinities, one NaN of each sign.
const E4M3: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = (code as u32 >> 3 & 15, code as u32 & 7);
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            (0, m) => m as f32 / 512.0,
            (e, m) => f32::from_bits((e + 120) << 23 | m << 20),
        };
        values[code] = if code < 128 { magnitude } else { -magnitude };
        code += 1;
    }
    values
};
