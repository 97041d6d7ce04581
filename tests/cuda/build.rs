//! What build.rs makes of a machine's toolkit and of the variables that it reads: the build script itself, run as cargo
//! runs it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::cuda_vm::NVCC;

/// build.rs with the feature `cuda` alone, which needs no crate.
static SCRIPT: LazyLock<PathBuf> = LazyLock::new(|| {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("build-script");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--edition", "2024", "--cfg", "feature=\"cuda\"", "-o"])
        .args([&program, &Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs")])
        .output()
        .expect("rustc");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
});

/// A crate with one kernel, which goes with the test.
struct Build {
    root: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Build {
    fn new(kernel: &str) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let kernels = root.path().join("kernels/cuda");
        fs::create_dir_all(&kernels).and_then(|()| fs::write(kernels.join("one.cu"), kernel)).expect("a file");
        fs::create_dir(root.path().join("out")).expect("a folder");
        Self { root, variables: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// On a machine that has no toolkit but what the variables say.
    fn run(&self) -> Output {
        Command::new(&*SCRIPT)
            .current_dir(self.root.path())
            .env_clear()
            // nvcc needs a host compiler.
            .env("PATH", super::start::path_without_nvcc())
            .env("CARGO_MANIFEST_DIR", self.root.path())
            .env("OUT_DIR", self.root.path().join("out"))
            .env("NUM_JOBS", "2")
            .envs(self.variables.iter().cloned())
            .output()
            .expect("a build script")
    }

    fn out(&self, file: &str) -> String {
        fs::read_to_string(self.root.path().join("out/cuda").join(file)).expect("the build script writes it")
    }

    fn assert_fails(&self, words: &str) {
        let output = self.run();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(words), "no {words:?} in {errors}");
    }
}

const KERNEL: &str = "extern \"C\" __global__ void one(float* x) { x[threadIdx.x] = 1.f; }\n";

/// Whether the machine has no toolkit where build.rs looks in any case; says so where it has.
pub fn can_do_without_nvcc() -> bool {
    let nvcc = "/usr/local/cuda/bin/nvcc";
    let found = Path::new(nvcc).is_file();
    if found {
        println!("skipped: there is {nvcc}");
    }
    !found
}

#[test]
fn without_nvcc_the_crate_is_built_without_kernels() {
    if !can_do_without_nvcc() {
        return;
    }
    let build = Build::new(KERNEL).with("CUDA_HOME", "/nonexistent");
    let output = build.run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("cargo::warning=CUDA kernels are left out: built without nvcc: none in NVCC"), "{said}");
    assert!(build.out("images.rs").contains("Some(\"built without nvcc: none in NVCC"));
    assert!(build.out("ptx.rs").contains("NVCC: Option<&str> = None"));
}

#[test]
fn where_kernels_are_required_no_nvcc_is_an_error() {
    if can_do_without_nvcc() {
        let build = Build::new(KERNEL).with("FUSED_MOE_REQUIRE", "cpu, cuda-build");
        build.assert_fails("FUSED_MOE_REQUIRE asks for the CUDA kernels: none in NVCC");
    }
}

#[test]
fn documentation_needs_no_nvcc() {
    let build = Build::new("no CUDA at all").with("DOCS_RS", "1");
    assert!(build.run().status.success());
    assert!(build.out("images.rs").contains("IMAGES: &[Image] = &[]"));
}

#[test]
fn an_nvcc_that_is_too_old_is_passed_over() {
    if !can_do_without_nvcc() {
        return;
    }
    let build = Build::new(KERNEL);
    let nvcc = build.root.path().join("nvcc");
    fs::write(&nvcc, "#!/bin/sh\necho Cuda compilation tools, release 11.4, V11.4.48\n").expect("a file");
    fs::set_permissions(&nvcc, fs::Permissions::from_mode(0o755)).expect("our own file");
    let build = build.with("NVCC", nvcc.to_str().expect("UTF-8")).with("FUSED_MOE_REQUIRE", "cuda-build");
    build.assert_fails("is 11.4, 12.0 is needed");
}

/// The crate's nvcc; `None`, having said so, where it was built without.
fn nvcc() -> Option<&'static str> {
    let nvcc = NVCC.filter(|nvcc| Path::new(nvcc).is_file());
    if nvcc.is_none() {
        println!("skipped: built without nvcc");
    }
    nvcc
}

#[test]
fn the_architectures_may_be_chosen() {
    let Some(nvcc) = nvcc() else { return };
    let build = Build::new(KERNEL).with("NVCC", nvcc).with("FUSED_MOE_CUDA_ARCHS", "sm_89;86");
    let output = build.run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Code for both, and PTX of the lower one for GPUs to come.
    assert!(build.out("images.rs").contains("&[\"one\"]"), "{}", build.out("images.rs"));
    assert!(build.out("ptx.rs").contains("(\"one\", \"86\""), "{}", build.out("ptx.rs"));
    assert!(build.out("one/one.compute_86.ptx").contains(".target sm_86"));
    let log = build.out("one/ptxas.log");
    assert!(log.contains("for 'sm_86'") && log.contains("for 'sm_89'") && !log.contains("for 'sm_80'"), "{log}");

    for (archs, words) in [("75", "\"75\" is no architecture from 80 on"), ("x", "\"x\" is no"), (" ", "names no")] {
        let build = Build::new(KERNEL).with("NVCC", nvcc).with("FUSED_MOE_CUDA_ARCHS", archs);
        build.assert_fails(words);
    }
}

#[test]
fn what_nvcc_says_of_a_kernel_is_shown() {
    let Some(nvcc) = nvcc() else { return };
    let build = Build::new("__global__ void broken() { undeclared = 1; }\n").with("NVCC", nvcc);
    build.assert_fails("identifier \"undeclared\" is undefined");
}
