//! The GEMMs of every instruction set against the oracle.

use std::num::NonZeroUsize;
use std::sync::Mutex;

use half::{bf16, f16};

use super::{Cpu, InstructionSet, IsaError, Pool};
use crate::config::{Activation, GateUpLayout, WeightLayout};
use crate::ops::{
    Epilogue, GroupedGemmArgs, InputRows, RouteArgs, RouteInputs, RouterLogitsArgs, grouped_gemm, route, router_logits,
};
use crate::plan::Slots;
use crate::routing::RouterConfig;
use crate::tensor::DType;
use crate::{Device, Error, Tensor, TensorView, TensorViewMut, reference};

/// A linear congruential generator: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn below(&mut self, n: usize) -> usize {
        ((self.next() + 1.0) * 0.5 * n as f32) as usize % n
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// A tensor of any floating-point type, and its rounded values.
fn tensor(device: &Device, dtype: DType, values: &[f32], shape: &[usize]) -> (Tensor, Vec<f64>) {
    let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect();
    let make = |dtype: DType| match (dtype, shape) {
        (DType::F32, &[a, b]) => Tensor::from_slice(device, values, [a, b]),
        (DType::F32, &[a, b, c]) => Tensor::from_slice(device, values, [a, b, c]),
        (DType::BF16, &[a, b]) => Tensor::from_slice(device, &to_bf16(values), [a, b]),
        (DType::BF16, &[a, b, c]) => Tensor::from_slice(device, &to_bf16(values), [a, b, c]),
        (DType::F16, &[a, b]) => Tensor::from_slice(device, &to_f16(values), [a, b]),
        (_, &[a, b, c]) => Tensor::from_slice(device, &to_f16(values), [a, b, c]),
        _ => unreachable!("rank 2 or 3"),
    };
    let rounded: Vec<f32> = match dtype {
        DType::F32 => values.to_vec(),
        DType::BF16 => to_bf16(values).iter().map(|v| v.to_f32()).collect(),
        _ => to_f16(values).iter().map(|v| v.to_f32()).collect(),
    };
    (make(dtype).unwrap(), wide(&rounded))
}

fn to_bf16(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&v| bf16::from_f32(v)).collect()
}

fn to_f16(values: &[f32]) -> Vec<f16> {
    values.iter().map(|&v| f16::from_f32(v)).collect()
}

fn read(tensor: &Tensor) -> Vec<f32> {
    match tensor.dtype() {
        DType::BF16 => tensor.to_vec::<bf16>().unwrap().iter().map(|v| v.to_f32()).collect(),
        DType::F16 => tensor.to_vec::<f16>().unwrap().iter().map(|v| v.to_f32()).collect(),
        _ => tensor.to_vec().unwrap(),
    }
}

/// ‖a − b‖ / ‖b‖
fn distance(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| b * b).sum();
    (difference / norm.max(1e-30)).sqrt()
}

/// One call: everything that varies.
#[derive(Clone, Debug)]
struct Case {
    rows_per_expert: Vec<usize>,
    n: usize,
    k: usize,
    input: DType,
    weight: DType,
    layout: WeightLayout,
    epilogue: Epilogue,
    output: DType,
    bias: bool,
    /// Rows past the last expert's, which stay as they are.
    spare_rows: usize,
}

impl Case {
    fn new(rows_per_expert: &[usize], n: usize, k: usize) -> Self {
        Self {
            rows_per_expert: rows_per_expert.to_vec(),
            n,
            k,
            input: DType::F32,
            weight: DType::F32,
            layout: WeightLayout::Nk,
            epilogue: Epilogue::None,
            output: DType::F32,
            bias: false,
            spare_rows: 0,
        }
    }

