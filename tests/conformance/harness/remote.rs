//! A backend whose memory is not the host's: the oracle behind buffers that only it can open.
//!
//! It shows that neither the ops, nor the layer, nor these tests take host memory for granted, and it is strict where
//! a GPU is silent: a view that reaches past its allocation panics.

use std::any::Any;
use std::sync::{Arc, RwLock};

use fused_moe::backend::Backend;
use fused_moe::ops::{
    CombineArgs, GroupedGemmArgs, InputRows, PermuteArgs, RaggedMut, RouteArgs, RouteInputs, RouterLogitsArgs,
    SharedOutput, ZeroExperts,
};
use fused_moe::plan::{PermutePlanMut, Slots};
use fused_moe::routing::RouterConfig;
use fused_moe::tensor::{Data, DataMut, DeviceBuffer, Shape, Storage, TensorView, TensorViewMut};
use fused_moe::{DType, Device, Result};

use super::host_copy::HostCopy;

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

/// The host's copy of a view.
fn copy(view: TensorView<'_>) -> HostCopy {
    let Data::Device { buffer, byte_offset } = view.data() else { panic!("ops let host memory through") };
    let memory = open(buffer).bytes.read().expect("no test panics while it writes");
    let bytes = view.shape().numel() * view.dtype().size();
    HostCopy::new(&memory[byte_offset..][..bytes], view.dtype(), view.shape())
}

fn store(copy: &HostCopy, target: TensorViewMut<'_>) {
    let DataMut::Device { buffer, byte_offset } = target.data() else { panic!("ops let host memory through") };
    let mut memory = open(buffer).bytes.write().expect("no test panics while it writes");
    memory[byte_offset..][..copy.bytes().len()].copy_from_slice(copy.bytes());
}

fn open(buffer: &dyn DeviceBuffer) -> &Buffer {
    buffer.as_any().downcast_ref().expect("ops let memory of another backend through")
}

/// Host copies of slots in device memory.
enum SlotCopy {
    PerToken { top_k: usize },
    Ragged { token_offsets: HostCopy, slot_tokens: HostCopy },
}

impl SlotCopy {
    fn of(slots: Slots<'_>) -> Self {
        match slots {
            Slots::PerToken { top_k } => Self::PerToken { top_k },
            Slots::Ragged { token_offsets, slot_tokens } => {
                Self::Ragged { token_offsets: copy(token_offsets), slot_tokens: copy(slot_tokens) }
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
    let mut copy = copy(target.as_view());
    fill(copy.view_mut())?;
    store(&copy, target.reborrow());
    Ok(())
}

fn view(copy: &Option<HostCopy>) -> Option<TensorView<'_>> {
    copy.as_ref().map(HostCopy::view)
}

/// Host copies of what `route` reads.
struct RouteCopies<'c> {
    config: &'c RouterConfig,
    tokens_per_sequence: Option<usize>,
    router_logits: HostCopy,
    selection_bias: Option<HostCopy>,
    noise_logits: Option<HostCopy>,
    token_ids: Option<HostCopy>,
    hash_table: Option<HostCopy>,
}

impl RouteCopies<'_> {
    fn route(
        &self,
        topk_ids: TensorViewMut<'_>,
        topk_weights: TensorViewMut<'_>,
        ragged: Option<RaggedMut<'_>>,
    ) -> Result<()> {
        Device::reference().backend().route(RouteArgs {
            config: self.config,
            inputs: RouteInputs {
                tokens_per_sequence: self.tokens_per_sequence,
                noise_logits: view(&self.noise_logits),
                token_ids: view(&self.token_ids),
                hash_table: view(&self.hash_table),
            },
            router_logits: self.router_logits.view(),
            selection_bias: view(&self.selection_bias),
            topk_ids,
            topk_weights,
            ragged,
            figures: None,
        })
    }
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
        target.copy_from_slice(copy(source).bytes());
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn router_logits(&self, args: RouterLogitsArgs<'_>) -> Result<()> {
        let (hidden_states, weight) = (copy(args.hidden_states), copy(args.weight));
        let bias = args.bias.map(copy);
        update(args.output, |output| {
            Device::reference().backend().router_logits(RouterLogitsArgs {
                hidden_states: hidden_states.view(),
                weight: weight.view(),
                bias: view(&bias),
                tanh: args.tanh,
                output,
            })
        })
    }

    fn route(&self, args: RouteArgs<'_>) -> Result<()> {
        let copies = RouteCopies {
            config: args.config,
            tokens_per_sequence: args.inputs.tokens_per_sequence,
            router_logits: copy(args.router_logits),
            selection_bias: args.selection_bias.map(copy),
            noise_logits: args.inputs.noise_logits.map(copy),
            token_ids: args.inputs.token_ids.map(copy),
            hash_table: args.inputs.hash_table.map(copy),
        };
        if args.figures.is_some() {
            return Err(fused_moe::Error::Unsupported { backend: "remote", what: "figures".into() });
        }
        update(args.topk_ids, |topk_ids| {
            update(args.topk_weights, |topk_weights| match args.ragged {
                None => copies.route(topk_ids, topk_weights, None),
                Some(RaggedMut { token_offsets, slot_tokens }) => update(token_offsets, |token_offsets| {
                    update(slot_tokens, |slot_tokens| {
                        copies.route(topk_ids, topk_weights, Some(RaggedMut { token_offsets, slot_tokens }))
                    })
                }),
            })
        })
    }

    fn permute(&self, args: PermuteArgs<'_>) -> Result<()> {
        let topk_ids = copy(args.topk_ids);
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
        let (input, weight) = (copy(args.input), copy(args.weight));
        let (expert_offsets, bias) = (args.expert_offsets.map(copy), args.bias.map(copy));
        let gathered = match args.rows {
            InputRows::Same => None,
            InputRows::Gathered { permuted_idx, slots, slot_scale } => {
                Some((copy(permuted_idx), SlotCopy::of(slots), slot_scale.map(copy)))
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
        let expert_out = copy(args.expert_out);
        let (inv_permuted_idx, topk_weights) = (args.inv_permuted_idx.map(copy), args.topk_weights.map(copy));
        let slots = SlotCopy::of(args.slots);
        let zero = args
            .zero_experts
            .map(|zero| (zero, copy(zero.topk_ids), copy(zero.topk_weights), copy(zero.hidden_states)));
        let shared = args.shared.map(|shared| (shared.scale, copy(shared.output), shared.gate_logits.map(copy)));
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
