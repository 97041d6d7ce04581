//! PTX made by Triton (`triton_kernels.py`, into the directory `PTX_VM_TRITON`): GEMM, softmax and top-k for
//! sm_80 and sm_90 give right results without a false alarm.

mod common;

use std::path::PathBuf;

use common::*;
use ptx_vm::{Arg, Config, Gpu, Launch, Module};

/// The module of a kernel and the shared memory it needs, for both architectures and three seeds.
fn each(name: &str, test: impl Fn(&mut Gpu, &Module, u32)) {
    let Some(dir) = std::env::var_os("PTX_VM_TRITON").map(PathBuf::from) else {
        assert!(std::env::var_os("PTX_VM_REQUIRE_TRITON").is_none(), "PTX_VM_TRITON is not set");
        eprintln!("skipped: PTX_VM_TRITON is not set");
        return;
    };
    for arch in [80, 90] {
        let file = format!("{name}_sm{arch}.ptx");
        let text = std::fs::read_to_string(dir.join(&file)).unwrap();
        let shared = text.lines().next().and_then(|l| l.strip_prefix("// shared ")).and_then(|n| n.parse().ok());
        let module = Module::parse(&text, &file).unwrap_or_else(|e| panic!("{e}"));
        for seed in 1..=3 {
            test(&mut Gpu::new(Config::with_seed(seed)), &module, shared.unwrap());
        }
    }
}

/// Triton adds two pointers to scratch memory that these kernels do not use.
fn run(gpu: &mut Gpu, module: &Module, kernel: &str, launch: Launch, args: &[Arg]) {
    let mut all = args.to_vec();
    all.extend([0u64.into(), 0u64.into()]);
    gpu.launch(module, kernel, launch, &all).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn matmul() {
    let (m, n, k) = (100usize, 128usize, 160usize);
    let mut data = Data(3);
    let (a, b) = (data.bf16(m * k), data.bf16(k * n));
    let wanted: Vec<f32> =
        (0..m * n).map(|i| (0..k).map(|x| a[i / n * k + x].to_f32() * b[x * n + i % n].to_f32()).sum()).collect();
    each("matmul", |gpu, module, shared| {
        let (d_a, d_b, d_c) = (gpu.upload(&bf16_bytes(&a)), gpu.upload(&bf16_bytes(&b)), gpu.alloc(m * n * 2));
        let sizes = [m, n, k].map(|x| (x as i32).into());
        let args = [&[d_a.into(), d_b.into(), d_c.into()], &sizes[..]].concat();
        let launch = Launch::new((m.div_ceil(64) as u32, n as u32 / 64), 128).shared(shared);
        run(gpu, module, "matmul", launch, &args);
        assert!(max_error(&to_bf16(&gpu.copy_from(d_c, m * n * 2).unwrap()), &wanted) < 0.01);
    });
}

#[test]
fn softmax() {
    let (rows, n) = (5usize, 200usize);
    let mut data = Data(4);
    let x: Vec<f32> = (0..rows * n).map(|_| data.unit() * 8.0).collect();
    let mut wanted = vec![];
    for row in x.chunks(n) {
        let sum: f32 = row.iter().map(|v| v.exp()).sum();
        wanted.extend(row.iter().map(|v| v.exp() / sum));
    }
    each("softmax", |gpu, module, shared| {
        let (d_x, d_y) = (gpu.upload(&f32_bytes(&x)), gpu.alloc(rows * n * 4));
        let launch = Launch::new(rows as u32, 128).shared(shared);
        run(gpu, module, "softmax", launch, &[d_x.into(), d_y.into(), (n as i32).into()]);
        assert!(max_error(&to_f32(&gpu.copy_from(d_y, rows * n * 4).unwrap()), &wanted) < 1e-5);
    });
}

#[test]
fn topk() {
    let (rows, n, k) = (7usize, 100usize, 6usize);
    let mut data = Data(8);
    let x: Vec<f32> = (0..rows * n).map(|_| (data.unit() * 40.0).floor()).collect();
    let mut ids = vec![];
    for row in x.chunks(n) {
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        ids.extend(order[..k].iter().map(|&i| i as i32));
    }
    each("topk", |gpu, module, shared| {
        let (d_x, d_ids, d_values) = (gpu.upload(&f32_bytes(&x)), gpu.alloc(rows * k * 4), gpu.alloc(rows * k * 4));
        let args = [d_x.into(), d_ids.into(), d_values.into(), (n as i32).into(), (k as i32).into()];
        run(gpu, module, "topk", Launch::new(rows as u32, 128).shared(shared), &args);
        assert_eq!(to_i32(&gpu.copy_from(d_ids, rows * k * 4).unwrap()), ids);
        let values: Vec<f32> = ids.iter().enumerate().map(|(i, &id)| x[i / k * n + id as usize]).collect();
        assert_eq!(to_f32(&gpu.copy_from(d_values, rows * k * 4).unwrap()), values);
    });
}
