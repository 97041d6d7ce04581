//! What the backends that compute in host memory share: typed access to validated views.

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::plan::Slots;
use crate::routing::MASKED;
use crate::tensor::{DType, DataMut, Element, TensorView, TensorViewMut};

/// The elements of a view whose type and place [`crate::ops`] has checked.
pub(super) fn slice<'a, T: Element>(name: &str, view: TensorView<'a>) -> Result<&'a [T]> {
    view.as_slice().ok_or_else(|| Error::invalid(name, format!("host memory of {}", T::DTYPE), view.dtype()))
}

/// As [`slice`], to be written.
pub(super) fn slice_mut<'v, T: Element>(name: &str, view: &'v mut TensorViewMut<'_>) -> Result<&'v mut [T]> {
    let dtype = view.dtype();
    view.as_mut_slice().ok_or_else(|| Error::invalid(name, format!("host memory of {}", T::DTYPE), dtype))
}

/// Floating-point elements of any of the three types.
#[derive(Clone, Copy, Debug)]
pub(super) enum Floats<'a> {
    F32(&'a [f32]),
    BF16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> Floats<'a> {
    pub(super) fn new(name: &str, view: TensorView<'a>) -> Result<Self> {
        match view.dtype() {
            DType::F32 => slice(name, view).map(Self::F32),
            DType::BF16 => slice(name, view).map(Self::BF16),
            DType::F16 => slice(name, view).map(Self::F16),
            DType::U32 => Err(Error::invalid(name, "a floating-point type", DType::U32)),
        }
    }

    pub(super) fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(x) => x[i],
            Self::BF16(x) => x[i].to_f32(),
            Self::F16(x) => x[i].to_f32(),
        }
    }

    /// `sum += scale · self[start..]`, as far as `sum` goes.
    pub(super) fn add_scaled(&self, start: usize, scale: f32, sum: &mut [f32]) {
        fn add<T: Copy>(sum: &mut [f32], scale: f32, values: &[T], widen: impl Fn(T) -> f32) {
            sum.iter_mut().zip(values).for_each(|(s, &v)| *s += scale * widen(v));
        }
        match self {
            Self::F32(x) => add(sum, scale, &x[start..][..sum.len()], |v| v),
            Self::BF16(x) => add(sum, scale, &x[start..][..sum.len()], bf16::to_f32),
            Self::F16(x) => add(sum, scale, &x[start..][..sum.len()], f16::to_f32),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::BF16(x) => x.len(),
            Self::F16(x) => x.len(),
        }
    }
}

/// The token of a slot.
#[derive(Clone, Copy, Debug)]
pub(super) enum SlotTokens<'a> {
    PerToken { top_k: usize },
    Ragged { token_offsets: &'a [u32], slot_tokens: &'a [u32] },
}

impl<'a> SlotTokens<'a> {
    /// Checks the contents too: on the host that is cheap, and everything indexes by them.
    pub(super) fn new(slots: Slots<'a>, num_tokens: usize) -> Result<Self> {
        let (token_offsets, slot_tokens) = match slots {
            Slots::PerToken { top_k } => return Ok(Self::PerToken { top_k }),
            Slots::Ragged { token_offsets, slot_tokens } => (token_offsets, slot_tokens),
        };
        let token_offsets: &[u32] = slice("token_offsets", token_offsets)?;
        let slot_tokens: &[u32] = slice("slot_tokens", slot_tokens)?;
        check_offsets("token_offsets", token_offsets, slot_tokens.len())?;
        check_below("slot_tokens", slot_tokens, num_tokens)?;
        Ok(Self::Ragged { token_offsets, slot_tokens })
    }

    pub(super) fn token(&self, slot: usize) -> usize {
        match self {
            Self::PerToken { top_k } => slot / top_k,
            Self::Ragged { slot_tokens, .. } => slot_tokens[slot] as usize,
        }
    }

    pub(super) fn of_token(&self, token: usize) -> std::ops::Range<usize> {
        match self {
            Self::PerToken { top_k } => token * top_k..(token + 1) * top_k,
            Self::Ragged { token_offsets, .. } => token_offsets[token] as usize..token_offsets[token + 1] as usize,
        }
    }
}

/// Offsets ascend from 0 and end within `len`.
pub(super) fn check_offsets(name: &str, offsets: &[u32], len: usize) -> Result<()> {
    let ascending = offsets.first() == Some(&0) && offsets.is_sorted();
    match offsets.last() {
        Some(&last) if ascending && last as usize <= len => Ok(()),
        last => Err(Error::invalid(name, format!("ascending from 0 to at most {len}"), format!("ending in {last:?}"))),
    }
}

/// Every index is below `len`.
pub(super) fn check_below(name: &str, indices: &[u32], len: usize) -> Result<()> {
    match indices.iter().find(|&&i| i as usize >= len) {
        None => Ok(()),
        Some(i) => Err(Error::invalid(name, format!("indices below {len}"), i)),
    }
}

/// Every row is below `len` or masked.
pub(super) fn check_rows(name: &str, rows: &[u32], len: usize) -> Result<()> {
    match rows.iter().find(|&&row| row != MASKED && row as usize >= len) {
        None => Ok(()),
        Some(row) => Err(Error::invalid(name, format!("rows below {len}, or masked"), row)),
    }
}

/// [`Backend::write`](super::Backend::write) in host memory.
pub(super) fn write(target: TensorViewMut<'_>, source: &[u8]) -> Result<()> {
    match target.data() {
        DataMut::Host(bytes) if bytes.len() == source.len() => bytes.copy_from_slice(source),
        DataMut::Host(bytes) => return Err(Error::invalid("source", format!("{} bytes", bytes.len()), source.len())),
        DataMut::Device { .. } => return Err(Error::invalid("target", "host memory", "device memory")),
    }
    Ok(())
}

/// [`Backend::read`](super::Backend::read) in host memory.
pub(super) fn read(source: TensorView<'_>, target: &mut [u8]) -> Result<()> {
    let bytes = source.host_bytes("source")?;
    if bytes.len() != target.len() {
        return Err(Error::invalid("target", format!("{} bytes", bytes.len()), target.len()));
    }
    target.copy_from_slice(bytes);
    Ok(())
}
