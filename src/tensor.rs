//! Typed, shaped memory: owned [`Tensor`]s on a device and borrowed [`TensorView`]s, always dense and row-major.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::backend::Device;
use crate::error::{Error, Result};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
    /// Unsigned 32-bit integer: ids, offsets, indices.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// `f32, bf16 or f16`, for messages.
    pub(crate) fn list(dtypes: &[Self]) -> String {
        let names: Vec<_> = dtypes.iter().map(Self::to_string).collect();
        names.join(" or ")
    }
}

/// The floating-point types.
pub(crate) const FLOATS: &[DType] = &[DType::F32, DType::BF16, DType::F16];

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::U32 => "u32",
        })
    }
}

/// A Rust type that can be a tensor's element.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The matching [`DType`].
    const DTYPE: DType;
}

macro_rules! element {
    ($($ty:ty => $dtype:ident),*) => {
        $(impl Element for $ty { const DTYPE: DType = DType::$dtype; })*
    };
}
element!(f32 => F32, f16 => F16, bf16 => BF16, u32 => U32);

/// The extents of a tensor of rank 1 to 3, outermost first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; 3],
    rank: u8,
}

impl Shape {
    /// The extents, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..usize::from(self.rank)]
    }

    /// The number of elements; `None` where it overflows `usize`.
    pub fn checked_numel(&self) -> Option<usize> {
        self.dims().iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// The number of elements of a shape that a tensor already has.
    pub fn numel(&self) -> usize {
        self.dims().iter().product()
    }

    fn byte_len(&self, dtype: DType) -> Result<usize> {
        self.checked_numel()
            .and_then(|n| n.checked_mul(dtype.size()))
            .filter(|&n| isize::try_from(n).is_ok())
            .ok_or_else(|| Error::invalid("shape", "a size that fits the address space", self))
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(extents: [usize; N]) -> Self {
        const { assert!(N >= 1 && N <= 3, "tensors have rank 1 to 3") };
        let mut dims = [1; 3];
        dims[..N].copy_from_slice(&extents);
        Self { dims, rank: N as u8 }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

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
        let lines = bytemuck::allocation::try_zeroed_vec(len.div_ceil(64)).ok()?;
        Some(Self { lines, len })
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

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

/// A dense row-major tensor that owns its memory on one [`Device`].
#[derive(Debug)]
pub struct Tensor {
    device: Device,
    storage: Storage,
    dtype: DType,
    shape: Shape,
}

/// A dense row-major tensor, borrowed to be read.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    data: Data<'a>,
    dtype: DType,
    shape: Shape,
}

/// A dense row-major tensor, borrowed to be written.
#[derive(Debug)]
pub struct TensorViewMut<'a> {
    data: DataMut<'a>,
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
        self.view().prefix(shape.into())
    }

    /// As [`Tensor::prefix`], to be written.
    pub(crate) fn prefix_mut(&mut self, shape: impl Into<Shape>) -> Result<TensorViewMut<'_>> {
        Ok(self.view_mut()?.prefix(shape.into()))
    }

    /// The elements, copied to the host; waits for the device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `T` is not the element type, [`Error::Device`] if the device fails.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.view().to_vec(&self.device)
    }
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

    fn prefix(self, shape: Shape) -> Self {
        let data = match self.data {
            Data::Host(bytes) => Data::Host(&bytes[..shape.numel() * self.dtype.size()]),
            device => device,
        };
        Self { data, dtype: self.dtype, shape }
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
        let shape = shape.into();
        let bytes = bytemuck::cast_slice_mut(values);
        check_host_bytes(bytes, T::DTYPE, shape)?;
        Ok(Self { data: DataMut::Host(bytes), dtype: T::DTYPE, shape })
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

    /// The same memory, to be read.
    pub fn as_view(&self) -> TensorView<'_> {
        let data = match &self.data {
            DataMut::Host(bytes) => Data::Host(bytes),
            DataMut::Device { buffer, byte_offset } => Data::Device { buffer: *buffer, byte_offset: *byte_offset },
        };
        TensorView { data, dtype: self.dtype, shape: self.shape }
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
            DataMut::Host(bytes) if T::DTYPE == self.dtype => Some(bytemuck::cast_slice_mut(bytes)),
            _ => None,
        }
    }

    fn prefix(self, shape: Shape) -> Self {
        let data = match self.data {
            DataMut::Host(bytes) => DataMut::Host(&mut bytes[..shape.numel() * self.dtype.size()]),
            device => device,
        };
        Self { data, dtype: self.dtype, shape }
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
