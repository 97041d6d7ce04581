//! Borrowed tensors.

use std::ops::Range;

use super::types::{DType, Element, Shape};
use super::{DeviceBuffer, Tensor};
use crate::backend::Device;
use crate::error::{Error, Result};

/// Where a borrowed tensor's elements lie.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Host memory, aligned for the element type.
    Host(&'a [u8]),
    /// Device memory from `byte_offset` on.
    Device {
        /// The allocation.
        buffer: &'a dyn DeviceBuffer,
        /// Where the tensor starts in it.
        byte_offset: usize,
    },
}

/// Where a mutably borrowed tensor's elements lie.
#[derive(Debug)]
pub enum DataMut<'a> {
    /// Host memory, aligned for the element type.
    Host(&'a mut [u8]),
    /// Device memory from `byte_offset` on. The `&mut` of the view is what makes it exclusive.
    Device {
        /// The allocation.
        buffer: &'a dyn DeviceBuffer,
        /// Where the tensor starts in it.
        byte_offset: usize,
    },
}

/// A dense row-major tensor, borrowed to be read.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    pub(super) data: Data<'a>,
    pub(super) dtype: DType,
    pub(super) shape: Shape,
}

/// A dense row-major tensor, borrowed to be written.
#[derive(Debug)]
pub struct TensorViewMut<'a> {
    pub(super) data: DataMut<'a>,
    pub(super) dtype: DType,
    pub(super) shape: Shape,
}

/// Anything that can be read as a tensor: an owned [`Tensor`], or a [`TensorView`] itself.
pub trait AsView {
    /// The whole tensor.
    fn as_view(&self) -> TensorView<'_>;
}

impl AsView for Tensor {
    fn as_view(&self) -> TensorView<'_> {
        self.view()
    }
}

impl AsView for TensorView<'_> {
    fn as_view(&self) -> TensorView<'_> {
        *self
    }
}

impl<'a> TensorView<'a> {
    /// Host memory as a tensor, without a copy.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `values` is not as long as `shape` says.
    pub fn from_slice<T: Element>(values: &'a [T], shape: impl Into<Shape>) -> Result<Self> {
        Self::from_bytes(bytemuck::cast_slice(values), T::DTYPE, shape)
    }

    /// Raw host memory as a tensor, without a copy.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the bytes are not as many as the shape says or not aligned for the type.
    pub fn from_bytes(bytes: &'a [u8], dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        check_host_bytes(bytes, dtype, shape)?;
        Ok(Self { data: Data::Host(bytes), dtype, shape })
    }

    /// Device memory as a tensor, without a copy: the way in for memory that an engine owns.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the size overflows. That the memory is as large as the shape says is the promise
    /// of whoever made `buffer`.
    pub fn from_device(
        buffer: &'a dyn DeviceBuffer,
        byte_offset: usize,
        dtype: DType,
        shape: impl Into<Shape>,
    ) -> Result<Self> {
        let shape = shape.into();
        shape.byte_len(dtype)?;
        Ok(Self { data: Data::Device { buffer, byte_offset }, dtype, shape })
    }

