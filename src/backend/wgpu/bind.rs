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
        // Aligning the start down may take up to one alignment more.
        let room = self.max_binding() - u64::from(self.alignment());
        let mut bound = Vec::new();
        let mut expert = 0;
        while expert < num_experts {
            let from = start + expert * expert_bytes;
            // Experts up to the end of the part, as many as one binding takes.
            let in_part = buffer.part_bytes - from % buffer.part_bytes;
            let most = if in_part <= room || in_part <= self.max_binding() { in_part } else { room };
            let count = (most / expert_bytes.max(1)).min(num_experts - expert);
            if count == 0 {
                return Err(Error::invalid(name, format!("experts of at most {room} bytes"), expert_bytes));
            }
            let weight = self.bind_bytes(name, buffer, from, count * expert_bytes, view.dtype())?;
            bound.push(BoundExperts { experts: expert as u32..(expert + count) as u32, weight });
            expert += count;
        }
        Ok(bound)
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

/// The number of a floating-point type in `shared/numbers.wgsl`.
pub(super) fn dtype_constant(dtype: DType) -> u32 {
    match dtype {
        DType::F32 | DType::U32 => 0,
        DType::BF16 => 1,
        DType::F16 => 2,
    }
}
