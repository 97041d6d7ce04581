//! A backend whose memory is not the host's: the oracle behind buffers that only it can open.
//!
//! It shows that neither the ops, nor the layer, nor these tests take host memory for granted, and it is strict where
//! a GPU is silent: a view that reaches past its allocation panics.

use std::any::Any;
use std::sync::{Arc, RwLock};

use fused_moe::backend::Backend;
use fused_moe::ops::{
    CombineArgs, GroupedGemmArgs, InputRows, PermuteArgs, RouteArgs, RouterLogitsArgs, SharedOutput, ZeroExperts,
};
use fused_moe::plan::{PermutePlanMut, Slots};
use fused_moe::tensor::{Data, DataMut, DeviceBuffer, Shape, Storage, TensorView, TensorViewMut};
use fused_moe::{DType, Device, Result};

/// The backend; each value is a device with memory of its own.
#[derive(Debug, Default)]
pub struct Remote {
    memory: Arc<()>,
}

/// An allocation of one [`Remote`].
#[derive(Debug)]
struct Buffer {
    memory: Arc<()>,
    bytes: RwLock<Vec<u8>>,
}

impl DeviceBuffer for Buffer {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A host copy of a view, aligned for every element type.
struct Copy {
    words: Vec<u32>,
    bytes: usize,
    dtype: DType,
    shape: Shape,
}

impl Copy {
    fn of(view: TensorView<'_>) -> Self {
        let bytes = view.shape().numel() * view.dtype().size();
        let mut copy = Self { words: vec![0; bytes.div_ceil(4)], bytes, dtype: view.dtype(), shape: view.shape() };
        let Data::Device { buffer, byte_offset } = view.data() else { panic!("ops let host memory through") };
        let memory = open(buffer).bytes.read().expect("no test panics while it writes");
        bytemuck::cast_slice_mut(&mut copy.words)[..bytes].copy_from_slice(&memory[byte_offset..][..bytes]);
        copy
    }

    fn view(&self) -> TensorView<'_> {
        TensorView::from_bytes(&bytemuck::cast_slice(&self.words)[..self.bytes], self.dtype, self.shape)
            .expect("made of a view of this shape")
    }

    fn view_mut(&mut self) -> TensorViewMut<'_> {
        let (dtype, shape, len) = (self.dtype, self.shape, self.bytes / self.dtype.size());
        let view = match dtype {
            DType::F32 => TensorViewMut::from_slice(bytemuck::cast_slice_mut::<_, f32>(&mut self.words), shape),
            DType::U32 => TensorViewMut::from_slice(&mut self.words, shape),
            DType::BF16 => {
                TensorViewMut::from_slice(&mut bytemuck::cast_slice_mut::<_, half::bf16>(&mut self.words)[..len], shape)
            }
            DType::F16 => {
                TensorViewMut::from_slice(&mut bytemuck::cast_slice_mut::<_, half::f16>(&mut self.words)[..len], shape)
            }
        };
        view.expect("made of a view of this shape")
    }

    fn store(&self, target: TensorViewMut<'_>) {
        let DataMut::Device { buffer, byte_offset } = target.data() else { panic!("ops let host memory through") };
        let mut memory = open(buffer).bytes.write().expect("no test panics while it writes");
        memory[byte_offset..][..self.bytes].copy_from_slice(&bytemuck::cast_slice(&self.words)[..self.bytes]);
    }
}

fn open(buffer: &dyn DeviceBuffer) -> &Buffer {
    buffer.as_any().downcast_ref().expect("ops let memory of another backend through")
}

/// Host copies of slots in device memory.
enum SlotCopy {
    PerToken { top_k: usize },
    Ragged { token_offsets: Copy, slot_tokens: Copy },
}

impl SlotCopy {
    fn of(slots: Slots<'_>) -> Self {
        match slots {
            Slots::PerToken { top_k } => Self::PerToken { top_k },
            Slots::Ragged { token_offsets, slot_tokens } => {
                Self::Ragged { token_offsets: Copy::of(token_offsets), slot_tokens: Copy::of(slot_tokens) }
            }
        }
    }

    fn slots(&self) -> Slots<'_> {
        match self {
            Self::PerToken { top_k } => Slots::PerToken { top_k: *top_k },
            Self::Ragged { token_offsets, slot_tokens } => {
                Slots::Ragged { token_offsets: token_offsets.view(), slot_tokens: slot_tokens.view() }
            }
        }
    }
}

/// A host copy of a target: computed into by `fill`, then stored.
fn update(mut target: TensorViewMut<'_>, fill: impl FnOnce(TensorViewMut<'_>) -> Result<()>) -> Result<()> {
    let mut copy = Copy::of(target.as_view());
    fill(copy.view_mut())?;
    copy.store(target.reborrow());
    Ok(())
}

fn view(copy: &Option<Copy>) -> Option<TensorView<'_>> {
    copy.as_ref().map(Copy::view)
}

