//! `grouped_gemm` against the oracle.

mod inputs;

use fused_moe::config::{Activation, GateUpLayout, WeightLayout};
use fused_moe::ops::Epilogue;
use fused_moe::{DType, Device};

use crate::harness::slots::Load;
use crate::harness::values::{FLOATS, GARBAGE};
use crate::harness::{Failure, Log, Problem, Test, compare};
use inputs::Inputs;

pub const TESTS: &[Test] = &[
    Test { op: "grouped_gemm", name: "rows", body: rows },
    Test { op: "grouped_gemm", name: "sizes", body: sizes },
    Test { op: "grouped_gemm", name: "long_sizes", body: long_sizes },
    Test { op: "grouped_gemm", name: "loads", body: loads },
    Test { op: "grouped_gemm", name: "epilogues", body: epilogues },
    Test { op: "grouped_gemm", name: "types", body: types },
    Test { op: "grouped_gemm", name: "gathers", body: gathers },
    Test { op: "grouped_gemm", name: "one_expert", body: one_expert },
    Test { op: "grouped_gemm", name: "batch_invariant", body: batch_invariant },
    Test { op: "grouped_gemm", name: "repeats", body: repeats },
    Test { op: "grouped_gemm", name: "non_finite", body: non_finite },
    Test { op: "grouped_gemm", name: "f16_range", body: f16_range },
    Test { op: "grouped_gemm", name: "tensor_cores", body: tensor_cores },
];

/// Of [`TESTS`], those that the kernels of whole eights run.
#[cfg(feature = "cuda")]
pub const TENSOR_CORES: &[Test] = &[Test { op: "grouped_gemm", name: "tensor_cores", body: tensor_cores }];

/// How the rows of the output find their input.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rows {
    /// Row `r` reads row `r`.
    Same,
    /// Through the plan, `top_k` slots per token.
    Gathered { top_k: usize, scaled: bool },
    /// Through the plan, a varying number of slots per token, some with none.
    Ragged { scaled: bool },
    /// No offsets: one expert takes every row.
    OneExpert,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    num_slots: usize,
    num_experts: usize,
    k: usize,
    n: usize,
    load: Load,
    rows: Rows,
    input: DType,
    weight: DType,
    output: DType,
    weight_layout: WeightLayout,
    bias: bool,
    epilogue: Epilogue,
    batch_invariant: bool,
    scale: f32,
}

const SWIGLU: Epilogue = Epilogue::Gated { activation: Activation::Silu, layout: GateUpLayout::GateThenUp };

const BASE: Case = Case {
    seed: 1,
    num_slots: 12,
    num_experts: 3,
    k: 40,
    n: 36,
    load: Load::Uniform,
    rows: Rows::Same,
    input: DType::F32,
    weight: DType::F32,
    output: DType::F32,
    weight_layout: WeightLayout::Nk,
    bias: false,
    epilogue: SWIGLU,
    batch_invariant: false,
    scale: 1.0,
};

impl Case {
    fn of(dtype: DType) -> Self {
        Self { input: dtype, weight: dtype, output: DType::F32, ..BASE }
    }

    fn tolerance(&self) -> f64 {
        compare::tolerance(&[self.input, self.weight, self.output])
    }

    fn output_size(&self) -> usize {
        self.epilogue.output_size(self.n)
    }
}

/// The rows of the plan are right, and those past them are as they were.
fn check(device: &Device, case: &Case) -> Result<(), Problem> {
    check_inputs(device, case, &Inputs::new(case))
}

/// With bf16 weights the input may be rounded to bf16 first: then the oracle's is too.
fn check_perhaps_rounded(device: &Device, case: &Case) -> Result<(), Problem> {
    let inputs = Inputs::new(case);
    check_inputs(device, case, &inputs).or_else(|problem| match case.weight {
        DType::BF16 => check_inputs(device, case, &inputs.rounded_to(DType::BF16)),
        _ => Err(problem),
    })
}

fn check_inputs(device: &Device, case: &Case, inputs: &Inputs) -> Result<(), Problem> {
    let expected = inputs.expected(case);
    let output = inputs.run(device, case)?;
    let (written, rest) = output.split_at(expected.len());
    compare::floats("output", written, &expected, case.output_size(), case.tolerance())?;
    match rest.iter().position(|&value| value != f64::from(GARBAGE)) {
        None => Ok(()),
        Some(i) => Err(Problem::Wrong(format!(
            "output: row {} past the end was written: [{}]: {}, expected {GARBAGE}",
            (expected.len() + i) / case.output_size(),
            i % case.output_size(),
            rest[i]
        ))),
    }
}

fn rows(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let counts =
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 24, 25, 31, 32, 33, 47, 49, 63, 64, 65, 127, 129, 257];
    for num_slots in counts {
        for dtype in FLOATS {
            let one =
                Case { num_slots, seed: num_slots as u64, load: Load::AllTo(0), num_experts: 1, ..Case::of(dtype) };
            log.case(device, &one, check)?;
            log.case(device, &Case { num_experts: 7, load: Load::Uniform, ..one }, check)?;
        }
    }
    Ok(())
}

