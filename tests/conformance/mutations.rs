//! Bugs planted in the CUDA kernels: each is one change of their text, and the suite must find every one of them on an
//! emulated device. That it finds none in the unchanged text is the test of that device.

mod mma;
mod routing;
mod wgmma;

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fused_moe::Device;
use fused_moe::backend::cuda::Cuda;
use libtest_mimic::{Completion, Failed, Trial};
use ptx_vm::{Config, Module};

use crate::harness::devices::cuda_vm::{NVCC, Vm};
use crate::{combine, grouped_gemm, grouped_gemm_combine, harness::Test, permute, route, route_permute, router_logits};

/// One planted bug.
struct Bug {
    /// What is wrong.
    what: &'static str,
    /// The file of kernels whose op is tested, without `.cu`.
    kernels: &'static str,
    /// The file that changes.
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const fn bug(
    what: &'static str,
    kernels: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
) -> Bug {
    Bug { what, kernels, file, from, to }
}

const COMBINE: &[Bug] = &[
    bug("a masked slot's row is read", "combine", "common/token_sum.cuh", "if (row == MASKED) return;", ""),
    bug("columns past the last", "combine", "combine.cu", "if (column >= p.hidden_size) return;", ""),
    bug(
        "ragged slots end early",
        "combine",
        "common/token_sum.cuh",
        "(p.token_offsets)[token + 1]",
        "(p.token_offsets)[token]",
    ),
    bug(
        "the first zero expert is none",
        "combine",
        "common/token_sum.cuh",
        "id >= p.first_zero_expert",
        "id > p.first_zero_expert",
    ),
    bug("shared output without its scale", "combine", "common/token_sum.cuh", "p.shared_scale * gate", "gate"),
    bug("weights ignored", "combine", "combine.cu", "sum.add(weight, p.expert_out", "sum.add(1.f, p.expert_out"),
];

const ROUTER_LOGITS: &[Bug] = &[
    bug(
        "tokens and experts past the last are written",
        "router_logits",
        "router_logits.cu",
        "if (token >= p.num_tokens || expert >= p.num_experts) return;",
        "",
    ),
    bug(
        "a token past the last is read",
        "router_logits",
        "router_logits.cu",
        "min(token + t, p.num_tokens - 1)",
        "token + t",
    ),
    bug(
        "every other step of columns left out",
        "router_logits",
        "router_logits.cu",
        "column += 32 * WIDTH",
        "column += 64 * WIDTH",
    ),
    bug(
        "warp sum of 31 lanes",
        "router_logits",
        "common/warp.cuh",
        "x += __shfl_xor_sync(ALL_LANES, x, distance);",
        "x += __shfl_down_sync(ALL_LANES, x, distance - 1);",
    ),
];

const DECODE: &[Bug] = &[
    bug("an expert's first row belongs to the one before", "decode", "decode.cu", "ends[e] <= row", "ends[e] < row"),
    bug("blocks of rows counted from 0", "decode", "decode.cu", "(row - start) % ROWS != 0", "row % ROWS != 0"),
    bug(
        "the last eight columns left out",
        "decode",
        "common/stream.cuh",
        "lane_id() * 8; k < end; k += 256",
        "lane_id() * 8; k + 8 < end; k += 256",
    ),
    bug(
        "[E, K, N]: no barrier before sums are read",
        "decode",
        "decode.cu",
        "__syncthreads();\n  kn_write(p, rows, sums);",
        "kn_write(p, rows, sums);",
    ),
    bug(
        "[E, K, N]: lanes 16 apart are not added",
        "decode",
        "decode.cu",
        "sum += __shfl_xor_sync(ALL_LANES, sum, 16);",
        "",
    ),
    bug("gate and up swapped", "decode", "decode.cu", "gated && c % 2)) * p.k", "gated && c % 2 == 0)) * p.k"),
];

const DECODE_COMBINE: &[Bug] = &[
    bug(
        "sums read before they are all there",
        "decode_combine",
        "decode_combine.cu",
        "__syncthreads();\n  combine_tokens",
        "combine_tokens",
    ),
    bug(
        "units read before they are all there",
        "decode_combine",
        "decode_combine.cu",
        "__syncthreads();\n  return {units",
        "return {units",
    ),
    bug(
        "every part brings the bias",
        "decode_combine",
        "decode_combine.cu",
        "if (part == 0) sum += bias_at",
        "sum += bias_at",
    ),
    bug(
        "a part ends where the next but one begins",
        "decode_combine",
        "decode_combine.cu",
        "end = min(begin + per_part, p.gemm.k);",
        "end = min(begin + 2 * per_part, p.gemm.k);",
    ),
    bug(
        "the second half's columns over the first's",
        "decode_combine",
        "decode_combine.cu",
        "first + lane_id() % WIDTH, sum",
        "lane_id() % WIDTH, sum",
    ),
    bug("parts of K over each other", "decode", "decode.cu", "begin = min(threadIdx.y * per_part, p.k)", "begin = 0"),
];

const SIMT: &[Bug] = &[
    bug(
        "no barrier behind the loads",
        "grouped_gemm_simt",
        "grouped_gemm_simt.cu",
        "load_weight(p, tile, s, k);\n    __syncthreads();",
        "load_weight(p, tile, s, k);",
    ),
    bug(
        "no barrier before the loads",
        "grouped_gemm_simt",
        "grouped_gemm_simt.cu",
        "__syncthreads();\n    load_input",
        "load_input",
    ),
    bug(
        "rows of the next expert are read",
        "grouped_gemm_simt",
        "grouped_gemm_simt.cu",
        "tile.row + row < tile.row_end && k < p.k",
        "k < p.k",
    ),
];

/// Seeds of the schedules that a bug is looked for in: some show in the one and not in the other.
const SCHEDULES: std::ops::RangeInclusive<u64> = 1..=4;

/// A trial for each bug; they need the nvcc that the crate was built with.
pub fn trials() -> Vec<Trial> {
    [routing::PERMUTE, routing::ROUTE, routing::SELECTIONS, routing::LANES, routing::ROUTE_PERMUTE]
        .into_iter()
        .chain([COMBINE, ROUTER_LOGITS, DECODE, DECODE_COMBINE, SIMT, mma::MMA, wgmma::WGMMA])
        .flatten()
        .map(|bug| Trial::ignorable_test(format!("planted/{}: {}", bug.kernels, bug.what), move || check(bug)))
        .collect()
}

fn check(bug: &'static Bug) -> Result<Completion, Failed> {
    let Some(nvcc) = NVCC.filter(|nvcc| Path::new(nvcc).is_file()) else {
        return Ok(Completion::ignored_with("built without nvcc"));
    };
    let ptx = compile(nvcc, bug)?;
    let module = Module::parse(&ptx, bug.file).map_err(|error| error.to_string())?;
    let module = Arc::new(module);
    for seed in SCHEDULES {
        let mut config = Config::with_seed(seed);
        // A bug may make a kernel run for ever.
        config.max_instructions = 200_000_000;
        let vm = Vm::changed(config, bug.kernels, module.clone());
        let device = Device::new(Cuda::new(vm).map_err(|error| error.to_string())?);
        if let Some(failure) = tests(bug.kernels).iter().copied().flatten().find_map(|test| test.run(&device).err()) {
            println!("{}: {}: {}", bug.kernels, bug.what, failure.what.lines().next().unwrap_or_default());
            return Ok(Completion::Completed);
        }
    }
    Err("nothing in the suite notices it".into())
}

fn tests(kernels: &str) -> &'static [&'static [Test]] {
    match kernels {
        "permute" => &[permute::TESTS, route_permute::TESTS],
        "combine" => &[combine::TESTS],
        "router_logits" => &[router_logits::TESTS],
        "route" => &[route::TESTS, route::SELECTIONS],
        "route_expert_choice" | "route_sinkhorn" | "route_figures" => &[route::SELECTIONS],
        "route_permute" => &[route_permute::TESTS],
        "decode_combine" => &[grouped_gemm_combine::TESTS],
        "grouped_gemm_sm90" => &[grouped_gemm::TENSOR_CORES],
        _ => &[grouped_gemm::TESTS],
    }
}

