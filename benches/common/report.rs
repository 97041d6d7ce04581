//! Timing through criterion, and what was reached beside the floors of the same run.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{Bencher, BenchmarkGroup, Criterion, SamplingMode, Throughput};
use fused_moe::config::WeightLayout;
use fused_moe::ops::{Epilogue, GroupedGemmArgs, InputRows, grouped_gemm};
use fused_moe::{DType, Device, Tensor};

use super::device::{copy_bandwidth, device, timed};
use super::stack::{Stack, Work, from_f32};
use super::{machine, test_mode};

/// What the machine can do at best.
#[derive(Clone, Copy, Debug)]
pub struct Floors {
    /// Bytes per second of reading the very memory that the weights are in; of a copy, where that is a device's own.
    pub read: f64,
    /// Operations per second of a dense product.
    pub dense: f64,
}

/// The rows of a run; printed when it is over.
#[derive(Debug, Default)]
pub struct Report {
    rows: RefCell<Vec<Row>>,
}

#[derive(Debug)]
struct Row {
    id: String,
    work: Work,
    floors: Option<Floors>,
    /// Seconds per call of each of criterion's samples, warm-up included.
    samples: Vec<f64>,
}

/// Criterion for calls of micro- to milliseconds on a machine that is not quiet.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args()
}

/// A group of criterion's, named after the op.
pub fn group<'c>(criterion: &'c mut Criterion, op: &str) -> BenchmarkGroup<'c, WallTime> {
    if !test_mode() {
        super::announce(&machine::describe());
        super::announce(&device().to_string());
    }
    let mut group = criterion.benchmark_group(op);
    group.sampling_mode(SamplingMode::Flat);
    group
}

/// Criterion's throughput: operations as elements, and bytes.
pub fn throughput(work: Work) -> Throughput {
    Throughput::ElementsAndBytes { elements: work.flops as u64, bytes: work.bytes as u64 }
}

impl Floors {
    /// Measures both, `read` over a stack's own memory. `None` in test mode, and for CUDA, whose ceilings
    /// `peers/gpu.py` measures.
    pub fn measure(device: &Device, stack: &Stack) -> Option<Self> {
        if test_mode() {
            return None;
        }
        let host = || device.backend().is_host().then(|| machine::read_bandwidth(&stack.memory()));
        Some(Self { read: copy_bandwidth().or_else(host)?, dense: dense_rate(device, stack.dtype) })
    }

    /// Those of a device with memory of its own, for ops that touch no expert's weights; of the CPU, whose caches hold
    /// all that such an op touches, none. `None` in test mode.
    pub fn of_device() -> Option<Self> {
        if test_mode() {
            return None;
        }
        copy_bandwidth().map(|read| Self { read, dense: dense_rate(device(), DType::F32) })
    }
}

/// Operations per second of 1024³: the `gemm` crate's in f32, which no crate has in the other types; in those, our own
/// kernel's with a single expert.
fn dense_rate(device: &Device, dtype: DType) -> f64 {
    static RATES: [OnceLock<f64>; 3] = [const { OnceLock::new() }; 3];
    const N: usize = 1024;
    let rate = match dtype {
        DType::F32 => RATES[0].get_or_init(|| host_dense_rate(device, N).max(own_dense_rate(device, dtype, N))),
        DType::BF16 => RATES[1].get_or_init(|| own_dense_rate(device, dtype, N)),
        _ => RATES[2].get_or_init(|| own_dense_rate(device, dtype, N)),
    };
    *rate
}

fn host_dense_rate(device: &Device, n: usize) -> f64 {
    if device.backend().is_host() { machine::gemm_rate(n) } else { 0.0 }
}

fn own_dense_rate(device: &Device, dtype: DType, n: usize) -> f64 {
    let input = from_f32(device, dtype, &vec![0.5; n * n], [n, n]);
    let weight = from_f32(device, dtype, &vec![0.25; n * n], [1, n, n]);
    let mut output = Tensor::zeros(device, DType::F32, [n, n]).expect("4 MiB");
    let mut pass = || {
        let args = GroupedGemmArgs {
            input: input.view(),
            rows: InputRows::Same,
            expert_offsets: None,
            weight: weight.view(),
            weight_layout: WeightLayout::Nk,
            bias: None,
            epilogue: Epilogue::None,
            output: output.view_mut().expect("memory of its own"),
            batch_invariant: false,
        };
        let elapsed = timed(|| grouped_gemm(device, args).expect("shapes fit"));
        2.0 * (n as f64).powi(3) / elapsed.as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}

impl Report {
    /// Times `call` by criterion under this id, and keeps the samples.
    pub fn time(
        &self,
        bencher: &mut Bencher<'_>,
        id: &str,
        work: Work,
        floors: Option<Floors>,
        mut call: impl FnMut(),
    ) {
        bencher.iter_custom(|iterations| {
            let elapsed = timed(|| (0..iterations).for_each(|_| call()));
            self.add(id, work, floors, elapsed.as_secs_f64() / iterations as f64);
            elapsed
        });
    }

    fn add(&self, id: &str, work: Work, floors: Option<Floors>, seconds: f64) {
        let mut rows = self.rows.borrow_mut();
        match rows.iter_mut().find(|row| row.id == id) {
            Some(row) => row.samples.push(seconds),
            None => rows.push(Row { id: id.into(), work, floors, samples: vec![seconds] }),
        }
    }

    /// Prints what was reached, beside the floors. Nothing in test mode, where nothing was timed.
    pub fn print(&self) {
        let rows = self.rows.borrow();
        if test_mode() || rows.is_empty() {
            return;
        }
        println!("\n{:<58} {:>10} {:>8} {:>14} {:>9} {:>14}", "", "µs", "GB/s", "of mem. floor", "GFLOP/s", "of dense");
        rows.iter().for_each(Row::print);
    }
}

impl Row {
    fn print(&self) {
        let seconds = median(&self.samples);
        let (bytes, flops) = (self.work.bytes / seconds / 1e9, self.work.flops / seconds / 1e9);
        print!("{:<58} {:>10.1} {bytes:>8.1}", self.id, seconds * 1e6);
        match self.floors {
            Some(Floors { read, dense }) => {
                let (read, dense) = (read / 1e9, dense / 1e9);
                let (of_read, of_dense) = (bytes / read * 100.0, flops / dense * 100.0);
                println!(" {of_read:>6.0} % of {read:>4.0} {flops:>9.1} {of_dense:>5.0} % of {dense:>5.0}");
            }
            None => println!(" {:>14} {flops:>9.1}", ""),
        }
    }
}

/// The middle of some samples.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
