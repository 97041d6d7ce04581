//! Matrices on disk to one tensor on a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::Progress;
use super::files::TensorRef;
use super::matrix::Matrix;
use crate::backend::Device;
use crate::error::{Error, Result};
use crate::tensor::{DType, DataMut, Shape, Tensor};

/// A tensor to be made of matrices on disk, one below the other.
#[derive(Debug)]
pub(super) struct Stack {
    parts: Vec<Matrix>,
    /// The tensor on disk that is the whole stack already.
    whole: Option<TensorRef>,
    shape: Shape,
    keep: Keep,
}

/// Which type a stack gets, whatever type the caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// The one asked for.
    Nothing,
    /// The one that it has: routers decide, and stay as precise as they are.
    Stored,
    /// f32: biases.
    F32,
}

/// Pieces in which a tensor is copied.
const MAX_PIECES: usize = 256;

/// Where stacks go, and who is told.
pub(super) struct Loader<'a> {
    device: &'a Device,
    progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    done: AtomicU64,
    total: u64,
}

impl Stack {
    /// A stack of matrices; together they have as many elements as the shape.
    pub fn of(parts: Vec<Matrix>, shape: impl Into<Shape>) -> Self {
        Self { parts, whole: None, shape: shape.into(), keep: Keep::Nothing }
    }

    /// A stack that is one tensor on disk, of the matrix's elements in their order.
    pub fn whole(tensor: TensorRef, matrix: &Matrix, shape: impl Into<Shape>) -> Self {
        // Cut anywhere, so that threads share it.
        let rows = matrix.rows().div_ceil(MAX_PIECES).max(1);
        let starts = (0..matrix.rows()).step_by(rows);
        let parts = starts.map(|start| matrix.slice(start, rows.min(matrix.rows() - start))).collect();
        Self { parts, whole: Some(tensor), shape: shape.into(), keep: Keep::Nothing }
    }

    /// The same, to be loaded as `keep` says.
    pub fn keeping(self, keep: Keep) -> Self {
        Self { keep, ..self }
    }

    /// The type in which it is loaded, where `asked` is asked for; by default the one that holds all parts exactly.
    pub fn dtype(&self, asked: Option<DType>) -> DType {
        match (self.keep, asked) {
            (Keep::F32, _) => return DType::F32,
            (Keep::Nothing, Some(dtype)) => return dtype,
            (Keep::Nothing, None) | (Keep::Stored, _) => {}
        }
        let mut dtypes = self.parts.iter().map(Matrix::dtype);
        let first = dtypes.next().unwrap_or(DType::F32);
        if dtypes.all(|dtype| dtype == first) { first } else { DType::F32 }
    }

    /// The tensor's shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Elements.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }
}

impl<'a> Loader<'a> {
    /// A loader of `total` elements.
    pub fn new(device: &'a Device, progress: Option<&'a (dyn Fn(Progress) + Sync)>, total: u64) -> Self {
        Self { device, progress, done: AtomicU64::new(0), total }
    }

    /// The stack on the device, in its own type or in the one asked for.
    pub fn load(&self, stack: &Stack, asked: Option<DType>) -> Result<Tensor> {
        let dtype = stack.dtype(asked);
        let is_host = self.device.backend().is_host();
        if is_host && let Some(tensor) = self.share(stack, dtype)? {
            self.advance(stack.len());
            return Ok(tensor);
        }
        let host = if is_host { self.device.clone() } else { Device::cpu() };
        let mut tensor = Tensor::zeros(&host, dtype, stack.shape)?;
        let DataMut::Host(bytes) = tensor.view_mut()?.data() else {
            return Err(Error::invalid("device", "tensors in host memory", &host));
        };
        self.fill(&stack.parts, dtype, bytes);
        if is_host { Ok(tensor) } else { Tensor::from_view(self.device, tensor.view()) }
    }

    /// The mapped file itself as the tensor, where it holds just that.
    fn share(&self, stack: &Stack, dtype: DType) -> Result<Option<Tensor>> {
        let Some(tensor) = &stack.whole else { return Ok(None) };
        let aligned = tensor.bytes().as_ptr().addr().is_multiple_of(dtype.size());
        if !aligned || !stack.parts.iter().all(|part| part.is_plain(dtype)) {
            return Ok(None);
        }
        let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = tensor.file.clone();
        Tensor::from_shared(self.device, owner, tensor.range.clone(), dtype, stack.shape).map(Some)
    }

    fn fill(&self, parts: &[Matrix], dtype: DType, mut bytes: &mut [u8]) {
        let mut jobs = Vec::with_capacity(parts.len());
        for part in parts {
            let (target, rest) = bytes.split_at_mut(part.len() * dtype.size());
            jobs.push((part, target));
            bytes = rest;
        }
        jobs.into_par_iter().for_each(|(part, target)| {
            part.write(dtype, target);
            self.advance(part.len() as u64);
        });
    }

    fn advance(&self, elements: u64) {
        let done = self.done.fetch_add(elements, Ordering::Relaxed) + elements;
        if let Some(progress) = self.progress {
            progress(Progress { done, total: self.total });
        }
    }
}
