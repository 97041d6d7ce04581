//! What the tests share: compiling CUDA to PTX, converting data, running the four kernels.
#![allow(dead_code)] // Each test binary uses its own part.

pub mod cases;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// nvcc from `NVCC`, `CUDA_HOME`, `CUDA_PATH` or the PATH. Without one, tests that need it say so and
/// pass, unless `PTX_VM_REQUIRE_NVCC` is set.
pub fn nvcc() -> Option<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os);
    let candidates = std::env::var_os("NVCC").map(PathBuf::from).into_iter();
    let candidates = candidates.chain(homes.map(|home| Path::new(&home).join("bin/nvcc")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("nvcc"));
    let found = candidates.chain(on_path).find(|p| p.is_file());
    if found.is_none() {
        let required = std::env::var_os("PTX_VM_REQUIRE_NVCC").is_some();
        assert!(!required, "PTX_VM_REQUIRE_NVCC is set, but there is no nvcc");
        eprintln!("skipped: no nvcc (set CUDA_HOME)");
    }
    found
}

/// Directory of the test kernels.
pub fn kernels_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")
}

/// PTX of a CUDA source, named `name` in reports, that may include the files of `dir`; results are kept between runs.
pub fn compile(nvcc: &Path, name: &str, source: &str, dir: &Path, arch: &str) -> Result<String, String> {
    let mut hash = DefaultHasher::new();
    (source, arch).hash(&mut hash);
    let headers = std::fs::read_to_string(dir.join("ptx.cuh")).unwrap_or_default();
    headers.hash(&mut hash);
    // One directory per text, so that reports show the name of the file.
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{:016x}", hash.finish()));
    std::fs::create_dir_all(&out).map_err(|e| e.to_string())?;
    let ptx = out.join(name).with_extension("ptx");
    if !ptx.exists() {
        // Another test may compile the same source: write under names of our own, then rename.
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let own = out.join(format!("{}.{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&own).map_err(|e| e.to_string())?;
        let (cu, partial) = (own.join(name), own.join("ptx"));
        std::fs::write(&cu, source).map_err(|e| e.to_string())?;
        let run = Command::new(nvcc)
            .args(["-std=c++17", "-lineinfo", "-ptx", "-w"])
            .arg(format!("-arch=compute_{arch}"))
            .arg("-I")
            .arg(dir)
            .arg(&cu)
            .arg("-o")
            .arg(&partial)
            .output()
            .map_err(|e| e.to_string())?;
        if !run.status.success() {
            return Err(String::from_utf8_lossy(&run.stderr).into_owned());
        }
        std::fs::rename(&partial, &ptx).map_err(|e| e.to_string())?;
    }
    std::fs::read_to_string(&ptx).map_err(|e| e.to_string())
}

/// Small deterministic generator of test data.
pub struct Data(pub u64);

impl Data {
    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn bf16(&mut self, n: usize) -> Vec<half::bf16> {
        (0..n).map(|_| half::bf16::from_f32(self.unit())).collect()
    }
}

pub fn bytes_of<T: Copy>(values: &[T], to: impl Fn(T) -> Vec<u8>) -> Vec<u8> {
    values.iter().flat_map(|&v| to(v)).collect()
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    bytes_of(values, |v| v.to_le_bytes().to_vec())
}

pub fn i32_bytes(values: &[i32]) -> Vec<u8> {
    bytes_of(values, |v| v.to_le_bytes().to_vec())
}

pub fn bf16_bytes(values: &[half::bf16]) -> Vec<u8> {
    bytes_of(values, |v| v.to_le_bytes().to_vec())
}

pub fn to_i32(bytes: &[u8]) -> Vec<i32> {
    bytes.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

pub fn to_f32(bytes: &[u8]) -> Vec<f32> {
    to_i32(bytes).into_iter().map(|v| f32::from_bits(v as u32)).collect()
}

pub fn to_bf16(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect()
}

/// Largest error relative to 1 + |expected|; infinite if any value is NaN.
pub fn max_error(values: &[f32], expected: &[f32]) -> f32 {
    let errors = values.iter().zip(expected).map(|(v, e)| (v - e).abs() / (1.0 + e.abs()));
    errors.fold(0.0, |max, e| if e.is_nan() { f32::INFINITY } else { max.max(e) })
}
