//! One name in every layer, and the budgets: what ARCHITECTURE.md and CONTRIBUTING.md promise of the tree.

use std::fs;
use std::path::{Path, PathBuf};

const OPS: [&str; 5] = ["router_logits", "route", "permute", "grouped_gemm", "combine"];

/// Most lines of a file, by its extension.
const BUDGETS: [(&str, usize); 3] = [("rs", 500), ("cu", 400), ("wgsl", 250)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The entries of a folder; none where there is no folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut entries: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    entries.sort();
    entries
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
}

#[test]
fn every_op_has_its_twins() {
    let mut folders: Vec<PathBuf> =
        ["src/ops", "src/reference", "tests/conformance", "tests/conformance/harness/faulty"]
            .map(|folder| root().join(folder))
            .into();
    let backends: Vec<PathBuf> = entries(&root().join("src/backend")).into_iter().filter(|p| p.is_dir()).collect();
    assert!(!backends.is_empty(), "there is a backend");
    folders.extend(backends);
    let missing: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| OPS.map(|op| folder.join(op).with_extension("rs")))
        .filter(|path| !path.is_file())
        .collect();
    assert!(missing.is_empty(), "an op lacks its twin: {missing:#?}");
}

#[test]
fn every_step_has_its_bench() {
    // `router_logits` is timed inside the layer.
    for step in ["route", "permute", "grouped_gemm", "combine", "layer"] {
        let path = root().join("benches").join(step).with_extension("rs");
        assert!(path.is_file(), "no bench {}", path.display());
    }
}

#[test]
fn kernels_are_named_after_their_op() {
    for folder in ["kernels/cuda", "kernels/wgsl"] {
        for file in entries(&root().join(folder)).iter().filter(|path| path.is_file()) {
            let name = stem(file);
            let known =
                OPS.iter().any(|op| name.starts_with(op)) || ["decode", "decode_combine", "jitter"].contains(&name);
            assert!(known, "{} is named after no op", file.display());
        }
    }
}

#[test]
fn every_backend_is_under_the_suite() {
    let devices = fs::read_to_string(root().join("tests/conformance/harness/devices.rs")).expect("the list of devices");
    for backend in entries(&root().join("src/backend")).iter().filter(|path| path.is_dir()) {
        let name = stem(backend);
        assert!(devices.contains(&format!("\"{name}\"")), "{name} is not in tests/conformance/harness/devices.rs");
    }
}

#[test]
fn files_keep_to_their_budgets() {
    let mut over = Vec::new();
    let mut seen = 0;
    for file in sources(root()) {
        let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let Some((_, budget)) = BUDGETS.iter().find(|(name, _)| *name == extension) else { continue };
        seen += 1;
        let lines = fs::read_to_string(&file).expect("source is UTF-8").lines().count();
        if lines > *budget {
            over.push(format!("{}: {lines} lines, budget {budget}", file.display()));
        }
    }
    assert!(seen > 50, "only {seen} sources found");
    assert!(over.is_empty(), "{over:#?}");
}

#[test]
fn unsafe_code_stays_in_backends_the_c_interface_and_where_memory_is_mapped() {
    let allowed = [
        "src/backend",
        "src/capi",
        "src/checkpoint",
        "benches",
        "ptx-vm",
        "tests",
        "fused-moe-candle",
        "examples/cuda_cust.rs",
        "examples/cuda_cudarc.rs",
    ];
    for file in sources(root()).iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let inside = file.strip_prefix(root()).expect("found under the root");
        if allowed.iter().any(|folder| inside.starts_with(folder)) {
            continue;
        }
        let text = fs::read_to_string(file).expect("source is UTF-8");
        let found = text.lines().position(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        assert!(found.is_none(), "unsafe code in {}:{}", inside.display(), found.unwrap_or(0) + 1);
    }
}

/// Every file of the tree but what is built, hidden or data.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let skipped = ["target", "fixtures", "node_modules", "corpus"];
    let mut files = Vec::new();
    for path in entries(folder) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with('.') || skipped.contains(&name) {
            continue;
        }
        if path.is_dir() { files.extend(sources(&path)) } else { files.push(path) }
    }
    files
}
