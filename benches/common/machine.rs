//! The machine: what it is, how much memory is free, and the two floors of every measurement.

use std::fs;
use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

/// Bytes that a bench may fill with weights: `FUSED_MOE_BENCH_BYTES`, or most of what is free now, so that a run beside
/// others does not swap.
pub fn weights_budget() -> usize {
    let given = std::env::var("FUSED_MOE_BENCH_BYTES").ok();
    given.map_or(available_memory() / 10 * 7, |bytes| bytes.parse().expect("FUSED_MOE_BENCH_BYTES is a number"))
}

/// Free memory in bytes; where the system does not say, 8 GiB are assumed.
pub fn available_memory() -> usize {
    let kib = proc_value("/proc/meminfo", "MemAvailable").and_then(|v| v.split(' ').next()?.parse::<usize>().ok());
    kib.map_or(8 << 30, |kib| kib << 10)
}

/// Size of the last-level cache in bytes; where the system does not say, 64 MiB are assumed.
pub fn last_level_cache() -> usize {
    let size = |index: u32| {
        let text = fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<usize>().ok()
    };
    (0..8).filter_map(size).max().map_or(64 << 20, |kib| kib << 10)
}

/// Weights in rotation must be as many bytes that none is still cached when its turn comes again: four times the
/// last-level cache, because caches keep a part of what cycles through them.
pub fn rotation_bytes() -> usize {
    4 * last_level_cache()
}

/// CPU, threads, cache, memory and huge-page policy in one line.
pub fn describe() -> String {
    let cpu = proc_value("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    let huge_pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    format!(
        "{cpu}, {} threads, {} MiB last-level cache, {} GiB free, huge pages: {}",
        rayon::current_num_threads(),
        last_level_cache() >> 20,
        available_memory() >> 30,
        huge_pages.trim()
    )
}

/// The value of the first line `key : value` of a file in /proc.
fn proc_value(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Floor of decode: bytes per second at which all threads together only read `memory`, the best of three passes with
/// each number of streams per thread. One stream does not keep enough cache lines in flight to fill a memory bus.
pub fn read_bandwidth(memory: &[&[u8]]) -> f64 {
    let pass = |streams: usize| {
        let start = Instant::now();
        read(memory, 8 << 20, streams) as f64 / start.elapsed().as_secs_f64()
    };
    [1, 4, 8, 16].into_iter().flat_map(|streams| [streams; 3]).map(pass).fold(0.0, f64::max)
}

/// Only reads `memory` on all threads, in pieces of `piece` bytes, so many streams per thread; returns the bytes read.
pub fn read(memory: &[&[u8]], piece: usize, streams: usize) -> usize {
    let pieces: Vec<&[u64]> = memory.iter().flat_map(|part| part.chunks(piece)).map(words).collect();
    let sums = pieces.par_iter().with_max_len(1).map(|piece| sum(piece, streams));
    let (bytes, sum) = sums.reduce(|| (0, 0), |a, b| (a.0 + b.0, a.1.wrapping_add(b.1)));
    black_box(sum);
    bytes
}

fn words(bytes: &[u8]) -> &[u64] {
    bytemuck::cast_slice(&bytes[..bytes.len() / 8 * 8])
}

/// Bytes read and their sum: `words` cut into `streams` parts that are read side by side, a cache line of each in turn.
fn sum(words: &[u64], streams: usize) -> (usize, u64) {
    const LINE: usize = 8;
    let lines = words.len() / LINE / streams;
    let parts: Vec<&[u64]> = words.chunks_exact((lines * LINE).max(1)).take(streams).collect();
    let mut lanes = [0u64; LINE];
    for line in 0..lines {
        for part in &parts {
            let line = &part[line * LINE..][..LINE];
            lanes.iter_mut().zip(line).for_each(|(lane, word)| *lane = lane.wrapping_add(*word));
        }
    }
    (lines * LINE * streams * size_of::<u64>(), lanes.into_iter().fold(0, u64::wrapping_add))
}

/// Floor of prefill in f32: operations per second of a dense product of `n`³ in the `gemm` crate, best of five.
pub fn gemm_rate(n: usize) -> f64 {
    let (a, b, mut c) = (vec![0.5f32; n * n], vec![0.25f32; n * n], vec![0f32; n * n]);
    let mut pass = || {
        let start = Instant::now();
        dense(n, &a, &b, &mut c);
        2.0 * (n as f64).powi(3) / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}

fn dense(n: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    assert!(a.len() == n * n && b.len() == n * n && c.len() == n * n);
    let (row, column) = (n as isize, 1);
    // SAFETY: three row-major n x n matrices, as the lengths above show; `c` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            n,
            n,
            n,
            c.as_mut_ptr(),
            column,
            row,
            false,
            a.as_ptr(),
            column,
            row,
            b.as_ptr(),
            row,
            column,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}
