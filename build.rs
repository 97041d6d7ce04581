//! Checks and composes the kernels; each kind in its own file.

#[cfg(feature = "wgpu")]
#[path = "build/wgsl.rs"]
mod wgsl;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "wgpu")]
    build_wgsl();
}

#[cfg(feature = "wgpu")]
fn build_wgsl() {
    println!("cargo::rerun-if-changed=build/wgsl.rs");
    let root = std::path::PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    if let Err(message) = wgsl::build(&root.join("kernels/wgsl"), &out.join("wgsl")) {
        eprintln!("{message}");
        std::process::exit(1);
    }
}
