//! `combine` against the oracle.

use fused_moe::ops::{self, CombineArgs, SharedOutput, ZeroExperts};
use fused_moe::plan::Slots;
use fused_moe::reference::{self, Plan};
use fused_moe::tensor::AsView;
use fused_moe::{DType, Device, Tensor};
use rand::Rng;

use crate::harness::slots::Load;
use crate::harness::values::{FLOATS, Floats, download, garbage, rng};
use crate::harness::{Failure, Log, Problem, Test, compare};

pub const TESTS: &[Test] = &[
    Test { op: "combine", name: "tokens", body: tokens },
    Test { op: "combine", name: "sizes", body: sizes },
    Test { op: "combine", name: "types", body: types },
    Test { op: "combine", name: "loads", body: loads },
    Test { op: "combine", name: "zero_experts", body: zero_experts },
    Test { op: "combine", name: "shared", body: shared },
    Test { op: "combine", name: "ragged", body: ragged },
    Test { op: "combine", name: "without_plan", body: without_plan },
    Test { op: "combine", name: "repeats", body: repeats },
];

const NUM_EXPERTS: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shared {
    None,
    Plain,
    Gated,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    num_tokens: usize,
    /// Slots per token; `None`: 0 to 4, varying.
    top_k: Option<usize>,
    hidden_size: usize,
    load: Load,
    weighted: bool,
    /// `false`: slot `s` is row `s`.
    plan: bool,
    num_zero_experts: usize,
    shared: Shared,
    shared_scale: f32,
    expert_out: DType,
    /// Of the zero experts' and the shared expert's tensors.
    other: DType,
    output: DType,
}

const BASE: Case = Case {
    seed: 1,
    num_tokens: 9,
    top_k: Some(3),
    hidden_size: 40,
    load: Load::Uniform,
    weighted: true,
    plan: true,
    num_zero_experts: 0,
    shared: Shared::None,
    shared_scale: 0.5,
    expert_out: DType::F32,
    other: DType::F32,
    output: DType::F32,
};

