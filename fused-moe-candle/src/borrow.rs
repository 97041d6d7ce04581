//! candle's tensors as `fused_moe`'s views, without a copy.

use candle_core::backend::BackendStorage;
use std::ops::Range;

use candle_core::{CpuStorage, DType, Error, Layout, Result, Storage, StorageRef, Tensor};
use fused_moe::TensorView;
use fused_moe::tensor::{Element, Shape};

/// A candle tensor held for reading: what its view borrows from.
pub(crate) type Held<'t> = (StorageRef<'t>, &'t Layout);

pub(crate) fn hold(tensor: &Tensor) -> Held<'_> {
    tensor.storage_and_layout()
}

/// A held tensor as a view.
pub(crate) fn view<'h>((storage, layout): &'h Held<'_>) -> Result<TensorView<'h>> {
    host_view(cpu(storage)?, layout)
}

fn cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        Storage::Cuda(_) => Err(no_cuda()),
        Storage::Metal(_) => Err(no_metal()),
    }
}

pub(crate) fn no_cuda() -> Error {
    unavailable(
        "cuda",
        if cfg!(feature = "cuda") {
            "these tensors are not all on one CUDA device"
        } else {
            "built without the feature cuda of fused-moe-candle"
        },
    )
}

pub(crate) fn no_metal() -> Error {
    unavailable("metal", "fused-moe cannot reach candle's Metal memory; move the layer's tensors to Device::Cpu")
}

fn unavailable(backend: &'static str, reason: &str) -> Error {
    Error::wrap(fused_moe::Error::Unavailable { backend, reason: reason.into() })
}

/// A contiguous part of candle's host memory as a view.
pub(crate) fn host_view<'s>(storage: &'s CpuStorage, layout: &Layout) -> Result<TensorView<'s>> {
    match storage {
        CpuStorage::F32(values) => typed_view(values, layout),
        CpuStorage::BF16(values) => typed_view(values, layout),
        CpuStorage::F16(values) => typed_view(values, layout),
        CpuStorage::U32(values) => typed_view(values, layout),
        other => Err(other_dtype(other.dtype())),
    }
}

pub(crate) fn other_dtype(dtype: DType) -> Error {
    invalid("tensor", "f32, bf16, f16 or u32", dtype.as_str())
}

fn typed_view<'s, T: Element>(values: &'s [T], layout: &Layout) -> Result<TensorView<'s>> {
    let range = contiguous(layout, values.len())?;
    TensorView::from_slice(&values[range], shape(layout.dims())?).map_err(Error::wrap)
}

/// The elements that a layout means, of a storage of `len`.
pub(crate) fn contiguous(layout: &Layout, len: usize) -> Result<Range<usize>> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| invalid("tensor", "a contiguous tensor", format!("strides {:?}", layout.stride())))?;
    if start > end || end > len {
        return Err(invalid("tensor", "a layout within its storage", format!("{start}..{end} of {len}")));
    }
    Ok(start..end)
}

/// A tensor's extents as `fused_moe` has them.
pub(crate) fn shape(dims: &[usize]) -> Result<Shape> {
    match *dims {
        [a] => Ok([a].into()),
        [a, b] => Ok([a, b].into()),
        [a, b, c] => Ok([a, b, c].into()),
        _ => Err(invalid("tensor", "rank 1 to 3", format!("{dims:?}"))),
    }
}

/// The error that `fused_moe` itself would give.
pub(crate) fn invalid(argument: &str, expected: impl ToString, actual: impl ToString) -> Error {
    Error::wrap(fused_moe::Error::InvalidArgument {
        argument: argument.into(),
        expected: expected.to_string(),
        actual: actual.to_string(),
    })
}
