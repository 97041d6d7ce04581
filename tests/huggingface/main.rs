//! The checkpoints of tests/fixtures, each loaded and run, against what transformers computed for them.
//!
//! With the experts' weights in f32 the output has to agree with transformers' own to 1e-5. In bf16 and f16 it has to
//! agree with the oracle on the same rounded weights to 5e-3, and with transformers' as well as rounding allows.

#[cfg(feature = "cuda")]
#[path = "../cuda_vm/mod.rs"]
mod cuda_vm;
mod fixture;
mod oracle;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use fused_moe::checkpoint::{Checkpoint, LoadOptions};
use fused_moe::{DType, Device, Error, MoeLayer, Tensor};

use fixture::Fixture;

/// ‖a − b‖ / ‖b‖.
fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied());
    // A NaN has to fail.
    if error.is_nan() { f64::INFINITY } else { error }
}

/// The layer's output, the experts it chose and their weights.
fn run(layer: &MoeLayer, hidden_states: &[f32]) -> fused_moe::Result<(Vec<f64>, Vec<u32>, Vec<f32>)> {
    let (device, hidden_size) = (layer.device(), layer.config().hidden_size);
    let num_tokens = hidden_states.len() / hidden_size;
    let mut workspace = layer.workspace(num_tokens)?;
    let input = Tensor::from_slice(device, hidden_states, [num_tokens, hidden_size])?;
    let mut output = Tensor::zeros(device, DType::F32, [num_tokens, hidden_size])?;
    layer.forward(input.view(), output.view_mut()?, &mut workspace)?;
    let routing = workspace.routing(num_tokens)?;
    let output = output.to_vec::<f32>()?.into_iter().map(f64::from).collect();
    Ok((output, routing.topk_ids.to_vec(device)?, routing.topk_weights.to_vec(device)?))
}

/// The CUDA backend on an emulated device, where the build has kernels.
#[cfg(feature = "cuda")]
fn emulated() -> Option<Device> {
    cuda_vm::device().map_err(|reason| println!("skipped: ptx-vm: {reason}")).ok()
}

#[cfg(not(feature = "cuda"))]
fn emulated() -> Option<Device> {
    None
}

/// The oracle's device, an emulated one, and those of the backends that are there; `FUSED_MOE_REQUIRE=cpu,...` names some
/// that must be. Opened once: a GPU's pipelines are made per device.
static DEVICES: LazyLock<Vec<Device>> = LazyLock::new(|| {
    let required = std::env::var("FUSED_MOE_REQUIRE").unwrap_or_default();
    let present = Device::all().into_iter().filter_map(|device| match device {
        Ok(device) => Some(device),
        Err(Error::Unavailable { backend, reason }) => {
            assert!(!required.split(',').any(|name| name == backend), "{backend} is required: {reason}");
            println!("skipped: {backend}: {reason}");
            None
        }
        Err(other) => panic!("{other}"),
    });
    let emulated = emulated();
    assert!(emulated.is_some() || !required.split(',').any(|name| name == "ptx-vm"), "ptx-vm is required");
    std::iter::once(Device::reference()).chain(present).chain(emulated).collect()
});

fn check(name: &str) {
    let fixture = Fixture::read(name);
    let checkpoint = Checkpoint::open(fixture.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
    for device in DEVICES.iter() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let at = format!("{name} on {}, experts in {dtype}", device.name());
            let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
            let layer = checkpoint.load(device, fixture.layer, options).unwrap_or_else(|e| panic!("{at}: {e}"));
            let (output, ids, weights) = run(&layer, &fixture.hidden_states).unwrap_or_else(|e| panic!("{at}: {e}"));
            assert_eq!(ids, fixture.topk_ids, "{at}: topk_ids");
            for (slot, (ours, theirs)) in weights.iter().zip(&fixture.topk_weights).enumerate() {
                let theirs = theirs * fixture.weight_scale(&layer);
                assert!(
                    (ours - theirs).abs() <= 1e-5 * theirs.abs().max(1.0),
                    "{at}: weight {slot}: {ours}, not {theirs}"
                );
            }
            let error = relative_error(&output, &fixture.output);
            if dtype == DType::F32 {
                assert!(error <= 1e-5, "{at}: error {error:.1e} against transformers");
                continue;
            }
            let exact = relative_error(&output, &oracle::run(&layer, &fixture.hidden_states));
            assert!(exact <= 5e-3, "{at}: error {exact:.1e} against the oracle on the same weights");
            assert!(error <= 2e-2, "{at}: error {error:.1e} against transformers");
        }
    }
}

/// A test for each fixture; `_` stands for `-`.
macro_rules! fixtures {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { check(stringify!($name)); })*
    };
}

fixtures! {
    afmoe aria_text cohere2_moe cohere2_moe_sigmoid dbrx deepseek deepseek_v2 deepseek_v2_group deepseek_v3
    deepseek_v3_bf16 deepseek_v3_fp8 dots1 ernie4_5_moe ernie4_5_moe_noshared exaone_moe flex_olmo glm4_moe gpt_oss
    gpt_oss_bf16 gpt_oss_mxfp4 granitemoe granitemoeshared hunyuan_v1_moe jamba kimi_linear laguna lfm2_moe
    lfm2_moe_nobias llama4 llama4_text llama_moe longcat_flash mimo_v2_flash minimax minimax_m2 mistral4 mixtral
    mixtral_bf16 nemotron_h nemotron_h_latent nllb_moe nllb_moe_decoder olmoe olmoe_f16 phimoe qwen2_moe qwen3_moe
    qwen3_moe_bf16 qwen3_moe_fused qwen3_next solar_open switch_transformers switch_transformers_decoder
}

#[test]
fn every_fixture_has_a_test() {
    let tested: BTreeSet<_> = NAMES.iter().map(|name| name.to_string()).collect();
    assert_eq!(tested, fixture::names());
}

#[test]
fn every_architecture_has_a_fixture() {
    let fixtures = fixture::names();
    for architecture in fused_moe::checkpoint::architectures() {
        assert!(fixtures.contains(&architecture.replace('-', "_")), "{architecture}");
    }
}

#[test]
fn layers_with_experts_are_found() {
    for name in NAMES {
        let fixture = Fixture::read(name);
        let checkpoint = Checkpoint::open(fixture.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let layers = checkpoint.layers_with_experts().unwrap();
        assert!(layers.contains(&fixture.layer), "{name}: {layers:?}");
        for layer in layers {
            let loaded = checkpoint.load(&Device::cpu(), layer, LoadOptions::default());
            assert!(loaded.is_ok(), "{name}: layer {layer}: {}", loaded.unwrap_err());
        }
    }
}

/// Quantised weights, value for value.
#[test]
fn dequantised_weights_are_the_librarys() {
    for name in ["deepseek_v3_fp8", "gpt_oss_mxfp4"] {
        let fixture = Fixture::read(name);
        let checkpoint = Checkpoint::open(fixture.path()).unwrap();
        let device = Device::cpu();
        let weights = checkpoint.weights(&device, fixture.layer, LoadOptions::default()).unwrap();
        let (gate_up, down) = fixture.dequantised_experts();
        let bits = |tensor: &Tensor| -> Vec<u16> {
            tensor.to_vec::<half::bf16>().unwrap().into_iter().map(half::bf16::to_bits).collect()
        };
        assert_eq!(bits(&weights.experts.gate_up_proj), gate_up, "{name}: gate_up_proj");
        assert_eq!(bits(&weights.experts.down_proj), down, "{name}: down_proj");
    }
}
