//! Compiles kernels/cuda/*.cu with nvcc, where there is one: a fatbin of each file for the driver, and the PTX it was
//! made of for the tests that execute it on the CPU.
//!
//! `FUSED_MOE_CUDA_ARCHS` (default `80,90a`) names the architectures: machine code for each, and PTX of the lowest
//! plain one, which newer GPUs compile. A file named `*_sm90.cu` is compiled for `90a` only. Nothing is downloaded.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

const DEFAULT_ARCHS: &str = "80,90a";

/// The first release that knows sm_90a.
const OLDEST_NVCC: (u32, u32) = (12, 0);

/// What is kept of one compiled file.
struct Image {
    stem: String,
    folder: PathBuf,
    /// The architecture and text that tests execute: what newer GPUs compile, or the file's own.
    ptx: (String, PathBuf),
    kernels: Vec<String>,
    /// Those that wait for the launches before them, in the code for sm_90.
    following: Vec<String>,
}

/// Compiles every kernel to `out`, and writes `images.rs` (for the crate) and `ptx.rs` (for tests) there.
///
/// # Errors
/// What nvcc says of a kernel; that there is no nvcc, if `FUSED_MOE_REQUIRE` names `cuda-build`.
pub fn build(kernels: &Path, out: &Path) -> Result<(), String> {
    for name in ["NVCC", "CUDA_PATH", "CUDA_HOME", "VIRTUAL_ENV", "FUSED_MOE_CUDA_ARCHS", "FUSED_MOE_REQUIRE"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed={}", kernels.display());
    fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let required = env::var("FUSED_MOE_REQUIRE").is_ok_and(|list| list.split(',').any(|s| s.trim() == "cuda-build"));
    let found =
        if env::var_os("DOCS_RS").is_some() { Err("documentation needs no kernels".into()) } else { find_nvcc() };
    match found {
        Ok(nvcc) => write_images(out, &nvcc, &compile_all(&nvcc, kernels, out)?),
        Err(reason) if required => Err(format!("FUSED_MOE_REQUIRE asks for the CUDA kernels: {reason}")),
        Err(reason) => {
            let reason = format!("built without nvcc: {reason}");
            println!("cargo::warning=CUDA kernels are left out: {reason}");
            write_absent(out, &reason)
        }
    }
}

/// nvcc of a toolkit, or of the pip packages in a virtual environment.
fn find_nvcc() -> Result<PathBuf, String> {
    let mut candidates: Vec<PathBuf> = env::var_os("NVCC").map(PathBuf::from).into_iter().collect();
    for home in ["CUDA_PATH", "CUDA_HOME"].iter().filter_map(env::var_os) {
        candidates.push(Path::new(&home).join("bin/nvcc"));
    }
    candidates.extend(env::var_os("VIRTUAL_ENV").iter().flat_map(|venv| pip_toolkits(Path::new(venv))));
    let path = env::var_os("PATH").unwrap_or_default();
    candidates.extend(env::split_paths(&path).map(|folder| folder.join("nvcc")));
    candidates.push("/usr/local/cuda/bin/nvcc".into());

    let mut reason = "none in NVCC, CUDA_PATH, CUDA_HOME, VIRTUAL_ENV and PATH".to_owned();
    for nvcc in candidates.into_iter().filter(|nvcc| nvcc.is_file()) {
        match version(&nvcc) {
            Some(version) if version >= OLDEST_NVCC => return Ok(nvcc),
            Some((major, minor)) => reason = format!("{} is {major}.{minor}, 12.0 is needed", nvcc.display()),
            None => reason = format!("{} does not tell its version", nvcc.display()),
        }
    }
    Err(reason)
}

/// Where pip puts nvcc: `lib/python3.*/site-packages/nvidia/cu13/bin`.
fn pip_toolkits(venv: &Path) -> Vec<PathBuf> {
    let pythons = fs::read_dir(venv.join("lib")).into_iter().flatten().flatten();
    let packages = pythons.map(|python| python.path().join("site-packages/nvidia"));
    packages.flat_map(|nvidia| ["cu13", "cuda_nvcc"].map(|toolkit| nvidia.join(toolkit).join("bin/nvcc"))).collect()
}

fn version(nvcc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let release = text.split("release ").nth(1)?;
    let (major, rest) = release.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Compiles each file that changed, as many at a time as cargo allows.
fn compile_all(nvcc: &Path, kernels: &Path, out: &Path) -> Result<Vec<Image>, String> {
    let archs = archs()?;
    let sources: Vec<_> = files(kernels, false)?.into_iter().filter(|path| has_extension(path, "cu")).collect();
    let headers: Vec<_> = files(kernels, true)?.into_iter().filter(|path| has_extension(path, "cuh")).collect();
    let mut shared = DefaultHasher::new();
    (nvcc, version(nvcc), fs::read(file!()).unwrap_or_default()).hash(&mut shared);
    for header in &headers {
        fs::read(header).map_err(|e| format!("{}: {e}", header.display()))?.hash(&mut shared);
    }
    let shared = shared.finish();

    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).clamp(1, sources.len().max(1));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut images = Vec::new();
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            let archs = archs_of(source, &archs);
            if !archs.is_empty() {
                images.push(compile(nvcc, source, kernels, out, &archs, shared)?);
            }
        }
        Ok::<_, String>(images)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("the work does not panic")).collect()
    });
    let mut images: Vec<Image> = results.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    images.sort_by(|a, b| a.stem.cmp(&b.stem));
    Ok(images)
}

