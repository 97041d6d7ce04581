//! Composes the WGSL kernels from their parts, and has naga read and validate each before anything runs it.

use std::fs;
use std::path::{Path, PathBuf};

use naga::valid::{Capabilities, ValidationFlags, Validator};

/// Parts that come in two kinds: the kernel is composed once more with the second, under its suffix.
const VARIANTS: [(&str, &str, Capabilities); 2] =
    [("shared/reduce.wgsl", "subgroup", Capabilities::SUBGROUP), ("shared/store.wgsl", "half", Capabilities::empty())];

/// Kernels written for a capability that not every adapter has.
const SPECIAL: [(&str, Capabilities); 2] = [
    ("grouped_gemm_broadcast", Capabilities::SUBGROUP),
    (
        "grouped_gemm_coop",
        Capabilities::COOPERATIVE_MATRIX.union(Capabilities::SHADER_FLOAT16).union(Capabilities::SUBGROUP),
    ),
];

/// Reading halves of words as f16: every adapter of this API has it, and naga asks.
const BASE: Capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;

/// Writes every `kernels/wgsl/<op>.wgsl`, composed, to `OUT_DIR/wgsl`.
pub fn build(kernels: &Path, out: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-changed={}", kernels.display());
    fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
    for path in wgsl_files(kernels)? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let special = SPECIAL.iter().find(|(kernel, _)| *kernel == name);
        let capabilities = special.map_or(BASE, |(_, capabilities)| BASE | *capabilities);
        let plain = read(&path)?;
        let mut composed = vec![(name, plain, capabilities)];
        for (part, suffix, needed) in VARIANTS {
            for i in 0..composed.len() {
                let (name, source, capabilities) = &composed[i];
                if source.contains(part) {
                    let source = source.replace(part, &part.replace(".wgsl", &format!(".{suffix}.wgsl")));
                    composed.push((format!("{name}.{suffix}"), source, *capabilities | needed));
                }
            }
        }
        for (name, source, capabilities) in composed {
            write_kernel(kernels, out, &name, &source, capabilities)?;
        }
    }
    Ok(())
}

fn wgsl_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "wgsl"))
        .collect();
    files.sort();
    Ok(files)
}

fn write_kernel(kernels: &Path, out: &Path, name: &str, source: &str, allowed: Capabilities) -> Result<(), String> {
    let composed = compose(kernels, source)?;
    let module = naga::front::wgsl::parse_str(&composed).map_err(|e| e.emit_to_string_with_path(&composed, name))?;
    Validator::new(ValidationFlags::all(), allowed)
        .validate(&module)
        .map_err(|e| e.emit_to_string_with_path(&composed, name))?;
    let path = out.join(format!("{name}.wgsl"));
    fs::write(&path, composed).map_err(|e| format!("{}: {e}", path.display()))
}

/// Replaces each `// #include "part"` line by the part; WGSL wants `enable` before everything else.
fn compose(kernels: &Path, source: &str) -> Result<String, String> {
    let mut enables = String::new();
    let mut composed = String::new();
    for line in source.lines() {
        match line.strip_prefix("// #include \"").and_then(|rest| rest.strip_suffix('"')) {
            Some(part) => composed.push_str(&read(&kernels.join(part))?),
            None => composed.push_str(line),
        }
        composed.push('\n');
    }
    composed.lines().filter(|line| line.starts_with("enable ")).for_each(|line| enables.extend([line, "\n"]));
    let body: Vec<_> = composed.lines().filter(|line| !line.starts_with("enable ")).collect();
    Ok(enables + &body.join("\n") + "\n")
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}
