//! Element types and shapes.

use std::fmt;

use half::{bf16, f16};

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
    pub(super) dims: [usize; 3],
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

    pub(crate) fn byte_len(&self, dtype: DType) -> Result<usize> {
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
