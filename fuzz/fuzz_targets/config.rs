//! Any bytes as `config.json`, beside a file of weights that is whole: no panic, no overflow, no boundless memory.
//!
//! The first byte says which architecture's weights lie beside it.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fused_moe::Device;
use fused_moe::checkpoint::{Checkpoint, LoadOptions};
use libfuzzer_sys::fuzz_target;

const NAMES: &[&str] = &[
    "mixtral",
    "deepseek_v3",
    "gpt_oss",
    "gpt_oss-mxfp4",
    "deepseek_v3-fp8",
    "dbrx",
    "nemotron_h-latent",
    "llama4",
    "switch_transformers",
    "nllb_moe",
    "llama_moe",
    "ernie4_5_moe",
];

/// A directory for each architecture, with its weights in it.
fn directories() -> &'static Vec<PathBuf> {
    static DIRECTORIES: OnceLock<Vec<PathBuf>> = OnceLock::new();
    DIRECTORIES.get_or_init(|| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let root = tempfile::tempdir().expect("a temporary directory").keep();
        let directory = |name: &&str| {
            let directory = root.join(name);
            fs::create_dir(&directory).expect("a new directory");
            fs::copy(fixtures.join(name).join("model.safetensors"), directory.join("model.safetensors"))
                .expect("a copy");
            directory
        };
        NAMES.iter().map(directory).collect()
    })
}

fuzz_target!(|input: &[u8]| {
    let Some((&which, text)) = input.split_first() else { return };
    let directories = directories();
    let directory = &directories[usize::from(which) % directories.len()];
    fs::write(directory.join("config.json"), text).expect("writing config.json");
    let Ok(checkpoint) = Checkpoint::open(directory) else { return };
    let Ok(layers) = checkpoint.layers_with_experts() else { return };
    for layer in layers.into_iter().take(3) {
        let _ = checkpoint.load(&Device::cpu(), layer, LoadOptions::default());
    }
});
