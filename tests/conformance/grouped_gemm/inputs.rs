//! What goes into a grouped GEMM, and what the oracle makes of it.

use fused_moe::config::{Activation, GateUpLayout};
use fused_moe::ops::{self, Epilogue, GroupedGemmArgs, InputRows};
use fused_moe::plan::Slots;
use fused_moe::reference::{self, Plan};
use fused_moe::tensor::AsView;
use fused_moe::{DType, Device, Tensor};
use rand::Rng;
use rand::rngs::StdRng;

use super::{Case, Rows};
use crate::harness::Problem;
use crate::harness::values::{Floats, download, garbage, rng};

/// Rows of the output past the last slot.
const EXTRA_ROWS: usize = 3;

/// Every activation, plain and gated in every layout.
pub fn epilogues() -> Vec<Epilogue> {
    let activations = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 },
        Activation::ClampedSwiglu { alpha: 1.1, limit: 0.5 },
    ];
    let mut all = vec![Epilogue::None];
    for activation in activations {
        if !matches!(activation, Activation::ClampedSwiglu { .. }) {
            all.push(Epilogue::Activation(activation));
        }
        for layout in [GateUpLayout::GateThenUp, GateUpLayout::UpThenGate, GateUpLayout::Interleaved] {
            all.push(Epilogue::Gated { activation, layout });
        }
    }
    all
}

/// Everything on the host. What must not be read is NaN: input rows of no slot, matrices of experts without a row,
/// scales of slots without a row.
#[derive(Clone)]
pub struct Inputs {
    pub input: Floats,
    pub weight: Floats,
    bias: Option<Floats>,
    plan: Plan,
    /// `[S]` the token of each slot.
    slot_tokens: Vec<u32>,
    token_offsets: Vec<u32>,
    slot_scale: Option<Floats>,
}

impl Inputs {
    pub fn new(case: &Case) -> Self {
        let mut rng = rng(case.seed);
        let ids = case.load.ids(&mut rng, case.num_slots, case.num_experts);
        let plan = reference::permute(&ids, case.num_experts);
        let counts = slots_per_token(&mut rng, case);
        let slot_tokens: Vec<u32> =
            counts.iter().enumerate().flat_map(|(token, &count)| std::iter::repeat_n(token as u32, count)).collect();
        let mut token_offsets = vec![0];
        token_offsets.extend(counts.iter().scan(0, |end, &count| {
            *end += count as u32;
            Some(*end)
        }));
        // Terms of order 1/√K keep the sum of order `scale`.
        let weight_scale = case.scale * (9.0 / case.k as f32).sqrt();
        let mut inputs = Self {
            input: Floats::random(
                &mut rng,
                case.input,
                counts.len() * case.k,
                case.scale.min(1.0).max(case.scale / 3.0),
            ),
            weight: Floats::random(&mut rng, case.weight, case.num_experts * case.n * case.k, weight_scale),
            bias: case.bias.then(|| Floats::random(&mut rng, DType::F32, case.num_experts * case.n, 1.0)),
            slot_scale: None,
            plan,
            slot_tokens,
            token_offsets,
        };
        if matches!(case.rows, Rows::Gathered { scaled: true, .. } | Rows::Ragged { scaled: true }) {
            inputs.slot_scale = Some(Floats::random(&mut rng, DType::F32, case.num_slots, 1.0));
        }
        inputs.poison(case);
        inputs
    }

    fn poison(&mut self, case: &Case) {
        let used = self.used_slots();
        for token in 0..self.token_offsets.len() - 1 {
            let read = match case.rows {
                Rows::Same | Rows::OneExpert => token < self.rows(case),
                _ => used.iter().any(|&slot| self.slot_tokens[slot as usize] as usize == token),
            };
            if !read {
                self.input.fill_row(token, case.k, f32::NAN);
            }
        }
        if case.rows != Rows::OneExpert {
            for expert in 0..case.num_experts {
                if self.plan.expert_offsets[expert] == self.plan.expert_offsets[expert + 1] {
                    self.weight.fill_row(expert, case.n * case.k, f32::NAN);
                }
            }
        }
        if let Some(scale) = &mut self.slot_scale {
            let masked = (0..case.num_slots).filter(|slot| self.plan.inv_permuted_idx[*slot] == u32::MAX);
            masked.for_each(|slot| scale.values[slot] = f32::NAN);
        }
    }

    /// The slots that have a row, in the order of the rows.
    fn used_slots(&self) -> Vec<u32> {
        let used = self.plan.expert_offsets.last().map_or(0, |&rows| rows as usize);
        self.plan.permuted_idx[..used].to_vec()
    }

    /// Rows that are computed.
    fn rows(&self, case: &Case) -> usize {
        if case.rows == Rows::OneExpert { case.num_slots } else { self.used_slots().len() }
    }

