//! What users of such kernels complain about, each as a test on an emulated device, which knows uninitialised memory and
//! races when it sees them. Builds and starts are in `start`, graphs and streams in `engine`.

use std::collections::BTreeSet;

use fused_moe::backend::cuda::Cuda;
use fused_moe::backend::cuda::driver::{Driver, StreamHandle};
use fused_moe::backend::cuda::raw::RawTensor;
use fused_moe::config::WeightLayout;
use fused_moe::ops::{
    CombineArgs, Epilogue, GroupedGemmArgs, InputRows, RouteArgs, RouteInputs, combine, grouped_gemm, route,
};
use fused_moe::plan::Slots;
use fused_moe::routing::{GroupLimit, GroupScore, RouterConfig, ScoreFunction};
use fused_moe::tensor::{AsView, TensorView};
use fused_moe::{DType, Device, Tensor};
use half::bf16;
use ptx_vm::Config;

use crate::cuda_vm::{self, PTX, Vm};
use crate::layers::{Spec, random, relative_error};

fn vm() -> Device {
    cuda_vm::device().expect("the build has kernels")
}

fn check(spec: Spec, num_tokens: usize, tolerance: f64) {
    let hidden_states = random(7, num_tokens * spec.hidden_size);
    let answer = spec.run(&vm(), &hidden_states);
    let error = relative_error(&answer.output, &spec.expected(&hidden_states));
    assert!(error <= tolerance, "{spec:?}, {num_tokens} tokens: {error:e}");
}

/// Memory whose last `bytes` are there, and whose start is far below: what lies between is never touched.
fn tail_of(vm: &Vm, bytes: &[u8], before: u64) -> u64 {
    let address = vm.alloc(bytes.len()).unwrap();
    // SAFETY: just allocated, as long as that.
    unsafe { vm.copy_to_device(address, bytes, StreamHandle::PER_THREAD) }.unwrap();
    address.wrapping_sub(before)
}

#[test]
fn int32_offsets_do_not_overflow_in_expert_out() {
    // T·k·N beyond 2^31: the one slot's row is the last of so many.
    let [rows, h] = [(1usize << 20) + 9, 2056];
    let machine = Vm::sm80();
    let cuda = Cuda::new(machine.clone()).unwrap();
    let device = Device::new(cuda.clone());
    let row = random(3, h);
    let address = tail_of(&machine, bytemuck::cast_slice(&row), (rows as u64 - 1) * h as u64 * 4);
    // SAFETY: only the last row is read, and it is there.
    let expert_out = unsafe { RawTensor::new(&cuda, address, DType::F32, [rows, h]) }.unwrap();
    let inv_permuted_idx = Tensor::from_slice(&device, &[rows as u32 - 1], [1]).unwrap();
    let mut output = Tensor::zeros(&device, DType::F32, [1, h]).unwrap();
    let args = CombineArgs {
        expert_out: expert_out.as_view(),
        inv_permuted_idx: Some(inv_permuted_idx.view()),
        topk_weights: None,
        slots: Slots::PerToken { top_k: 1 },
        zero_experts: None,
        shared: None,
        output: output.view_mut().unwrap(),
    };
    combine(&device, args).unwrap();
    assert_eq!(output.to_vec::<f32>().unwrap(), row);
}

/// `output = input · weight[expert of the rows]`, one row, all memory but that of `weight` and `input` made here.
struct FarGemm<'a> {
    device: &'a Device,
    input: TensorView<'a>,
    rows: InputRows<'a>,
    expert_offsets: &'a [u32],
    weight: TensorView<'a>,
    weight_layout: WeightLayout,
    batch_invariant: bool,
}

impl FarGemm<'_> {
    fn run(self) -> Vec<f32> {
        let n = self.weight.dims()[if self.weight_layout == WeightLayout::Nk { 1 } else { 2 }];
        let offsets = Tensor::from_slice(self.device, self.expert_offsets, [self.expert_offsets.len()]).unwrap();
        let mut output = Tensor::zeros(self.device, DType::F32, [1, n]).unwrap();
        let args = GroupedGemmArgs {
            input: self.input,
            rows: self.rows,
            expert_offsets: Some(offsets.view()),
            weight: self.weight,
            weight_layout: self.weight_layout,
            bias: None,
            epilogue: Epilogue::None,
            output: output.view_mut().unwrap(),
            batch_invariant: self.batch_invariant,
        };
        grouped_gemm(self.device, args).unwrap();
        output.to_vec().unwrap()
    }
}