    /// As [`TensorView::from_device`] from the buffer's start, of a size that was checked when the buffer was made.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_checked(buffer: &'a dyn DeviceBuffer, dtype: DType, shape: Shape) -> Self {
        Self { data: Data::Device { buffer, byte_offset: 0 }, dtype, shape }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extents.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The extents as a slice.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Where the elements lie.
    pub fn data(&self) -> Data<'a> {
        self.data
    }

    /// The elements `range` of the outermost dimension.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the range is outside the tensor.
    pub fn slice(&self, range: Range<usize>) -> Result<Self> {
        let (start, len, shape) = slice_outermost(self.dtype, self.shape, range)?;
        let data = match self.data {
            Data::Host(bytes) => Data::Host(&bytes[start..start + len]),
            Data::Device { buffer, byte_offset } => Data::Device { buffer, byte_offset: byte_offset + start },
        };
        Ok(Self { data, dtype: self.dtype, shape })
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the shape has another number of elements.
    pub fn reshape(self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.checked_numel() != Some(self.shape.numel()) {
            return Err(Error::invalid("shape", format!("{} elements", self.shape.numel()), shape));
        }
        Ok(Self { shape, ..self })
    }

    /// The elements of a host tensor; `None` on a device or for another type.
    pub fn as_slice<T: Element>(&self) -> Option<&'a [T]> {
        match self.data {
            // Even an empty slice would have to be aligned for the cast.
            Data::Host([]) if T::DTYPE == self.dtype => Some(&[]),
            Data::Host(bytes) if T::DTYPE == self.dtype => Some(bytemuck::cast_slice(bytes)),
            _ => None,
        }
    }

    /// The elements, copied to the host; waits for the device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `T` is not the element type, [`Error::Device`] if the device fails.
    pub fn to_vec<T: Element>(&self, device: &Device) -> Result<Vec<T>> {
        if T::DTYPE != self.dtype {
            return Err(Error::invalid("element type", self.dtype, T::DTYPE));
        }
        let mut values = vec![T::zeroed(); self.shape.numel()];
        device.backend().read(*self, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// The first bytes as another tensor, of a type that is no wider.
    pub(super) fn prefix(self, dtype: DType, shape: Shape) -> Self {
        let data = match self.data {
            Data::Host(bytes) => Data::Host(&bytes[..shape.numel() * dtype.size()]),
            device => device,
        };
        Self { data, dtype, shape }
    }

    pub(crate) fn host_bytes(&self, argument: &str) -> Result<&'a [u8]> {
        match self.data {
            Data::Host(bytes) => Ok(bytes),
            Data::Device { .. } => Err(Error::invalid(argument, "host memory", "device memory")),
        }
    }
}

impl<'a> TensorViewMut<'a> {
    /// Host memory as a tensor to write to.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `values` is not as long as `shape` says.
    pub fn from_slice<T: Element>(values: &'a mut [T], shape: impl Into<Shape>) -> Result<Self> {
        Self::from_bytes(bytemuck::cast_slice_mut(values), T::DTYPE, shape)
    }

    /// Raw host memory as a tensor to write to.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the bytes are not as many as the shape says or not aligned for the type.
    pub fn from_bytes(bytes: &'a mut [u8], dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        check_host_bytes(bytes, dtype, shape)?;
        Ok(Self { data: DataMut::Host(bytes), dtype, shape })
    }

    /// Device memory as a tensor to write to; see [`TensorView::from_device`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the size overflows.
    pub fn from_device(
        buffer: &'a mut dyn DeviceBuffer,
        byte_offset: usize,
        dtype: DType,
        shape: impl Into<Shape>,
    ) -> Result<Self> {
        let shape = shape.into();
        shape.byte_len(dtype)?;
        Ok(Self { data: DataMut::Device { buffer, byte_offset }, dtype, shape })
    }

    /// The same memory, borrowed for less long.
    pub fn reborrow(&mut self) -> TensorViewMut<'_> {
        let data = match &mut self.data {
            DataMut::Host(bytes) => DataMut::Host(bytes),
            DataMut::Device { buffer, byte_offset } => DataMut::Device { buffer: *buffer, byte_offset: *byte_offset },
        };
        TensorViewMut { data, dtype: self.dtype, shape: self.shape }
    }

    /// The elements `range` of the outermost dimension, to be written.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the range is outside the tensor.
    pub fn slice_mut(&mut self, range: Range<usize>) -> Result<TensorViewMut<'_>> {
        let (start, len, shape) = slice_outermost(self.dtype, self.shape, range)?;
        let data = match &mut self.data {
            DataMut::Host(bytes) => DataMut::Host(&mut bytes[start..start + len]),
            DataMut::Device { buffer, byte_offset } => {
                DataMut::Device { buffer: *buffer, byte_offset: *byte_offset + start }
            }
        };
        Ok(TensorViewMut { data, dtype: self.dtype, shape })
    }

    /// The same memory, to be read.
    pub fn as_view(&self) -> TensorView<'_> {
        let data = match &self.data {
            DataMut::Host(bytes) => Data::Host(bytes),
            DataMut::Device { buffer, byte_offset } => Data::Device { buffer: *buffer, byte_offset: *byte_offset },
        };
        TensorView { data, dtype: self.dtype, shape: self.shape }
    }

    /// As [`TensorViewMut::from_device`] from the buffer's start, of a size that was checked when the buffer was made.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_checked(buffer: &'a dyn DeviceBuffer, dtype: DType, shape: Shape) -> Self {
        Self { data: DataMut::Device { buffer, byte_offset: 0 }, dtype, shape }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extents.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The extents as a slice.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Where the elements lie.
    pub fn data(self) -> DataMut<'a> {
        self.data
    }

    /// The elements of a host tensor; `None` on a device or for another type.
    pub fn as_mut_slice<T: Element>(&mut self) -> Option<&mut [T]> {
        match &mut self.data {
            DataMut::Host([]) if T::DTYPE == self.dtype => Some(&mut []),
            DataMut::Host(bytes) if T::DTYPE == self.dtype => Some(bytemuck::cast_slice_mut(bytes)),
            _ => None,
        }
    }

    /// As [`TensorView::prefix`].
    pub(super) fn prefix(self, dtype: DType, shape: Shape) -> Self {
        let data = match self.data {
            DataMut::Host(bytes) => DataMut::Host(&mut bytes[..shape.numel() * dtype.size()]),
            device => device,
        };
        Self { data, dtype, shape }
    }
}

