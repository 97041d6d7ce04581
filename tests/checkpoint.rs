//! Checkpoints that are not what they should be, and what is said about each; and the ways to lie on disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use fused_moe::checkpoint::{Checkpoint, CheckpointError, LayerId, LayerStack, LoadOptions, Progress};
use fused_moe::config::MoeConfig;
use fused_moe::{DType, Device, Error, MoeLayer};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A checkpoint of one layer, to be damaged and written.
struct Files {
    config: Value,
    tensors: Tensors,
}

const BLOCK: &str = "model.layers.0.block_sparse_moe.";
/// H, I, E.
const SIZES: [usize; 3] = [8, 4, 3];

fn floats(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| ((i % 13) as f32 - 6.0).to_le_bytes()).collect()
}

impl Files {
    fn mixtral() -> Self {
        let [h, i, e] = SIZES;
        let config = json!({
            "model_type": "mixtral", "hidden_size": h, "intermediate_size": i, "num_local_experts": e,
            "num_experts_per_tok": 2, "num_hidden_layers": 1,
        });
        let mut files = Self { config, tensors: Tensors::new() };
        files.put(format!("{BLOCK}gate.weight"), &[e, h]);
        for expert in 0..e {
            files.put(format!("{BLOCK}experts.{expert}.w1.weight"), &[i, h]);
            files.put(format!("{BLOCK}experts.{expert}.w3.weight"), &[i, h]);
            files.put(format!("{BLOCK}experts.{expert}.w2.weight"), &[h, i]);
        }
        files
    }

    fn put(&mut self, name: String, shape: &[usize]) {
        self.tensors.insert(name, (Dtype::F32, shape.to_vec(), floats(shape.iter().product())));
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    fn write(&self) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.json"), self.config.to_string()).unwrap();
        save(&directory.path().join("model.safetensors"), &self.tensors);
        directory
    }