/// `80`, `90a`, ... of `FUSED_MOE_CUDA_ARCHS`.
fn archs() -> Result<Vec<String>, String> {
    let list = env::var("FUSED_MOE_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.into());
    let archs: Vec<String> = list
        .split([',', ';', ' '])
        .map(|arch| arch.trim().trim_start_matches("sm_").to_owned())
        .filter(|arch| !arch.is_empty())
        .collect();
    let number = |arch: &str| arch.trim_end_matches(['a', 'f']).parse::<u32>().ok();
    match archs.iter().find(|arch| number(arch).is_none_or(|number| number < 80)) {
        Some(arch) => Err(format!("FUSED_MOE_CUDA_ARCHS: {arch:?} is no architecture from 80 on")),
        None if archs.is_empty() => Err("FUSED_MOE_CUDA_ARCHS names no architecture".into()),
        None => Ok(archs),
    }
}

/// The architectures of a file: all, but for one that is named after its own.
fn archs_of(source: &Path, archs: &[String]) -> Vec<String> {
    let own = stem(source).ends_with("_sm90");
    archs.iter().filter(|arch| !own || *arch == "90a").cloned().collect()
}

/// One file to `out/<stem>/`, unless what is there was made of the same text.
fn compile(
    nvcc: &Path,
    source: &Path,
    kernels: &Path,
    out: &Path,
    archs: &[String],
    shared: u64,
) -> Result<Image, String> {
    let mut hasher = DefaultHasher::new();
    let text = fs::read(source).map_err(|e| format!("{}: {e}", source.display()))?;
    (text, archs, shared).hash(&mut hasher);
    let stamp = format!("{:016x}", hasher.finish());

    let folder = out.join(stem(source));
    if fs::read_to_string(folder.join("stamp")).ok() != Some(stamp.clone()) {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        run_nvcc(nvcc, source, kernels, &folder, archs)?;
        fs::write(folder.join("stamp"), stamp).map_err(|e| e.to_string())?;
    }
    image(source, folder, archs)
}

/// Whether newer GPUs run PTX of this architecture.
fn is_portable(arch: &str) -> bool {
    arch.bytes().all(|b| b.is_ascii_digit())
}

/// The lowest architecture whose PTX newer GPUs run.
fn lowest_portable(archs: &[String]) -> Option<&String> {
    archs.iter().filter(|arch| is_portable(arch)).min_by_key(|arch| arch.parse::<u32>().ok())
}

/// The arguments of nvcc: code for each architecture, PTX of the lowest one that newer ones can run.
fn gencode(archs: &[String]) -> Vec<String> {
    let portable = lowest_portable(archs);
    let code = |arch: &String| match portable {
        Some(lowest) if lowest == arch => format!("-gencode=arch=compute_{arch},code=[sm_{arch},compute_{arch}]"),
        _ => format!("-gencode=arch=compute_{arch},code=sm_{arch}"),
    };
    archs.iter().map(code).collect()
}

fn run_nvcc(nvcc: &Path, source: &Path, kernels: &Path, folder: &Path, archs: &[String]) -> Result<(), String> {
    let output = Command::new(nvcc)
        .args(["-std=c++17", "-lineinfo", "-fatbin", "-Xfatbin=-compress-all", "-Xptxas=-v", "--keep", "--keep-dir"])
        .arg(folder)
        .args(gencode(archs))
        .arg("-I")
        .arg(kernels)
        .arg("-o")
        .arg(folder.join("image.fatbin"))
        .arg(source)
        .output()
        .map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("{} on {}:\n{said}", nvcc.display(), source.display()));
    }
    // ptxas's words, for scripts/cuda-report.
    fs::write(folder.join("ptxas.log"), said.as_bytes()).map_err(|e| e.to_string())?;
    // What is kept beside PTX and code is large and of no use.
    let useless =
        |path: &PathBuf| ["ii", "c", "gpu", "module_id"].iter().any(|extension| has_extension(path, extension));
    for path in files(folder, false)?.iter().filter(|path| useless(path)) {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

fn image(source: &Path, folder: PathBuf, archs: &[String]) -> Result<Image, String> {
    let stem = stem(source).to_owned();
    // nvcc leaves the architecture out of the name where there is one only.
    let named = |arch: &String| folder.join(format!("{stem}.compute_{arch}.ptx"));
    let file = |arch: &String| if archs.len() == 1 { folder.join(format!("{stem}.ptx")) } else { named(arch) };
    let arch = lowest_portable(archs).or(archs.first());
    let first = arch.map(file).filter(|file| file.is_file());
    let first = first.ok_or_else(|| format!("nvcc kept no PTX of {}", source.display()))?;
    let text = fs::read_to_string(&first).map_err(|e| format!("{}: {e}", first.display()))?;
    let kernels = entries(&text).map(|(name, _)| name).collect();
    let sm90 = archs.iter().find(|arch| *arch == "90a").map(file);
    let sm90 = sm90.map(fs::read_to_string).transpose().map_err(|e| format!("PTX of {}: {e}", source.display()))?;
    let following = sm90.iter().flat_map(|text| entries(text)).filter(|(_, body)| body.contains("griddepcontrol.wait"));
    let following = following.map(|(name, _)| name).collect();
    let ptx = (arch.cloned().unwrap_or_default(), first);
    Ok(Image { stem, folder, ptx, kernels, following })
}

/// The kernels of a PTX file: each one's name, and its text.
fn entries(ptx: &str) -> impl Iterator<Item = (String, &str)> {
    ptx.split(".entry ")
        .skip(1)
        .filter_map(|rest| rest.split_once('('))
        .map(|(name, body)| (name.trim().to_owned(), body))
}

/// Rust that embeds what was compiled.
fn write_images(out: &Path, nvcc: &Path, images: &[Image]) -> Result<(), String> {
    let (mut rust, mut ptx) = (String::new(), String::new());
    rust += "pub(super) const ABSENT: Option<&str> = None;\npub(super) static IMAGES: &[Image] = &[\n";
    let _ = writeln!(ptx, "pub const NVCC: Option<&str> = Some({nvcc:?});");
    ptx += "pub static PTX: &[(&str, &str, &str)] = &[\n";
    for image in images {
        let (stem, fatbin, kernels) = (&image.stem, image.folder.join("image.fatbin"), &image.kernels);
        let following = &image.following;
        let _ = writeln!(
            rust,
            "    Image {{ file: {stem:?}, fatbin: &Aligned(*include_bytes!({fatbin:?})).0, kernels: &{kernels:?}, \
             following: &{following:?} }},"
        );
        let (arch, file) = &image.ptx;
        let _ = writeln!(ptx, "    ({stem:?}, {arch:?}, include_str!({file:?})),");
    }
    rust += "];\n";
    ptx += "];\n";
    write(&out.join("images.rs"), &rust)?;
    write(&out.join("ptx.rs"), &ptx)
}

fn write_absent(out: &Path, reason: &str) -> Result<(), String> {
    let rust = format!(
        "pub(super) const ABSENT: Option<&str> = Some({reason:?});\npub(super) static IMAGES: &[Image] = &[];\n"
    );
    write(&out.join("images.rs"), &rust)?;
    write(&out.join("ptx.rs"), "pub const NVCC: Option<&str> = None;\npub static PTX: &[(&str, &str, &str)] = &[];\n")
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// The files of a folder, and of those in it if `deep`, sorted; none where there is no folder.
fn files(folder: &Path, deep: bool) -> Result<Vec<PathBuf>, String> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", folder.display()))?.path();
        if !path.is_dir() {
            found.push(path);
        } else if deep {
            found.extend(files(&path, true)?);
        }
    }
    found.sort();
    Ok(found)
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}