    fn offsets(&self) -> Vec<u32> {
        let ends = self.rows_per_expert.iter().scan(0, |sum, &rows| {
            *sum += rows as u32;
            Some(*sum)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// What rounding may cost: f32 sums, or weights' or outputs' types.
    fn tolerance(&self) -> f64 {
        match (self.weight, self.output) {
            (DType::F32 | DType::F16, DType::F32) => 2e-6,
            _ => 5e-3,
        }
    }

    /// Runs on `device`; returns the output with its spare rows, and the oracle's without.
    fn run(&self, device: &Device, seed: u64) -> (Vec<f32>, Vec<f64>) {
        let mut random = Random(seed);
        let (experts, n, k) = (self.rows_per_expert.len(), self.n, self.k);
        let rows: usize = self.rows_per_expert.iter().sum();
        let num_rows = rows + self.spare_rows;
        let (tokens, slots) = (num_rows.max(3), num_rows.max(1));
        let x = random.floats(tokens * k);
        let (input, x) = tensor(device, self.input, &x, &[tokens, k]);
        let weights = random.floats(experts * n * k);
        let (weight, weights) = tensor(device, self.weight, &weights, &self.layout.shape(experts, n, k));
        let bias = self.bias.then(|| random.floats(experts * n));
        let bias_tensor = bias.as_ref().map(|b| Tensor::from_slice(device, b, [experts, n]).unwrap());
        // Any slot for any row; any token for any slot; a factor for each slot.
        let permuted: Vec<u32> = (0..slots).map(|_| random.below(slots) as u32).collect();
        let slot_tokens: Vec<u32> = (0..slots).map(|_| random.below(tokens) as u32).collect();
        let mut token_offsets = vec![slots as u32; tokens + 1];
        token_offsets[0] = 0;
        let scale = random.floats(slots);
        let offsets = self.offsets();
        let u32s = |v: &[u32]| Tensor::from_slice(device, v, [v.len()]).unwrap();
        let (permuted_idx, slot_tokens_t, token_offsets_t) =
            (u32s(&permuted), u32s(&slot_tokens), u32s(&token_offsets));
        let (offsets_t, scale_t) = (u32s(&offsets), Tensor::from_slice(device, &scale, [slots]).unwrap());
        let columns = self.epilogue.output_size(n);
        let poison = vec![-77.0; slots * columns];
        let (mut output, _) = tensor(device, self.output, &poison, &[slots, columns]);
        let args = GroupedGemmArgs {
            input: input.view(),
            rows: InputRows::Gathered {
                permuted_idx: permuted_idx.view(),
                slots: Slots::Ragged { token_offsets: token_offsets_t.view(), slot_tokens: slot_tokens_t.view() },
                slot_scale: Some(scale_t.view()),
            },
            expert_offsets: Some(offsets_t.view()),
            weight: weight.view(),
            weight_layout: self.layout,
            bias: bias_tensor.as_ref().map(Tensor::view),
            epilogue: self.epilogue,
            output: output.view_mut().unwrap(),
            batch_invariant: false,
        };
        grouped_gemm(device, args).unwrap();
        let gathered: Vec<f64> = permuted[..rows]
            .iter()
            .flat_map(|&slot| {
                let token = slot_tokens[slot as usize] as usize;
                x[token * k..(token + 1) * k].iter().map(move |x| (slot as usize, x))
            })
            .map(|(slot, x)| x * f64::from(scale[slot]))
            .collect();
        let bias: Option<Vec<f64>> = bias.map(|b| b.iter().map(|&b| f64::from(b)).collect());
        let expected = reference::grouped_gemm(&reference::GroupedGemm {
            input: &gathered,
            k,
            n,
            expert_offsets: &offsets,
            weight: &weights,
            weight_layout: self.layout,
            bias: bias.as_deref(),
            epilogue: self.epilogue,
        });
        (read(&output), expected)
    }

    fn check(&self, device: &Device) {
        let (output, expected) = self.run(device, 1);
        let (used, spare) = output.split_at(expected.len());
        let distance = distance(used, &expected);
        assert!(distance <= self.tolerance(), "{device}: {distance:e} for {self:?}");
        assert!(spare.iter().all(|&y| y == -77.0), "{device}: spare rows were written for {self:?}");
    }
}

/// A device for each instruction set that is here, on two threads.
fn devices() -> Vec<Device> {
    let here = InstructionSet::ALL.into_iter().filter(|set| {
        let here = set.is_available();
        if !here {
            eprintln!("skipped: this machine has no {set}");
        }
        here
    });
    here.map(|set| device(set, 2)).collect()
}

fn device(set: InstructionSet, threads: usize) -> Device {
    let threads = NonZeroUsize::new(threads).unwrap();
    Device::new(Cpu::builder().instruction_set(set).threads(threads).build().unwrap())
}

const WEIGHTS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const LAYOUTS: [WeightLayout; 2] = [WeightLayout::Nk, WeightLayout::Kn];
const GATE_UP_LAYOUTS: [GateUpLayout; 3] =
    [GateUpLayout::GateThenUp, GateUpLayout::UpThenGate, GateUpLayout::Interleaved];
const ACTIVATIONS: [Activation; 6] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::ReluSquared,
    Activation::ClampedSwiglu { alpha: 1.702, limit: 0.5 },
];

#[test]
fn every_shape() {
    let rows = [&[1usize][..], &[0, 2, 0, 7], &[8, 9, 0], &[15, 16, 17], &[33, 0, 31], &[5, 70, 1], &[0, 0, 130], &[0]];
    let sizes = [(1, 1), (3, 5), (16, 32), (17, 33), (40, 72), (130, 64), (67, 1100), (192, 31)];
    for device in devices() {
        for weight in WEIGHTS {
            for layout in LAYOUTS {
                for (i, rows) in rows.iter().enumerate() {
                    for (j, &(n, k)) in sizes.iter().enumerate() {
                        let bias = (i + j) % 2 == 0;
                        Case { weight, layout, bias, spare_rows: i % 3, ..Case::new(rows, n, k) }.check(&device);
                    }
                }
            }
        }
    }
}

/// Where a kernel rounds its input to bf16, few rows are multiplied with what the rounding takes away too.
#[test]
fn few_rows_lose_nothing_to_rounding() {
    for device in devices() {
        for (n, k) in [(40, 72), (17, 33), (130, 1100)] {
            let case = Case { weight: DType::BF16, ..Case::new(&[1, 3, 0, 2], n, k) };
            let (output, expected) = case.run(&device, 5);
            let distance = distance(&output, &expected);
            assert!(distance <= 3e-5, "{device}: {distance:e} for {case:?}");
        }
    }
}

#[test]
fn every_epilogue() {
    let gated = ACTIVATIONS
        .into_iter()
        .flat_map(|activation| GATE_UP_LAYOUTS.map(|layout| Epilogue::Gated { activation, layout }));
    let epilogues: Vec<_> = gated.chain(ACTIVATIONS.map(Epilogue::Activation)).collect();
    for device in devices() {
        for weight in WEIGHTS {
            for layout in LAYOUTS {
                for &epilogue in &epilogues {
                    for n in [26, 160] {
                        let case = Case::new(&[3, 0, 18], n, 45);
                        Case { weight, layout, epilogue, bias: true, ..case }.check(&device);
                    }
                }
            }
        }
    }
}

#[test]
fn every_input_and_output_type() {
    for device in devices() {
        for weight in WEIGHTS {
            for layout in LAYOUTS {
                for input in WEIGHTS {
                    for output in WEIGHTS {
                        Case { input, weight, layout, output, spare_rows: 2, ..Case::new(&[3, 18], 40, 72) }
                            .check(&device);
                    }
                }
            }
        }
    }
}

/// Rows of one expert are alone, with others, and on other threads: the same bits.
#[test]
fn a_row_does_not_depend_on_its_neighbours_or_threads() {
    for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
        for weight in WEIGHTS {
            for layout in LAYOUTS {
                let (n, k) = (136, 1200);
                let epilogue = Epilogue::Gated { activation: Activation::Silu, layout: GateUpLayout::GateThenUp };
                let mut random = Random(3);
                let (x, w) = (random.floats(101 * k), random.floats(n * k));
                let run = |threads, rows: std::ops::Range<usize>| {
                    let device = device(set, threads);
                    let input = Tensor::from_slice(&device, &x[rows.start * k..rows.end * k], [rows.len(), k]).unwrap();
                    let (weight, _) = tensor(&device, weight, &w, &layout.shape(1, n, k));
                    let mut output = Tensor::zeros(&device, DType::F32, [rows.len(), n / 2]).unwrap();
                    let args = GroupedGemmArgs {
                        input: input.view(),
                        rows: InputRows::Same,
                        expert_offsets: None,
                        weight: weight.view(),
                        weight_layout: layout,
                        bias: None,
                        epilogue,
                        output: output.view_mut().unwrap(),
                        batch_invariant: true,
                    };
                    grouped_gemm(&device, args).unwrap();
                    output.to_vec::<f32>().unwrap()
                };
                let all = run(3, 0..101);
                for rows in [0..1, 100..101, 50..52, 7..24, 0..101] {
                    let expected = &all[rows.start * n / 2..rows.end * n / 2];
                    assert_eq!(run(1, rows.clone()), expected, "{set} {weight} {layout:?} {rows:?}");
                }
            }
        }
    }
}

/// NaN and infinity stay in their row.
#[test]
fn bad_numbers_stay_in_their_row() {
    for device in devices() {
        for weight in WEIGHTS {
            for layout in LAYOUTS {
                let (rows, n, k) = (20, 37, 70);
                let mut random = Random(5);
                let mut x = random.floats(rows * k);
                (x[3 * k + 69], x[17 * k]) = (f32::NAN, f32::INFINITY);
                let input = Tensor::from_slice(&device, &x, [rows, k]).unwrap();
                let (weight, _) = tensor(&device, weight, &random.floats(n * k), &layout.shape(1, n, k));
                let mut output = Tensor::zeros(&device, DType::F32, [rows, n]).unwrap();
                let args = GroupedGemmArgs {
                    input: input.view(),
                    rows: InputRows::Same,
                    expert_offsets: None,
                    weight: weight.view(),
                    weight_layout: layout,
                    bias: None,
                    epilogue: Epilogue::None,
                    output: output.view_mut().unwrap(),
                    batch_invariant: false,
                };
                grouped_gemm(&device, args).unwrap();
                for (row, y) in output.to_vec::<f32>().unwrap().chunks_exact(n).enumerate() {
                    let as_expected = match row {
                        3 => y.iter().all(|y| y.is_nan()),
                        17 => y.iter().all(|y| y.is_infinite()),
                        _ => y.iter().all(|y| y.is_finite()),
                    };
                    assert!(as_expected, "{device} {layout:?} row {row}: {y:?}");
                }
            }
        }
    }
}

#[test]
fn router_logits_are_the_oracles_whatever_the_batch() {
    for device in devices() {
        for weight in WEIGHTS {
            for (tokens, experts, k) in [(1, 1, 7), (5, 7, 72), (19, 257, 130), (70, 16, 2048)] {
                let mut random = Random(7);
                let (input, x) = tensor(&device, DType::F32, &random.floats(tokens * k), &[tokens, k]);
                let (weight, w) = tensor(&device, weight, &random.floats(experts * k), &[experts, k]);
                let run = |first: usize, count: usize| {
                    let mut output = Tensor::zeros(&device, DType::F32, [count, experts]).unwrap();
                    let args = RouterLogitsArgs {
                        hidden_states: input.view().slice(first..first + count).unwrap(),
                        weight: weight.view(),
                        bias: None,
                        tanh: false,
                        output: output.view_mut().unwrap(),
                    };
                    router_logits(&device, args).unwrap();
                    output.to_vec::<f32>().unwrap()
                };
                let logits = run(0, tokens);
                let expected = reference::router_logits(&x, &w, None, k);
                assert!(distance(&logits, &expected) <= 1e-6, "{device}");
                assert_eq!(run(tokens - 1, 1), logits[(tokens - 1) * experts..], "{device}");
            }
        }
    }
}

#[test]
fn an_instruction_set_that_is_not_there_is_an_error() {
    assert!(matches!("sse".parse::<InstructionSet>(), Err(Error::InvalidArgument { .. })));
    for set in InstructionSet::ALL {
        let built = Cpu::builder().instruction_set(set).build();
        match built {
            Ok(cpu) => assert!(set.is_available() && cpu.instruction_set().unwrap() == set),
            Err(error) => assert!(!set.is_available() && matches!(error, Error::Unavailable { .. })),
        }
    }
}

/// An op that chose an instruction set by itself would run here.
#[test]
fn route_asks_for_the_devices_instruction_set() {
    let isa = Err(IsaError::Unknown("sse".to_owned()));
    let device = Device::new(Cpu { isa, pool: Pool::Current, scratch: Mutex::default() });
    let config = RouterConfig::softmax_top_k(1);
    let (mut ids, mut weights) = ([0u32], [0f32]);
    let args = RouteArgs {
        config: &config,
        router_logits: TensorView::from_slice(&[1.0f32, 2.0], [1, 2]).unwrap(),
        selection_bias: None,
        inputs: RouteInputs::default(),
        topk_ids: TensorViewMut::from_slice(&mut ids, [1, 1]).unwrap(),
        topk_weights: TensorViewMut::from_slice(&mut weights, [1, 1]).unwrap(),
        ragged: None,
        figures: None,
    };
    match route(&device, args) {
        Err(Error::InvalidArgument { argument, actual, .. }) => {
            assert_eq!((argument.as_str(), actual.as_str()), ("FUSED_MOE_CPU_ISA", "sse"));
        }
        other => panic!("{other:?}"),
    }
}
