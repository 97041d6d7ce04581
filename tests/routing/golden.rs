//! Golden files: weights that other programs, or the papers' formulas in numpy, give for the same logits. Each case of
//! a file is a rule as JSON, its inputs, a dense `[T, E]` matrix of weights, and some figures.
//! `tests/fixtures/routing/generate.py` makes them.

use std::collections::BTreeMap;
use std::path::Path;

use fused_moe::Device;
use fused_moe::routing::{Figures, RouterConfig};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::support::Case;

#[derive(Deserialize)]
struct Golden {
    source: String,
    rules: BTreeMap<String, RouterConfig>,
}

struct Tensors<'a> {
    file: SafeTensors<'a>,
    case: &'a str,
}

impl Tensors<'_> {
    fn get<T: bytemuck::Pod>(&self, name: &str, dtype: Dtype) -> Option<Vec<T>> {
        let view = self.file.tensor(&format!("{}/{name}", self.case)).ok()?;
        assert_eq!(view.dtype(), dtype, "{name}");
        Some(bytemuck::pod_collect_to_vec(view.data()))
    }

    fn f32(&self, name: &str) -> Option<Vec<f32>> {
        self.get(name, Dtype::F32)
    }

    fn u32(&self, name: &str) -> Option<Vec<u32>> {
        self.get(name, Dtype::U32)
    }

    fn figure(&self, name: &str) -> Option<f64> {
        self.get(&format!("figures.{name}"), Dtype::F64).map(|values: Vec<f64>| values[0])
    }
}

/// A committed golden file, and what it says of itself.
fn read(name: &str) -> (Vec<u8>, Golden) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/routing").join(name);
    let bytes = std::fs::read(path.with_extension("safetensors")).expect("a committed file");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
    let golden = serde_json::from_str(&header.metadata().as_ref().expect("metadata")["golden"]);
    (bytes, golden.expect("rules as JSON"))
}

/// The names of a golden file's cases.
pub fn cases(name: &str) -> Vec<String> {
    read(name).1.rules.into_keys().collect()
}

/// Every case of a file on every device; the number of cases and of figures, so that none can vanish.
fn holds(name: &str, cases: usize, figures: usize) {
    let (bytes, golden) = read(name);
    assert_eq!(golden.rules.len(), cases);
    let mut seen = 0;
    for (case, config) in &golden.rules {
        let tensors = Tensors { file: SafeTensors::deserialize(&bytes).expect("a safetensors file"), case };
        for device in [Device::reference(), Device::cpu()] {
            seen += check(&format!("{case} of {} on {device}", golden.source), config, &tensors, &device);
        }
    }
    assert_eq!(seen, 2 * figures);
}

fn check(what: &str, config: &RouterConfig, tensors: &Tensors<'_>, device: &Device) -> usize {
    let logits = tensors.f32("logits").expect(what);
    let expected: Vec<f64> = tensors.get("weights", Dtype::F64).expect(what);
    let shape = tensors.file.tensor(&format!("{}/weights", tensors.case)).expect(what).shape().to_vec();
    let case = Case {
        bias: tensors.f32("bias"),
        tokens_per_sequence: tensors.u32("tokens_per_sequence").map(|n| n[0] as usize),
        noise_logits: tensors.f32("noise_logits"),
        token_ids: tensors.u32("token_ids"),
        hash_table: tensors.u32("hash_table"),
        ..Case::new(config.clone(), logits, shape[1])
    };
    let routed = case.route_on(device).expect(what);
    for (i, (actual, expected)) in routed.dense(shape[1]).into_iter().zip(&expected).enumerate() {
        let close = (f64::from(actual) - expected).abs() <= 2e-6 * expected.abs().max(1.0);
        assert!(
            close && (actual == 0.0) == (*expected == 0.0),
            "{what}: {:?}: {actual} for {expected}",
            (i / shape[1], i % shape[1])
        );
    }
    check_figures(what, &routed.figures, tensors)
}

fn check_figures(what: &str, figures: &Figures, tensors: &Tensors<'_>) -> usize {
    let Figures { importance_cv2, load_cv2, switch_loss, gshard_loss, z_loss, .. } = *figures;
    let Figures { fraction_dropped, entropy, max_over_mean, .. } = *figures;
    let known = [
        ("importance_cv2", importance_cv2),
        ("load_cv2", load_cv2),
        ("switch_loss", switch_loss),
        ("gshard_loss", gshard_loss),
        ("z_loss", z_loss),
        ("fraction_dropped", fraction_dropped),
        ("entropy", entropy),
        ("max_over_mean", max_over_mean),
    ];
    let mut seen = 0;
    for (name, actual) in known {
        if let Some(expected) = tensors.figure(name) {
            assert!(
                (actual - expected).abs() <= 5e-6 * expected.abs().max(1e-2),
                "{what}: {name} {actual} for {expected}"
            );
            seen += 1;
        }
    }
    seen
}

#[test]
fn transformers() {
    holds("transformers", 8, 0);
}

#[test]
fn st_moe_pytorch() {
    holds("st_moe_pytorch", 3, 4);
}

#[test]
fn mixture_of_experts() {
    holds("mixture_of_experts", 2, 0);
}

#[test]
fn soft_moe_pytorch() {
    holds("soft_moe_pytorch", 1, 0);
}

#[test]
fn megatron_core() {
    holds("megatron_core", 10, 2);
}

#[test]
fn fairscale() {
    holds("fairscale", 2, 2);
}

#[test]
fn deepspeed() {
    holds("deepspeed", 4, 4);
}

#[test]
fn formulas() {
    holds("formulas", 26, 23);
}

#[test]
fn systems_without_a_program_have_their_presets_rule() {
    let (_, golden) = read("formulas");
    let presets = [
        ("glam", RouterConfig::glam(1.25)),
        ("brainformer", RouterConfig::brainformer()),
        ("mm1", RouterConfig::mm1()),
    ];
    presets.into_iter().for_each(|(name, preset)| assert_eq!(golden.rules[name], preset));
}

#[test]
fn a_wrong_weight_would_be_noticed() {
    let noticed = std::panic::catch_unwind(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/routing/soft_moe_pytorch.safetensors");
        let bytes = std::fs::read(path).expect("a committed file");
        let tensors = Tensors { file: SafeTensors::deserialize(&bytes).expect("a file"), case: "combine" };
        check("on purpose", &RouterConfig::softmax_top_k(5), &tensors, &Device::cpu());
    });
    assert!(noticed.is_err());
}