fn bytes_of(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

#[test]
fn int32_offsets_do_not_overflow_in_expert_weights() {
    // E·N·K beyond 2^31: the one row is the last expert's, whose matrix alone is there.
    let [e, n, k] = [4093usize, 64, 8208];
    assert!(e * n * k > 1 << 31);
    let (input_values, matrix) = (random(4, k), random(5, n * k));
    let mut expert_offsets = vec![0; e + 1];
    expert_offsets[e] = 1;
    for weight_layout in [WeightLayout::Nk, WeightLayout::Kn] {
        let at = |i: usize, j: usize| if weight_layout == WeightLayout::Nk { i * k + j } else { j * n + i };
        let product = |i| (0..k).map(|j| f64::from(input_values[j]) * f64::from(matrix[at(i, j)])).sum();
        let expected: Vec<f64> = (0..n).map(product).collect();
        // Few rows, tensor cores, and neither.
        for (dtype, batch_invariant) in [(DType::BF16, false), (DType::BF16, true), (DType::F32, true)] {
            let machine = Vm::sm80();
            let cuda = Cuda::new(machine.clone()).unwrap();
            let device = Device::new(cuda.clone());
            let bytes = bytes_of(dtype, &matrix);
            let address = tail_of(&machine, &bytes, (e as u64 - 1) * bytes.len() as u64);
            // SAFETY: only the last matrix is read, and it is there.
            let weight = unsafe { RawTensor::new(&cuda, address, dtype, weight_layout.shape(e, n, k)) }.unwrap();
            let input = Tensor::from_slice(&device, &input_values, [1, k]).unwrap();
            let output = FarGemm {
                device: &device,
                input: input.view(),
                rows: InputRows::Same,
                expert_offsets: &expert_offsets,
                weight: weight.as_view(),
                weight_layout,
                batch_invariant,
            }
            .run();
            let error = relative_error(&output, &expected);
            assert!(error <= 1e-5, "{dtype}, {weight_layout:?}, {batch_invariant}: {error:e}");
        }
    }
}

#[test]
fn int32_offsets_do_not_overflow_in_hidden_states() {
    // T·H beyond 2^31: the one slot is the last token's, whose row alone is there.
    let [num_tokens, h, n] = [262_147usize, 8200, 64];
    assert!(num_tokens * h > 1 << 31);
    let (row, matrix) = (random(6, h), random(7, n * h));
    let product = |i: usize| (0..h).map(|j| f64::from(row[j]) * f64::from(matrix[i * h + j])).sum();
    let expected: Vec<f64> = (0..n).map(product).collect();
    for (dtype, batch_invariant) in [(DType::BF16, false), (DType::BF16, true), (DType::F32, true)] {
        let machine = Vm::sm80();
        let cuda = Cuda::new(machine.clone()).unwrap();
        let device = Device::new(cuda.clone());
        let bytes = bytes_of(dtype, &row);
        let address = tail_of(&machine, &bytes, (num_tokens as u64 - 1) * bytes.len() as u64);
        // SAFETY: only the last row is read, and it is there.
        let input = unsafe { RawTensor::new(&cuda, address, dtype, [num_tokens, h]) }.unwrap();
        let weight_bytes = bytes_of(dtype, &matrix);
        let weight_address = tail_of(&machine, &weight_bytes, 0);
        // SAFETY: uploaded just now, and `machine` keeps it.
        let weight = unsafe { RawTensor::new(&cuda, weight_address, dtype, [1, n, h]) }.unwrap();
        let mut offsets = vec![0; num_tokens];
        offsets.push(1);
        let token_offsets = Tensor::from_slice(&device, &offsets, [num_tokens + 1]).unwrap();
        let slot_tokens = Tensor::from_slice(&device, &[num_tokens as u32 - 1], [1]).unwrap();
        let permuted_idx = Tensor::from_slice(&device, &[0u32], [1]).unwrap();
        let slots = Slots::Ragged { token_offsets: token_offsets.view(), slot_tokens: slot_tokens.view() };
        let output = FarGemm {
            device: &device,
            input: input.as_view(),
            rows: InputRows::Gathered { permuted_idx: permuted_idx.view(), slots, slot_scale: None },
            expert_offsets: &[0, 1],
            weight: weight.as_view(),
            weight_layout: WeightLayout::Nk,
            batch_invariant,
        }
        .run();
        let error = relative_error(&output, &expected);
        assert!(error <= 1e-5, "{dtype}, {batch_invariant}: {error:e}");
    }
}

/// Ids and weights of one token.
fn routed(config: &RouterConfig, logits: &[f32], bias: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let device = vm();
    let router_logits = Tensor::from_slice(&device, logits, [1, logits.len()]).unwrap();
    let selection_bias = Tensor::from_slice(&device, bias, [bias.len()]).unwrap();
    let mut topk_ids = Tensor::zeros(&device, DType::U32, [1, config.top_k]).unwrap();
    let mut topk_weights = Tensor::zeros(&device, DType::F32, [1, config.top_k]).unwrap();
    let args = RouteArgs {
        config,
        router_logits: router_logits.view(),
        selection_bias: Some(selection_bias.view()),
        inputs: RouteInputs::default(),
        topk_ids: topk_ids.view_mut().unwrap(),
        topk_weights: topk_weights.view_mut().unwrap(),
        ragged: None,
        figures: None,
    };
    route(&device, args).unwrap();
    (topk_ids.to_vec().unwrap(), topk_weights.to_vec().unwrap())
}

fn grouped(score: GroupScore) -> RouterConfig {
    let groups = GroupLimit { num_groups: 3, topk_groups: 1, score };
    RouterConfig { score: ScoreFunction::Sigmoid, groups: Some(groups), ..RouterConfig::softmax_top_k(3) }
}

#[test]
fn other_groups_are_masked_even_where_all_scores_are_negative() {
    // With its bias every score is below 0: masked by 0, experts of other groups would come first.
    let logits = [0.5, 0.1, -0.3, 2.0, 1.0, -3.0, 0.4, 0.3, 0.2];
    let (ids, _) = routed(&grouped(GroupScore::SumTop2), &logits, &[-7.0; 9]);
    assert_eq!(ids, [3, 4, 5]);
}

#[test]
fn the_selection_bias_picks_and_does_not_weigh() {
    let logits = [2.0, 1.0, 0.0, -1.0, -2.0, -3.0, 0.5, 0.25, 0.125];
    let bias = [0.0, 0.0, 0.0, 5.0, 6.0, 7.0, 0.0, 0.0, 0.0];
    let (ids, weights) = routed(&grouped(GroupScore::Max), &logits, &bias);
    assert_eq!(ids, [5, 4, 3]);
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    for (id, weight) in ids.iter().zip(weights) {
        assert!((weight - sigmoid(logits[*id as usize])).abs() <= 1e-6, "expert {id}: {weight}");
    }
}

#[test]
fn experts_without_tokens_leave_nothing_uninitialised() {
    // One token: most experts have none, and ptx-vm's memory is poison until it is written.
    check(Spec { num_experts: 60, top_k: 2, ..Spec::SMALL }, 1, 5e-3);
}

#[test]
fn nan_logits_give_ids_that_are_unique_and_in_range() {
    let spec = Spec { num_experts: 7, ..Spec::SMALL };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let answer = spec.run(&vm(), &vec![value; 2 * spec.hidden_size]);
        for ids in answer.topk_ids.chunks(spec.top_k) {
            assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), spec.top_k, "{value}: {ids:?}");
            assert!(ids.iter().all(|&id| (id as usize) < spec.num_experts), "{value}: {ids:?}");
        }
        assert!(answer.topk_weights.iter().all(|weight| weight.is_finite()), "{value}: {:?}", answer.topk_weights);
    }
}

