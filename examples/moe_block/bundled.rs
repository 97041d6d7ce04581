//! The checkpoints bundled with the source, each on every backend that is there.

use std::fs;
use std::path::{Path, PathBuf};

use fused_moe::checkpoint::{Checkpoint, CheckpointError, LoadOptions};
use fused_moe::{DType, Device, Error};

use crate::block::Block;
use crate::cli::{Cli, default_tolerance};
use crate::files;
use crate::report::{Report, print_table};

/// Runs them all; whether every output is within the tolerance.
pub fn run(cli: &Cli) -> Result<bool, Error> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let devices = devices(&cli.backend)?;
    let mut reports = Vec::new();
    for model in fixtures(&directory)? {
        for device in &devices {
            reports.push(run_fixture(&model, device, cli)?);
        }
    }
    if cli.json {
        reports.iter().for_each(|report| report.print(true));
    } else {
        print_table(&reports);
        let wrong = reports.iter().filter(|report| !report.within_tolerance()).count();
        println!("\n{} runs, {wrong} further from Hugging Face's output than the tolerance", reports.len());
    }
    Ok(reports.iter().all(Report::within_tolerance))
}

/// Every backend that is there; the others are named with their reasons.
fn devices(name: &str) -> Result<Vec<Device>, Error> {
    if name != "auto" {
        return Ok(vec![Device::by_name(name)?]);
    }
    let (mut devices, mut skipped) = (Vec::new(), Vec::new());
    for found in Device::all() {
        match found {
            Ok(device) => devices.push(device),
            Err(reason) => skipped.push(reason),
        }
    }
    skipped.iter().for_each(|reason| eprintln!("skipped: {reason}"));
    Ok(devices)
}

/// The directories that hold a checkpoint and what Hugging Face made of it.
fn fixtures(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let io = |source| CheckpointError::Io { path: directory.into(), source };
    let mut models = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.join("expected.safetensors").exists() {
            models.push(path);
        }
    }
    models.sort();
    Ok(models)
}

fn run_fixture(model: &Path, device: &Device, cli: &Cli) -> Result<Report, Error> {
    let expected = model.join("expected.safetensors");
    let hidden_states = files::read_matrix(&expected, "hidden_states")?;
    let checkpoint = Checkpoint::open(model)?;
    let layer_id = match files::read_metadata(&expected, "layer")? {
        Some(layer) => layer.parse()?,
        None => checkpoint.first_layer_with_experts()?,
    };
    let dtype = cli.dtype.map(DType::from);
    let layer = checkpoint.load(device, layer_id, LoadOptions { dtype, progress: None })?;
    let mut block = Block::new(layer, &hidden_states)?;
    block.forward()?;
    let name = model.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let mut report = block.report(&name, layer_id)?;
    report.rel_error = Some(block.rel_error(&files::read_matrix(&expected, "output")?)?);
    report.tolerance = cli.tolerance.unwrap_or(default_tolerance(block.dtype()));
    report.time(block.time()?);
    Ok(report)
}
