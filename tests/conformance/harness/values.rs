//! Values on the host and their way to a device and back.

use fused_moe::tensor::{Shape, TensorView};
use fused_moe::{DType, Device, Result, Tensor};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The random numbers of a case.
pub fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// The floating-point types that every op takes.
pub const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Representable in every type, and not a result that random values of order 1 can have.
pub const GARBAGE: f32 = -1000.0;

/// Floating-point values on the host, rounded to a type: what the oracle and the device both start from.
#[derive(Clone, Debug)]
pub struct Floats {
    /// The type they are rounded to.
    pub dtype: DType,
    /// The rounded values.
    pub values: Vec<f32>,
}

impl Floats {
    /// `values`, rounded.
    pub fn new(dtype: DType, values: impl IntoIterator<Item = f32>) -> Self {
        let round = |v: f32| match dtype {
            DType::BF16 => bf16::from_f32(v).to_f32(),
            DType::F16 => f16::from_f32(v).to_f32(),
            DType::F32 | DType::U32 => v,
        };
        Self { dtype, values: values.into_iter().map(round).collect() }
    }

    /// Uniform in ±`scale`.
    pub fn random(rng: &mut StdRng, dtype: DType, len: usize, scale: f32) -> Self {
        Self::new(dtype, (0..len).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * scale))
    }

    /// The same value `len` times.
    pub fn filled(dtype: DType, len: usize, value: f32) -> Self {
        Self::new(dtype, std::iter::repeat_n(value, len))
    }

    /// Fills row `row` of `row_len` elements with `value`.
    pub fn fill_row(&mut self, row: usize, row_len: usize, value: f32) {
        self.values[row * row_len..][..row_len].fill(value);
    }

    /// The values in the oracle's type.
    pub fn wide(&self) -> Vec<f64> {
        self.values.iter().copied().map(f64::from).collect()
    }

    /// A tensor on `device` with these values.
    pub fn upload(&self, device: &Device, shape: impl Into<Shape>) -> Result<Tensor> {
        let values = self.values.iter().copied();
        match self.dtype {
            DType::BF16 => Tensor::from_slice(device, &values.map(bf16::from_f32).collect::<Vec<_>>(), shape),
            DType::F16 => Tensor::from_slice(device, &values.map(f16::from_f32).collect::<Vec<_>>(), shape),
            DType::F32 | DType::U32 => Tensor::from_slice(device, &self.values, shape),
        }
    }
}

/// A floating-point tensor full of [`GARBAGE`], so that an element that is not written shows.
pub fn garbage(device: &Device, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    Floats::filled(dtype, shape.numel(), GARBAGE).upload(device, shape)
}

/// An index tensor full of garbage.
pub fn garbage_u32(device: &Device, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    Tensor::from_slice(device, &vec![0xDEAD_BEEF_u32; shape.numel()], shape)
}

/// The elements of a floating-point tensor, widened.
pub fn download(device: &Device, view: TensorView<'_>) -> Result<Vec<f64>> {
    match view.dtype() {
        DType::BF16 => Ok(view.to_vec::<bf16>(device)?.into_iter().map(f64::from).collect()),
        DType::F16 => Ok(view.to_vec::<f16>(device)?.into_iter().map(f64::from).collect()),
        DType::F32 | DType::U32 => Ok(view.to_vec::<f32>(device)?.into_iter().map(f64::from).collect()),
    }
}
