//! Tensor maps: what `cuTensorMapEncodeTiled` makes, in a layout of this machine.

use crate::gpu::{Arg, Error};

/// Element type of a tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TensorType {
    U8,
    U16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
    BF16,
    TF32,
}

const TYPES: [TensorType; 11] = {
    use TensorType::*;
    [U8, U16, U32, I32, U64, I64, F16, F32, F64, BF16, TF32]
};

impl TensorType {
    /// Size of an element.
    pub fn bytes(self) -> usize {
        use TensorType::*;
        match self {
            U8 => 1,
            U16 | F16 | BF16 => 2,
            U32 | I32 | F32 | TF32 => 4,
            U64 | I64 | F64 => 8,
        }
    }

    fn float(self) -> bool {
        use TensorType::*;
        matches!(self, F16 | F32 | F64 | BF16 | TF32)
    }
}

/// Swizzle of a tile in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Dense.
    None,
    /// 16-byte chunks permuted within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}

const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

impl Swizzle {
    /// Bytes of a row of the pattern; `None` without one.
    fn span(self) -> Option<usize> {
        match self {
            Swizzle::None => None,
            Swizzle::B32 => Some(32),
            Swizzle::B64 => Some(64),
            Swizzle::B128 => Some(128),
        }
    }

    /// The shared address at which the chunk of `address` lies.
    pub(crate) fn apply(self, address: usize) -> usize {
        let mask = self.span().map_or(0, |span| span / 16 - 1);
        address ^ ((address >> 7) & mask) << 4
    }
}

/// What fills elements outside of the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OobFill {
    /// Zero.
    Zeros,
    /// A NaN, for float types.
    Nan,
}

/// A tiled tensor map of one to five dimensions, innermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub(crate) ty: TensorType,
    pub(crate) rank: usize,
    pub(crate) address: u64,
    pub(crate) dims: [u64; 5],
    /// Byte strides of all dimensions; the innermost is the element size.
    pub(crate) strides: [u64; 5],
    pub(crate) boxes: [u32; 5],
    pub(crate) element_strides: [u32; 5],
    pub(crate) swizzle: Swizzle,
    pub(crate) fill: OobFill,
}

/// Size of an encoded map, as of a `CUtensorMap`.
pub(crate) const ENCODED_BYTES: usize = 128;
const MAGIC: u64 = 0x7061_6d5f_6c69_7465;

impl TensorMap {
    /// A map with the arguments of `cuTensorMapEncodeTiled` (interleave is always none, the L2
    /// promotion has no effect here). `strides` has one element fewer than `dims`.
    #[allow(clippy::too_many_arguments)] // The arguments of the driver's function.
    pub fn tiled(
        ty: TensorType,
        address: u64,
        dims: &[u64],
        strides: &[u64],
        boxes: &[u32],
        element_strides: &[u32],
        swizzle: Swizzle,
        fill: OobFill,
    ) -> Result<TensorMap, Error> {
        let rank = dims.len();
        let bad = |what: &str| Err(Error::Invalid(format!("tensor map: {what}")));
        if !(1..=5).contains(&rank) {
            return bad("rank must be 1 to 5");
        }
        if strides.len() != rank - 1 || boxes.len() != rank || element_strides.len() != rank {
            return bad("strides, box and element strides must fit the rank");
        }
        if !address.is_multiple_of(16) {
            return bad("the address must be a multiple of 16");
        }
        if dims.iter().any(|&d| d == 0 || d > 1 << 32) {
            return bad("dimensions must be 1 to 2^32");
        }
        if strides.iter().any(|&s| !s.is_multiple_of(16) || s >= 1 << 40) {
            return bad("strides must be multiples of 16 below 2^40");
        }
        if boxes.iter().any(|&b| b == 0 || b > 256) {
            return bad("box extents must be 1 to 256");
        }
        if element_strides.iter().any(|&s| s == 0 || s > 8) {
            return bad("element strides must be 1 to 8");
        }
        let inner = boxes[0] as usize * ty.bytes();
        if !inner.is_multiple_of(16) {
            return bad("the inner box extent must be a multiple of 16 bytes");
        }
        if swizzle.span().is_some_and(|span| inner > span) {
            return bad("the inner box extent is larger than the swizzle");
        }
        if fill == OobFill::Nan && !ty.float() {
            return bad("NaN fill needs a float type");
        }
        let mut map = TensorMap {
            ty,
            rank,
            address,
            dims: [1; 5],
            strides: [ty.bytes() as u64; 5],
            boxes: [1; 5],
            element_strides: [1; 5],
            swizzle,
            fill,
        };
        map.dims[..rank].copy_from_slice(dims);
        map.strides[1..rank].copy_from_slice(strides);
        map.boxes[..rank].copy_from_slice(boxes);
        map.element_strides[..rank].copy_from_slice(element_strides);
        Ok(map)
    }