impl Backend for Remote {
    fn name(&self) -> &'static str {
        "remote"
    }

    fn device_name(&self) -> String {
        "the oracle behind memory of its own".into()
    }

    fn is_host(&self) -> bool {
        false
    }

    fn owns(&self, buffer: &dyn DeviceBuffer) -> bool {
        buffer.as_any().downcast_ref::<Buffer>().is_some_and(|buffer| Arc::ptr_eq(&buffer.memory, &self.memory))
    }

    fn alloc(&self, _: DType, _: Shape, bytes: usize) -> Result<Storage> {
        Ok(Storage::Device(Box::new(Buffer { memory: self.memory.clone(), bytes: RwLock::new(vec![0; bytes]) })))
    }

    fn write(&self, target: TensorViewMut<'_>, source: &[u8]) -> Result<()> {
        let DataMut::Device { buffer, byte_offset } = target.data() else { panic!("a tensor of another device") };
        open(buffer).bytes.write().expect("no test panics while it writes")[byte_offset..][..source.len()]
            .copy_from_slice(source);
        Ok(())
    }

    fn read(&self, source: TensorView<'_>, target: &mut [u8]) -> Result<()> {
        let copy = Copy::of(source);
        target.copy_from_slice(&bytemuck::cast_slice(&copy.words)[..copy.bytes]);
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn router_logits(&self, args: RouterLogitsArgs<'_>) -> Result<()> {
        let (hidden_states, weight) = (Copy::of(args.hidden_states), Copy::of(args.weight));
        let bias = args.bias.map(Copy::of);
        update(args.output, |output| {
            Device::reference().backend().router_logits(RouterLogitsArgs {
                hidden_states: hidden_states.view(),
                weight: weight.view(),
                bias: view(&bias),
                output,
            })
        })
    }

    fn route(&self, args: RouteArgs<'_>) -> Result<()> {
        let router_logits = Copy::of(args.router_logits);
        let selection_bias = args.selection_bias.map(Copy::of);
        update(args.topk_ids, |topk_ids| {
            update(args.topk_weights, |topk_weights| {
                Device::reference().backend().route(RouteArgs {
                    config: args.config,
                    inputs: args.inputs,
                    router_logits: router_logits.view(),
                    selection_bias: view(&selection_bias),
                    topk_ids,
                    topk_weights,
                })
            })
        })
    }

    fn permute(&self, args: PermuteArgs<'_>) -> Result<()> {
        let topk_ids = Copy::of(args.topk_ids);
        let PermutePlanMut { expert_offsets, permuted_idx, inv_permuted_idx } = args.plan;
        update(expert_offsets, |expert_offsets| {
            update(permuted_idx, |permuted_idx| {
                update(inv_permuted_idx, |inv_permuted_idx| {
                    let plan = PermutePlanMut { expert_offsets, permuted_idx, inv_permuted_idx };
                    Device::reference().backend().permute(PermuteArgs { topk_ids: topk_ids.view(), plan })
                })
            })
        })
    }

    fn grouped_gemm(&self, args: GroupedGemmArgs<'_>) -> Result<()> {
        let (input, weight) = (Copy::of(args.input), Copy::of(args.weight));
        let (expert_offsets, bias) = (args.expert_offsets.map(Copy::of), args.bias.map(Copy::of));
        let gathered = match args.rows {
            InputRows::Same => None,
            InputRows::Gathered { permuted_idx, slots, slot_scale } => {
                Some((Copy::of(permuted_idx), SlotCopy::of(slots), slot_scale.map(Copy::of)))
            }
        };
        let rows = match &gathered {
            None => InputRows::Same,
            Some((permuted_idx, slots, scale)) => {
                InputRows::Gathered { permuted_idx: permuted_idx.view(), slots: slots.slots(), slot_scale: view(scale) }
            }
        };
        update(args.output, |output| {
            Device::reference().backend().grouped_gemm(GroupedGemmArgs {
                input: input.view(),
                rows,
                expert_offsets: view(&expert_offsets),
                weight: weight.view(),
                bias: view(&bias),
                output,
                ..args
            })
        })
    }

    fn combine(&self, args: CombineArgs<'_>) -> Result<()> {
        let expert_out = Copy::of(args.expert_out);
        let (inv_permuted_idx, topk_weights) = (args.inv_permuted_idx.map(Copy::of), args.topk_weights.map(Copy::of));
        let slots = SlotCopy::of(args.slots);
        let zero = args
            .zero_experts
            .map(|zero| (zero, Copy::of(zero.topk_ids), Copy::of(zero.topk_weights), Copy::of(zero.hidden_states)));
        let shared =
            args.shared.map(|shared| (shared.scale, Copy::of(shared.output), shared.gate_logits.map(Copy::of)));
        update(args.output, |output| {
            Device::reference().backend().combine(CombineArgs {
                expert_out: expert_out.view(),
                inv_permuted_idx: view(&inv_permuted_idx),
                topk_weights: view(&topk_weights),
                slots: slots.slots(),
                zero_experts: zero.as_ref().map(|(zero, topk_ids, topk_weights, hidden_states)| ZeroExperts {
                    topk_ids: topk_ids.view(),
                    topk_weights: topk_weights.view(),
                    hidden_states: hidden_states.view(),
                    ..*zero
                }),
                shared: shared.as_ref().map(|(scale, output, gate)| SharedOutput {
                    output: output.view(),
                    gate_logits: view(gate),
                    scale: *scale,
                }),
                output,
            })
        })
    }
}