const SIZES: [usize; 15] = [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 72];

/// Shards that are no multiple of anything.
fn sizes(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for k in SIZES {
        for n in SIZES {
            for dtype in FLOATS {
                for weight_layout in [WeightLayout::Nk, WeightLayout::Kn] {
                    let seed = (k * 100 + n) as u64;
                    let case =
                        Case { seed, k, n, weight_layout, epilogue: Epilogue::None, bias: true, ..Case::of(dtype) };
                    log.case(device, &Case { num_slots: 9, ..case }, check)?;
                    // Gate and up of n each.
                    log.case(device, &Case { num_slots: 2, n: 2 * n, epilogue: SWIGLU, ..case }, check)?;
                }
            }
        }
    }
    Ok(())
}

/// Across the blocks of a blocked kernel.
fn long_sizes(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for (k, n) in [
        (127, 130),
        (128, 128),
        (129, 258),
        (255, 64),
        (257, 66),
        (513, 34),
        (1023, 10),
        (1025, 12),
        (1032, 12),
        (2056, 14),
        (4099, 6),
        (34, 2050),
    ] {
        for dtype in FLOATS {
            for num_slots in [3, 37] {
                for weight_layout in [WeightLayout::Nk, WeightLayout::Kn] {
                    let seed = (k * 10 + n) as u64;
                    log.case(device, &Case { seed, k, n, num_slots, weight_layout, ..Case::of(dtype) }, check)?;
                }
            }
        }
    }
    Ok(())
}

/// Experts without a token, one with all of them; E no power of two.
fn loads(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_experts in [1, 2, 7, 12, 60, 160, 257] {
        for load in Load::all(num_experts) {
            for dtype in [DType::F32, DType::BF16] {
                let case = Case { seed: num_experts as u64, num_experts, load, k: 24, n: 20, ..Case::of(dtype) };
                log.case(device, &Case { num_slots: 40, ..case }, check)?;
                log.case(device, &Case { num_slots: 5, ..case }, check)?;
            }
        }
    }
    Ok(())
}