#[test]
fn every_schedule_gives_the_same_bits() {
    let hidden_states = random(11, 37 * Spec::SMALL.hidden_size);
    let run = |seed| {
        let cuda = Cuda::new(Vm::with("80", Config::with_seed(seed))).unwrap();
        Spec::SMALL.run(&Device::new(cuda), &hidden_states)
    };
    let first = run(1);
    for seed in 2..5 {
        assert_eq!(run(seed), first, "seed {seed}");
    }
}

#[test]
fn shards_need_not_be_multiples_of_anything() {
    for (hidden_size, intermediate_size) in [(40, 24), (36, 33), (33, 17), (65, 129)] {
        for num_tokens in [1, 19] {
            check(Spec { num_experts: 5, top_k: 2, hidden_size, intermediate_size, ..Spec::SMALL }, num_tokens, 5e-3);
        }
    }
}

#[test]
fn the_number_of_experts_need_not_be_a_power_of_two() {
    for num_experts in [7, 33, 60, 160, 257] {
        check(Spec { num_experts, hidden_size: 32, intermediate_size: 16, ..Spec::SMALL }, 5, 5e-3);
    }
}

#[test]
fn f16_does_not_overflow_between_the_projections() {
    // gate·up goes far beyond f16's 65504 before the down projection brings it back.
    let spec = Spec { dtype: DType::F16, scale: 100.0, ..Spec::SMALL };
    for num_tokens in [1, 40] {
        check(spec, num_tokens, 5e-3);
    }
}

#[test]
fn gpus_newer_than_the_build_find_ptx_to_compile() {
    let files: BTreeSet<_> = PTX.iter().map(|(file, ..)| *file).filter(|file| !file.ends_with("_sm90")).collect();
    assert!(!files.is_empty());
    for file in files {
        let portable = PTX.iter().find(|(name, arch, _)| *name == file && *arch == "80");
        let (_, _, text) = portable.unwrap_or_else(|| panic!("{file} has no PTX for all GPUs"));
        assert!(text.contains(".target sm_80"), "{file}");
    }
}
