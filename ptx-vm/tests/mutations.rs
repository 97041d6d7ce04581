//! Planted bugs: each is one textual change of a test kernel. The machine must find every one of them on
//! each of five seeds, after the unchanged kernels have passed on the same seeds.

mod common;

use std::path::Path;

use common::cases::{CASES, Case};
use ptx_vm::{Config, Module};

/// One planted bug: what it is, the file, the text that changes and what it becomes.
struct Bug(&'static str, &'static str, &'static str, &'static str);

const SEEDS: std::ops::RangeInclusive<u64> = 1..=5;

/// Bugs in the logic of the kernels.
const SOURCE_BUGS: &[Bug] = &[
    Bug("permute: no __syncthreads between starts and use", "permute.cu", "__syncthreads();  // starts", ""),
    Bug(
        "permute: no __syncwarp between read and add in pass 2",
        "permute.cu",
        "__syncwarp();  // pass 2, all have read",
        "",
    ),
    Bug("permute: no __syncwarp in pass 1", "permute.cu", "__syncwarp();  // pass 1", ""),
    Bug("topk: no __syncthreads after clearing", "topk_gate.cu", "hist[e] = 0;\n  __syncthreads();", "hist[e] = 0;"),
    Bug(
        "topk: hist never cleared",
        "topk_gate.cu",
        "for (int e = threadIdx.x; e < E; e += blockDim.x) hist[e] = 0;",
        "",
    ),
    Bug(
        "topk: shared write one past the end",
        "topk_gate.cu",
        "e < E; e += blockDim.x) hist[e] = 0;",
        "e <= E; e += blockDim.x) hist[e] = 0;",
    ),
    Bug(
        "topk: global read past the last token",
        "topk_gate.cu",
        "if (token < num_tokens) {",
        "if (token < num_tokens + 1) {",
    ),
    Bug(
        "topk: ties to the other lane",
        "topk_gate.cu",
        "if (other > best || (other == best && other_id < id))",
        "if (other >= best)",
    ),
    Bug(
        "topk: shuffle under divergence",
        "topk_gate.cu",
        "float other = __shfl_xor_sync(0xffffffffu, best, offset);",
        "float other = best; if (lane < 16) other = __shfl_xor_sync(0xffffffffu, best, offset);",
    ),
    Bug(
        "gemm80: no __syncthreads before overwriting",
        "grouped_gemm_sm80.cu",
        "__syncthreads();  // tile may be overwritten",
        "",
    ),
    Bug("gemm80: no __syncthreads after the copies", "grouped_gemm_sm80.cu", "__syncthreads();  // tile is there", ""),
    Bug(
        "gemm80: wait_group 2 instead of 1",
        "grouped_gemm_sm80.cu",
        "ptx::cp_async_wait<1>();",
        "ptx::cp_async_wait<2>();",
    ),
    Bug(
        "gemm80: lane order of B in ldmatrix",
        "grouped_gemm_sm80.cu",
        "(lane & 7) + ((lane >> 4) << 3),\n                                            ks * 2 + ((lane >> 3) & 1)",
        "(lane & 15), ks * 2 + (lane >> 4)",
    ),
    Bug("gemm80: rows past the group stored", "grouped_gemm_sm80.cu", "if (row < row_end) {", "if (true) {"),
    Bug("gemm90: producer does not wait for empty", "gemm_sm90.cu", "ptx::mbar_wait(empty(stage), phase ^ 1);", ""),
    Bug(
        "gemm90: wrong parity",
        "gemm_sm90.cu",
        "ptx::mbar_wait(empty(stage), phase ^ 1);",
        "ptx::mbar_wait(empty(stage), phase);",
    ),
    Bug("gemm90: no wgmma.wait_group", "gemm_sm90.cu", "ptx::wgmma_wait<0>();", ""),
    Bug("gemm90: no wgmma.fence", "gemm_sm90.cu", "ptx::wgmma_fence();", ""),
    Bug("gemm90: consumer does not wait for full", "gemm_sm90.cu", "ptx::mbar_wait(full(stage), phase);", ""),
    Bug(
        "gemm90: half the bytes expected",
        "gemm_sm90.cu",
        "ptx::mbar_arrive_expect_tx(full(stage), STAGE_BYTES);",
        "ptx::mbar_arrive_expect_tx(full(stage), A_BYTES);",
    ),
    Bug("gemm90: descriptor step 4 instead of 2", "gemm_sm90.cu", "da + k * 2", "da + k * 4"),
    Bug("gemm90: no named barrier before the bulk stores", "gemm_sm90.cu", "ptx::named_bar_sync(1, 128);", ""),
    Bug(
        "gemm90: arrives on empty before the wgmma wait",
        "gemm_sm90.cu",
        "ptx::wgmma_wait<0>();\n      ptx::mbar_arrive(empty(stage));",
        "ptx::mbar_arrive(empty(stage));\n      ptx::wgmma_wait<0>();",
    ),
    Bug("gemm90: no fence.proxy.async", "gemm_sm90.cu", "ptx::fence_proxy_async();", ""),
];