fn check_host_bytes(bytes: &[u8], dtype: DType, shape: Shape) -> Result<()> {
    let expected = shape.byte_len(dtype)?;
    if bytes.len() != expected {
        return Err(Error::invalid(
            "data",
            format!("{expected} bytes for {dtype} {shape}"),
            format!("{} bytes", bytes.len()),
        ));
    }
    if !bytes.is_empty() && !bytes.as_ptr().addr().is_multiple_of(dtype.size()) {
        return Err(Error::invalid("data", format!("alignment for {dtype}"), "an unaligned address"));
    }
    Ok(())
}

/// Byte start, byte length and shape of `range` of the outermost dimension.
fn slice_outermost(dtype: DType, shape: Shape, range: Range<usize>) -> Result<(usize, usize, Shape)> {
    let outermost = shape.dims()[0];
    if range.start > range.end || range.end > outermost {
        return Err(Error::invalid("range", format!("within 0..{outermost}"), format!("{range:?}")));
    }
    let stride = shape.dims()[1..].iter().product::<usize>() * dtype.size();
    let mut sliced = shape;
    sliced.dims[0] = range.len();
    Ok((range.start * stride, range.len() * stride, sliced))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_to_write_is_the_rows_of_its_range() {
        let mut values = [0u32; 6];
        let mut view = TensorViewMut::from_slice(&mut values, [3, 2]).unwrap();
        view.slice_mut(1..2).unwrap().as_mut_slice::<u32>().unwrap().fill(7);
        assert!(view.slice_mut(2..4).is_err());
        assert_eq!(values, [0, 0, 7, 7, 0, 0]);
    }

    #[test]
    fn an_empty_view_needs_no_alignment() {
        let bytes = [0u8; 8];
        let unaligned = &bytes[usize::from(bytes.as_ptr().addr().is_multiple_of(4))..][..0];
        let view = TensorView::from_bytes(unaligned, DType::F32, [0, 3]).unwrap();
        assert_eq!(view.as_slice::<f32>(), Some(&[][..]));
    }

    #[test]
    fn host_bytes_must_be_as_many_and_aligned() {
        let bytes = [0u64; 2];
        let bytes: &[u8] = bytemuck::cast_slice(&bytes);
        assert!(TensorView::from_bytes(&bytes[..8], DType::F32, [2]).is_ok());
        assert!(matches!(
            TensorView::from_bytes(&bytes[..8], DType::F32, [3]),
            Err(Error::InvalidArgument { argument, .. }) if argument == "data"
        ));
        assert!(matches!(
            TensorView::from_bytes(&bytes[1..9], DType::F32, [2]),
            Err(Error::InvalidArgument { argument, .. }) if argument == "data"
        ));
        assert!(TensorView::from_bytes(bytes, DType::F32, [usize::MAX, 8]).is_err());
    }

    #[test]
    fn a_slice_is_of_the_outermost_dimension() {
        let values = [0f32, 1., 2., 3., 4., 5.];
        let view = TensorView::from_slice(&values, [3, 2]).unwrap();
        let rows = view.slice(1..3).unwrap();
        assert_eq!((rows.dims(), rows.as_slice::<f32>()), (&[2, 2][..], Some(&values[2..])));
        assert!(view.slice(2..4).is_err());
    }
}
