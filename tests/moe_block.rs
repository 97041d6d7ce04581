//! The example from the outside: exit status, one-line errors, files in and out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::SafeTensors;

/// A scratch directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fused-moe-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A copy of a fixture, to be spoiled.
    fn copy_of(name: &str, fixture: &str) -> Self {
        let scratch = Self::new(name);
        for entry in fs::read_dir(fixture_dir(fixture)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, scratch.0.join(path.file_name().unwrap())).unwrap();
        }
        scratch
    }

    fn edit_config(&self, edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
        let path = self.0.join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut config);
        fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn fixture_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// `cargo test` builds the examples beside the tests.
fn moe_block(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let tests = std::env::current_exe().unwrap();
    let example = tests.parent().unwrap().with_file_name("examples").join("moe_block");
    Command::new(&example)
        .args(arguments.iter().map(AsRef::as_ref))
        // A machine with a GPU is then as one without.
        .env("CUDA_VISIBLE_DEVICES", "")
        // Where it is not set, Mesa's Vulkan drivers complain on stderr.
        .env("XDG_RUNTIME_DIR", std::env::temp_dir())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error} (cargo build --examples makes it)", example.display()))
}

/// Exit status 2, nothing on stdout, and one line that says all of `words`.
fn assert_refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty());
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("skipped:")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    for word in words {
        assert!(lines[0].contains(word), "no {word:?} in {stderr}");
    }
}

#[test]
fn a_checkpoint_runs_against_its_expectation() {
    let scratch = Scratch::new("runs");
    let (model, output) = (fixture_dir("qwen3_moe"), scratch.0.join("out.safetensors"));
    let expected = model.join("expected.safetensors");
    let run = moe_block(&[
        &"--model",
        &model,
        &"--input",
        &expected,
        &"--expect",
        &expected,
        &"--output",
        &output,
        &"--json",
    ]);
    assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["model_type"], "qwen3_moe");
    assert!(report["rel_error"].as_f64().unwrap() <= 1e-5);
    assert!(report["micros"].as_f64().unwrap() > 0.0);

    let bytes = fs::read(&output).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| file.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("output"), [17, 40]);
    assert_eq!(shape("topk_ids"), [17, 3]);
    assert_eq!(shape("topk_weights"), [17, 3]);
}

#[test]
fn an_output_beyond_the_tolerance_is_status_1() {
    let model = fixture_dir("mixtral");
    let expected = model.join("expected.safetensors");
    let run = moe_block(&[&"--model", &model, &"--input", &expected, &"--expect", &expected, &"--tolerance", &"1e-30"]);
    assert_eq!(run.status.code(), Some(1), "{}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn random_tokens_repeat_with_their_seed() {
    let output = |seed: &str, name: &str| {
        let scratch = Scratch::new(name);
        let path = scratch.0.join("out.safetensors");
        let run =
            moe_block(&[&"--model", &fixture_dir("olmoe"), &"--tokens", &"5", &"--seed", &seed, &"--output", &path]);
        assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
        fs::read(path).unwrap()
    };
    assert_eq!(output("3", "seed-a"), output("3", "seed-b"));
    assert_ne!(output("3", "seed-c"), output("4", "seed-d"));
}

#[test]
fn a_backend_that_is_not_there_is_status_2_and_its_reason() {
    let model = fixture_dir("mixtral");
    assert_refused(&moe_block(&[&"--backend", &"cuda", &"--model", &model]), &["cuda is unavailable: "]);
    assert_refused(&moe_block(&[&"--backend", &"cuda"]), &["cuda is unavailable: "]);
}

#[test]
fn what_cannot_be_run_is_status_2_and_one_line() {
    let missing = Scratch::new("missing");
    assert_refused(&moe_block(&[&"--model", &missing.0]), &["config.json"]);

    let unknown = Scratch::copy_of("unknown", "mixtral");
    unknown.edit_config(|config| drop(config.insert("model_type".into(), "bert".into())));
    assert_refused(&moe_block(&[&"--model", &unknown.0]), &["config.json", "model_type", "bert"]);

    let shape = Scratch::copy_of("shape", "mixtral");
    shape.edit_config(|config| drop(config.insert("hidden_size".into(), 47.into())));
    assert_refused(&moe_block(&[&"--model", &shape.0]), &["47"]);

    let truncated = Scratch::copy_of("truncated", "mixtral");
    let path = truncated.0.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_refused(&moe_block(&[&"--model", &truncated.0]), &["model.safetensors"]);

    let model = fixture_dir("mixtral");
    assert_refused(&moe_block(&[&"--model", &model, &"--layer", &"99"]), &["99"]);
    assert_refused(&moe_block(&[&"--model", &model, &"--backend", &"abacus"]), &["abacus"]);
    assert_refused(&moe_block(&[&"--model", &model, &"--dtype", &"f64"]), &["f64"]);
    let config = model.join("config.json");
    assert_refused(&moe_block(&[&"--model", &model, &"--input", &config]), &["config.json"]);
    let expected = fixture_dir("olmoe").join("expected.safetensors");
    assert_refused(&moe_block(&[&"--model", &model, &"--input", &expected]), &["hidden_states"]);
}