/// Everything on the host. What must not be read is NaN: rows of no slot, weights of masked slots.
struct Inputs {
    topk_ids: Vec<u32>,
    plan: Plan,
    token_offsets: Vec<u32>,
    slot_tokens: Vec<u32>,
    expert_out: Floats,
    topk_weights: Option<Floats>,
    zero_weights: Floats,
    hidden_states: Floats,
    shared: Floats,
    gate_logits: Floats,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut rng = rng(case.seed);
        let counts: Vec<usize> =
            (0..case.num_tokens).map(|_| case.top_k.unwrap_or_else(|| rng.random_range(0..5))).collect();
        let slot_tokens: Vec<u32> =
            counts.iter().enumerate().flat_map(|(token, &count)| std::iter::repeat_n(token as u32, count)).collect();
        let mut token_offsets = vec![0];
        counts.iter().for_each(|&count| token_offsets.push(token_offsets[token_offsets.len() - 1] + count as u32));
        let num_slots = slot_tokens.len();
        let topk_ids = case.load.ids(&mut rng, num_slots, NUM_EXPERTS + case.num_zero_experts);
        let plan = reference::permute(&topk_ids, NUM_EXPERTS);
        let numel = case.num_tokens * case.hidden_size;
        let mut inputs = Self {
            topk_weights: case.weighted.then(|| Floats::random(&mut rng, DType::F32, num_slots, 1.0)),
            zero_weights: Floats::random(&mut rng, DType::F32, num_slots, 1.0),
            expert_out: Floats::random(&mut rng, case.expert_out, (num_slots + 2) * case.hidden_size, 1.0),
            hidden_states: Floats::random(&mut rng, case.other, numel, 1.0),
            shared: Floats::random(&mut rng, case.other, numel, 1.0),
            gate_logits: Floats::random(&mut rng, DType::F32, case.num_tokens, 4.0),
            topk_ids,
            plan,
            token_offsets,
            slot_tokens,
        };
        if case.plan {
            inputs.poison(case);
        }
        inputs
    }

    fn poison(&mut self, case: &Case) {
        let used = self.plan.expert_offsets[NUM_EXPERTS] as usize;
        for row in used..self.slot_tokens.len() + 2 {
            self.expert_out.fill_row(row, case.hidden_size, f32::NAN);
        }
        let zero = NUM_EXPERTS..NUM_EXPERTS + case.num_zero_experts;
        if let Some(weights) = &mut self.topk_weights {
            for (slot, &id) in self.topk_ids.iter().enumerate() {
                if id as usize >= zero.end {
                    weights.values[slot] = f32::NAN;
                }
            }
        }
    }

    fn expected(&self, case: &Case) -> Vec<f64> {
        let every_slot: Vec<u32> = (0..self.slot_tokens.len() as u32).collect();
        let zero = NUM_EXPERTS as u32..(NUM_EXPERTS + case.num_zero_experts) as u32;
        let is_zero: Vec<bool> = self.topk_ids.iter().map(|id| zero.contains(id)).collect();
        let (hidden_states, shared, gate) = (self.hidden_states.wide(), self.shared.wide(), self.gate_logits.wide());
        reference::combine(&reference::Combine {
            expert_out: &self.expert_out.wide(),
            hidden_size: case.hidden_size,
            inv_permuted_idx: if case.plan { &self.plan.inv_permuted_idx } else { &every_slot },
            topk_weights: self.topk_weights.as_ref().map(Floats::wide).as_deref(),
            token_offsets: &self.token_offsets,
            zero_experts: (case.num_zero_experts > 0).then_some(reference::Zero {
                is_zero: &is_zero,
                weights: &self.zero_weights.wide(),
                hidden_states: &hidden_states,
            }),
            shared: (case.shared != Shared::None).then_some(reference::Shared {
                output: &shared,
                gate_logits: (case.shared == Shared::Gated).then_some(&gate),
                scale: case.shared_scale.into(),
            }),
        })
    }

    fn run(&self, device: &Device, case: &Case) -> Result<Vec<f64>, Problem> {
        let num_slots = self.slot_tokens.len();
        let shape = [case.num_tokens, case.hidden_size];
        let u32s = |values: &[u32]| Tensor::from_slice(device, values, [values.len()]);
        let expert_out = self.expert_out.upload(device, [num_slots + 2, case.hidden_size])?;
        let (inv_permuted_idx, topk_ids) = (u32s(&self.plan.inv_permuted_idx)?, u32s(&self.topk_ids)?);
        let (token_offsets, slot_tokens) = (u32s(&self.token_offsets)?, u32s(&self.slot_tokens)?);
        let topk_weights = self.topk_weights.as_ref().map(|w| w.upload(device, [num_slots])).transpose()?;
        let zero_weights = self.zero_weights.upload(device, [num_slots])?;
        let hidden_states = self.hidden_states.upload(device, shape)?;
        let shared = self.shared.upload(device, shape)?;
        let gate_logits = self.gate_logits.upload(device, [case.num_tokens, 1])?;
        let mut output = garbage(device, case.output, shape)?;
        let args = CombineArgs {
            expert_out: expert_out.view(),
            inv_permuted_idx: case.plan.then(|| inv_permuted_idx.view()),
            topk_weights: topk_weights.as_ref().map(Tensor::as_view),
            slots: match case.top_k {
                Some(top_k) => Slots::PerToken { top_k },
                None => Slots::Ragged { token_offsets: token_offsets.view(), slot_tokens: slot_tokens.view() },
            },
            zero_experts: (case.num_zero_experts > 0).then(|| ZeroExperts {
                topk_ids: topk_ids.view(),
                topk_weights: zero_weights.view(),
                first: NUM_EXPERTS as u32,
                count: case.num_zero_experts as u32,
                hidden_states: hidden_states.view(),
            }),
            shared: (case.shared != Shared::None).then(|| SharedOutput {
                output: shared.view(),
                gate_logits: (case.shared == Shared::Gated).then(|| gate_logits.view()),
                scale: case.shared_scale,
            }),
            output: output.view_mut()?,
        };
        ops::combine(device, args)?;
        Ok(download(device, output.view())?)
    }
}

