//! The oracle as a backend: views to f64, [`crate::reference`], and back.

use half::{bf16, f16};

use super::host::{self, Floats, SlotTokens};
use super::{Backend, host_alloc};
use crate::error::{Error, Result};
use crate::ops::{CombineArgs, GroupedGemmArgs, InputRows, JitterArgs, PermuteArgs, RouteArgs, RouterLogitsArgs};
use crate::reference;
use crate::tensor::{DType, DeviceBuffer, Shape, Storage, TensorView, TensorViewMut};

/// The backend behind [`Device::reference`](super::Device::reference).
#[derive(Debug)]
pub(crate) struct Reference;

impl Backend for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn device_name(&self) -> String {
        "scalar f64".into()
    }

    fn is_host(&self) -> bool {
        true
    }

    fn owns(&self, _: &dyn DeviceBuffer) -> bool {
        false
    }

    fn alloc(&self, _: DType, _: Shape, bytes: usize) -> Result<Storage> {
        host_alloc(self.name(), bytes)
    }

    fn write(&self, target: TensorViewMut<'_>, source: &[u8]) -> Result<()> {
        host::write(target, source)
    }

    fn read(&self, source: TensorView<'_>, target: &mut [u8]) -> Result<()> {
        host::read(source, target)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn jitter(&self, mut args: JitterArgs<'_>) -> Result<()> {
        let x = widen("hidden_states", args.hidden_states)?;
        store(&mut args.output, &reference::jitter(&x, args.hidden_states.dims()[1].max(1), args.seed, args.epsilon))
    }

    fn router_logits(&self, mut args: RouterLogitsArgs<'_>) -> Result<()> {
        let hidden_size = args.weight.dims()[1];
        let mut logits = reference::router_logits(
            &widen("hidden_states", args.hidden_states)?,
            &widen("weight", args.weight)?,
            args.bias.map(|bias| widen("bias", bias)).transpose()?.as_deref(),
            hidden_size,
        );
        if args.tanh {
            logits.iter_mut().for_each(|x| *x = x.tanh());
        }
        store(&mut args.output, &logits)
    }

    fn route(&self, mut args: RouteArgs<'_>) -> Result<()> {
        let optional = |name, view: Option<TensorView<'_>>| view.map(|view| widen(name, view)).transpose();
        let num_logits = args.router_logits.dims()[1];
        let selection_bias = optional("selection_bias", args.selection_bias)?;
        let noise_logits = optional("inputs.noise_logits", args.inputs.noise_logits)?;
        let token_ids = match args.inputs.token_ids {
            Some(view) => Some(host::slice("inputs.token_ids", view)?),
            None => None,
        };
        let hash_table = match args.inputs.hash_table {
            Some(view) => Some(host::slice("inputs.hash_table", view)?),
            None => None,
        };
        let (routing, figures) = reference::route_with_figures(&reference::Route {
            config: args.config,
            router_logits: &widen("router_logits", args.router_logits)?,
            num_choices: num_logits - args.config.num_group_logits(),
            selection_bias: selection_bias.as_deref(),
            tokens_per_sequence: args.inputs.tokens_per_sequence,
            noise_logits: noise_logits.as_deref(),
            token_ids,
            hash_table,
        });
        host::slice_mut("topk_ids", &mut args.topk_ids)?.copy_from_slice(&routing.topk_ids);
        store(&mut args.topk_weights, &routing.topk_weights)?;
        if let (Some(mut ragged), Some(offsets)) = (args.ragged, routing.token_offsets) {
            host::slice_mut("token_offsets", &mut ragged.token_offsets)?.copy_from_slice(&offsets);
            let slot_tokens: &mut [u32] = host::slice_mut("slot_tokens", &mut ragged.slot_tokens)?;
            for (token, slots) in offsets.windows(2).enumerate() {
                slot_tokens[slots[0] as usize..slots[1] as usize].fill(token as u32);
            }
        }
        if let Some(mut out) = args.figures {
            host::slice_mut("tokens_per_expert", &mut out.tokens_per_expert)?
                .copy_from_slice(&figures.tokens_per_expert);
            store(&mut out.importance, &figures.importance)?;
            store(&mut out.scalars, &figures.scalars())?;
        }
        Ok(())
    }

    fn permute(&self, mut args: PermuteArgs<'_>) -> Result<()> {
        let num_experts = args.plan.expert_offsets.dims()[0] - 1;
        let plan = reference::permute(host::slice("topk_ids", args.topk_ids)?, num_experts);
        host::slice_mut("expert_offsets", &mut args.plan.expert_offsets)?.copy_from_slice(&plan.expert_offsets);
        host::slice_mut("permuted_idx", &mut args.plan.permuted_idx)?.copy_from_slice(&plan.permuted_idx);
        host::slice_mut("inv_permuted_idx", &mut args.plan.inv_permuted_idx)?.copy_from_slice(&plan.inv_permuted_idx);
        Ok(())
    }

    fn grouped_gemm(&self, mut args: GroupedGemmArgs<'_>) -> Result<()> {
        let rows = args.output.dims()[0];
        let all_rows = [0, rows as u32];
        let expert_offsets = match args.expert_offsets {
            Some(offsets) => host::slice("expert_offsets", offsets)?,
            None => &all_rows,
        };
        host::check_offsets("expert_offsets", expert_offsets, rows)?;
        let k = args.input.dims()[1];
        let [_, d1, d2] = args.weight.dims() else {
            return Err(Error::invalid("weight", "rank 3", args.weight.shape()));
        };
        let n = d1 * d2 / k.max(1);
        let output = reference::grouped_gemm(&reference::GroupedGemm {
            input: &gather(&args, expert_offsets)?,
            k,
            n,
            expert_offsets,
            weight: &widen("weight", args.weight)?,
            weight_layout: args.weight_layout,
            bias: args.bias.map(|bias| widen("bias", bias)).transpose()?.as_deref(),
            epilogue: args.epilogue,
        });
        store(&mut args.output, &output)
    }

    fn combine(&self, mut args: CombineArgs<'_>) -> Result<()> {
        let [num_tokens, hidden_size] = args.output.dims() else {
            return Err(Error::invalid("output", "rank 2", args.output.shape()));
        };
        let tokens = SlotTokens::new(args.slots, *num_tokens)?;
        let mut token_offsets = vec![0];
        token_offsets.extend((0..*num_tokens).map(|t| tokens.of_token(t).end as u32));
        let every_slot: Vec<u32> = (0..token_offsets[*num_tokens]).collect();
        let inv_permuted_idx = match args.inv_permuted_idx {
            Some(inv_permuted_idx) => host::slice("inv_permuted_idx", inv_permuted_idx)?,
            None => &every_slot,
        };
        host::check_rows("inv_permuted_idx", inv_permuted_idx, args.expert_out.dims()[0])?;
        let zero = args.zero_experts.map(|zero| -> Result<_> {
            let ids: &[u32] = host::slice("topk_ids", zero.topk_ids)?;
            let is_zero: Vec<bool> = ids.iter().map(|&id| zero.contains(id)).collect();
            let weights = widen("zero_experts.topk_weights", zero.topk_weights)?;
            Ok((is_zero, weights, widen("hidden_states", zero.hidden_states)?))
        });
        let zero = zero.transpose()?;
        let shared = args.shared.map(|shared| -> Result<_> {
            let gate = shared.gate_logits.map(|gate| widen("gate_logits", gate)).transpose()?;
            Ok((widen("shared.output", shared.output)?, gate, f64::from(shared.scale)))
        });
        let shared = shared.transpose()?;
        let output = reference::combine(&reference::Combine {
            expert_out: &widen("expert_out", args.expert_out)?,
            hidden_size: *hidden_size,
            inv_permuted_idx,
            topk_weights: args.topk_weights.map(|w| widen("topk_weights", w)).transpose()?.as_deref(),
            token_offsets: &token_offsets,
            zero_experts: zero.as_ref().map(|(is_zero, weights, hidden_states)| reference::Zero {
                is_zero,
                weights,
                hidden_states,
            }),
            shared: shared.as_ref().map(|(output, gate, scale)| reference::Shared {
                output,
                gate_logits: gate.as_deref(),
                scale: *scale,
            }),
        });
        store(&mut args.output, &output)
    }
}

