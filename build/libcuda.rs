//! Something for `-lcuda` to find.
//!
//! cust asks the linker for libcuda, which only machines with NVIDIA's driver or a toolkit have. Its functions are in
//! src/backend/cuda/libcuda.rs, so an empty archive will do.

use std::fs;
use std::path::Path;

/// Writes an empty `libcuda.a` to `out`, and has it searched.
///
/// # Errors
/// That it cannot be written.
pub fn build(_: &Path, out: &Path) -> Result<(), String> {
    fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let archive = out.join("libcuda.a");
    fs::write(&archive, "!<arch>\n").map_err(|e| format!("{}: {e}", archive.display()))?;
    println!("cargo::rustc-link-search=native={}", out.display());
    Ok(())
}
