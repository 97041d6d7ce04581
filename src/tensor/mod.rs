//! Typed, shaped memory: owned [`Tensor`]s on a device and borrowed [`TensorView`]s, always dense and row-major.

mod types;
mod view;

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::backend::{Device, prefer_huge};
use crate::error::{Error, Result};

pub(crate) use types::FLOATS;
pub use types::{DType, Element, Shape};
pub use view::{AsView, Data, DataMut, TensorView, TensorViewMut};

/// Memory that only its own backend understands.
pub trait DeviceBuffer: Any + fmt::Debug + Send + Sync {
    /// For the backend to find its own type again.
    fn as_any(&self) -> &dyn Any;
}

/// What a tensor's elements lie in.
pub enum Storage {
    /// Host memory owned by the tensor.
    Host(HostBytes),
    /// Host memory shared with its owner, read-only: a memory-mapped file, say.
    Shared {
        /// The owner; its bytes must not move while it lives.
        owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
        /// The tensor's bytes in it.
        range: Range<usize>,
    },
    /// Device memory.
    Device(Box<dyn DeviceBuffer>),
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(bytes) => write!(f, "Host({} bytes)", bytes.len),
            Self::Shared { range, .. } => write!(f, "Shared({} bytes)", range.len()),
            Self::Device(buffer) => write!(f, "Device({buffer:?})"),
        }
    }
}

/// Zeroed host memory on a cache-line boundary.
pub struct HostBytes {
    lines: Vec<CacheLine>,
    len: usize,
}

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl HostBytes {
    /// `len` zero bytes; `None` if there is no room for them.
    pub fn zeroed(len: usize) -> Option<Self> {
        let count = len.div_ceil(size_of::<CacheLine>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).ok()?;
        prefer_huge(lines.spare_capacity_mut());
        lines.resize(count, bytemuck::Zeroable::zeroed());
        Some(Self { lines, len })
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// A dense row-major tensor that owns its memory on one [`Device`].
#[derive(Debug)]
pub struct Tensor {
    device: Device,
    storage: Storage,
    dtype: DType,
    shape: Shape,
}

impl Tensor {
    /// A zeroed tensor on `device`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the size overflows, [`Error::Device`] if the device has no room.
    pub fn zeros(device: &Device, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let storage = device.backend().alloc(dtype, shape, shape.byte_len(dtype)?)?;
        Ok(Self { device: device.clone(), storage, dtype, shape })
    }

    /// A tensor on `device` with a copy of `values`.
    ///
    /// # Errors
    /// As [`Tensor::zeros`], and [`Error::InvalidArgument`] if `values` is not as long as `shape` says.
    pub fn from_slice<T: Element>(device: &Device, values: &[T], shape: impl Into<Shape>) -> Result<Self> {
        Self::from_view(device, TensorView::from_slice(values, shape)?)
    }

    /// A tensor on `device` with a copy of host memory.
    ///
    /// # Errors
    /// As [`Tensor::zeros`], and [`Error::InvalidArgument`] if `source` is not host memory.
    pub fn from_view(device: &Device, source: TensorView<'_>) -> Result<Self> {
        let mut tensor = Self::zeros(device, source.dtype, source.shape)?;
        device.backend().write(tensor.view_mut()?, source.host_bytes("source")?)?;
        Ok(tensor)
    }

    /// A tensor on a host device over memory that stays where it is.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the device does not compute in host memory, or the bytes are not as many as the
    /// shape says or not aligned for the type.
    pub fn from_shared(
        device: &Device,
        owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
        dtype: DType,
        shape: impl Into<Shape>,
    ) -> Result<Self> {
        let shape = shape.into();
        if !device.backend().is_host() {
            return Err(Error::invalid("device", "a device that computes in host memory", device));
        }
        let whole: &[u8] = (*owner).as_ref();
        let bytes = whole
            .get(range.clone())
            .ok_or_else(|| Error::invalid("range", format!("within {} bytes", whole.len()), format!("{range:?}")))?;
        TensorView::from_bytes(bytes, dtype, shape)?;
        Ok(Self { device: device.clone(), storage: Storage::Shared { owner, range }, dtype, shape })
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extents.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The whole tensor, to be read.
    pub fn view(&self) -> TensorView<'_> {
        let data = match &self.storage {
            Storage::Host(bytes) => Data::Host(bytes.bytes()),
            Storage::Shared { owner, range } => Data::Host(&(**owner).as_ref()[range.clone()]),
            Storage::Device(buffer) => Data::Device { buffer: &**buffer, byte_offset: 0 },
        };
        TensorView { data, dtype: self.dtype, shape: self.shape }
    }

    /// The whole tensor, to be written.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if its memory is shared and so read-only.
    pub fn view_mut(&mut self) -> Result<TensorViewMut<'_>> {
        let data = match &mut self.storage {
            Storage::Host(bytes) => DataMut::Host(bytes.bytes_mut()),
            Storage::Device(buffer) => DataMut::Device { buffer: &**buffer, byte_offset: 0 },
            Storage::Shared { .. } => return Err(Error::invalid("tensor", "memory of its own", "shared memory")),
        };
        Ok(TensorViewMut { data, dtype: self.dtype, shape: self.shape })
    }

    /// The first `numel` elements, reshaped: how a workspace made for many tokens serves few.
    pub(crate) fn prefix(&self, shape: impl Into<Shape>) -> TensorView<'_> {
        self.prefix_as(self.dtype, shape)
    }

    /// As [`Tensor::prefix`], to be written.
    pub(crate) fn prefix_mut(&mut self, shape: impl Into<Shape>) -> Result<TensorViewMut<'_>> {
        self.prefix_as_mut(self.dtype, shape)
    }

    /// As [`Tensor::prefix`], of elements of a type that is no wider than the tensor's.
    pub(crate) fn prefix_as(&self, dtype: DType, shape: impl Into<Shape>) -> TensorView<'_> {
        self.view().prefix(dtype, shape.into())
    }

    /// As [`Tensor::prefix_as`], to be written.
    pub(crate) fn prefix_as_mut(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<TensorViewMut<'_>> {
        Ok(self.view_mut()?.prefix(dtype, shape.into()))
    }

    /// The elements, copied to the host; waits for the device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `T` is not the element type, [`Error::Device`] if the device fails.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.view().to_vec(&self.device)
    }
}
