//! What users of such kernels complain about, each as a test on an emulated device, which knows uninitialised memory and
//! races when it sees them. Builds and starts are in `start`, graphs and streams in `engine`.

use std::collections::BTreeSet;

use fused_moe::backend::cuda::Cuda;
use fused_moe::backend::cuda::driver::{Driver, StreamHandle};
use fused_moe::backend::cuda::raw::RawTensor;
use fused_moe::config::WeightLayout;
use fused_moe::ops::{CombineArgs, Epilogue, GroupedGemmArgs, InputRows, combine, grouped_gemm};
use fused_moe::plan::Slots;
use fused_moe::tensor::AsView;
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

fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
}

#[test]
fn int32_offsets_do_not_overflow_in_weights() {
    // 2^31 elements and more before the last expert, the only one with rows; few rows and many, for each kernel.
    let [e, n, k] = [4097, 1024, 512];
    let weight = random(1, n * k);
    for (dtype, num_rows) in [(DType::BF16, 2), (DType::BF16, 40), (DType::F32, 2)] {
        let machine = Vm::sm80();
        let cuda = Cuda::new(machine.clone()).unwrap();
        let device = Device::new(cuda.clone());
        let bytes = if dtype == DType::F32 { bytemuck::cast_slice(&weight).to_vec() } else { bf16_bytes(&weight) };
        let before = (e as u64 - 1) * (n * k * dtype.size()) as u64;
        let address = tail_of(&machine, &bytes, before);
        // SAFETY: only the last expert has rows, and its weights are there.
        let stack = unsafe { RawTensor::new(&cuda, address, dtype, [e, n, k]) }.unwrap();
        let mut offsets = vec![0u32; e + 1];
        offsets[e] = num_rows as u32;
        let offsets = Tensor::from_slice(&device, &offsets, [e + 1]).unwrap();
        let input = random(2, num_rows * k);
        let rounded: Vec<_> = input.iter().map(|&v| bf16::from_f32(v)).collect();
        let input_tensor = match dtype {
            DType::F32 => Tensor::from_slice(&device, &input, [num_rows, k]),
            _ => Tensor::from_slice(&device, &rounded, [num_rows, k]),
        };
        let input_tensor = input_tensor.unwrap();
        let mut output = Tensor::zeros(&device, DType::F32, [num_rows, n]).unwrap();
        let args = GroupedGemmArgs {
            input: input_tensor.view(),
            rows: InputRows::Same,
            expert_offsets: Some(offsets.view()),
            weight: stack.as_view(),
            weight_layout: WeightLayout::Nk,
            bias: None,
            epilogue: Epilogue::None,
            output: output.view_mut().unwrap(),
            batch_invariant: false,
        };
        grouped_gemm(&device, args).unwrap();
        let expected: Vec<f64> = (0..num_rows * n)
            .map(|i| {
                let (x, w) = (&input[i / n * k..][..k], &weight[i % n * k..][..k]);
                x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
            })
            .collect();
        let error = relative_error(&output.to_vec().unwrap(), &expected);
        assert!(error <= 1e-5, "{dtype}, {num_rows} rows: {error:e}");
    }
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
