//! Tensors as bindings: an aligned piece of a buffer, and where in it the tensor's first element is.

use std::ops::Range;

use super::buffer::{BLOCK, WgpuBuffer};
use super::device::WgpuDevice;
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorView};

/// Some bytes of a buffer, as a kernel binds them.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    buffer: wgpu::Buffer,
    offset: u64,
    size: Option<wgpu::BufferSize>,
}

impl Binding {
    /// All of a buffer.
    pub(super) fn whole(buffer: &wgpu::Buffer) -> Self {
        Self { buffer: buffer.clone(), offset: 0, size: None }
    }

    pub(super) fn resource(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.buffer,
            offset: self.offset,
            size: self.size,
        })
    }
}

/// A tensor as a kernel sees it.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub(super) binding: Binding,
    /// The binding's element that is the tensor's first.
    pub(super) at: u32,
}

/// The weights of some experts of a stack.
#[derive(Clone, Debug)]
pub(super) struct BoundExperts {
    pub(super) experts: Range<u32>,
    pub(super) weight: Bound,
}

impl WgpuDevice {
    /// A tensor as a binding.
    pub(super) fn bind_tensor(&self, name: &str, view: TensorView<'_>) -> Result<Bound> {
        let (buffer, start) = self.memory(name, view)?;
        self.bind_bytes(name, buffer, start, byte_len(view), view.dtype())
    }

    /// A tensor as a binding, or something to bind where there is none.
    pub(super) fn bind_optional(&self, name: &str, view: Option<TensorView<'_>>) -> Result<Bound> {
        match view {
            Some(view) => self.bind_tensor(name, view),
            None => Ok(Bound { binding: Binding::whole(&self.unused), at: 0 }),
        }
    }

    /// A stack of experts as bindings, as many as it takes.
    pub(super) fn bind_experts(&self, name: &str, view: TensorView<'_>) -> Result<Vec<BoundExperts>> {
        let (buffer, start) = self.memory(name, view)?;
        let num_experts = view.dims()[0] as u64;
        let expert_bytes = byte_len(view) / num_experts.max(1);
        let limits = Limits { max_binding: self.max_binding(), alignment: self.alignment().into() };
        let parts = expert_parts(start, num_experts, expert_bytes, buffer.part_bytes, limits);
        let parts = parts
            .ok_or_else(|| Error::invalid(name, format!("experts of at most {} bytes", limits.room()), expert_bytes))?;
        let bind = |part: ExpertPart| {
            let len = u64::from(part.experts.end - part.experts.start) * expert_bytes;
            let weight = self.bind_bytes(name, buffer, part.from, len, view.dtype())?;
            Ok(BoundExperts { experts: part.experts, weight })
        };
        parts.into_iter().map(bind).collect()
    }

    fn memory<'a>(&self, name: &str, view: TensorView<'a>) -> Result<(&'a WgpuBuffer, u64)> {
        let (buffer, start) =
            WgpuBuffer::of(view).ok_or_else(|| Error::invalid(name, "memory of a wgpu device", "other memory"))?;
        buffer.check_range(start as u64, byte_len(view))?;
        Ok((buffer, start as u64))
    }

    fn alignment(&self) -> u32 {
        self.limits.min_storage_buffer_offset_alignment.max(BLOCK as u32)
    }

    /// Bytes of one part as a binding of whole blocks.
    fn bind_bytes(&self, name: &str, buffer: &WgpuBuffer, start: u64, len: u64, dtype: DType) -> Result<Bound> {
        let part = (start / buffer.part_bytes).min(buffer.parts.len() as u64 - 1);
        let in_part = start - part * buffer.part_bytes;
        let offset = in_part / u64::from(self.alignment()) * u64::from(self.alignment());
        let size = (in_part - offset + len).max(1).next_multiple_of(BLOCK);
        let memory = &buffer.parts[part as usize];
        if size > self.max_binding() {
            let most = format!("at most {} bytes in one binding of this adapter", self.max_binding());
            return Err(Error::invalid(name, most, size));
        }
        if offset + size > memory.size() {
            let needed = format!("a buffer of at least {} bytes, whole blocks of {BLOCK}", offset + size);
            return Err(Error::invalid(name, needed, memory.size()));
        }
        let binding = Binding { buffer: memory.clone(), offset, size: wgpu::BufferSize::new(size) };
        Ok(Bound { binding, at: ((in_part - offset) / dtype.size() as u64) as u32 })
    }
}

