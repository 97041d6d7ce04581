//! What users of such kernels complain about, each as a test on an emulated device, which knows uninitialised memory and
//! races when it sees them. Builds and starts are in `start`, graphs and streams in `engine`.

use std::collections::BTreeSet;

use fused_moe::backend::cuda::Cuda;
use fused_moe::backend::cuda::driver::{Driver, StreamHandle};
use fused_moe::backend::cuda::raw::RawTensor;
use fused_moe::ops::{CombineArgs, combine};
use fused_moe::plan::Slots;
use fused_moe::tensor::AsView;
use fused_moe::{DType, Device, Tensor};
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