/// Bugs inside the assembly strings.
const ASM_BUGS: &[Bug] = &[
    Bug(
        "mma: a1 and a2 swapped",
        "ptx.cuh",
        r#""r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0)"#,
        r#""r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "r"(b0)"#,
    ),
    Bug(
        "ldmatrix: .trans by mistake",
        "ptx.cuh",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
    ),
    Bug(
        "mma: accumulator \"=f\" instead of \"+f\"",
        "ptx.cuh",
        r#": "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0])"#,
        r#": "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0])"#,
    ),
    Bug("wgmma: scale-d always 1", "ptx.cuh", "setp.ne.b32 p, %34, 0;", "setp.eq.b32 p, 0, 0;"),
    Bug(
        "wgmma: d[2] and d[3] swapped",
        "ptx.cuh",
        r#""+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8])"#,
        r#""+f"(d[3]), "+f"(d[2]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8])"#,
    ),
    Bug("wgmma: B transposed", "ptx.cuh", "p, 1, 1, 0, 0;", "p, 1, 1, 0, 1;"),
    Bug("try_wait: result inverted", "ptx.cuh", "selp.u32 %0, 1, 0, p;", "selp.u32 %0, 0, 1, p;"),
    Bug("tma: coordinates swapped", "ptx.cuh", "[%1, {%3, %4}], [%2];", "[%1, {%4, %3}], [%2];"),
    Bug(
        "fence.proxy.async: text missing",
        "ptx.cuh",
        r#"asm volatile("fence.proxy.async.shared::cta;" ::: "memory");"#,
        "",
    ),
];

/// A change that no execution can show; see `an_unobservable_change_raises_no_alarm`.
const UNOBSERVABLE: Bug = Bug("cp.async: no source size", "ptx.cuh", "[%0], [%1], 16, %2;", "[%0], [%1], 16;");

/// The clean kernels need about two million instructions; some bugs loop for ever.
fn bounded(seed: u64) -> Config {
    let mut config = Config::with_seed(seed);
    config.max_instructions = 10_000_000;
    config
}

/// Runs the cases that a changed file concerns; the first failure of each seed.
fn run(nvcc: &Path, bug: &Bug) -> Result<Vec<Option<String>>, String> {
    let dir = common::kernels_dir();
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).map_err(|e| e.to_string());
    let original = read(bug.1)?;
    if original.matches(bug.2).count() != 1 {
        return Err(format!("the text of '{}' must occur once in {}", bug.0, bug.1));
    }
    let changed = original.replace(bug.2, bug.3);
    let concerned = |case: &&Case| case.file == bug.1 || bug.1 == "ptx.cuh";
    let mut modules = vec![];
    for case in CASES.iter().filter(concerned) {
        let source = if case.file == bug.1 {
            changed.clone()
        } else {
            // The changed header takes the place of the include.
            read(case.file)?.replace("#include \"ptx.cuh\"", &changed)
        };
        let ptx = common::compile(nvcc, case.file, &source, &dir, case.arch)?;
        modules.push((case, Module::parse(&ptx, case.file).map_err(|e| e.to_string())?));
    }
    Ok(SEEDS.map(|seed| modules.iter().find_map(|(case, module)| (case.run)(module, bounded(seed)).err())).collect())
}

/// Runs bugs and lists those that some seed missed.
fn missed(bugs: &[Bug]) -> Vec<String> {
    let Some(nvcc) = common::nvcc() else {
        return vec![];
    };
    let mut out = vec![];
    for bug in bugs {
        let found = run(&nvcc, bug).unwrap_or_else(|e| panic!("{}: {e}", bug.0));
        let hits = found.iter().flatten().count();
        let report = found.iter().flatten().next().map_or("", |s| s.as_str());
        let report: String = report.chars().take(300).collect();
        println!("{hits}/{} {:55} {report}", found.len(), bug.0);
        if hits < found.len() {
            out.push(format!("{} ({hits}/{})", bug.0, found.len()));
        }
    }
    out
}

#[test]
fn every_source_bug_is_found() {
    assert_eq!(missed(SOURCE_BUGS), [""; 0]);
}

#[test]
fn every_asm_bug_is_found() {
    assert_eq!(missed(ASM_BUGS), [""; 0]);
}

/// Without the source size, rows past the end of a group hold row 0 of A instead of zeros. That row is
/// readable and initialised, each row of A meets only its own row of C, and rows past the end are never
/// stored: the kernel does the same as before, so an alarm would be a false one.
#[test]
fn an_unobservable_change_raises_no_alarm() {
    let Some(nvcc) = common::nvcc() else { return };
    let found = run(&nvcc, &UNOBSERVABLE).unwrap();
    assert!(found.iter().all(Option::is_none), "{found:?}");
}
