//! Device memory: one wgpu buffer, or several for a stack of experts that is larger than one binding.

use std::any::Any;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tensor::{Data, DeviceBuffer, TensorView};

/// Sizes and offsets of copies are multiples of this.
pub(super) const COPY_ALIGNMENT: u64 = wgpu::COPY_BUFFER_ALIGNMENT;

/// Kernels read inputs and weights by 16 bytes, so bindings are whole blocks of as many.
pub(super) const BLOCK: u64 = 16;

/// Memory of a wgpu device as the memory of tensors.
///
/// An engine's own buffer comes in by [`WgpuDevice::wrap`](super::WgpuDevice::wrap) and
/// [`TensorView::from_device`]; a tensor's buffer goes out by [`WgpuBuffer::of`]. Neither copies.
#[derive(Clone, Debug)]
pub struct WgpuBuffer {
    /// Whose it is; see [`WgpuDevice`](super::WgpuDevice).
    pub(super) identity: Arc<()>,
    pub(super) parts: Vec<wgpu::Buffer>,
    /// Bytes of a tensor in each part but the last; whole experts.
    pub(super) part_bytes: u64,
    /// Bytes of the tensor; of an engine's buffer, all of it.
    pub(super) bytes: u64,
}

impl DeviceBuffer for WgpuBuffer {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl WgpuBuffer {
    /// The memory of a tensor on a wgpu device, and the byte where the tensor starts in it.
    pub fn of<'a>(view: TensorView<'a>) -> Option<(&'a Self, usize)> {
        match view.data() {
            Data::Device { buffer, byte_offset } => Some((buffer.as_any().downcast_ref()?, byte_offset)),
            Data::Host(_) => None,
        }
    }

    /// The buffers, in the order of the tensor's elements: one, or several for a large stack of experts.
    pub fn buffers(&self) -> &[wgpu::Buffer] {
        &self.parts
    }

    /// That `len` bytes from `start` on are in it.
    pub(super) fn check_range(&self, start: u64, len: u64) -> Result<()> {
        match start.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(Error::invalid("buffer", format!("at least {len} bytes from {start} on"), self.bytes)),
        }
    }

    /// The pieces of `start..start + len` in the parts.
    pub(super) fn pieces(&self, start: u64, len: u64) -> Vec<Piece<'_>> {
        let end = start + len;
        let mut pieces = Vec::new();
        for (i, buffer) in self.parts.iter().enumerate() {
            let part_start = i as u64 * self.part_bytes;
            let part_end = (part_start + self.part_bytes).min(self.bytes);
            let (from, to) = (start.max(part_start), end.min(part_end));
            if from < to {
                pieces.push(Piece {
                    buffer,
                    offset: from - part_start,
                    len: to - from,
                    in_part: part_end - part_start,
                });
            }
        }
        pieces
    }
}

/// Some bytes of one part.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    pub(super) buffer: &'a wgpu::Buffer,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Bytes of the tensor in the part; the rest of the buffer is padding.
    pub(super) in_part: u64,
}

/// Buffers and bytes in each for a tensor of `bytes`, of which `unit` bytes have to stay together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) parts: u64,
    pub(super) part_bytes: u64,
}

/// How a tensor lies in buffers of at most `max_bytes`.
pub(super) fn split(bytes: u64, unit: u64, max_bytes: u64) -> Result<Split> {
    if bytes <= max_bytes {
        return Ok(Split { parts: 1, part_bytes: bytes.max(1) });
    }
    // Parts start on the smallest unit that keeps experts whole and every part's first element on a word.
    let unit = if unit.is_multiple_of(COPY_ALIGNMENT) { unit } else { unit * 2 };
    let part_bytes = max_bytes / unit * unit;
    if part_bytes == 0 || unit >= bytes {
        return Err(Error::invalid(
            "shape",
            format!("at most {max_bytes} bytes, or experts of at most so many: the largest binding of this adapter"),
            format!("{bytes} bytes in pieces of {unit}"),
        ));
    }
    Ok(Split { parts: bytes.div_ceil(part_bytes), part_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_split_by_whole_experts() {
        let one = split(100, 10, 100).unwrap();
        assert_eq!(one, Split { parts: 1, part_bytes: 100 });
        // Ten experts of 12 bytes in bindings of 32: two each.
        assert_eq!(split(120, 12, 32).unwrap(), Split { parts: 5, part_bytes: 24 });
        // Experts of 6 bytes go in pairs, so that each part starts on a word.
        assert_eq!(split(60, 6, 32).unwrap(), Split { parts: 3, part_bytes: 24 });
        assert_eq!(split(0, 0, 32).unwrap(), Split { parts: 1, part_bytes: 1 });
        // Beyond 2^32 bytes.
        assert_eq!(split(1 << 40, 1 << 30, 1 << 32).unwrap(), Split { parts: 256, part_bytes: 1 << 32 });
    }

    #[test]
    fn an_expert_beyond_a_binding_is_refused_with_the_sizes() {
        let message = split(1 << 30, 1 << 28, 1 << 27).unwrap_err().to_string();
        assert!(message.contains("134217728") && message.contains("1073741824"), "{message}");
        assert!(split(1 << 30, 1 << 30, 1 << 27).is_err());
    }
}
