//! One block of one checkpoint on one device: load, run, compare, time.

use std::path::Path;
use std::time::{Duration, Instant};

use fused_moe::checkpoint::{Checkpoint, LayerId, LoadOptions, Progress};
use fused_moe::{DType, Device, Error, MoeLayer, Tensor, Workspace};
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cli::{Cli, default_tolerance};
use crate::files::{self, Matrix};
use crate::report::Report;

/// How long a block is run to be timed; it runs twice at least.
const TIMED_FOR: Duration = Duration::from_millis(300);

/// Runs what the command line asks for; whether the output is within the tolerance.
pub fn run(cli: &Cli) -> Result<bool, Error> {
    let Some(model) = &cli.model else { return Ok(true) };
    let device = Device::by_name(&cli.backend)?;
    let checkpoint = Checkpoint::open(model)?;
    let layer_id = match &cli.layer {
        Some(name) => name.parse()?,
        None => checkpoint.first_layer_with_experts()?,
    };
    let layer = load(&checkpoint, &device, layer_id, cli.dtype.map(DType::from))?;
    let hidden_states = match &cli.input {
        Some(path) => files::read_matrix(path, "hidden_states")?,
        None => random(cli.tokens, layer.config().hidden_size, cli.seed),
    };
    let mut block = Block::new(layer, &hidden_states)?;
    block.forward()?;
    let mut report = block.report(checkpoint.model_type(), layer_id)?;
    if let Some(path) = &cli.output {
        block.write(path)?;
    }
    if let Some(path) = &cli.expect {
        report.rel_error = Some(block.rel_error(&files::read_matrix(path, "output")?)?);
        report.tolerance = cli.tolerance.unwrap_or(default_tolerance(block.dtype()));
    }
    report.time(block.time()?);
    report.print(cli.json);
    Ok(report.within_tolerance())
}

/// Loads a layer, with a progress bar on a terminal.
fn load(checkpoint: &Checkpoint, device: &Device, layer: LayerId, dtype: Option<DType>) -> Result<MoeLayer, Error> {
    let style = ProgressStyle::with_template("loading {bar:40} {pos}/{len} weights, {eta} left");
    let bar = ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let progress = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    let layer = checkpoint.load(device, layer, LoadOptions { dtype, progress: Some(&progress) });
    bar.finish_and_clear();
    layer
}

/// Hidden states of variance 1, the same for the same seed.
fn random(rows: usize, columns: usize, seed: u64) -> Matrix {
    let mut rng = StdRng::seed_from_u64(seed);
    let half_width = 3f32.sqrt();
    let values = (0..rows * columns).map(|_| rng.random_range(-half_width..half_width)).collect();
    Matrix { rows, columns, values }
}

/// A layer with its input, output and workspace.
pub struct Block {
    layer: MoeLayer,
    workspace: Workspace,
    hidden_states: Tensor,
    output: Tensor,
}

impl Block {
    pub fn new(layer: MoeLayer, hidden_states: &Matrix) -> Result<Self, Error> {
        let shape = [hidden_states.rows, hidden_states.columns];
        Ok(Self {
            workspace: layer.workspace(hidden_states.rows)?,
            hidden_states: Tensor::from_slice(layer.device(), &hidden_states.values, shape)?,
            output: Tensor::zeros(layer.device(), DType::F32, shape)?,
            layer,
        })
    }

    pub fn forward(&mut self) -> Result<(), Error> {
        self.layer.forward(self.hidden_states.view(), self.output.view_mut()?, &mut self.workspace)
    }

    /// The type of the expert weights.
    pub fn dtype(&self) -> DType {
        self.layer.weights().experts.down_proj.dtype()
    }

    /// ‖output − expected‖ / ‖expected‖.
    pub fn rel_error(&self, expected: &Matrix) -> Result<f64, Error> {
        let output = self.output.to_vec::<f32>()?;
        if output.len() != expected.values.len() {
            return Err(Error::InvalidArgument {
                argument: "--expect".into(),
                expected: format!("output of shape {}", self.output.shape()),
                actual: format!("[{}, {}]", expected.rows, expected.columns),
            });
        }
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let difference = norm(&mut output.iter().zip(&expected.values).map(|(&a, &b)| f64::from(a) - f64::from(b)));
        Ok(difference / norm(&mut expected.values.iter().map(|&b| f64::from(b))).max(f64::MIN_POSITIVE))
    }

    /// The median time of a call, after the one that warmed up.
    pub fn time(&mut self) -> Result<Duration, Error> {
        let begin = Instant::now();
        let mut times = Vec::new();
        while times.len() < 2 || (begin.elapsed() < TIMED_FOR && times.len() < 1000) {
            let start = Instant::now();
            self.forward()?;
            self.layer.device().synchronize()?;
            times.push(start.elapsed());
        }
        times.sort();
        Ok(times[times.len() / 2])
    }

    pub fn report(&self, model_type: &str, layer: LayerId) -> Result<Report, Error> {
        let num_tokens = self.hidden_states.view().dims()[0];
        let routing = self.workspace.routing(num_tokens)?;
        let topk_ids = routing.topk_ids.to_vec::<u32>(self.layer.device())?;
        Ok(Report::new(&self.layer, model_type, layer, num_tokens, &topk_ids))
    }

    fn write(&self, path: &Path) -> Result<(), Error> {
        let device = self.layer.device();
        let routing = self.workspace.routing(self.hidden_states.view().dims()[0])?;
        let ids = routing.topk_ids.to_vec::<u32>(device)?;
        let weights = routing.topk_weights.to_vec::<f32>(device)?;
        let host = Device::cpu();
        let topk_ids = Tensor::from_slice(&host, &ids, routing.topk_ids.shape())?;
        let topk_weights = Tensor::from_slice(&host, &weights, routing.topk_weights.shape())?;
        files::write(path, &[("output", &self.output), ("topk_ids", &topk_ids), ("topk_weights", &topk_weights)])
    }
}