    /// The tensors spread over two files, and the index.
    fn write_shards(&self) -> TempDir {
        let directory = self.write();
        fs::remove_file(directory.path().join("model.safetensors")).unwrap();
        let mut shards = [Tensors::new(), Tensors::new()];
        let mut weight_map = BTreeMap::new();
        for (i, (name, tensor)) in self.tensors.iter().enumerate() {
            shards[i % 2].insert(name.clone(), tensor.clone());
            weight_map.insert(name.clone(), format!("shard-{}.safetensors", i % 2));
        }
        for (i, shard) in shards.iter().enumerate() {
            save(&directory.path().join(format!("shard-{i}.safetensors")), shard);
        }
        let index = json!({ "metadata": { "total_size": 1 }, "weight_map": weight_map });
        fs::write(directory.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        directory
    }
}

fn save(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn load(path: impl AsRef<Path>) -> Result<MoeLayer, Error> {
    let checkpoint = Checkpoint::open(path)?;
    checkpoint.load(&Device::cpu(), checkpoint.first_layer_with_experts()?, LoadOptions::default())
}

/// The error, with its text, which is one line that names the file.
fn error(result: Result<impl Sized, Error>) -> (CheckpointError, String) {
    match result.err().expect("an error") {
        Error::Checkpoint(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "{text}");
            (error, text)
        }
        other => panic!("not an error of the checkpoint: {other}"),
    }
}

/// That loading fails with an error of this kind, whose text has these words.
macro_rules! assert_fails {
    ($result:expr, $kind:ident, $($word:expr),*) => {
        let (error, text) = error($result);
        assert!(matches!(error, CheckpointError::$kind { .. }), "{error:?}");
        $(assert!(text.contains($word), "no {:?} in {text:?}", $word);)*
    };
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn whole_checkpoints_load() {
    let files = Files::mixtral();
    for directory in [files.write(), files.write_shards()] {
        let layer = load(directory.path()).unwrap();
        let [h, i, e] = SIZES;
        let &MoeConfig { hidden_size, intermediate_size, num_experts, .. } = layer.config();
        assert_eq!([hidden_size, intermediate_size, num_experts], [h, i, e]);
        let gate_up = layer.weights().experts.gate_up_proj.to_vec::<f32>().unwrap();
        assert_eq!(bytemuck::cast_slice::<f32, u8>(&gate_up[..i * h]), floats(i * h), "expert 0's gate");
    }
}

#[test]
fn no_directory_and_no_weights() {
    assert_fails!(Checkpoint::open("/no/such/directory"), Io, "config.json");
    let directory = Files::mixtral().write();
    fs::remove_file(directory.path().join("model.safetensors")).unwrap();
    assert_fails!(load(directory.path()), NoWeights, "model.safetensors.index.json");
}

#[test]
fn malformed_config() {
    let directory = Files::mixtral().write();
    for text in ["", "{", "[]", "{\"model_type\": \"mixtral\"", "\u{1}", "{\"a\": Infinit}"] {
        fs::write(directory.path().join("config.json"), text).unwrap();
        assert_fails!(load(directory.path()), Malformed, "config.json");
    }
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    fs::write(directory.path().join("config.json"), deep).unwrap();
    assert_fails!(load(directory.path()), Malformed, "config.json");
}

#[test]
fn numbers_of_python_are_read() {
    let directory = Files::mixtral().set("note", json!("NaN \\\" Infinity")).write();
    let text = fs::read_to_string(directory.path().join("config.json")).unwrap();
    let text = text.replacen('{', "{\"limits\": [-Infinity, Infinity, NaN], ", 1);
    fs::write(directory.path().join("config.json"), text).unwrap();
    load(directory.path()).unwrap();
}

#[test]
fn unknown_architecture() {
    let directory = Files::mixtral().set("model_type", json!("bert\n")).write();
    assert_fails!(load(directory.path()), UnknownArchitecture, "bert", "mixtral", "nllb-moe");
    let nested = Files::mixtral().set("text_config", json!({ "model_type": "mistral" })).write();
    assert_fails!(load(nested.path()), UnknownArchitecture, "\"mistral\"");
}

#[test]
fn config_values() {
    for (key, value) in [
        ("model_type", json!(7)),
        ("hidden_size", json!("eight")),
        ("hidden_size", json!(-8)),
        ("hidden_size", json!(8.5)),
        ("hidden_size", json!(1u64 << 60)),
        ("num_hidden_layers", json!(1u64 << 23)),
        ("num_experts_per_tok", json!([2])),
        ("hidden_act", json!("mish")),
        ("per_layer_config", json!({ "0": {} })),
        ("quantization_config", json!({ "quant_method": "gptq" })),
        ("quantization_config", json!({ "quant_method": "fp8", "fmt": "e5m2" })),
        ("quantization_config", json!({ "quant_method": "fp8", "weight_block_size": [0, 128] })),
    ] {
        let directory = Files::mixtral().set(key, value.clone()).write();
        assert_fails!(load(directory.path()), ConfigValue, "config.json", key, "expected");
    }
    let mut files = Files::mixtral();
    files.config.as_object_mut().unwrap().remove("model_type");
    assert_fails!(load(files.write().path()), ConfigValue, "model_type", "nothing");
    // Sizes that do not fit each other.
    let files = Files::mixtral().set("num_experts_per_tok", json!(4));
    assert!(matches!(load(files.write().path()), Err(Error::InvalidArgument { .. })));
    let files = Files::mixtral().set("hidden_size", json!(0));
    assert!(matches!(load(files.write().path()), Err(Error::InvalidArgument { .. })));
}

#[test]
fn flags_that_would_change_the_block_are_refused() {
    for (name, key, value) in [
        ("deepseek_v3", "scoring_func", json!("softmax")),
        ("deepseek_v3", "topk_method", json!("greedy")),
        ("deepseek_v3", "moe_layer_freq", json!(2)),
        ("deepseek_v2", "topk_method", json!("noaux_tc")),
        ("cohere2_moe", "expert_selection_fn", json!("top1")),
        ("cohere2_moe", "shared_expert_combination_strategy", json!("max")),
        ("laguna", "moe_apply_router_weight_on_input", json!(true)),
        ("nllb_moe", "second_expert_policy", json!("sampling")),
        ("nllb_moe", "router_dtype", json!("bfloat16")),
        ("llama_moe", "gate_type", json!("SwitchBalancedGate")),
        ("llama_moe", "gate_network", json!("conv")),
        ("llama_moe", "size_experts", json!([[12, 13], [12, 13]])),
        ("minimax_m2", "shared_intermediate_size", json!(16)),
        ("mimo_v2_flash", "n_shared_experts", json!(1)),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let text = fs::read(fixture(name).join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        config[key] = value;
        fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        fs::copy(fixture(name).join("model.safetensors"), directory.path().join("model.safetensors")).unwrap();
        assert_fails!(load(directory.path()), ConfigValue, key);
    }
}

#[test]
fn layers_without_experts() {
    let open = |name: &str| Checkpoint::open(fixture(name)).unwrap();
    let load = |name: &str, layer| open(name).load(&Device::cpu(), layer, LoadOptions::default());
    assert_fails!(load("deepseek_v3", LayerId::from(0)), NoExperts, "layer 0", "(1)");
    assert_fails!(load("deepseek_v3", LayerId::from(usize::MAX)), NoExperts, "(1)");
    assert_fails!(load("deepseek_v3", LayerId::new(LayerStack::Encoder, 1)), NoExperts, "encoder.1", "(1)");
    assert_fails!(load("switch_transformers", LayerId::from(1)), NoExperts, "encoder.1, decoder.1");
    let dense = Files::mixtral().set("num_hidden_layers", json!(0)).write();
    assert_fails!(self::load(dense.path()), NoExperts, "none");
}

#[test]
fn layer_names() {
    for (text, stack, index) in
        [("3", LayerStack::Only, 3), ("encoder.0", LayerStack::Encoder, 0), ("decoder.11", LayerStack::Decoder, 11)]
    {
        assert_eq!(text.parse::<LayerId>().unwrap(), LayerId::new(stack, index));
        assert_eq!(LayerId::new(stack, index).to_string(), text);
    }
    for text in ["", "-1", "encoder", "encoder.", "layer.3", "3.1", "99999999999999999999"] {
        assert!(matches!(text.parse::<LayerId>(), Err(Error::InvalidArgument { .. })), "{text}");
    }
}

#[test]
fn missing_tensors() {
    for name in ["gate.weight", "experts.0.w3.weight", "experts.2.w2.weight"] {
        let mut files = Files::mixtral();
        files.tensors.remove(&format!("{BLOCK}{name}")).unwrap();
        assert_fails!(load(files.write().path()), MissingTensor, "model.safetensors", name);
        assert_fails!(load(files.write_shards().path()), MissingTensor, "index.json", name);
    }
    // More experts than there are, however many: the first missing one is named.
    let files = Files::mixtral().set("num_local_experts", json!(1 << 24));
    assert_fails!(load(files.write().path()), WrongTensor, "gate.weight", "[16777216, 8]", "[3, 8]");
}

#[test]
fn wrong_tensors() {
    for (name, shape) in [
        ("gate.weight", vec![3, 9]),
        ("experts.1.w1.weight", vec![8, 4]),
        ("experts.1.w2.weight", vec![8, 4, 1]),
        ("experts.0.w3.weight", vec![]),
    ] {
        let mut files = Files::mixtral();
        files.put(format!("{BLOCK}{name}"), &shape);
        assert_fails!(load(files.write().path()), WrongTensor, name, "expected shape", &format!("{shape:?}"));
    }
    let mut files = Files::mixtral();
    files.tensors.insert(format!("{BLOCK}experts.1.w1.weight"), (Dtype::I32, vec![4, 8], floats(32)));
    assert_fails!(load(files.write().path()), WrongTensor, "experts.1.w1.weight", "f32", "I32");
    // 8-bit weights in a checkpoint that does not say how they are scaled.
    files.tensors.insert(format!("{BLOCK}experts.1.w1.weight"), (Dtype::F8_E4M3, vec![4, 8], vec![0; 32]));
    assert_fails!(load(files.write().path()), WrongTensor, "experts.1.w1.weight", "F8_E4M3");
    let files = files.set("quantization_config", json!({ "quant_method": "fp8" }));
    assert_fails!(load(files.write().path()), MissingTensor, "experts.1.w1.weight_scale_inv");
}

#[test]
fn truncated_and_damaged_files() {
    let directory = Files::mixtral().write();
    let path = directory.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert_fails!(load(directory.path()), Malformed, "model.safetensors", "bytes");
    }
    fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
    assert_fails!(load(directory.path()), Malformed, "bytes of tensors");
    let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    for text in [
        "not JSON",
        "{}\n{}",
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 4]}}"#,
        r#"{"a\nb": {"dtype": "U8", "shape": [18446744073709551615], "data_offsets": [0, 18446744073709551615]}}"#,
        r#"{"a": {"dtype": "U8", "shape": [1152921504606846976], "data_offsets": [0, 1152921504606846976]}}"#,
    ] {
        fs::write(&path, header(text)).unwrap();
        assert_fails!(load(directory.path()), Malformed, "model.safetensors");
    }
    fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert_fails!(load(directory.path()), Malformed, "18446744073709551615");
}

