//! Any bytes as `model.safetensors`, or as the index of shards, beside a `config.json` that is whole: no panic, no
//! overflow, no boundless memory.
//!
//! The first byte says whose `config.json` lies beside it, and its highest bit that the rest is an index.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use fused_moe::checkpoint::{Checkpoint, LoadOptions};
use fused_moe::{DType, Device};
use libfuzzer_sys::fuzz_target;

/// As small as the layouts allow, so that a whole file is short.
const CONFIGS: &[&str] = &[
    r#"{"model_type": "mixtral", "hidden_size": 2, "intermediate_size": 1, "num_local_experts": 2,
        "num_experts_per_tok": 1, "num_hidden_layers": 1}"#,
    r#"{"model_type": "gpt_oss", "hidden_size": 32, "intermediate_size": 32, "num_local_experts": 1,
        "num_experts_per_tok": 1, "num_hidden_layers": 1, "quantization_config": {"quant_method": "mxfp4"}}"#,
    r#"{"model_type": "deepseek_v3", "hidden_size": 3, "moe_intermediate_size": 2, "n_routed_experts": 1,
        "num_experts_per_tok": 1, "num_hidden_layers": 1, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]}}"#,
    r#"{"model_type": "dbrx", "d_model": 2, "n_layers": 1,
        "ffn_config": {"ffn_hidden_size": 1, "moe_num_experts": 2, "moe_top_k": 1}}"#,
    r#"{"model_type": "qwen3_moe", "hidden_size": 2, "moe_intermediate_size": 1, "num_experts": 2,
        "num_experts_per_tok": 1, "num_hidden_layers": 1}"#,
];

/// A directory for each configuration, with nothing else in it.
fn directories() -> &'static Vec<PathBuf> {
    static DIRECTORIES: OnceLock<Vec<PathBuf>> = OnceLock::new();
    DIRECTORIES.get_or_init(|| {
        let root = tempfile::tempdir().expect("a temporary directory").keep();
        let directory = |(i, config): (usize, &&str)| {
            let directory = root.join(i.to_string());
            fs::create_dir(&directory).expect("a new directory");
            fs::write(directory.join("config.json"), config).expect("writing config.json");
            directory
        };
        CONFIGS.iter().enumerate().map(directory).collect()
    })
}

fuzz_target!(|input: &[u8]| {
    let Some((&which, file)) = input.split_first() else { return };
    let directories = directories();
    let directory = &directories[usize::from(which & 127) % directories.len()];
    let (single, index) = (directory.join("model.safetensors"), directory.join("model.safetensors.index.json"));
    let _ = fs::remove_file(&single);
    let _ = fs::remove_file(&index);
    fs::write(if which & 128 == 0 { single } else { index }, file).expect("writing the file");
    let Ok(checkpoint) = Checkpoint::open(directory) else { return };
    let Ok(layer) = checkpoint.first_layer_with_experts() else { return };
    for dtype in [None, Some(DType::F16)] {
        let _ = checkpoint.load(&Device::cpu(), layer, LoadOptions { dtype, ..LoadOptions::default() });
    }
});
