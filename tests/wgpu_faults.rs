//! What can go wrong on a GPU comes back as an error with the driver's words: nothing panics, nothing hangs. Limits are
//! lowered at device creation to force what a good adapter would not show.
#![cfg(feature = "wgpu")]

mod wgpu_common;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fused_moe::backend::wgpu::{WgpuDevice, WgpuOptions};
use fused_moe::checkpoint::{Checkpoint, LoadOptions};
use fused_moe::{DType, Device, Error, Tensor};
use wgpu_common::{Problem, limits, open, opened};

fn device_error(result: fused_moe::Result<impl std::fmt::Debug>) -> String {
    match result {
        Err(Error::Device { backend: "wgpu", message }) => message,
        other => panic!("expected Error::Device, got {other:?}"),
    }
}

#[test]
fn an_adapter_that_is_not_there_is_unavailable_and_the_others_are_named() {
    let Some(device) = opened() else { return };
    let options = WgpuOptions { adapter: Some("no such adapter".into()), ..WgpuOptions::default() };
    match WgpuDevice::with_options(&options) {
        Err(Error::Unavailable { backend: "wgpu", reason }) => {
            assert!(reason.contains("no such adapter"), "{reason}");
            assert!(reason.contains(&device.adapter_info().name), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

/// The body of the next test, in a process that has no driver.
#[test]
#[ignore = "run by without_a_driver_the_backend_is_unavailable"]
fn without_a_driver() {
    match Device::by_name("wgpu") {
        Err(Error::Unavailable { backend: "wgpu", reason }) => assert!(reason.contains("adapter"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let discovery = Device::discover();
    assert_eq!(discovery.device.name(), "cpu");
    assert!(discovery.skipped.iter().any(|e| e.to_string().contains("wgpu")), "{:?}", discovery.skipped);
}

#[cfg(target_os = "linux")]
#[test]
fn without_a_driver_the_backend_is_unavailable() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "without_a_driver", "--ignored"])
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .env("VK_DRIVER_FILES", "/nonexistent")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn limits_beyond_the_adapter_are_unavailable() {
    let Some(device) = opened() else { return };
    let mut limits = device.limits().clone();
    limits.max_compute_workgroup_storage_size = u32::MAX;
    let options = WgpuOptions { limits: Some(limits), ..WgpuOptions::default() };
    assert!(matches!(WgpuDevice::with_options(&options), Err(Error::Unavailable { backend: "wgpu", .. })));
}

#[test]
fn without_optional_features_the_results_are_right() {
    let Some(device) = open(WgpuOptions { features: wgpu::Features::empty(), ..WgpuOptions::default() }) else {
        return;
    };
    Problem::small().check(&Device::new(device));
}

#[test]
fn on_the_limits_that_webgpu_promises_the_results_are_right() {
    let Some(device) = open(limits(|limits| *limits = wgpu::Limits::default())) else { return };
    Problem::small().check(&Device::new(device));
}

#[test]
fn a_stack_of_experts_beyond_one_binding_is_split() {
    // 7 experts of 40·24 and 24·20 elements: the gate_up stack takes 26880 bytes, an expert 3840.
    let Some(device) = open(limits(|limits| limits.max_storage_buffer_binding_size = 8192)) else { return };
    Problem::small().check(&Device::new(device.clone()));
    Problem::small().in_bf16().check(&Device::new(device));
}

#[test]
fn a_tensor_beyond_a_binding_is_refused_with_the_sizes_before_it_is_allocated() {
    let Some(device) = open(limits(|limits| limits.max_storage_buffer_binding_size = 8192)) else { return };
    let device = Device::new(device);
    for shape in [[1, 3000, 1], [4, 3000, 1]] {
        match Tensor::zeros(&device, DType::F32, shape) {
            Err(Error::InvalidArgument { expected, actual, .. }) => {
                assert!(expected.contains("8192") && actual.contains("12000"), "{expected} / {actual}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_layer_beyond_the_adapter_is_refused_with_the_sizes_before_a_weight_is_read() {
    let Some(device) = open(limits(|limits| limits.max_storage_buffer_binding_size = 2048)) else { return };
    let checkpoint = Checkpoint::open("tests/fixtures/qwen3_moe").unwrap();
    let was_read = AtomicBool::new(false);
    let progress = |_| was_read.store(true, Ordering::Relaxed);
    let options = LoadOptions { progress: Some(&progress), ..LoadOptions::default() };
    let layer_id = checkpoint.first_layer_with_experts().unwrap();
    match checkpoint.load(&Device::new(device), layer_id, options) {
        Err(Error::InvalidArgument { expected, .. }) => assert!(expected.contains("2048 bytes"), "{expected}"),
        other => panic!("{other:?}"),
    }
    assert!(!was_read.into_inner());
}

#[test]
fn a_workspace_beyond_the_adapter_is_refused_with_the_sizes() {
    let Some(device) = open(limits(|limits| limits.max_storage_buffer_binding_size = 8192)) else { return };
    let layer = Problem::small().layer(&Device::new(device)).unwrap();
    match layer.workspace(1000) {
        Err(Error::InvalidArgument { expected, actual, .. }) => {
            assert!(expected.contains("8192 bytes") && actual.contains("bytes"), "{expected} / {actual}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_shader_that_the_device_refuses_is_an_error_with_its_words() {
    let Some(device) = open(limits(|limits| limits.max_compute_invocations_per_workgroup = 32)) else { return };
    let message = device_error(Problem::small().grouped_gemm(&Device::new(device)));
    assert!(message.contains("workgroup") && message.contains("32"), "{message}");
}

#[test]
fn a_validation_error_is_an_error_with_its_words() {
    let Some(device) = open(limits(|limits| limits.max_storage_buffers_per_shader_stage = 4)) else { return };
    let device = Device::new(device);
    let problem = Problem::small();
    for _ in 0..2 {
        // The failed pipeline is not kept: the second call says the same.
        let message = device_error(problem.grouped_gemm(&device));
        assert!(message.contains("storage") || message.contains("Storage"), "{message}");
    }
}

#[test]
fn a_lost_device_is_an_error() {
    let Some(device) = opened() else { return };
    let handle = device.clone();
    let device = Device::new(device);
    let tensor = Tensor::from_slice(&device, &[1f32, 2.0], [2]).unwrap();
    handle.wgpu_device().destroy();
    device_error(tensor.to_vec::<f32>());
    device_error(Tensor::zeros(&device, DType::F32, [4]));
    device_error(Problem::small().grouped_gemm(&device));
}

#[test]
fn a_wait_that_takes_too_long_is_given_up() {
    let Some(device) = open(WgpuOptions { timeout: Duration::from_nanos(1), ..WgpuOptions::default() }) else { return };
    let device = Device::new(device);
    let tensor = Tensor::from_slice(&device, &vec![1f32; 1 << 22], [1 << 22]).unwrap();
    let message = device_error(tensor.to_vec::<f32>());
    assert!(message.contains("within"), "{message}");
}

/// The body of the next test, in a process that may have no more than some memory.
#[test]
#[ignore = "run by out_of_memory_is_an_error"]
fn with_little_memory() {
    let Some(device) = opened() else { return };
    let device = Device::new(device);
    let tensors: Vec<_> = (0..64).map(|_| Tensor::zeros(&device, DType::F32, [16 << 20])).collect();
    let message = device_error(tensors.into_iter().collect::<Result<Vec<_>, _>>());
    assert!(message.to_lowercase().contains("memory"), "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn out_of_memory_is_an_error() {
    let status = Command::new("sh")
        .args(["-c", "ulimit -v 3000000; exec \"$0\" --exact with_little_memory --ignored"])
        .arg(std::env::current_exe().unwrap())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_tensor_of_another_device_is_refused() {
    let (Some(a), Some(b)) = (opened(), opened()) else { return };
    let tensor = Tensor::zeros(&Device::new(a), DType::U32, [8]).unwrap();
    assert!(matches!(tensor.view().to_vec::<u32>(&Device::new(b)), Err(Error::InvalidArgument { .. })));
}
