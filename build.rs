//! Checks and composes the kernels; each kind in its own file.

#[cfg(feature = "cuda")]
#[path = "build/libcuda.rs"]
mod libcuda;
#[cfg(feature = "cuda")]
#[path = "build/nvcc.rs"]
mod nvcc;
#[cfg(feature = "wgpu")]
#[path = "build/wgsl.rs"]
mod wgsl;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    {
        println!("cargo::rerun-if-changed=build/nvcc.rs");
        println!("cargo::rerun-if-changed=build/libcuda.rs");
        run("cuda", nvcc::build);
        run("libcuda", libcuda::build);
    }
    #[cfg(feature = "wgpu")]
    {
        println!("cargo::rerun-if-changed=build/wgsl.rs");
        run("wgsl", wgsl::build);
    }
}

/// Builds `kernels/<kind>` into the folder of that name in `OUT_DIR`.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn run(kind: &str, build: impl FnOnce(&std::path::Path, &std::path::Path) -> Result<(), String>) {
    let root = std::path::PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    if let Err(message) = build(&root.join("kernels").join(kind), &out.join(kind)) {
        eprintln!("{message}");
        std::process::exit(1);
    }
}