/// A part of the instances of the largest files is enough, and takes less time to compile.
fn is_left_out(line: &str, bug: &Bug) -> bool {
    let instances = ["TILES(f16", "  KERNEL(NAME, T, LAYOUT, 32", "  KERNEL(NAME, T, LAYOUT, 64"];
    let layout = match bug.what.strip_prefix("[E, K, N]") {
        Some(rest) if rest.contains("pair") => ", KN_PAIRS)",
        Some(_) => ", KN)",
        None => ", NK)",
    };
    let layouts = [", NK)", ", KN)", ", KN_PAIRS)"];
    let other_layout = !line.ends_with(layout) && layouts.iter().any(|other| line.ends_with(other));
    line.starts_with("TILES(") && other_layout || instances.iter().any(|start| line.starts_with(start))
}

/// The PTX of the changed text; kept for the next run.
fn compile(nvcc: &str, bug: &Bug) -> Result<String, String> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/cuda");
    let mut files = Vec::new();
    sources(&kernels, &mut files);
    let mut hasher = DefaultHasher::new();
    let mut changed = false;
    let mut texts = Vec::new();
    for path in &files {
        let mut text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let name = path.strip_prefix(&kernels).map_err(|e| e.to_string())?;
        if name == Path::new(bug.file) {
            changed = text.contains(bug.from);
            text = text.replacen(bug.from, bug.to, 1);
        }
        let kept = text.lines().filter(|line| !is_left_out(line, bug));
        let text = kept.collect::<Vec<_>>().join("\n") + "\n";
        (name, &text).hash(&mut hasher);
        texts.push((name, text));
    }
    if !changed {
        return Err(format!("{} has no {:?}", bug.file, bug.from));
    }
    bug.kernels.hash(&mut hasher);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("planted-{:016x}", hasher.finish()));
    let ptx = folder.join("kernels.ptx");
    if !ptx.is_file() {
        for (name, text) in texts {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&folder)).map_err(|e| e.to_string())?;
            fs::write(&path, text).map_err(|e| e.to_string())?;
        }
        let partial = folder.join("partial.ptx");
        let arch = if bug.kernels.ends_with("_sm90") { "-arch=compute_90a" } else { "-arch=compute_80" };
        let output = Command::new(nvcc)
            .args(["-std=c++17", "-lineinfo", "-ptx", "-w", arch, "-I"])
            .arg(&folder)
            .arg(folder.join(bug.kernels).with_extension("cu"))
            .arg("-o")
            .arg(&partial)
            .output()
            .map_err(|e| format!("{nvcc}: {e}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        fs::rename(&partial, &ptx).map_err(|e| e.to_string())?;
    }
    fs::read_to_string(&ptx).map_err(|e| e.to_string())
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() { sources(&path, files) } else { files.push(path) }
    }
    files.sort();
}
