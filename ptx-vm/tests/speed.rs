//! The machine is fast enough to be used in ordinary tests, all checks on.

mod common;

use std::time::Instant;

use common::*;
use ptx_vm::{Config, Gpu, Launch, Module};

/// A 128x256x256 product on 64x64 tiles, by the sm_80 kernel of these tests.
#[test]
fn a_tile_test_takes_a_fraction_of_a_second() {
    let Some(nvcc) = nvcc() else { return };
    let source = std::fs::read_to_string(kernels_dir().join("grouped_gemm_sm80.cu")).unwrap();
    let ptx = compile(&nvcc, "grouped_gemm_sm80.cu", &source, &kernels_dir(), "80").unwrap();
    let module = Module::parse(&ptx, "grouped_gemm_sm80.cu").unwrap();
    let (m, n, k) = (128usize, 256usize, 256usize);
    let mut data = Data(1);
    let mut gpu = Gpu::new(Config::default());
    let (d_a, d_b) = (gpu.upload(&bf16_bytes(&data.bf16(m * k))), gpu.upload(&bf16_bytes(&data.bf16(n * k))));
    let d_offsets = gpu.upload(&i32_bytes(&[0, m as i32]));
    let d_idx = gpu.upload(&i32_bytes(&(0..m as i32).collect::<Vec<_>>()));
    let d_c = gpu.alloc(m * n * 2);
    let sizes = [1i32, 1, n as i32, k as i32].map(|x| x.into());
    let args = [&[d_a.into(), d_b.into(), d_offsets.into(), d_idx.into()], &sizes[..], &[d_c.into()]].concat();
    let launch = Launch::new((n as u32 / 64, m as u32 / 64), 128).shared(2 * 8192);
    let mut best = f64::INFINITY;
    let mut instructions = 0;
    for _ in 0..5 {
        let start = Instant::now();
        let counters = gpu.launch(&module, "grouped_gemm_sm80", launch, &args).unwrap_or_else(|e| panic!("{e}"));
        best = best.min(start.elapsed().as_secs_f64());
        instructions = counters.instructions;
    }
    let rate = instructions as f64 / best / 1e6;
    println!("{instructions} thread-instructions in {:.1} ms: {rate:.0} M/s", best * 1e3);
    // Debug builds and busy machines are slower; this only catches a collapse.
    assert!(cfg!(debug_assertions) || rate > 4.0, "{rate} M thread-instructions per second");
}
