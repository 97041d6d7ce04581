//! The experts' last projection and `combine` in one call, against the oracle of each in turn.

use fused_moe::config::WeightLayout;
use fused_moe::ops::{
    self, CombineNext, Epilogue, GroupedGemmArgs, GroupedGemmCombineArgs, InputRows, SharedOutput, ZeroExperts,
};
use fused_moe::plan::Slots;
use fused_moe::reference::{self, Plan};
use fused_moe::tensor::AsView;
use fused_moe::{DType, Device, Tensor};
use rand::Rng;

use crate::harness::slots::Load;
use crate::harness::values::{FLOATS, Floats, download, garbage, rng};
use crate::harness::{Failure, Log, Problem, Test, compare};

pub const TESTS: &[Test] = &[
    Test { op: "grouped_gemm_combine", name: "tokens", body: tokens },
    Test { op: "grouped_gemm_combine", name: "sizes", body: sizes },
    Test { op: "grouped_gemm_combine", name: "loads", body: loads },
    Test { op: "grouped_gemm_combine", name: "additions", body: additions },
    Test { op: "grouped_gemm_combine", name: "repeats", body: repeats },
];

#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    num_tokens: usize,
    /// Slots per token; `None`: 0 to 3, varying.
    top_k: Option<usize>,
    num_experts: usize,
    n: usize,
    k: usize,
    load: Load,
    weight: DType,
    weight_layout: WeightLayout,
    output: DType,
    bias: bool,
    weighted: bool,
    num_zero_experts: usize,
    shared: bool,
}

const BASE: Case = Case {
    seed: 1,
    num_tokens: 3,
    top_k: Some(2),
    num_experts: 5,
    n: 24,
    k: 40,
    load: Load::Uniform,
    weight: DType::BF16,
    weight_layout: WeightLayout::Nk,
    output: DType::F32,
    bias: false,
    weighted: true,
    num_zero_experts: 0,
    shared: false,
};

const LAYOUTS: [WeightLayout; 2] = [WeightLayout::Nk, WeightLayout::Kn];

/// Everything on the host. What must not be read is NaN: rows and matrices of no slot, weights of masked slots.
struct Inputs {
    topk_ids: Vec<u32>,
    plan: Plan,
    token_offsets: Vec<u32>,
    slot_tokens: Vec<u32>,
    input: Floats,
    weight: Floats,
    bias: Floats,
    topk_weights: Floats,
    zero_weights: Floats,
    hidden_states: Floats,
    shared: Floats,
    gate_logits: Floats,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut rng = rng(case.seed);
        let counts: Vec<usize> =
            (0..case.num_tokens).map(|_| case.top_k.unwrap_or_else(|| rng.random_range(0..4))).collect();
        let mut token_offsets = vec![0u32];
        counts.iter().for_each(|&count| token_offsets.push(token_offsets[token_offsets.len() - 1] + count as u32));
        let slot_tokens: Vec<u32> =
            counts.iter().enumerate().flat_map(|(token, &count)| std::iter::repeat_n(token as u32, count)).collect();
        let num_slots = slot_tokens.len();
        let topk_ids = case.load.ids(&mut rng, num_slots, case.num_experts + case.num_zero_experts);
        let plan = reference::permute(&topk_ids, case.num_experts);
        let mut random = |dtype, len, scale| Floats::random(&mut rng, dtype, len, scale);
        let mut inputs = Self {
            input: random(DType::F32, num_slots * case.k, 1.0),
            weight: random(case.weight, case.num_experts * case.n * case.k, (9.0 / case.k as f32).sqrt()),
            bias: random(DType::F32, case.num_experts * case.n, 1.0),
            topk_weights: random(DType::F32, num_slots, 1.0),
            zero_weights: random(DType::F32, num_slots, 1.0),
            hidden_states: random(DType::F32, case.num_tokens * case.n, 1.0),
            shared: random(DType::F32, case.num_tokens * case.n, 1.0),
            gate_logits: random(DType::F32, case.num_tokens, 4.0),
            topk_ids,
            plan,
            token_offsets,
            slot_tokens,
        };
        for row in inputs.plan.expert_offsets[case.num_experts] as usize..num_slots {
            inputs.input.fill_row(row, case.k, f32::NAN);
        }
        for expert in 0..case.num_experts {
            if inputs.plan.expert_offsets[expert] == inputs.plan.expert_offsets[expert + 1] {
                inputs.weight.fill_row(expert, case.n * case.k, f32::NAN);
            }
        }
        for (slot, &row) in inputs.plan.inv_permuted_idx.iter().enumerate() {
            if row == u32::MAX {
                inputs.topk_weights.values[slot] = f32::NAN;
            }
        }
        inputs
    }

    fn expected(&self, case: &Case) -> Vec<f64> {
        let expert_out = reference::grouped_gemm(&reference::GroupedGemm {
            input: &self.input.wide(),
            k: case.k,
            n: case.n,
            expert_offsets: &self.plan.expert_offsets,
            weight: &self.weight.wide(),
            weight_layout: case.weight_layout,
            bias: case.bias.then(|| self.bias.wide()).as_deref(),
            epilogue: Epilogue::None,
        });
        let first = case.num_experts as u32;
        let is_zero: Vec<bool> =
            self.topk_ids.iter().map(|id| (first..first + case.num_zero_experts as u32).contains(id)).collect();
        reference::combine(&reference::Combine {
            expert_out: &expert_out,
            hidden_size: case.n,
            inv_permuted_idx: &self.plan.inv_permuted_idx,
            topk_weights: case.weighted.then(|| self.topk_weights.wide()).as_deref(),
            token_offsets: &self.token_offsets,
            zero_experts: (case.num_zero_experts > 0).then_some(reference::Zero {
                is_zero: &is_zero,
                weights: &self.zero_weights.wide(),
                hidden_states: &self.hidden_states.wide(),
            }),
            shared: case.shared.then_some(reference::Shared {
                output: &self.shared.wide(),
                gate_logits: Some(&self.gate_logits.wide()),
                scale: 0.5,
            }),
        })
    }

    fn run(&self, device: &Device, case: &Case) -> Result<Vec<f64>, Problem> {
        let (num_slots, shape) = (self.slot_tokens.len(), [case.num_tokens, case.n]);
        let u32s = |values: &[u32]| Tensor::from_slice(device, values, [values.len()]);
        let input = self.input.upload(device, [num_slots, case.k])?;
        let weight = self.weight.upload(device, case.weight_layout.shape(case.num_experts, case.n, case.k))?;
        let bias = self.bias.upload(device, [case.num_experts, case.n])?;
        let (expert_offsets, inv) = (u32s(&self.plan.expert_offsets)?, u32s(&self.plan.inv_permuted_idx)?);
        let (token_offsets, slot_tokens) = (u32s(&self.token_offsets)?, u32s(&self.slot_tokens)?);
        let (topk_ids, topk_weights) = (u32s(&self.topk_ids)?, self.topk_weights.upload(device, [num_slots])?);
        let zero_weights = self.zero_weights.upload(device, [num_slots])?;
        let hidden_states = self.hidden_states.upload(device, shape)?;
        let shared = self.shared.upload(device, shape)?;
        let gate_logits = self.gate_logits.upload(device, [case.num_tokens, 1])?;
        let mut expert_out = garbage(device, DType::F32, [num_slots, case.n])?;
        let mut output = garbage(device, case.output, shape)?;
        let gemm = GroupedGemmArgs {
            input: input.view(),
            rows: InputRows::Same,
            expert_offsets: Some(expert_offsets.view()),
            weight: weight.view(),
            weight_layout: case.weight_layout,
            bias: case.bias.then(|| bias.as_view()),
            epilogue: Epilogue::None,
            output: expert_out.view_mut()?,
            batch_invariant: false,
        };
        let combine = CombineNext {
            inv_permuted_idx: Some(inv.view()),
            topk_weights: case.weighted.then(|| topk_weights.view()),
            slots: match case.top_k {
                Some(top_k) => Slots::PerToken { top_k },
                None => Slots::Ragged { token_offsets: token_offsets.view(), slot_tokens: slot_tokens.view() },
            },
            zero_experts: (case.num_zero_experts > 0).then(|| ZeroExperts {
                topk_ids: topk_ids.view(),
                topk_weights: zero_weights.view(),
                first: case.num_experts as u32,
                count: case.num_zero_experts as u32,
                hidden_states: hidden_states.view(),
            }),
            shared: case.shared.then(|| SharedOutput {
                output: shared.view(),
                gate_logits: Some(gate_logits.view()),
                scale: 0.5,
            }),
            output: output.view_mut()?,
        };
        ops::grouped_gemm_combine(device, GroupedGemmCombineArgs { gemm, combine })?;
        Ok(download(device, output.view())?)
    }
}

