//! Whole models from checkpoints that transformers wrote, against transformers' own answers.

#[path = "../examples/generate/attention.rs"]
mod attention;
#[allow(dead_code, reason = "a part of it is used here")]
mod common;
#[path = "../examples/generate/config.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod config;
#[path = "../examples/generate/model.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod model;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::distance;
use model::Model;

const TOLERANCE: f64 = 1e-4;

/// What transformers says: tests/checkpoints/generate.py.
struct Expected {
    prompt: Vec<u32>,
    prompt_logits: Tensor,
    greedy: Vec<u32>,
    greedy_logits: Tensor,
}

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(name)
}

fn load(name: &str) -> (Model, Expected) {
    let model = Model::load(&directory(name), None, &|_, _| {}).unwrap();
    let tensors = candle_core::safetensors::load(directory(name).join("expected.safetensors"), &Device::Cpu).unwrap();
    let ids = |key: &str| tensors[key].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
    let expected = Expected {
        prompt: ids("prompt"),
        prompt_logits: tensors["prompt_logits"].clone(),
        greedy: ids("greedy"),
        greedy_logits: tensors["greedy_logits"].clone(),
    };
    assert_eq!((expected.prompt.len(), expected.greedy.len()), (16, 32));
    (model, expected)
}

fn logits_of_the_prompt(name: &str, tokens_per_call: usize) {
    let (mut model, expected) = load(name);
    let parts: Vec<_> = expected
        .prompt
        .chunks(tokens_per_call)
        .map(|tokens| {
            let hidden_states = model.forward(tokens).unwrap();
            model.logits(&hidden_states).unwrap()
        })
        .collect();
    let distance = distance(&Tensor::cat(&parts, 0).unwrap(), &expected.prompt_logits);
    assert!(distance <= TOLERANCE, "{name}, {tokens_per_call} tokens a call: {distance:e}");
}

fn greedy_tokens(name: &str, tokens_per_call: usize) {
    let (mut model, expected) = load(name);
    let mut calls = expected.prompt.chunks(tokens_per_call).map(<[u32]>::to_vec);
    let mut tokens = calls.next_back().unwrap();
    for earlier in calls {
        model.forward(&earlier).unwrap();
    }
    let mut generated = Vec::new();
    for step in 0..expected.greedy.len() {
        let (token, logits) = model.next_token(&tokens).unwrap();
        let distance = distance(&logits, &expected.greedy_logits.get(step).unwrap());
        assert!(distance <= TOLERANCE, "{name}, token {step}: {distance:e}");
        generated.push(token);
        tokens = vec![token];
    }
    assert_eq!(generated, expected.greedy, "{name}");
}

#[test]
fn qwen3_moe_logits() {
    for tokens_per_call in [16, 5, 1] {
        logits_of_the_prompt("qwen3_moe", tokens_per_call);
    }
}

#[test]
fn mixtral_logits() {
    for tokens_per_call in [16, 5, 1] {
        logits_of_the_prompt("mixtral", tokens_per_call);
    }
}

#[test]
fn qwen3_moe_greedy_tokens() {
    for tokens_per_call in [16, 1] {
        greedy_tokens("qwen3_moe", tokens_per_call);
    }
}

#[test]
fn mixtral_greedy_tokens() {
    for tokens_per_call in [16, 1] {
        greedy_tokens("mixtral", tokens_per_call);
    }
}

#[test]
fn half_precision_stays_near() {
    for (dtype, tolerance) in [(DType::BF16, 0.1), (DType::F16, 0.02)] {
        let (_, expected) = load("mixtral");
        let mut model = Model::load(&directory("mixtral"), Some(dtype), &|_, _| {}).unwrap();
        let hidden_states = model.forward(&expected.prompt).unwrap();
        let distance = distance(&model.logits(&hidden_states).unwrap(), &expected.prompt_logits);
        assert!(distance <= tolerance, "{dtype:?}: {distance:e}");
    }
}

#[test]
fn every_other_architecture_is_refused_by_name() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let error = Model::load(&fixtures.join("olmoe-f16"), None, &|_, _| {}).err().unwrap().to_string();
    assert!(error.contains("not olmoe"), "{error}");
}