    /// The 128 bytes to pass to a kernel or to copy to device memory.
    pub fn encode(&self) -> Vec<u8> {
        let index = |found: Option<usize>| found.unwrap_or(0) as u64;
        let ty = index(TYPES.iter().position(|&t| t == self.ty));
        let swizzle = index(SWIZZLES.iter().position(|&s| s == self.swizzle));
        let header = ty | (self.rank as u64) << 8 | swizzle << 16 | (self.fill as u64) << 24;
        let mut out = vec![];
        out.extend(MAGIC.to_le_bytes());
        out.extend(header.to_le_bytes());
        out.extend(self.address.to_le_bytes());
        for i in 0..5 {
            // Dimensions up to 2^32 are kept minus one.
            out.extend(((self.dims[i] - 1) as u32).to_le_bytes());
            out.extend(((self.boxes[i] - 1) as u16).to_le_bytes());
            out.push(self.element_strides[i] as u8);
        }
        for stride in &self.strides[1..] {
            out.extend(stride.to_le_bytes());
        }
        out.resize(ENCODED_BYTES, 0);
        out
    }

    /// Reads what [`TensorMap::encode`] made.
    pub(crate) fn decode(bytes: &[u8; ENCODED_BYTES]) -> Option<TensorMap> {
        let word = |at: usize, n: usize| bytes[at..at + n].iter().rev().fold(0u64, |v, &b| v << 8 | b as u64);
        if word(0, 8) != MAGIC {
            return None;
        }
        let header = word(8, 8);
        let ty = *TYPES.get((header & 0xff) as usize)?;
        let mut strides = [ty.bytes() as u64; 5];
        for (i, stride) in strides[1..].iter_mut().enumerate() {
            *stride = word(24 + 35 + 8 * i, 8);
        }
        Some(TensorMap {
            ty,
            rank: (header >> 8 & 0xff) as usize,
            address: word(16, 8),
            dims: std::array::from_fn(|i| word(24 + 7 * i, 4) + 1),
            strides,
            boxes: std::array::from_fn(|i| word(28 + 7 * i, 2) as u32 + 1),
            element_strides: std::array::from_fn(|i| word(30 + 7 * i, 1) as u32),
            swizzle: *SWIZZLES.get((header >> 16 & 0xff) as usize)?,
            fill: if header >> 24 & 0xff == 0 { OobFill::Zeros } else { OobFill::Nan },
        })
    }
}

impl From<&TensorMap> for Arg {
    fn from(map: &TensorMap) -> Arg {
        Arg::bytes(&map.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(strides: &[u64], boxes: &[u32], swizzle: Swizzle) -> Result<TensorMap, Error> {
        let ty = TensorType::BF16;
        TensorMap::tiled(ty, 4096, &[100, 7], strides, boxes, &[1, 2], swizzle, OobFill::Nan)
    }

    #[test]
    fn encoding_survives() {
        let map = map(&[208], &[64, 5], Swizzle::B128).unwrap();
        let bytes: [u8; ENCODED_BYTES] = map.encode().try_into().unwrap();
        assert_eq!(TensorMap::decode(&bytes), Some(map));
        assert_eq!(TensorMap::decode(&[0; ENCODED_BYTES]), None);
    }

    #[test]
    fn the_rules_of_the_driver_hold() {
        assert!(map(&[200], &[64, 5], Swizzle::None).is_err(), "stride not a multiple of 16");
        assert!(map(&[208], &[63, 5], Swizzle::None).is_err(), "inner box not a multiple of 16 bytes");
        assert!(map(&[208], &[64, 5], Swizzle::B64).is_err(), "inner box above the swizzle");
        assert!(map(&[208], &[64, 257], Swizzle::B128).is_err(), "box above 256");
        assert!(map(&[], &[64, 5], Swizzle::B128).is_err(), "strides do not fit the rank");
    }

    #[test]
    fn swizzle_permutes_chunks() {
        assert_eq!(Swizzle::B128.apply(1024 + 128 * 3 + 16), 1024 + 128 * 3 + (1 ^ 3) * 16);
        assert_eq!(Swizzle::B64.apply(128 * 5), 128 * 5 + 16);
        assert_eq!(Swizzle::B32.apply(128), 128 + 16);
        assert_eq!(Swizzle::None.apply(128), 128);
    }
}
