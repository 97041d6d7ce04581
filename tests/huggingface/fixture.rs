//! A folder of tests/fixtures: a checkpoint and what transformers' block answers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fused_moe::MoeLayer;
use fused_moe::checkpoint::LayerId;
use safetensors::SafeTensors;

pub struct Fixture {
    path: PathBuf,
    pub layer: LayerId,
    pub hidden_states: Vec<f32>,
    pub output: Vec<f64>,
    pub topk_ids: Vec<u32>,
    pub topk_weights: Vec<f32>,
}

fn folder() -> PathBuf {
    // A bundle for another machine brings its own copy.
    let elsewhere = std::env::var_os("FUSED_MOE_FIXTURES").map(PathBuf::from);
    elsewhere.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"))
}

/// The fixtures there are, `_` for `-`.
pub fn names() -> BTreeSet<String> {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
    let checkpoints = entries.filter(|entry| entry.path().join("config.json").is_file());
    checkpoints.map(|entry| entry.file_name().into_string().unwrap().replace('-', "_")).collect()
}

impl Fixture {
    /// By its name with `_` for `-`.
    pub fn read(name: &str) -> Self {
        let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
        let mut named = entries.filter(|entry| entry.file_name().to_str().unwrap().replace('-', "_") == name);
        let path = named.next().unwrap_or_else(|| panic!("no fixture {name}")).path();
        let bytes = fs::read(path.join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> { numbers(&tensors, name, f32::from_le_bytes) };
        Self {
            path,
            layer: metadata.metadata().as_ref().unwrap()["layer"].parse().unwrap(),
            hidden_states: floats("hidden_states"),
            output: floats("output").into_iter().map(f64::from).collect(),
            // −1, a dropped slot, is the id of no expert here too.
            topk_ids: numbers(&tensors, "topk_ids", i64::from_le_bytes).into_iter().map(|id| id as u32).collect(),
            topk_weights: floats("topk_weights"),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a loaded layer multiplies weights by that the fixture's do not hold: half, where the routed experts' sum is
    /// averaged with the shared experts'.
    pub fn weight_scale(&self, layer: &MoeLayer) -> f32 {
        layer.config().shared.as_ref().map_or(1.0, |shared| shared.output_scale)
    }

    /// The bits of `gate_up_proj` and `down_proj` as the library decodes them, in the layout in which they are loaded.
    pub fn dequantised_experts(&self) -> (Vec<u16>, Vec<u16>) {
        let bytes = fs::read(self.path.join("dequantised.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let find = |end: &str| tensors.names().into_iter().find(|name| name.ends_with(end)).map(str::to_owned);
        let read = |name: &str| numbers(&tensors, name, u16::from_le_bytes);
        if let (Some(gate_up), Some(down)) = (find("experts.gate_up_proj"), find("experts.down_proj")) {
            // The library turns [E, N, K] into [E, K, N] as it decodes.
            let transposed = |name: &str| {
                let &[_, k, n] = tensors.tensor(name).unwrap().shape() else { panic!("{name}: not a stack") };
                let stack = read(name);
                let experts = stack.chunks_exact(k * n);
                experts.flat_map(|expert| (0..k * n).map(|i| expert[i % k * n + i / k])).collect::<Vec<_>>()
            };
            return (transposed(&gate_up), transposed(&down));
        }
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in 0.. {
            let projection = |name: &str| find(&format!(".experts.{expert}.{name}_proj.weight"));
            let Some(gate) = projection("gate") else { break };
            gate_up.extend(read(&gate));
            gate_up.extend(read(&projection("up").unwrap()));
            down.extend(read(&projection("down").unwrap()));
        }
        (gate_up, down)
    }
}

fn numbers<const N: usize, T>(tensors: &SafeTensors<'_>, name: &str, from: fn([u8; N]) -> T) -> Vec<T> {
    let tensor = tensors.tensor(name).unwrap();
    tensor.data().as_chunks::<N>().0.iter().map(|&bytes| from(bytes)).collect()
}