#[test]
fn indices_of_shards() {
    let directory = Files::mixtral().write_shards();
    let index = directory.path().join("model.safetensors.index.json");
    fs::remove_file(directory.path().join("shard-1.safetensors")).unwrap();
    assert_fails!(load(directory.path()), MissingShard, "index.json", "shard-1.safetensors", "block_sparse_moe");
    for text in ["", "{}", "{\"weight_map\": []}", "{\"weight_map\": {\"a\": 1}}"] {
        fs::write(&index, text).unwrap();
        assert_fails!(load(directory.path()), Malformed, "index.json");
    }
    // A shard outside the directory is none, even if the file is there.
    let outside = Files::mixtral().write();
    let shard = outside.path().join("model.safetensors");
    for shard in [shard.to_str().unwrap(), "../model.safetensors", "..", "", "a/../b"] {
        let map = json!({ "weight_map": { format!("{BLOCK}gate.weight"): shard } });
        fs::write(&index, map.to_string()).unwrap();
        assert_fails!(load(directory.path()), MissingShard, "gate.weight");
    }
}

#[test]
fn prefixes_and_nesting() {
    let inner = Files::mixtral();
    for prefix in ["", "language_model.model.", "model.language_model.", "language_model."] {
        let tensors = inner.tensors.iter();
        let renamed = tensors.map(|(name, tensor)| (name.replacen("model.", prefix, 1), tensor.clone())).collect();
        let files = Files { config: inner.config.clone(), tensors: renamed };
        load(files.write().path()).unwrap_or_else(|e| panic!("{prefix}: {e}"));
        let config = json!({ "model_type": "llava", "text_config": inner.config });
        let nested = Files { config, ..files };
        load(nested.write().path()).unwrap_or_else(|e| panic!("nested, {prefix}: {e}"));
    }
}

