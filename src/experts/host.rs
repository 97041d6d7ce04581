//! Weights on the host, of any floating-point type: moved as bytes, changed as f32.

use half::{bf16, f16};

use crate::backend::Device;
use crate::error::Result;
use crate::tensor::{DType, Shape, Tensor, TensorView};

/// The elements of a tensor.
pub(super) struct Host {
    pub(super) dtype: DType,
    pub(super) bytes: Vec<u8>,
}

impl Host {
    pub(super) fn read(device: &Device, tensor: TensorView<'_>) -> Result<Self> {
        let dtype = tensor.dtype();
        let mut bytes = vec![0; tensor.shape().numel() * dtype.size()];
        device.backend().read(tensor, &mut bytes)?;
        Ok(Self { dtype, bytes })
    }

    pub(super) fn upload(&self, device: &Device, shape: impl Into<Shape>) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(device, self.dtype, shape)?;
        device.backend().write(tensor.view_mut()?, &self.bytes)?;
        Ok(tensor)
    }

    /// Every element, by its index, to another.
    pub(super) fn map(&mut self, f: impl Fn(usize, f32) -> f32) {
        let dtype = self.dtype;
        for (i, element) in self.bytes.chunks_exact_mut(dtype.size()).enumerate() {
            store(dtype, f(i, load(dtype, element)), element);
        }
    }

    /// Rows of `row_len` elements, each the mean of these: `[rows, row_len]` to `[row_len]`.
    pub(super) fn mean_row(&self, num_rows: usize, row_len: usize) -> Vec<f32> {
        let size = self.dtype.size();
        let mut sums = vec![0.0f64; row_len];
        for row in self.bytes.chunks_exact(row_len * size).take(num_rows) {
            let elements = row.chunks_exact(size).map(|element| f64::from(load(self.dtype, element)));
            sums.iter_mut().zip(elements).for_each(|(sum, x)| *sum += x);
        }
        sums.into_iter().map(|sum| (sum / num_rows as f64) as f32).collect()
    }

    /// The bytes of row `row` of `row_len` elements.
    pub(super) fn row(&self, row: usize, row_len: usize) -> &[u8] {
        let row_bytes = row_len * self.dtype.size();
        &self.bytes[row * row_bytes..][..row_bytes]
    }

    /// Appends elements, rounded.
    pub(super) fn extend(&mut self, values: impl IntoIterator<Item = f32>) {
        for value in values {
            let mut element = [0; 4];
            let element = &mut element[..self.dtype.size()];
            store(self.dtype, value, element);
            self.bytes.extend_from_slice(element);
        }
    }
}

fn load(dtype: DType, element: &[u8]) -> f32 {
    match (dtype, element) {
        (DType::BF16, &[a, b]) => bf16::from_ne_bytes([a, b]).to_f32(),
        (DType::F16, &[a, b]) => f16::from_ne_bytes([a, b]).to_f32(),
        (_, &[a, b, c, d]) => f32::from_ne_bytes([a, b, c, d]),
        _ => unreachable!("an element has its type's size"),
    }
}

fn store(dtype: DType, value: f32, element: &mut [u8]) {
    match dtype {
        DType::BF16 => element.copy_from_slice(&bf16::from_f32(value).to_ne_bytes()),
        DType::F16 => element.copy_from_slice(&f16::from_f32(value).to_ne_bytes()),
        DType::F32 | DType::U32 => element.copy_from_slice(&value.to_ne_bytes()),
    }
}
