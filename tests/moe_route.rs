//! The routing example from the outside: every preset, what rules need from files, one-line errors.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fused_moe::routing::noise::{Stream, normal};
use fused_moe::routing::presets::published;
use fused_moe::routing::{MASKED, RouterConfig};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// `cargo test` builds the examples beside the tests.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().with_file_name("examples").join("moe_route")
}

fn moe_route(arguments: &[&dyn AsRef<OsStr>]) -> Output {
    Command::new(program())
        .args(arguments.iter().map(AsRef::as_ref))
        // Where it is not set, Mesa's Vulkan drivers complain on stderr.
        .env("XDG_RUNTIME_DIR", std::env::temp_dir())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error} (cargo build --examples makes it)", program().display()))
}

/// As [`moe_route`], which must succeed; its stdout.
fn stdout(arguments: &[&dyn AsRef<OsStr>]) -> String {
    let output = moe_route(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Exit status 2, nothing on stdout, and one line that says all of `words`.
fn assert_refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty());
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in {stderr}");
    }
}

/// A tensor for a file.
enum Values<'v> {
    F32(&'v [f32]),
    U32(&'v [u32]),
}

fn write(path: &Path, tensors: &[(&str, &[usize], Values<'_>)]) {
    let views = tensors.iter().map(|(name, shape, values)| {
        let (dtype, bytes): (_, &[u8]) = match values {
            Values::F32(values) => (Dtype::F32, bytemuck::cast_slice(values)),
            Values::U32(values) => (Dtype::U32, bytemuck::cast_slice(values)),
        };
        (*name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn u32s(file: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(file.tensor(name).unwrap().data())
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(file.tensor(name).unwrap().data())
}

/// A folder with a rule and logits, to which more can be put.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new(config: &str) -> Self {
        let case = Self { folder: TempDir::new().unwrap() };
        fs::write(case.path("router.json"), config).unwrap();
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn with_logits(self, shape: [usize; 2], logits: &[f32]) -> Self {
        write(&self.path("f.safetensors"), &[("logits", &shape, Values::F32(logits))]);
        self
    }

    fn run(&self, more: &[&dyn AsRef<OsStr>]) -> Output {
        let (config, logits) = (self.path("router.json"), self.path("f.safetensors"));
        let mut arguments: Vec<&dyn AsRef<OsStr>> = vec![&"--config", &config, &"--logits", &logits];
        arguments.extend(more);
        moe_route(&arguments)
    }

    /// The output file of a run that must succeed.
    fn routed(&self, more: &[&dyn AsRef<OsStr>]) -> Vec<u8> {
        let output = self.path("g.safetensors");
        let mut arguments: Vec<&dyn AsRef<OsStr>> = vec![&"--output", &output];
        arguments.extend(more);
        let run = self.run(&arguments);
        assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
        fs::read(output).unwrap()
    }
}

/// What must hold of any output: counts, offsets, the plan, weights.
fn check_output(file: &SafeTensors<'_>, config: &RouterConfig, figures: &serde_json::Value) {
    let (ids, weights) = (u32s(file, "topk_ids"), f32s(file, "topk_weights"));
    let (offsets, permuted) = (u32s(file, "expert_offsets"), u32s(file, "permuted_idx"));
    let load = u32s(file, "tokens_per_expert");
    let count = |e: usize| ids.iter().filter(|&&id| id as usize == e).count() as u32;
    assert_eq!(load, (0..load.len()).map(count).collect::<Vec<_>>());
    assert_eq!(offsets.len(), load.len() + 1);
    assert!(offsets.windows(2).zip(&load).all(|(range, &n)| range[1] - range[0] == n));
    for (expert, range) in offsets.windows(2).enumerate() {
        let slots = &permuted[range[0] as usize..range[1] as usize];
        assert!(slots.is_sorted() && slots.iter().all(|&slot| ids[slot as usize] as usize == expert));
    }
    assert!(ids.iter().zip(&weights).all(|(&id, w)| w.is_finite() && (id != MASKED || *w == 0.0)));
    assert_eq!(figures["tokens_per_expert"].as_array().unwrap().len(), load.len());
    assert!(figures["tokens_per_expert"].as_array().unwrap().iter().zip(&load).all(|(a, b)| a == b));
    let dropped = figures["fraction_dropped"].as_f64().unwrap();
    match config.is_ragged() {
        true => {
            let tokens = u32s(file, "token_offsets");
            let none = tokens.windows(2).filter(|slots| slots[0] == slots[1]).count();
            assert!((dropped - none as f64 / (tokens.len() - 1) as f64).abs() < 1e-6);
        }
        false => {
            let masked = ids.iter().filter(|&&id| id == MASKED).count();
            assert!((dropped - masked as f64 / ids.len() as f64).abs() < 1e-6);
        }
    }
}

#[test]
fn every_preset_runs_as_the_oracle_does() {
    let folder = TempDir::new().unwrap();
    for preset in published() {
        let ids = ["cpu", "reference"].map(|backend| {
            let path = folder.path().join(format!("{}-{backend}.safetensors", preset.name));
            let arguments: [&dyn AsRef<OsStr>; 7] =
                [&"--preset", &preset.name, &"--backend", &backend, &"--output", &path, &"--json"];
            let figures = serde_json::from_str(&stdout(&arguments)).unwrap();
            let bytes = fs::read(path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            check_output(&file, &preset.config, &figures);
            u32s(&file, "topk_ids")
        });
        assert_eq!(ids[0], ids[1], "{}", preset.name);
        assert!(!ids[0].is_empty());
    }
}

#[test]
fn results_and_figures_are_those_of_the_rule() {
    let case = Case::new(r#"{"top_k": 2, "score": "softmax"}"#);
    let case = case.with_logits([2, 3], &[1.0, 3.0, 2.0, 0.0, -1.0, 5.0]);
    let bytes = case.routed(&[]);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(u32s(&file, "topk_ids"), [1, 2, 2, 0]);
    assert_eq!(u32s(&file, "expert_offsets"), [0, 1, 2, 4]);
    assert_eq!(u32s(&file, "permuted_idx"), [3, 0, 1, 2]);
    assert_eq!(file.tensor("topk_weights").unwrap().shape(), [2, 2]);
    let e = |x: f32| x.exp();
    let expected = e(3.0) / (e(1.0) + e(3.0) + e(2.0));
    assert!((f32s(&file, "topk_weights")[0] - expected).abs() < 1e-6);

    let figures: serde_json::Value = serde_json::from_slice(&case.run(&[&"--json"]).stdout).unwrap();
    assert_eq!(figures["tokens_per_expert"], serde_json::json!([1, 1, 2]));
    assert_eq!(figures["max_over_mean"], 1.5);
    let text = String::from_utf8(case.run(&[]).stdout).unwrap();
    assert!(text.contains("max_over_mean 1.500000") && !text.contains('█'), "no chart in a pipe: {text}");
}

#[test]
fn the_chart_has_a_bar_for_every_expert_and_the_dropped_tokens() {
    let config = r#"{"top_k": 1, "score": "softmax", "capacity": {"limit": {"absolute": 2}}}"#;
    let case = Case::new(config).with_logits([4, 3], &[9., 0., 0., 9., 0., 0., 9., 0., 0., 0., 0., 9.]);
    let text = String::from_utf8(case.run(&[&"--chart"]).stdout).unwrap();
    let bars: Vec<usize> = text.lines().skip(8).take(3).map(|line| line.matches('█').count()).collect();
    assert_eq!(bars, [60, 0, 30], "{text}");
    assert_eq!(text.lines().last(), Some("1 tokens without all their experts: 2"));

    let choice =
        Case::new(r#"{"top_k": 1, "score": "softmax", "selection": {"expert_choice": {"limit": {"absolute": 1}}}}"#);
    let choice = choice.with_logits([3, 2], &[9., 9., 1., 0., 0., 1.]);
    let bytes = choice.routed(&[]);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!((u32s(&file, "topk_ids"), u32s(&file, "token_offsets")), (vec![0, 1], vec![0, 0, 1, 2]));
    let text = String::from_utf8(choice.run(&[&"--chart"]).stdout).unwrap();
    assert_eq!(text.lines().last(), Some("1 tokens without all their experts: 0"));
}

/// A pseudo-terminal is asked for nothing: it gets the chart.
#[cfg(unix)]
#[test]
fn a_terminal_gets_the_chart() {
    use std::io::Read;
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::ptr::null_mut;

    let (mut master, mut terminal) = (0, 0);
    // SAFETY: both are places for a descriptor; the others may be null.
    let opened = unsafe { libc::openpty(&mut master, &mut terminal, null_mut(), null_mut(), null_mut()) };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just opened, and nobody else's.
    let (mut master, terminal) = unsafe { (fs::File::from_raw_fd(master), OwnedFd::from_raw_fd(terminal)) };
    let mut child = Command::new(program()).args(["--preset", "hard"]).stdout(terminal).spawn().unwrap();
    let (mut text, mut some) = (Vec::new(), [0; 4096]);
    // An error ends it: on Linux that is how a terminal without a program looks.
    while let Ok(n @ 1..) = master.read(&mut some) {
        text.extend_from_slice(&some[..n]);
    }
    assert!(child.wait().unwrap().success());
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains('█')).count(), 8, "{text}");
}

#[test]
fn noise_comes_from_hidden_states_and_a_weight() {
    let config = r#"{"top_k": 1, "score": "logit", "weight": "softmax_over_selected",
        "noise": {"seed": 12, "kind": "normal_softplus"}}"#;
    let case = Case::new(config);
    let (logits, weight) = ([0.5f32, 0.4, 0.3, 0.2].repeat(6), [3.0f32, -2.0, 1.0, 2.0]);
    let tensors: [(&str, &[usize], Values<'_>); 2] =
        [("logits", &[6, 4], Values::F32(&logits)), ("noise_weight", &[4, 1], Values::F32(&weight))];
    write(&case.path("f.safetensors"), &tensors);
    let hidden: Vec<f32> = (1..=6).map(|t| t as f32 * 0.5).collect();
    write(&case.path("x.safetensors"), &[("hidden_states", &[6, 1], Values::F32(&hidden))]);
    let bytes = case.routed(&[&"--hidden", &case.path("x.safetensors")]);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let expected: Vec<u32> = (0..6u32)
        .map(|t| {
            let noisy = |e: u32| {
                let scale = f64::from(hidden[t as usize] * weight[e as usize]).exp().ln_1p();
                f64::from(logits[e as usize]) + scale * f64::from(normal(12, Stream::Logit, t, e))
            };
            (0..4).max_by(|&a, &b| noisy(a).total_cmp(&noisy(b))).unwrap()
        })
        .collect();
    assert_eq!(u32s(&file, "topk_ids"), expected);
    assert_ne!(expected, [0; 6], "the noise is loud enough to matter");
    assert_refused(&case.run(&[]), &["f.safetensors", "hidden_states", "none"]);
}

#[test]
fn hash_rules_take_token_ids_and_a_table() {
    let case = Case::new(r#"{"top_k": 2, "score": "softmax", "selection": {"hash": {"seed": 4}}}"#);
    let (logits, ids, table) = ([0.0f32; 12], [2u32, 0, 2], [3u32, 1, 0, 2, 1, 0]);
    let all = || -> [(&str, &[usize], Values<'_>); 3] {
        [
            ("logits", &[3, 4], Values::F32(&logits)),
            ("token_ids", &[3], Values::U32(&ids)),
            ("hash_table", &[3, 2], Values::U32(&table)),
        ]
    };
    write(&case.path("f.safetensors"), &all());
    let bytes = case.routed(&[]);
    assert_eq!(u32s(&SafeTensors::deserialize(&bytes).unwrap(), "topk_ids"), [1, 0, 3, 1, 1, 0]);
    write(&case.path("f.safetensors"), &all()[..2]);
    let bytes = case.routed(&[]);
    let drawn = u32s(&SafeTensors::deserialize(&bytes).unwrap(), "topk_ids");
    assert!(drawn[..2] == drawn[4..] && drawn.iter().all(|&id| id < 4), "{drawn:?}");
    write(&case.path("f.safetensors"), &all()[..1]);
    assert_refused(&case.run(&[]), &["f.safetensors", "inputs.token_ids", "none"]);
    let short = [("logits", &[3, 4][..], Values::F32(&logits)), ("token_ids", &[2], Values::U32(&ids[..2]))];
    write(&case.path("f.safetensors"), &short);
    assert_refused(&case.run(&[]), &["f.safetensors", "inputs.token_ids", "[3]", "[2]"]);
}

#[test]
fn bias_and_sequences_reach_the_rule() {
    let config = r#"{"top_k": 1, "score": "sigmoid", "capacity": {"limit": {"absolute": 1}, "per_sequence": true}}"#;
    let case = Case::new(config);
    let logits = [1.0f32, 0.0].repeat(4);
    let tensors: [(&str, &[usize], Values<'_>); 2] =
        [("logits", &[4, 2], Values::F32(&logits)), ("selection_bias", &[2], Values::F32(&[0.0, 5.0]))];
    write(&case.path("f.safetensors"), &tensors);
    let bytes = case.routed(&[&"--tokens-per-sequence", &"2"]);
    assert_eq!(u32s(&SafeTensors::deserialize(&bytes).unwrap(), "topk_ids"), [1, MASKED, 1, MASKED]);
    assert_refused(&case.run(&[&"--tokens-per-sequence", &"3"]), &["tokens_per_sequence", "divisor of 4", "3"]);
}

#[test]
fn what_cannot_be_a_rule_is_one_line() {
    let logits = [0.0f32; 16];
    for (config, words) in [
        ("{", &["router.json", "line 1"][..]),
        (r#"{"top_k": 2}"#, &["router.json", "score"]),
        (r#"{"top_k": 2, "score": "best"}"#, &["router.json", "best", "sigmoid"]),
        (r#"{"top_k": 2, "score": "softmax", "selection": "dice"}"#, &["router.json", "dice"]),
        (r#"{"top_k": 2, "score": "softmax", "experts": 8}"#, &["router.json", "experts"]),
        (r#"{"top_k": -1, "score": "softmax"}"#, &["router.json", "-1"]),
        (r#"{"top_k": 9, "score": "softmax"}"#, &["router.json", "router.top_k", "1 to 8", "9"]),
        (
            r#"{"top_k": 2, "score": "softmax", "groups": {"num_groups": 3, "topk_groups": 1, "score": "max"}}"#,
            &["router.json", "router.groups.num_groups", "divisor of 8", "3"],
        ),
        (
            r#"{"top_k": 2, "score": "softmax", "selection": {"expert_choice": {"limit": {"factor": 1.0}}},
                "capacity": {"limit": {"factor": 1.0}}}"#,
            &["router.json", "router.capacity", "none with selection expert_choice"],
        ),
        (r#"{"top_k": 1, "score": "softmax", "num_zero_experts": 8}"#, &["router.json", "router.num_zero_experts"]),
        (r#"{"top_k": 1, "score": "softmax", "expert_map": [0, null]}"#, &["router.json", "router.expert_map"]),
    ] {
        assert_refused(&Case::new(config).with_logits([2, 8], &logits).run(&[]), words);
    }
}

#[test]
fn what_cannot_be_routed_is_one_line() {
    let rule = r#"{"top_k": 1, "score": "softmax"}"#;
    let case = Case::new(rule).with_logits([2, 4], &[0.0; 8]);
    let missing = case.path("none.safetensors");
    let config = case.path("router.json");
    assert_refused(&moe_route(&[&"--config", &missing, &"--logits", &missing]), &["none.safetensors"]);
    assert_refused(&moe_route(&[&"--config", &config, &"--logits", &missing]), &["none.safetensors"]);
    assert_refused(&moe_route(&[&"--config", &config, &"--logits", &config]), &["router.json"]);
    assert_refused(&moe_route(&[&"--preset", &"abacus"]), &["--preset", "abacus", "deepseek_v3"]);
    assert_refused(&case.run(&[&"--backend", &"abacus"]), &["abacus"]);
    assert_refused(&case.run(&[&"--output", &case.path("no/such/folder")]), &["no/such/folder"]);
    let file = case.path("f.safetensors");
    for (tensor, words) in [
        (("scores", &[2, 4][..], Values::F32(&[0.0; 8])), &["logits", "none"][..]),
        (("logits", &[8], Values::F32(&[0.0; 8])), &["logits", "rank 2", "[8]"]),
        (("logits", &[2, 2, 2], Values::F32(&[0.0; 8])), &["logits", "rank 1 or 2", "[2, 2, 2]"]),
        (("logits", &[2, 4], Values::U32(&[0; 8])), &["router_logits", "f32", "u32"]),
    ] {
        write(&file, &[tensor]);
        assert_refused(&case.run(&[]), &[words, &["f.safetensors"]].concat());
    }
    let half = [0u8; 16];
    let view = TensorView::new(Dtype::F16, vec![2, 4], &half).unwrap();
    safetensors::serialize_to_file([("logits", view)], None, &file).unwrap();
    assert_refused(&case.run(&[]), &["f.safetensors", "logits", "F16"]);
}