/// A wrapper tells what is inside it where that has no name, or one of its own.
#[test]
fn wrappers_tell_what_is_inside() {
    let text = fs::read(fixture("llama4").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    let directory = tempfile::tempdir().unwrap();
    fs::copy(fixture("llama4").join("model.safetensors"), directory.path().join("model.safetensors")).unwrap();
    for inner in [Value::Null, json!("llama4_of_old")] {
        config["text_config"]["model_type"] = inner;
        fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        load(directory.path()).unwrap();
    }
}

#[test]
fn fused_tensors_are_not_copied() {
    let path = fixture("qwen3_moe-fused");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let layer = checkpoint.first_layer_with_experts().unwrap();
    let shared = |dtype| {
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        let weights = checkpoint.weights(&Device::cpu(), layer, options).unwrap();
        format!("{:?}", weights.experts.gate_up_proj).contains("Shared")
    };
    assert!(shared(None) && shared(Some(DType::F32)));
    assert!(!shared(Some(DType::BF16)));
}

/// The library holds matrices for zero experts too, which nothing uses.
#[test]
fn matrices_of_zero_experts_are_left_out() {
    let block = "model.layers.0.mlp.";
    let config = json!({
        "model_type": "longcat_flash", "hidden_size": 4, "expert_ffn_hidden_size": 2, "n_routed_experts": 3,
        "zero_expert_num": 2, "moe_topk": 2, "num_layers": 1,
    });
    let mut files = Files { config, tensors: Tensors::new() };
    files.put(format!("{block}router.classifier.weight"), &[5, 4]);
    files.put(format!("{block}router.e_score_correction_bias"), &[5]);
    files.put(format!("{block}experts.down_proj"), &[3, 4, 2]);
    for experts in [3, 5] {
        files.put(format!("{block}experts.gate_up_proj"), &[experts, 4, 4]);
        let layer = load(files.write().path()).unwrap();
        let gate_up = layer.weights().experts.gate_up_proj.to_vec::<f32>().unwrap();
        assert_eq!(bytemuck::cast_slice::<f32, u8>(&gate_up), floats(3 * 4 * 4), "{experts} experts on disk");
    }
    files.put(format!("{block}experts.gate_up_proj"), &[4, 4, 4]);
    assert_fails!(load(files.write().path()), WrongTensor, "experts.gate_up_proj", "[3, 4, 4]", "[4, 4, 4]");
}

#[test]
fn the_asked_type_is_that_of_experts_alone() {
    let directory = Files::mixtral().write();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
        let weights = checkpoint.weights(&Device::cpu(), LayerId::from(0), options).unwrap();
        assert_eq!(weights.experts.gate_up_proj.dtype(), dtype);
        assert_eq!(weights.experts.down_proj.dtype(), dtype);
        assert_eq!(weights.router.unwrap().weight.dtype(), DType::F32);
    }
    let options = LoadOptions { dtype: Some(DType::U32), ..LoadOptions::default() };
    let refused = checkpoint.weights(&Device::cpu(), LayerId::from(0), options);
    assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
}

#[test]
fn progress_reaches_its_total() {
    let directory = Files::mixtral().write();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let seen = Mutex::new(Vec::<Progress>::new());
    let progress = |progress| seen.lock().unwrap().push(progress);
    let options = LoadOptions { progress: Some(&progress), ..LoadOptions::default() };
    checkpoint.load(&Device::cpu(), LayerId::from(0), options).unwrap();
    let seen = seen.into_inner().unwrap();
    let [h, i, e] = SIZES;
    let total = (e * h + 3 * e * h * i) as u64;
    assert!(seen.iter().all(|p| p.total == total && p.done <= total));
    assert_eq!(seen.iter().map(|p| p.done).max(), Some(total));
}