/// Sums are f32 whatever the inputs are, so only the output's own rounding counts.
fn check(device: &Device, case: &Case) -> Result<(), Problem> {
    let inputs = Inputs::new(case);
    let tolerance = compare::tolerance(&[case.output]);
    compare::floats("output", &inputs.run(device, case)?, &inputs.expected(case), case.hidden_size, tolerance)
}

fn tokens(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [0, 1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 255, 257, 1025] {
        for top_k in [1, 2, 6, 8, 12] {
            log.case(device, &Case { seed: num_tokens as u64, num_tokens, top_k: Some(top_k), ..BASE }, check)?;
        }
    }
    Ok(())
}

fn sizes(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for hidden_size in [1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 72, 127, 129, 1023, 1025, 2051] {
        for dtype in FLOATS {
            for shared in [Shared::None, Shared::Gated] {
                let case = Case { hidden_size, expert_out: dtype, output: dtype, other: dtype, shared, ..BASE };
                log.case(device, &case, check)?;
            }
        }
    }
    Ok(())
}

fn types(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for expert_out in FLOATS {
        for other in FLOATS {
            for output in FLOATS {
                let case = Case { expert_out, other, output, num_zero_experts: 3, shared: Shared::Gated, ..BASE };
                log.case(device, &Case { hidden_size: 33, ..case }, check)?;
                log.case(device, &Case { num_tokens: 1, ..case }, check)?;
            }
        }
    }
    Ok(())
}

/// A masked slot adds nothing, whatever its weight; a token without a row is zero.
fn loads(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for load in Load::all(NUM_EXPERTS) {
        for num_tokens in [1, 33] {
            for weighted in [false, true] {
                log.case(device, &Case { load, num_tokens, weighted, ..BASE }, check)?;
            }
        }
    }
    Ok(())
}

fn zero_experts(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_zero_experts in [1, 4] {
        for load in [Load::Uniform, Load::Masked, Load::AllTo(NUM_EXPERTS), Load::AllTo(2)] {
            for num_tokens in [1, 33] {
                for shared in [Shared::None, Shared::Plain] {
                    for weighted in [false, true] {
                        let case = Case { num_zero_experts, load, num_tokens, shared, weighted, ..BASE };
                        log.case(device, &case, check)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn shared(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for shared in [Shared::Plain, Shared::Gated] {
        for num_tokens in [0, 1, 8, 33] {
            for load in [Load::Uniform, Load::AllMasked] {
                log.case(device, &Case { shared, num_tokens, load, ..BASE }, check)?;
            }
        }
    }
    Ok(())
}

fn ragged(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_tokens in [0, 1, 9, 33, 200] {
        for load in [Load::Uniform, Load::Masked] {
            for num_zero_experts in [0, 2] {
                let seed = 100 + num_tokens as u64;
                log.case(device, &Case { seed, top_k: None, num_tokens, load, num_zero_experts, ..BASE }, check)?;
            }
        }
    }
    Ok(())
}

/// Slot `s` is row `s`: a weighted sum of rows that are in place.
fn without_plan(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for top_k in [1, 3] {
        for num_tokens in [1, 33] {
            for weighted in [false, true] {
                for shared in [Shared::None, Shared::Plain] {
                    let case = Case { plan: false, top_k: Some(top_k), num_tokens, weighted, shared, ..BASE };
                    log.case(device, &case, check)?;
                }
            }
        }
    }
    Ok(())
}

/// The same bits from the same inputs: sums in the order of the slots.
fn repeats(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let case = Case { num_tokens: 300, top_k: Some(8), hidden_size: 65, shared: Shared::Gated, ..BASE };
    log.case(device, &case, |device, case| {
        let inputs = Inputs::new(case);
        let first = inputs.run(device, case)?;
        (0..5).try_for_each(|_| compare::bits("output", &inputs.run(device, case)?, &first))
    })
}