fn check(device: &Device, case: &Case) -> Result<(), Problem> {
    let inputs = Inputs::new(case);
    let tolerance = compare::tolerance(&[case.weight, case.output]);
    compare::floats("output", &inputs.run(device, case)?, &inputs.expected(case), case.n, tolerance)
}

/// From one token to more rows than a launch for few takes.
fn tokens(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [0, 1, 2, 3, 4, 5, 8, 9, 16, 33, 64, 65] {
        for (top_k, num_experts) in [(1, 3), (2, 5), (2, 64), (8, 300)] {
            for weight_layout in LAYOUTS {
                let case = Case { seed: num_tokens as u64, num_tokens, top_k: Some(top_k), num_experts, ..BASE };
                log.case(device, &Case { weight_layout, ..case }, check)?;
            }
        }
    }
    Ok(())
}

/// Columns and depths that are and are not whole slabs, steps and parts.
fn sizes(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for n in [8, 16, 33, 40, 104, 200] {
        for k in [8, 24, 250, 256, 264, 512, 1032, 2056] {
            for weight in FLOATS {
                for weight_layout in LAYOUTS {
                    for num_tokens in [1, 4] {
                        let case = Case { n, k, weight, weight_layout, num_tokens, num_experts: 2, ..BASE };
                        log.case(device, &case, check)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn loads(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for load in Load::all(BASE.num_experts) {
        for num_tokens in [1, 4, 5] {
            for top_k in [Some(2), None] {
                for weight_layout in LAYOUTS {
                    log.case(device, &Case { load, num_tokens, top_k, weight_layout, k: 520, ..BASE }, check)?;
                }
            }
        }
    }
    Ok(())
}

/// Everything that is added on the way.
fn additions(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_zero_experts in [0, 3] {
        for shared in [false, true] {
            for bias in [false, true] {
                for weighted in [false, true] {
                    for (output, weight_layout) in FLOATS.into_iter().zip(LAYOUTS.into_iter().cycle()) {
                        let case = Case { num_zero_experts, shared, bias, weighted, output, weight_layout, ..BASE };
                        log.case(device, &case, check)?;
                        log.case(device, &Case { num_tokens: 1, top_k: Some(5), k: 1032, ..case }, check)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// The same bits from the same inputs.
fn repeats(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for weight_layout in LAYOUTS {
        let case = Case { num_tokens: 4, k: 1032, shared: true, bias: true, weight_layout, ..BASE };
        log.case(device, &case, |device, case| {
            let inputs = Inputs::new(case);
            let first = inputs.run(device, case)?;
            (0..3).try_for_each(|_| compare::bits("output", &inputs.run(device, case)?, &first))
        })?;
    }
    Ok(())
}
