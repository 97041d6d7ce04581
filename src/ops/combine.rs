//! `combine`: the weighted sum of a token's expert outputs, with everything else that is added to it.

use super::{Expect, GroupedGemmArgs, dims};
use crate::backend::Device;
use crate::error::{Error, Result};
use crate::plan::Slots;
use crate::tensor::{DType, FLOATS, TensorView, TensorViewMut};

/// Arguments of [`combine`].
#[derive(Debug)]
pub struct CombineArgs<'a> {
    /// `[R, H]` f32, bf16 or f16: one row per row of the plan.
    pub expert_out: TensorView<'a>,
    /// `[S]` u32, slot → row; [`MASKED`](crate::routing::MASKED) adds nothing. `None`: slot `s` is row `s`.
    pub inv_permuted_idx: Option<TensorView<'a>>,
    /// `[S]` f32; `None` where the weights were applied to the input: every weight is 1.
    pub topk_weights: Option<TensorView<'a>>,
    /// How slots belong to tokens.
    pub slots: Slots<'a>,
    /// The identity experts, where the router has some.
    pub zero_experts: Option<ZeroExperts<'a>>,
    /// The shared expert's output, added to the sum.
    pub shared: Option<SharedOutput<'a>>,
    /// `[T, H]` f32, bf16 or f16.
    pub output: TensorViewMut<'a>,
}

/// [`CombineArgs`] but for `expert_out`, which is still to be made.
#[derive(Debug)]
pub struct CombineNext<'a> {
    /// As [`CombineArgs::inv_permuted_idx`].
    pub inv_permuted_idx: Option<TensorView<'a>>,
    /// As [`CombineArgs::topk_weights`].
    pub topk_weights: Option<TensorView<'a>>,
    /// As [`CombineArgs::slots`].
    pub slots: Slots<'a>,
    /// As [`CombineArgs::zero_experts`].
    pub zero_experts: Option<ZeroExperts<'a>>,
    /// As [`CombineArgs::shared`].
    pub shared: Option<SharedOutput<'a>>,
    /// As [`CombineArgs::output`].
    pub output: TensorViewMut<'a>,
}

impl CombineNext<'_> {
    /// With `expert_out`.
    pub fn of<'b>(&'b mut self, expert_out: TensorView<'b>) -> CombineArgs<'b> {
        let Self { inv_permuted_idx, topk_weights, slots, zero_experts, shared, .. } = *self;
        let output = self.output.reborrow();
        CombineArgs { expert_out, inv_permuted_idx, topk_weights, slots, zero_experts, shared, output }
    }
}

/// Arguments of [`grouped_gemm_combine`].
#[derive(Debug)]
pub struct GroupedGemmCombineArgs<'a> {
    /// The experts' last projection. Its output need not be written.
    pub gemm: GroupedGemmArgs<'a>,
    /// What becomes of that output.
    pub combine: CombineNext<'a>,
}

impl GroupedGemmCombineArgs<'_> {
    /// One step after the other.
    ///
    /// # Errors
    /// Those of the steps.
    pub fn in_steps(
        self,
        grouped_gemm: impl FnOnce(GroupedGemmArgs<'_>) -> Result<()>,
        combine: impl FnOnce(CombineArgs<'_>) -> Result<()>,
    ) -> Result<()> {
        let Self { mut gemm, combine: mut next } = self;
        grouped_gemm(GroupedGemmArgs { output: gemm.output.reborrow(), ..gemm })?;
        combine(next.of(gemm.output.as_view()))
    }
}

/// Experts that return the token itself.
#[derive(Clone, Copy, Debug)]
pub struct ZeroExperts<'a> {
    /// `[S]` u32: the expert of each slot.
    pub topk_ids: TensorView<'a>,
    /// `[S]` f32: their weights, wherever the other experts' are applied.
    pub topk_weights: TensorView<'a>,
    /// Their ids: `first..first + count`.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// `[T, H]` f32, bf16 or f16: what they return.
    pub hidden_states: TensorView<'a>,
}

impl ZeroExperts<'_> {
    /// Whether `id` is one of them.
    pub(crate) fn contains(&self, id: u32) -> bool {
        id >= self.first && id - self.first < self.count
    }
}

/// A dense expert's output.
#[derive(Clone, Copy, Debug)]
pub struct SharedOutput<'a> {
    /// `[T, H]` f32, bf16 or f16.
    pub output: TensorView<'a>,
    /// `[T, 1]` f32: scales a token's row by its sigmoid.
    pub gate_logits: Option<TensorView<'a>>,
    /// Multiplies it.
    pub scale: f32,
}

/// `output[t] = Σ topk_weights[s] · expert_out[row(s)]` over the slots `s` of token `t`, in the order of the slots,
/// summed in f32; zero experts add `weight · hidden_states[t]`, the shared expert its (gated, scaled) output.
///
/// # Errors
/// [`Error::InvalidArgument`] if a shape, type or memory does not fit.
pub fn combine(device: &Device, args: CombineArgs<'_>) -> Result<()> {
    check(device, &args)?;
    device.backend().combine(args)
}

/// [`grouped_gemm`](fn@super::grouped_gemm) and [`combine`] of its output, which a backend may do in one go.
///
/// # Errors
/// As the two.
pub fn grouped_gemm_combine(device: &Device, mut args: GroupedGemmCombineArgs<'_>) -> Result<()> {
    super::grouped_gemm::check(device, &args.gemm)?;
    check(device, &args.combine.of(args.gemm.output.as_view()))?;
    device.backend().grouped_gemm_combine(args)
}

fn check(device: &Device, args: &CombineArgs<'_>) -> Result<()> {
    let expect = Expect::on(device);
    let [num_tokens, hidden_size] = dims("output", args.output.as_view())?;
    expect.elements("output", args.output.as_view(), FLOATS)?;
    let [rows, _] = dims("expert_out", args.expert_out)?;
    expect.tensor("expert_out", args.expert_out, [rows, hidden_size], FLOATS)?;
    let num_slots = expect.slots(args.slots, num_tokens)?;
    if rows < num_slots {
        return Err(Error::invalid("expert_out", format!("at least {num_slots} rows"), rows));
    }
    if let Some(inv_permuted_idx) = args.inv_permuted_idx {
        expect.tensor("inv_permuted_idx", inv_permuted_idx, [num_slots], &[DType::U32])?;
    }
    if let Some(weights) = args.topk_weights {
        expect.tensor("topk_weights", weights, [num_slots], &[DType::F32])?;
    }
    if let Some(zero) = args.zero_experts {
        expect.tensor("zero_experts.topk_ids", zero.topk_ids, [num_slots], &[DType::U32])?;
        expect.tensor("zero_experts.topk_weights", zero.topk_weights, [num_slots], &[DType::F32])?;
        expect.tensor("zero_experts.hidden_states", zero.hidden_states, [num_tokens, hidden_size], FLOATS)?;
    }
    if let Some(shared) = args.shared {
        expect.tensor("shared.output", shared.output, [num_tokens, hidden_size], FLOATS)?;
        if let Some(gate) = shared.gate_logits {
            expect.tensor("shared.gate_logits", gate, [num_tokens, 1], &[DType::F32])?;
        }
    }
    Ok(())
}
