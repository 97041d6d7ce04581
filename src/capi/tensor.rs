//! Tensors as C describes them.

use std::ffi::c_void;
use std::ops::Range;
use std::slice;

use crate::error::{Error, Result};
use crate::tensor::{DType, Shape, TensorView, TensorViewMut};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub enum FusedMoeDtype {
    /// IEEE binary32.
    F32 = 0,
    /// IEEE binary16.
    F16 = 1,
    /// bfloat16.
    Bf16 = 2,
    /// Unsigned 32-bit integer.
    U32 = 3,
}

/// Where a tensor's elements lie.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub enum FusedMoeMemory {
    /// Host memory.
    Host = 0,
    /// Memory of a CUDA device, `data` being a CUdeviceptr. This version has no CUDA backend and answers
    /// FUSED_MOE_STATUS_UNAVAILABLE.
    Cuda = 1,
}

/// A dense row-major tensor in the caller's memory. All zero stands for no tensor, where one is optional.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FusedMoeTensor {
    /// The first element, aligned for its type. Only an output is written to.
    pub data: *mut c_void,
    /// A FusedMoeDtype.
    pub dtype: u32,
    /// A FusedMoeMemory.
    pub memory: u32,
    /// 1 to 3; 0 for no tensor.
    pub rank: u32,
    /// The first `rank` count, outermost first.
    pub dims: [usize; 3],
}

// What compiled callers know; tests/capi/layer.c asserts the same.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<FusedMoeTensor>() == 48);

impl FusedMoeTensor {
    pub(super) fn is_none(&self) -> bool {
        self.rank == 0
    }

    /// The tensor as a view.
    ///
    /// # Safety
    /// `data` is valid for reads of as many bytes as shape and type say, and unchanged, for `'t`.
    pub(super) unsafe fn view<'t>(&self, name: &str) -> Result<TensorView<'t>> {
        let (dtype, shape, bytes) = self.check(name)?;
        let bytes = if bytes == 0 {
            &[][..]
        } else {
            // SAFETY: not NULL and of a size that fits, as just checked; the rest is the caller's promise.
            unsafe { slice::from_raw_parts(self.data.cast::<u8>(), bytes) }
        };
        TensorView::from_bytes(bytes, dtype, shape).map_err(|error| rename(error, name))
    }

    /// The tensor as a view to write to.
    ///
    /// # Safety
    /// `data` is valid for reads and writes of as many bytes as shape and type say, and nobody else reads or writes
    /// them, for `'t`.
    pub(super) unsafe fn view_mut<'t>(&self, name: &str) -> Result<TensorViewMut<'t>> {
        let (dtype, shape, bytes) = self.check(name)?;
        let bytes = if bytes == 0 {
            &mut [][..]
        } else {
            // SAFETY: not NULL and of a size that fits, as just checked; the rest is the caller's promise.
            unsafe { slice::from_raw_parts_mut(self.data.cast::<u8>(), bytes) }
        };
        TensorViewMut::from_bytes(bytes, dtype, shape).map_err(|error| rename(error, name))
    }

    /// The addresses that the tensor takes.
    pub(super) fn addresses(&self, name: &str) -> Result<Range<usize>> {
        let (_, _, bytes) = self.check(name)?;
        let start = self.data.addr();
        Ok(start..start + bytes)
    }

    /// Type, shape and size in bytes.
    fn check(&self, name: &str) -> Result<(DType, Shape, usize)> {
        let dtype = match self.dtype {
            0 => DType::F32,
            1 => DType::F16,
            2 => DType::BF16,
            3 => DType::U32,
            other => return Err(Error::invalid(name, "a FusedMoeDtype", other)),
        };
        match self.memory {
            0 => {}
            1 => return Err(Error::Unavailable { backend: "cuda", reason: "not in this build".into() }),
            other => return Err(Error::invalid(name, "a FusedMoeMemory", other)),
        }
        let [a, b, c] = self.dims;
        let shape: Shape = match self.rank {
            1 => [a].into(),
            2 => [a, b].into(),
            3 => [a, b, c].into(),
            other => return Err(Error::invalid(name, "rank 1 to 3", other)),
        };
        let bytes = shape.checked_numel().and_then(|numel| numel.checked_mul(dtype.size()));
        let end = bytes.and_then(|bytes| self.data.addr().checked_add(bytes));
        let (Some(bytes), Some(_)) = (bytes.filter(|&bytes| isize::try_from(bytes).is_ok()), end) else {
            return Err(Error::invalid(name, "a size that fits the address space", shape));
        };
        if self.data.is_null() && bytes > 0 {
            return Err(Error::invalid(name, "data", "NULL"));
        }
        Ok((dtype, shape, bytes))
    }
}

/// A view's own error, under the name that the caller knows.
fn rename(error: Error, name: &str) -> Error {
    match error {
        Error::InvalidArgument { argument, expected, actual } => {
            Error::InvalidArgument { argument: format!("{name}.{argument}"), expected, actual }
        }
        other => other,
    }
}