/// Some experts of a stack that one binding takes, and the byte of the tensor's memory where they start.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ExpertPart {
    experts: Range<u32>,
    from: u64,
}

/// What a binding may be.
#[derive(Clone, Copy, Debug)]
struct Limits {
    max_binding: u64,
    alignment: u64,
}

impl Limits {
    /// What of a binding is left where its start has to be aligned down.
    fn room(self) -> u64 {
        self.max_binding - self.alignment
    }
}

/// Cuts a stack that starts at byte `start` of memory in parts of `part_bytes` into bindings of whole experts; `None`
/// where an expert is larger than a binding.
fn expert_parts(
    start: u64,
    num_experts: u64,
    expert_bytes: u64,
    part_bytes: u64,
    limits: Limits,
) -> Option<Vec<ExpertPart>> {
    let mut parts = Vec::new();
    let mut expert = 0;
    while expert < num_experts {
        let from = start + expert * expert_bytes;
        // Experts up to the end of the part, as many as one binding takes.
        let in_part = part_bytes - from % part_bytes;
        let aligned = (from % part_bytes).is_multiple_of(limits.alignment);
        let most = if aligned { in_part.min(limits.max_binding) } else { in_part.min(limits.room()) };
        let count = (most / expert_bytes.max(1)).min(num_experts - expert);
        if count == 0 {
            return None;
        }
        parts.push(ExpertPart { experts: expert as u32..(expert + count) as u32, from });
        expert += count;
    }
    Some(parts)
}

/// wgpu takes no buffer as input and output of one launch, for it could not order the accesses.
pub(super) fn check_disjoint(output: &Bound, inputs: &[&Bound]) -> Result<()> {
    if inputs.iter().any(|input| input.binding.buffer == output.binding.buffer) {
        return Err(Error::invalid("output", "a wgpu buffer that is not an input's too", "the same buffer"));
    }
    Ok(())
}

fn byte_len(view: TensorView<'_>) -> u64 {
    (view.shape().numel() * view.dtype().size()) as u64
}

/// A size that fits what kernels count in.
pub(super) fn count(name: &str, size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| Error::invalid(name, "a size below 2^32", size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_binding: 128 << 20, alignment: 256 };

    /// DeepSeek-V3's stack of gate and up in bf16: 256 experts of 4096 by 7168, 1.5e10 bytes, 7.5e9 elements.
    #[test]
    fn stacks_beyond_2_to_the_31_elements_are_bound_expert_by_expert() {
        let expert_bytes = 2 * 4096 * 7168;
        // As `alloc` splits it: two experts to a buffer of 128 MiB.
        let part_bytes = 2 * expert_bytes;
        let parts = expert_parts(0, 256, expert_bytes, part_bytes, LIMITS).unwrap();
        assert_eq!(parts.len(), 128);
        for (i, part) in parts.iter().enumerate() {
            let first = 2 * i as u64;
            assert_eq!(*part, ExpertPart { experts: first as u32..first as u32 + 2, from: first * expert_bytes });
        }
        assert!(parts[127].from / 2 > 1 << 32);
    }

    #[test]
    fn an_engines_one_large_buffer_is_bound_in_pieces_that_cover_it() {
        // One buffer of 2^34 bytes, and a tensor that starts at no alignment.
        let (start, num_experts, expert_bytes) = (36, 999, 12_345_678);
        let parts = expert_parts(start, num_experts, expert_bytes, 1 << 34, LIMITS).unwrap();
        let mut next = 0;
        for part in &parts {
            assert_eq!((part.experts.start, part.from), (next, start + u64::from(next) * expert_bytes));
            let aligned = part.from / LIMITS.alignment * LIMITS.alignment;
            let end = part.from + u64::from(part.experts.end - part.experts.start) * expert_bytes;
            // What kernels count in u32 are the elements of a binding.
            assert!((end - aligned).next_multiple_of(BLOCK) <= LIMITS.max_binding);
            next = part.experts.end;
        }
        assert_eq!(u64::from(next), num_experts);
        assert!(parts.last().unwrap().from > 1 << 33);
    }

    #[test]
    fn an_expert_beyond_a_binding_has_no_part() {
        assert_eq!(expert_parts(0, 4, LIMITS.max_binding + 16, 1 << 34, LIMITS), None);
        assert_eq!(expert_parts(0, 0, 1 << 20, 1 << 34, LIMITS), Some(Vec::new()));
    }
}
