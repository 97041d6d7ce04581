//! Tensors on a CUDA device against plain candle on the CPU. Needs the feature `cuda`, and a GPU:
//! `FUSED_MOE_REQUIRE=cuda` makes its absence a failure.
#![cfg(feature = "cuda")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{distance, naive, random, tolerance};
use fused_moe_candle::{ExpertsOptions, moe_experts};

const T: usize = 9;
const E: usize = 7;
const K: usize = 3;
const H: usize = 24;
const I: usize = 16;

fn gpu() -> Option<Device> {
    match Device::new_cuda(0) {
        Ok(device) => Some(device),
        Err(error) => {
            let required =
                std::env::var("FUSED_MOE_REQUIRE").is_ok_and(|list| list.split(',').any(|one| one == "cuda"));
            assert!(!required, "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

#[test]
fn experts_on_candles_stream_and_memory() {
    let Some(gpu) = gpu() else { return };
    let options = ExpertsOptions::default();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let xs = random(1, &[T, H], dtype);
        let gate_up = (random(2, &[E, 2 * I, H], DType::F32) * 0.3).unwrap().to_dtype(dtype).unwrap();
        let down = (random(3, &[E, H, I], DType::F32) * 0.3).unwrap().to_dtype(dtype).unwrap();
        let ids: Vec<u32> = (0..T * K).map(|slot| ((slot / K * 2 + slot % K) % E) as u32).collect();
        let topk_ids = Tensor::from_vec(ids, (T, K), &Device::Cpu).unwrap();
        let topk_weights = random(4, &[T, K], DType::F32).abs().unwrap();
        for num_tokens in [1, T] {
            let first = |tensor: &Tensor| tensor.narrow(0, 0, num_tokens).unwrap();
            let (xs, ids, weights) = (first(&xs), first(&topk_ids), first(&topk_weights));
            let expected = naive(&xs, &gate_up, &down, &ids, &weights).unwrap();
            let [xs, gate_up, down, ids, weights] =
                [&xs, &gate_up, &down, &ids, &weights].map(|tensor| tensor.to_device(&gpu).unwrap());
            // Rows before: memory that begins at an offset.
            let xs = Tensor::cat(&[&xs, &xs], 0).unwrap().narrow(0, num_tokens, num_tokens).unwrap();
            let ys = moe_experts(&xs, &gate_up, &down, &ids, &weights, &options).unwrap();
            assert_eq!((ys.dims(), ys.dtype()), (&[num_tokens, H][..], dtype));
            let distance = distance(&ys.to_device(&Device::Cpu).unwrap(), &expected);
            assert!(distance <= tolerance(dtype), "{dtype:?}, {num_tokens} tokens: {distance:e}");
        }
    }
}

#[test]
fn tensors_on_two_devices_are_an_error() {
    let Some(gpu) = gpu() else { return };
    let zeros = |shape: &[usize], device: &Device| Tensor::zeros(shape, DType::F32, device).unwrap();
    let (gate_up, down) = (zeros(&[E, 2 * I, H], &Device::Cpu), zeros(&[E, H, I], &Device::Cpu));
    let ids = Tensor::zeros((1, K), DType::U32, &gpu).unwrap();
    let (xs, weights) = (zeros(&[1, H], &gpu), zeros(&[1, K], &gpu));
    let error = moe_experts(&xs, &gate_up, &down, &ids, &weights, &ExpertsOptions::default()).unwrap_err().to_string();
    assert!(error.contains("tensor"), "{error}");
}
