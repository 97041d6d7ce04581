//! The types of cust, and with the feature `cudarc` those of cudarc, as arguments of [`super::raw`].

use super::driver::StreamHandle;

impl From<&cust::stream::Stream> for StreamHandle {
    fn from(stream: &cust::stream::Stream) -> Self {
        Self(stream.as_inner() as usize)
    }
}

mod with_cust {
    use cust::memory::{DeviceBuffer, DeviceCopy};

    use crate::backend::cuda::Cuda;
    use crate::backend::cuda::raw::RawTensor;
    use crate::error::{Error, Result};
    use crate::tensor::{DType, Shape};

    impl<'a> RawTensor<'a> {
        /// A tensor over a buffer of cust, which stays the caller's.
        ///
        /// # Safety
        /// The buffer is memory of the device of `cuda`, and is written only in the order of the streams that the tensor
        /// is used on.
        ///
        /// # Errors
        /// [`Error::InvalidArgument`] if the buffer is not as large as the shape says.
        pub unsafe fn from_cust<T: DeviceCopy>(
            cuda: &Cuda,
            buffer: &'a DeviceBuffer<T>,
            dtype: DType,
            shape: impl Into<Shape>,
        ) -> Result<Self> {
            let shape = shape.into();
            let bytes = buffer.len() * size_of::<T>();
            if bytes != shape.byte_len(dtype)? {
                return Err(Error::invalid("shape", format!("{bytes} bytes, as the buffer"), shape));
            }
            // SAFETY: the size was checked, and the rest is the caller's promise.
            unsafe { Self::new(cuda, buffer.as_device_ptr().as_raw(), dtype, shape) }
        }
    }
}

#[cfg(feature = "cudarc")]
mod with_cudarc {
    use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

    use crate::backend::cuda::Cuda;
    use crate::backend::cuda::driver::StreamHandle;
    use crate::backend::cuda::raw::RawTensor;
    use crate::error::{Error, Result};
    use crate::tensor::{DType, Shape};

    impl From<&CudaStream> for StreamHandle {
        fn from(stream: &CudaStream) -> Self {
            Self(stream.cu_stream() as usize)
        }
    }

    impl<'a> RawTensor<'a> {
        /// A tensor over memory of cudarc, which stays the caller's. `stream`, on which it will be used, waits for what
        /// was written before. That is right for weights; for what is written again and again, keep the guard of
        /// `device_ptr` until the call is enqueued, and pass the address.
        ///
        /// # Safety
        /// The slice is memory of the device of `cuda`, and is written only in the order of the streams that the tensor is
        /// used on.
        ///
        /// # Errors
        /// [`Error::InvalidArgument`] if the slice is not as large as the shape says.
        pub unsafe fn from_cudarc<T>(
            cuda: &Cuda,
            slice: &'a CudaSlice<T>,
            stream: &CudaStream,
            dtype: DType,
            shape: impl Into<Shape>,
        ) -> Result<Self> {
            let shape = shape.into();
            let bytes = slice.num_bytes();
            if bytes != shape.byte_len(dtype)? {
                return Err(Error::invalid("shape", format!("{bytes} bytes, as the slice"), shape));
            }
            let (address, _read) = slice.device_ptr(stream);
            // SAFETY: the size was checked, and the rest is the caller's promise.
            unsafe { Self::new(cuda, address, dtype, shape) }
        }
    }
}