fn epilogues(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for epilogue in inputs::epilogues() {
        for dtype in FLOATS {
            for weight_layout in [WeightLayout::Nk, WeightLayout::Kn] {
                for bias in [false, true] {
                    // Values beyond the clamp, and where the nonlinearities bend.
                    for scale in [1.0, 3.0] {
                        let case = Case { epilogue, weight_layout, bias, scale, n: 38, k: 33, ..Case::of(dtype) };
                        log.case(device, &Case { num_slots: 7, ..case }, check)?;
                        log.case(device, &Case { num_slots: 50, ..case }, check)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn types(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for input in FLOATS {
        for weight in FLOATS {
            for output in FLOATS {
                for (num_slots, k, n) in [(1, 33, 18), (5, 64, 64), (40, 72, 34)] {
                    let rows = Rows::Gathered { top_k: 1, scaled: false };
                    log.case(
                        device,
                        &Case { input, weight, output, num_slots, k, n, rows, ..BASE },
                        check_perhaps_rounded,
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn gathers(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in FLOATS {
        for scaled in [false, true] {
            for load in [Load::Uniform, Load::Masked, Load::AllMasked, Load::AllTo(4)] {
                for num_tokens in [0, 1, 9, 33] {
                    for top_k in [1, 3, 5] {
                        let rows = Rows::Gathered { top_k, scaled };
                        let num_slots = num_tokens * top_k;
                        log.case(device, &Case { num_slots, num_experts: 5, load, rows, ..Case::of(dtype) }, check)?;
                    }
                }
                for num_slots in [0, 1, 40] {
                    let rows = Rows::Ragged { scaled };
                    log.case(device, &Case { num_slots, num_experts: 5, load, rows, ..Case::of(dtype) }, check)?;
                }
            }
        }
    }
    Ok(())
}

/// The shared expert: no offsets.
fn one_expert(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in FLOATS {
        for num_slots in [0, 1, 2, 8, 9, 33, 65] {
            for weight_layout in [WeightLayout::Nk, WeightLayout::Kn] {
                let case = Case { num_experts: 1, rows: Rows::OneExpert, num_slots, weight_layout, ..Case::of(dtype) };
                log.case(device, &case, check)?;
            }
        }
    }
    Ok(())
}

/// Under the option, a row's bits do not depend on how many rows there are.
fn batch_invariant(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in FLOATS {
        for (k, n) in [(40, 36), (129, 70)] {
            let case = Case {
                num_experts: 1,
                load: Load::AllTo(0),
                k,
                n,
                num_slots: 70,
                batch_invariant: true,
                ..Case::of(dtype)
            };
            log.case(device, &case, |device, case| {
                let inputs = Inputs::new(case);
                check_inputs(device, case, &inputs)?;
                let all = inputs.run(device, case)?;
                for (first, count) in [(0, 1), (69, 1), (5, 3), (16, 8), (3, 17), (1, 65)] {
                    let part = Case { num_slots: count, ..*case };
                    let alone = inputs.of_rows(case, first, count).run(device, &part)?;
                    let width = case.output_size();
                    let expected = &all[first * width..][..count * width];
                    compare::bits(
                        &format!("output of rows {first}..{}", first + count),
                        &alone[..count * width],
                        expected,
                    )?;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// The same bits from the same inputs, every time.
fn repeats(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in FLOATS {
        let rows = Rows::Gathered { top_k: 4, scaled: true };
        let case = Case { num_slots: 200, num_experts: 7, k: 129, n: 66, rows, ..Case::of(dtype) };
        log.case(device, &case, |device, case| {
            let inputs = Inputs::new(case);
            let first = inputs.run(device, case)?;
            (0..5).try_for_each(|_| compare::bits("output", &inputs.run(device, case)?, &first))
        })?;
    }
    Ok(())
}

/// NaN and infinity in one row, or in the matrix of one expert, stay there.
fn non_finite(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in FLOATS {
        for value in [f32::NAN, f32::INFINITY] {
            for in_weight in [false, true] {
                let case = Case { epilogue: Epilogue::None, num_slots: 20, num_experts: 4, k: 33, ..Case::of(dtype) };
                log.case(device, &case, |device, case| {
                    let mut inputs = Inputs::new(case);
                    if in_weight {
                        inputs.weight.values[(case.n + 3) * case.k + 32] = value;
                    } else {
                        inputs.input.values[7 * case.k + 32] = value;
                    }
                    check_inputs(device, case, &inputs)
                })?;
            }
        }
    }
    Ok(())
}

/// f16 inputs whose products leave the range of f16: sums are f32.
fn f16_range(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for num_slots in [1, 9] {
        let case = Case { scale: 1000.0, epilogue: Epilogue::None, num_slots, ..Case::of(DType::F16) };
        log.case(device, &case, check)?;
    }
    Ok(())
}

/// Sizes that kernels of whole eights take, over several of their tiles and stages, and ragged in each of them.
fn tensor_cores(device: &Device, log: &mut Log) -> Result<(), Failure> {
    use GateUpLayout::{GateThenUp, Interleaved, UpThenGate};
    let gated = |layout| Epilogue::Gated { activation: Activation::Silu, layout };
    let gathered = Rows::Gathered { top_k: 1, scaled: true };
    for (weight, weight_layout) in
        [DType::BF16, DType::F16].into_iter().flat_map(|dtype| [WeightLayout::Nk, WeightLayout::Kn].map(|l| (dtype, l)))
    {
        let base = Case { output: weight, weight_layout, bias: true, ..Case::of(weight) };
        for (num_slots, num_experts, k, n, epilogue, rows) in [
            (330, 1, 328, 272, gated(UpThenGate), gathered),
            (270, 1, 136, 288, gated(Interleaved), Rows::Same),
            (200, 1, 584, 144, Epilogue::None, gathered),
            (180, 3, 392, 304, gated(GateThenUp), gathered),
            (66, 3, 80, 560, gated(Interleaved), gathered),
            (65, 2, 320, 192, Epilogue::None, Rows::Same),
            (30, 2, 456, 96, Epilogue::Activation(Activation::Relu), Rows::Ragged { scaled: true }),
            (31, 2, 88, 112, gated(Interleaved), gathered),
            (14, 3, 520, 416, gated(UpThenGate), Rows::Same),
        ] {
            let case = Case { seed: k as u64, num_slots, num_experts, k, n, epilogue, rows, ..base };
            log.case(device, &case, check)?;
        }
        for (i, epilogue) in inputs::epilogues().into_iter().enumerate() {
            let case = Case { epilogue, num_slots: 40, k: 72, n: 48, scale: 3.0, output: DType::F32, ..base };
            log.case(device, &case, check)?;
            log.case(device, &Case { k: 80 + 8 * i, n: 144, batch_invariant: true, ..case }, check)?;
        }
        // Tiles of every height that fits their rows.
        for i in 1..=20 {
            let output = if i % 2 == 0 { DType::F32 } else { weight };
            log.case(device, &Case { num_slots: 16 * i - 7, num_experts: 1, k: 72, n: 144, output, ..base }, check)?;
        }
        // Many rows on average, and an expert with none, or so few that a block of two has none.
        for (num_slots, load) in [(300, Load::EvenOnly), (320, Load::AllTo(1)), (240, Load::Few(5))] {
            log.case(device, &Case { num_slots, load, k: 72, n: 48, ..base }, check)?;
        }
    }
    Ok(())
}
