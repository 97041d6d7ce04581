//! A GPU and ptx-vm on the same numbers: what the emulated device claims of the kernels is what hardware does.

use fused_moe::{DType, Device, Error};

use crate::cuda_vm;
use crate::layers::{Spec, random, relative_error, wide};

/// The machine's GPU; `None`, having said why, where there is none and need not be.
fn gpu() -> Option<Device> {
    let required = std::env::var("FUSED_MOE_REQUIRE").unwrap_or_default();
    match Device::by_name("cuda") {
        Err(Error::Unavailable { reason, .. }) if !required.split(',').any(|name| name == "cuda") => {
            println!("skipped: {reason}");
            None
        }
        device => Some(device.expect("cuda is required")),
    }
}

#[test]
fn hardware_and_ptx_vm_agree() {
    let Some(gpu) = gpu() else { return };
    let vm = cuda_vm::device().expect("the build has kernels");
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for num_tokens in [1, 7, 33, 130] {
            let spec = Spec { dtype, ..Spec::SMALL };
            let hidden_states = random(100 + num_tokens as u64, num_tokens * spec.hidden_size);
            let (there, here) = (spec.run(&gpu, &hidden_states), spec.run(&vm, &hidden_states));
            let at = format!("{dtype}, {num_tokens} tokens");
            assert_eq!(there.topk_ids, here.topk_ids, "{at}");
            let weights = there.topk_weights.iter().zip(&here.topk_weights);
            assert!(weights.into_iter().all(|(a, b)| (a - b).abs() <= 1e-6), "{at}");
            // The order of sums differs; a bf16 or f16 between the projections may round to the other side.
            let tolerance = if dtype == DType::F32 { 1e-5 } else { 2e-3 };
            let error = relative_error(&there.output, &wide(&here.output));
            assert!(error <= tolerance, "{at}: {error:e}");
        }
    }
}
