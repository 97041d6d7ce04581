//! Copies of tensors on the host, for backends made of other backends.

use fused_moe::DType;
use fused_moe::tensor::{Data, Shape, TensorView, TensorViewMut};
use half::{bf16, f16};

/// A tensor's bytes, aligned for every element type.
pub struct HostCopy {
    words: Vec<u32>,
    len: usize,
    dtype: DType,
    shape: Shape,
}

impl HostCopy {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8], dtype: DType, shape: Shape) -> Self {
        let mut words = vec![0; bytes.len().div_ceil(4)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words, len: bytes.len(), dtype, shape }
    }

    /// A copy of host memory.
    pub fn of(view: TensorView<'_>) -> Self {
        let Data::Host(bytes) = view.data() else { panic!("not host memory") };
        Self::new(bytes, view.dtype(), view.shape())
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    /// Its bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }

    /// Its elements, if they are f32; else none.
    pub fn f32s_mut(&mut self) -> &mut [f32] {
        if self.dtype == DType::F32 { bytemuck::cast_slice_mut(&mut self.words) } else { &mut [] }
    }

    /// As a tensor.
    pub fn view(&self) -> TensorView<'_> {
        TensorView::from_bytes(self.bytes(), self.dtype, self.shape).expect("made of a view of this shape")
    }

    /// As a tensor to write to.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        let (dtype, shape) = (self.dtype, self.shape);
        let bytes = self.bytes_mut();
        let view = match dtype {
            DType::F32 => TensorViewMut::from_slice(bytemuck::cast_slice_mut::<_, f32>(bytes), shape),
            DType::U32 => TensorViewMut::from_slice(bytemuck::cast_slice_mut::<_, u32>(bytes), shape),
            DType::BF16 => TensorViewMut::from_slice(bytemuck::cast_slice_mut::<_, bf16>(bytes), shape),
            DType::F16 => TensorViewMut::from_slice(bytemuck::cast_slice_mut::<_, f16>(bytes), shape),
        };
        view.expect("made of a view of this shape")
    }
}
