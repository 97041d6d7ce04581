//! One binary for machines with and without CUDA.

use std::path::PathBuf;
use std::process::Command;

use fused_moe::backend::cuda::Cuda;
use fused_moe::{Device, Error};

use crate::build::can_do_without_nvcc;
use crate::cuda_vm::PTX;

/// The libraries that the dynamic linker must find before this very program starts.
fn needed() -> Vec<String> {
    let program = std::env::current_exe().expect("a running program");
    let output = Command::new("readelf").arg("-d").arg(program).output().expect("readelf, of binutils");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().filter(|line| line.contains("(NEEDED)")).map(str::to_owned).collect()
}

#[test]
fn no_cuda_library_is_needed_to_start() {
    let needed = needed();
    assert!(needed.iter().any(|line| line.contains("libc.so")), "{needed:?}");
    for library in ["libcuda", "cudart", "libstdc++"] {
        assert!(!needed.iter().any(|line| line.contains(library)), "{needed:?}");
    }
}

#[test]
fn without_a_driver_another_backend_is_taken_and_the_reason_said() {
    let found = Device::discover();
    let cuda = found.skipped.iter().find(|error| matches!(error, Error::Unavailable { backend: "cuda", .. }));
    match cuda {
        Some(error) => {
            println!("{error}");
            assert_ne!(found.device.name(), "cuda");
            let text = error.to_string();
            let reasons = ["libcuda.so.1", "NVIDIA's driver", "built without nvcc", "kernels are for sm_80"];
            assert!(reasons.iter().any(|reason| text.contains(reason)), "{text}");
        }
        // Then it must be there.
        None => assert_eq!(found.device.name(), "cuda"),
    }
    assert!(matches!(Device::cuda(1000), Err(Error::Unavailable { backend: "cuda", .. })));
}

#[test]
fn a_gpu_older_than_the_kernels_is_passed_over() {
    let old = std::sync::Arc::new(crate::cuda_vm::Old);
    match Cuda::new(old) {
        Err(Error::Unavailable { backend: "cuda", reason }) => {
            let expected =
                if PTX.is_empty() { "built without nvcc" } else { "is sm_75, kernels are for sm_80 and newer" };
            assert!(reason.contains(expected), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

/// A crate that depends on this one builds with one variable set, and no toolkit.
#[test]
fn a_dependent_crate_builds_without_a_toolkit() {
    if !can_do_without_nvcc() {
        return;
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("dependent");
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--offline", "--manifest-path"])
        .arg(root.join("tests/cuda/dependent/Cargo.toml"))
        .env("CARGO_TARGET_DIR", &target)
        // Out of reach of this repository's .cargo/config.toml.
        .current_dir(std::env::temp_dir())
        .env("CUDA_LIBRARY_PATH", root.join("build/cuda-root"))
        .env("PATH", path_without_nvcc())
        .env_remove("FUSED_MOE_REQUIRE")
        // scripts/test has optimised builds; this one is only started.
        .env_remove("CARGO_PROFILE_DEV_OPT_LEVEL")
        .envs(["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV"].map(|name| (name, "/nonexistent")))
        .output()
        .expect("cargo");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}");
    assert!(said.contains("cuda is unavailable: built without nvcc: "), "{said}{errors}");
}

pub fn path_without_nvcc() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).filter(|folder| !folder.join("nvcc").exists());
    std::env::join_paths(folders).expect("they were in PATH")
}
