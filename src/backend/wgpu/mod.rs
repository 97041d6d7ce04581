//! The wgpu backend: every GPU that has Vulkan, Metal or DX12, with kernels in WGSL (`kernels/wgsl`).
//!
//! All steps of a layer are launches in one command buffer; nothing comes back to the host between them. Workgroup
//! counts that depend on the routing are bounded by what can be, and workgroups without work end at once.

mod bind;
mod buffer;
mod combine;
mod device;
mod grouped_gemm;
mod jitter;
mod kernel;
mod params;
mod permute;
mod queue;
mod route;
mod router_logits;
mod tile;

use std::sync::Arc;

pub use buffer::WgpuBuffer;
pub use device::{WgpuDevice, WgpuOptions};

use self::device::{NAME, make_buffer};
use super::Backend;
use crate::error::{Error, Result};
use crate::ops::{CombineArgs, GroupedGemmArgs, JitterArgs, PermuteArgs, RouteArgs, RouterLogitsArgs};
use crate::tensor::{DType, DataMut, DeviceBuffer, Shape, Storage, TensorView, TensorViewMut};

impl Backend for WgpuDevice {
    fn name(&self) -> &'static str {
        NAME
    }

    fn device_name(&self) -> String {
        format!("{}, {:?}", self.info.name, self.info.backend)
    }

    fn is_emulated(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    fn is_host(&self) -> bool {
        false
    }

    fn owns(&self, buffer: &dyn DeviceBuffer) -> bool {
        buffer.as_any().downcast_ref::<WgpuBuffer>().is_some_and(|buffer| Arc::ptr_eq(&buffer.identity, &self.identity))
    }

    fn check_sizes(&self, tensors: &[(DType, Shape)]) -> Result<()> {
        tensors.iter().try_for_each(|&(dtype, shape)| {
            let bytes = shape.byte_len(dtype)?;
            self.split(shape, bytes as u64).map(drop)
        })
    }

    fn alloc(&self, _: DType, shape: Shape, bytes: usize) -> Result<Storage> {
        let bytes = bytes as u64;
        let split = self.split(shape, bytes)?;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let part = |i: u64| {
            let size = (bytes - i * split.part_bytes).min(split.part_bytes).max(1).next_multiple_of(buffer::BLOCK);
            self.scoped(|| make_buffer(&self.device, size, usage))
        };
        let parts = (0..split.parts).map(part).collect::<Result<_>>()?;
        let buffer = WgpuBuffer { identity: Arc::clone(&self.identity), parts, part_bytes: split.part_bytes, bytes };
        Ok(Storage::Device(Box::new(buffer)))
    }

    fn write(&self, target: TensorViewMut<'_>, source: &[u8]) -> Result<()> {
        let expected = target.shape().numel() * target.dtype().size();
        if source.len() != expected {
            return Err(Error::invalid("source", format!("{expected} bytes"), source.len()));
        }
        let DataMut::Device { buffer, byte_offset } = target.data() else {
            return Err(Error::invalid("target", "memory of this device", "host memory"));
        };
        let buffer = self.own(buffer)?;
        buffer.check_range(byte_offset as u64, source.len() as u64)?;
        self.write_bytes(buffer, byte_offset as u64, source)
    }

    fn read(&self, source: TensorView<'_>, target: &mut [u8]) -> Result<()> {
        let expected = source.shape().numel() * source.dtype().size();
        if target.len() != expected {
            return Err(Error::invalid("target", format!("{expected} bytes"), target.len()));
        }
        let Some((buffer, byte_offset)) = WgpuBuffer::of(source) else {
            return Err(Error::invalid("source", "memory of this device", "other memory"));
        };
        let buffer = self.own(buffer)?;
        buffer.check_range(byte_offset as u64, target.len() as u64)?;
        self.read_bytes(buffer, byte_offset as u64, target)
    }

    fn synchronize(&self) -> Result<()> {
        self.flush()?;
        self.wait()
    }

    fn jitter(&self, args: JitterArgs<'_>) -> Result<()> {
        jitter::jitter(self, args)
    }

    fn router_logits(&self, args: RouterLogitsArgs<'_>) -> Result<()> {
        router_logits::router_logits(self, args)
    }

    fn route(&self, args: RouteArgs<'_>) -> Result<()> {
        route::route(self, args)
    }

    fn permute(&self, args: PermuteArgs<'_>) -> Result<()> {
        permute::permute(self, args)
    }

    fn grouped_gemm(&self, args: GroupedGemmArgs<'_>) -> Result<()> {
        grouped_gemm::grouped_gemm(self, args)
    }

    fn combine(&self, args: CombineArgs<'_>) -> Result<()> {
        combine::combine(self, args)
    }
}

impl WgpuDevice {
    /// An engine's buffer as memory for tensors ([`TensorView::from_device`]); no copy.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the buffer cannot be bound as storage.
    pub fn wrap(&self, buffer: wgpu::Buffer) -> Result<WgpuBuffer> {
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::invalid("buffer", "usage STORAGE", format!("{:?}", buffer.usage())));
        }
        let bytes = buffer.size();
        Ok(WgpuBuffer { identity: Arc::clone(&self.identity), parts: vec![buffer], part_bytes: bytes.max(1), bytes })
    }

    /// How a tensor lies in buffers; a stack's experts stay whole.
    fn split(&self, shape: Shape, bytes: u64) -> Result<buffer::Split> {
        let unit = match *shape.dims() {
            [experts, _, _] if experts > 0 => bytes / experts as u64,
            _ => bytes,
        };
        buffer::split(bytes, unit, self.max_binding())
    }

    fn own<'a>(&self, buffer: &'a dyn DeviceBuffer) -> Result<&'a WgpuBuffer> {
        buffer
            .as_any()
            .downcast_ref::<WgpuBuffer>()
            .filter(|buffer| Arc::ptr_eq(&buffer.identity, &self.identity))
            .ok_or_else(|| Error::invalid("tensor", "memory of this device", "other memory"))
    }
}
