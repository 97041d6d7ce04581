//! `combine` on the CPU: tokens in parallel, each block of columns summed in f32 registers' reach of L1.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::backend::host::{Floats, SlotTokens, check_rows, slice, slice_mut};
use crate::error::{Error, Result};
use crate::ops::{CombineArgs, ZeroExperts};
use crate::routing::MASKED;
use crate::tensor::{DType, Element};

/// Columns summed at a time: the sum stays in L1.
const BLOCK: usize = 512;

/// Elements under which one thread is faster than two.
const PARALLEL_FROM: usize = 1 << 16;

/// [`CombineArgs`] as slices.
struct Combine<'a> {
    expert_out: Floats<'a>,
    inv_permuted_idx: Option<&'a [u32]>,
    topk_weights: Option<&'a [f32]>,
    slots: SlotTokens<'a>,
    zero_experts: Option<Zero<'a>>,
    shared: Option<Shared<'a>>,
    hidden_size: usize,
}

/// [`ZeroExperts`] as slices.
struct Zero<'a> {
    experts: ZeroExperts<'a>,
    topk_ids: &'a [u32],
    topk_weights: &'a [f32],
    hidden_states: Floats<'a>,
}

/// [`SharedOutput`](crate::ops::SharedOutput) as slices.
struct Shared<'a> {
    output: Floats<'a>,
    gate_logits: Option<&'a [f32]>,
    scale: f32,
}

pub(super) fn combine(mut args: CombineArgs<'_>) -> Result<()> {
    let &[num_tokens, hidden_size] = args.output.dims() else {
        return Err(Error::invalid("output", "rank 2", args.output.shape()));
    };
    let inv_permuted_idx = args.inv_permuted_idx.map(|idx| slice("inv_permuted_idx", idx)).transpose()?;
    if let Some(inv_permuted_idx) = inv_permuted_idx {
        check_rows("inv_permuted_idx", inv_permuted_idx, args.expert_out.dims()[0])?;
    }
    let zero_experts = match args.zero_experts {
        Some(experts) => Some(Zero {
            topk_ids: slice("zero_experts.topk_ids", experts.topk_ids)?,
            topk_weights: slice("zero_experts.topk_weights", experts.topk_weights)?,
            hidden_states: Floats::new("zero_experts.hidden_states", experts.hidden_states)?,
            experts,
        }),
        None => None,
    };
    let shared = match args.shared {
        Some(shared) => Some(Shared {
            output: Floats::new("shared.output", shared.output)?,
            gate_logits: shared.gate_logits.map(|gate| slice("gate_logits", gate)).transpose()?,
            scale: shared.scale,
        }),
        None => None,
    };
    let op = Combine {
        expert_out: Floats::new("expert_out", args.expert_out)?,
        inv_permuted_idx,
        topk_weights: args.topk_weights.map(|weights| slice("topk_weights", weights)).transpose()?,
        slots: SlotTokens::new(args.slots, num_tokens)?,
        zero_experts,
        shared,
        hidden_size,
    };
    match args.output.dtype() {
        DType::F32 => op.run(slice_mut("output", &mut args.output)?, |sum, out: &mut [f32]| out.copy_from_slice(sum)),
        DType::BF16 => {
            op.run(slice_mut("output", &mut args.output)?, |sum, out: &mut [bf16]| out.convert_from_f32_slice(sum))
        }
        DType::F16 => {
            op.run(slice_mut("output", &mut args.output)?, |sum, out: &mut [f16]| out.convert_from_f32_slice(sum))
        }
        DType::U32 => return Err(Error::invalid("output", "a floating-point type", DType::U32)),
    }
    Ok(())
}

impl Combine<'_> {
    fn run<T: Element>(&self, output: &mut [T], store: impl Fn(&[f32], &mut [T]) + Sync) {
        let token = |(token, out): (usize, &mut [T])| {
            for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                let mut sum = [0.0; BLOCK];
                let sum = &mut sum[..out.len()];
                self.sum_block(token, block * BLOCK, sum);
                store(sum, out);
            }
        };
        let hidden_size = self.hidden_size.max(1);
        if self.expert_out.len() < PARALLEL_FROM {
            output.chunks_exact_mut(hidden_size).enumerate().for_each(token);
        } else {
            output.par_chunks_exact_mut(hidden_size).enumerate().for_each(token);
        }
    }

    /// Adds up columns `start..start + sum.len()` of one token.
    fn sum_block(&self, token: usize, start: usize, sum: &mut [f32]) {
        let at = |row: usize| row * self.hidden_size + start;
        for slot in self.slots.of_token(token) {
            if let Some(zero) = &self.zero_experts
                && zero.experts.contains(zero.topk_ids[slot])
            {
                zero.hidden_states.add_scaled(at(token), zero.topk_weights[slot], sum);
                continue;
            }
            let weight = self.topk_weights.map_or(1.0, |weights| weights[slot]);
            match self.inv_permuted_idx.map_or(slot as u32, |rows| rows[slot]) {
                MASKED => {}
                row => self.expert_out.add_scaled(at(row as usize), weight, sum),
            }
        }
        if let Some(shared) = &self.shared {
            let gate = shared.gate_logits.map_or(1.0, |logits| 1.0 / (1.0 + (-logits[token]).exp()));
            shared.output.add_scaled(at(token), shared.scale * gate, sum);
        }
    }
}