    /// The same inputs, with values that `dtype` can hold.
    pub fn rounded_to(&self, dtype: DType) -> Self {
        let rounded = Floats::new(dtype, self.input.values.iter().copied());
        Self { input: Floats::new(self.input.dtype, rounded.values), ..self.clone() }
    }

    /// The same inputs, with only these rows, for one expert that reads row by row.
    pub fn of_rows(&self, case: &Case, first: usize, count: usize) -> Self {
        let rows = &self.input.values[first * case.k..][..count * case.k];
        Self {
            input: Floats::new(case.input, rows.iter().copied().chain(vec![f32::NAN; EXTRA_ROWS * case.k])),
            plan: reference::permute(&vec![0; count], 1),
            ..self.clone()
        }
    }

    pub fn expected(&self, case: &Case) -> Vec<f64> {
        let input = self.input.wide();
        let rows = self.rows(case);
        let mut gathered = Vec::with_capacity(rows * case.k);
        for row in 0..rows {
            let (source, scale) = match case.rows {
                Rows::Same | Rows::OneExpert => (row, 1.0),
                Rows::Gathered { .. } | Rows::Ragged { .. } => {
                    let slot = self.plan.permuted_idx[row] as usize;
                    let scale = self.slot_scale.as_ref().map_or(1.0, |scale| scale.values[slot]);
                    (self.slot_tokens[slot] as usize, f64::from(scale))
                }
            };
            gathered.extend(input[source * case.k..][..case.k].iter().map(|x| x * scale));
        }
        let all_rows = [0, rows as u32];
        reference::grouped_gemm(&reference::GroupedGemm {
            input: &gathered,
            k: case.k,
            n: case.n,
            expert_offsets: if case.rows == Rows::OneExpert { &all_rows } else { &self.plan.expert_offsets },
            weight: &self.weight.wide(),
            weight_layout: case.weight_layout,
            bias: self.bias.as_ref().map(Floats::wide).as_deref(),
            epilogue: case.epilogue,
        })
    }

    /// The whole output, rows past the end included.
    pub fn run(&self, device: &Device, case: &Case) -> Result<Vec<f64>, Problem> {
        let u32s = |values: &[u32]| Tensor::from_slice(device, values, [values.len()]);
        let input = self.input.upload(device, [self.input.values.len() / case.k, case.k])?;
        let weight = self.weight.upload(device, case.weight_layout.shape(case.num_experts, case.n, case.k))?;
        let bias = self.bias.as_ref().map(|bias| bias.upload(device, [case.num_experts, case.n])).transpose()?;
        let (expert_offsets, permuted_idx) = (u32s(&self.plan.expert_offsets)?, u32s(&self.plan.permuted_idx)?);
        let (token_offsets, slot_tokens) = (u32s(&self.token_offsets)?, u32s(&self.slot_tokens)?);
        let scale = self.slot_scale.as_ref().map(|scale| scale.upload(device, [case.num_slots])).transpose()?;
        let extra = if matches!(case.rows, Rows::OneExpert) { 0 } else { EXTRA_ROWS };
        let mut output = garbage(device, case.output, [case.num_slots + extra, case.output_size()])?;
        let gathered = |slots| InputRows::Gathered {
            permuted_idx: permuted_idx.view(),
            slots,
            slot_scale: scale.as_ref().map(Tensor::as_view),
        };
        let args = GroupedGemmArgs {
            input: input.view(),
            rows: match case.rows {
                Rows::Same | Rows::OneExpert => InputRows::Same,
                Rows::Gathered { top_k, .. } => gathered(Slots::PerToken { top_k }),
                Rows::Ragged { .. } => {
                    gathered(Slots::Ragged { token_offsets: token_offsets.view(), slot_tokens: slot_tokens.view() })
                }
            },
            expert_offsets: (case.rows != Rows::OneExpert).then(|| expert_offsets.view()),
            weight: weight.view(),
            weight_layout: case.weight_layout,
            bias: bias.as_ref().map(Tensor::as_view),
            epilogue: case.epilogue,
            output: output.view_mut()?,
            batch_invariant: case.batch_invariant,
        };
        ops::grouped_gemm(device, args)?;
        Ok(download(device, output.view())?)
    }
}

/// How many slots each token has; for rows that are read in place, how many rows the input has.
fn slots_per_token(rng: &mut StdRng, case: &Case) -> Vec<usize> {
    match case.rows {
        Rows::OneExpert => vec![1; case.num_slots],
        Rows::Same => vec![1; case.num_slots + EXTRA_ROWS],
        Rows::Gathered { top_k, .. } => vec![top_k; case.num_slots / top_k],
        Rows::Ragged { .. } => {
            let mut counts = vec![0];
            let mut left = case.num_slots;
            while left > 0 {
                let count = rng.random_range(0..=left.min(4));
                counts.push(count);
                left -= count;
            }
            counts.push(0);
            counts
        }
    }
}