/// The rows of a grouped GEMM's input, gathered and scaled.
fn gather(args: &GroupedGemmArgs<'_>, expert_offsets: &[u32]) -> Result<Vec<f64>> {
    let input = widen("input", args.input)?;
    let InputRows::Gathered { permuted_idx, slots, slot_scale } = args.rows else { return Ok(input) };
    let [num_tokens, k] = args.input.dims() else {
        return Err(Error::invalid("input", "rank 2", args.input.shape()));
    };
    let tokens = SlotTokens::new(slots, *num_tokens)?;
    let permuted_idx: &[u32] = host::slice("permuted_idx", permuted_idx)?;
    let used = expert_offsets.last().map_or(0, |&rows| rows as usize).min(permuted_idx.len());
    host::check_below("permuted_idx", &permuted_idx[..used], permuted_idx.len())?;
    let scale = slot_scale.map(|scale| widen("slot_scale", scale)).transpose()?;
    let mut rows = Vec::with_capacity(used * k);
    for &slot in &permuted_idx[..used] {
        let factor = scale.as_ref().map_or(1.0, |scale| scale[slot as usize]);
        rows.extend(input[tokens.token(slot as usize) * k..][..*k].iter().map(|x| x * factor));
    }
    Ok(rows)
}

fn widen(name: &str, view: TensorView<'_>) -> Result<Vec<f64>> {
    let floats = Floats::new(name, view)?;
    Ok((0..floats.len()).map(|i| f64::from(floats.get(i))).collect())
}

/// Writes the leading `values.len()` elements, each rounded once.
fn store(target: &mut TensorViewMut<'_>, values: &[f64]) -> Result<()> {
    match target.dtype() {
        DType::F32 => fill(host::slice_mut("output", target)?, values, |v| v as f32),
        DType::BF16 => fill(host::slice_mut("output", target)?, values, bf16::from_f64),
        DType::F16 => fill(host::slice_mut("output", target)?, values, f16::from_f64),
        DType::U32 => return Err(Error::invalid("output", "a floating-point type", DType::U32)),
    }
    Ok(())
}

fn fill<T>(target: &mut [T], values: &[f64], narrow: impl Fn(f64) -> T) {
    target.iter_mut().zip(values).for_each(|(t, &v)| *t = narrow(v));
}
