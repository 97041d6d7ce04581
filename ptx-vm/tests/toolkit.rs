//! Code of the CUDA toolkit's libraries, not written for this machine: right results and no false alarm, for
//! sm_80 and sm_90a, on several schedules.

mod common;

use std::sync::LazyLock;

use common::*;
use ptx_vm::{Arg, Config, Error, FaultKind, Gpu, Launch, Module};

/// The file for both architectures; compiled once for all tests.
static MODULES: LazyLock<Vec<Module>> = LazyLock::new(|| {
    let Some(nvcc) = nvcc() else { return vec![] };
    let file = "toolkit.cu";
    let source = std::fs::read_to_string(kernels_dir().join(file)).unwrap();
    let module = |arch| {
        let ptx = compile(&nvcc, file, &source, &kernels_dir(), arch).unwrap();
        Module::parse(&ptx, file).unwrap_or_else(|e| panic!("{e}"))
    };
    vec![module("80"), module("90a")]
});

/// Runs `test` on both architectures and three seeds.
fn each(test: impl Fn(&mut Gpu, &Module)) {
    for module in MODULES.iter() {
        for seed in 1..=3 {
            test(&mut Gpu::new(Config::with_seed(seed)), module);
        }
    }
}

fn run(gpu: &mut Gpu, module: &Module, kernel: &str, launch: Launch, args: &[Arg]) {
    gpu.launch(module, kernel, launch, args).unwrap_or_else(|e| panic!("{e}"));
}

fn ints(gpu: &mut Gpu, address: u64, n: usize) -> Vec<i32> {
    assert!(gpu.is_initialised(address, n * 4));
    to_i32(&gpu.copy_from(address, n * 4).unwrap())
}

#[test]
fn cub_block_scan() {
    each(|gpu, module| {
        let data: Vec<i32> = (0..512).map(|i| i * 7 % 13).collect();
        let d = gpu.alloc(513 * 4);
        gpu.copy_to(d, &i32_bytes(&data)).unwrap();
        run(gpu, module, "block_scan", Launch::new(1, 128), &[d.into()]);
        let wanted: Vec<i32> = (0..=512).map(|i| data[..i].iter().sum()).collect();
        assert_eq!(ints(gpu, d, 513), wanted);
    });
}

#[test]
fn cub_block_radix_sort() {
    each(|gpu, module| {
        let keys: Vec<i32> = (0..512i32).map(|i| i.wrapping_mul(0x9e37_79b1u32 as i32) & 0xff_ffff).collect();
        let (d_keys, d_values) = (gpu.upload(&i32_bytes(&keys)), gpu.alloc(2048));
        run(gpu, module, "block_radix_sort", Launch::new(1, 128), &[d_keys.into(), d_values.into()]);
        let mut order: Vec<i32> = (0..512).collect();
        order.sort_by_key(|&i| keys[i as usize]);
        assert_eq!(ints(gpu, d_values, 512), order);
        assert_eq!(ints(gpu, d_keys, 512), order.iter().map(|&i| keys[i as usize]).collect::<Vec<_>>());
    });
}

#[test]
fn cub_block_reduce() {
    each(|gpu, module| {
        let data: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let (d_in, d_out) = (gpu.upload(&f32_bytes(&data)), gpu.alloc(4));
        run(gpu, module, "block_reduce", Launch::new(1, 128), &[d_in.into(), d_out.into(), 100i32.into()]);
        assert_eq!(to_f32(&gpu.copy_from(d_out, 4).unwrap()), [4950.0]);
    });
}

#[test]
fn cccl_barrier() {
    each(|gpu, module| {
        let d = gpu.upload(&i32_bytes(&(0..128).collect::<Vec<_>>()));
        run(gpu, module, "cuda_barrier", Launch::new(1, 128), &[d.into()]);
        assert_eq!(ints(gpu, d, 128), (0..128).map(|i| 127 - i + 3).collect::<Vec<_>>());
    });
}

#[test]
fn cccl_ptx_bulk_copy() {
    each(|gpu, module| {
        let (d_in, d_out) = (gpu.upload(&i32_bytes(&(0..64).collect::<Vec<_>>())), gpu.alloc(256));
        run(gpu, module, "cuda_ptx_bulk", Launch::new(1, 64), &[d_in.into(), d_out.into()]);
        if gpu.is_initialised(d_out, 256) {
            assert_eq!(ints(gpu, d_out, 64), (0..64).rev().collect::<Vec<_>>());
        }
    });
}

#[test]
fn the_last_block_sums_up() {
    each(|gpu, module| {
        let data: Vec<i32> = (0..32 * 20).collect();
        let (d_in, d_partial, d_out) = (gpu.upload(&i32_bytes(&data)), gpu.alloc(80), gpu.alloc(4));
        for _ in 0..2 {
            run(gpu, module, "last_block", Launch::new(20, 32), &[d_in.into(), d_partial.into(), d_out.into()]);
            assert_eq!(ints(gpu, d_out, 1), [data.iter().sum::<i32>()]);
        }
    });
}

#[test]
fn blocks_wait_for_each_other() {
    each(|gpu, module| {
        let (d_flags, d_values) = (gpu.upload(&[0; 80]), gpu.alloc(80));
        run(gpu, module, "chain", Launch::new(20, 32), &[d_flags.into(), d_values.into()]);
        assert_eq!(ints(gpu, d_values, 20), (0..20).map(|i| 1 << i).collect::<Vec<_>>());
    });
}

#[test]
fn calls_of_functions_that_are_not_inlined() {
    each(|gpu, module| {
        let data: Vec<f32> = (0..64).map(|i| i as f32 / 8.0).collect();
        let d = gpu.upload(&f32_bytes(&data));
        run(gpu, module, "calls", Launch::new(1, 64), &[d.into()]);
        let wanted: Vec<f32> = data
            .iter()
            .enumerate()
            .map(|(i, &a)| match i % 5 {
                n if n % 2 == 1 => a.powi(n as i32) + 2.0 + a,
                n => a + 2f32.powi(n as i32) + 2.0,
            })
            .collect();
        assert!(max_error(&to_f32(&gpu.copy_from(d, 256).unwrap()), &wanted) < 1e-5);
    });
}

#[test]
fn local_arrays_and_constant_memory() {
    each(|gpu, module| {
        let d = gpu.alloc(64 * 4);
        run(gpu, module, "local_and_constant", Launch::new(1, 64), &[d.into(), 5i32.into()]);
        let a: Vec<i32> = (0..8).map(|i| [3, 1, 4, 1][i as usize & 3] * i).collect();
        let wanted: Vec<i32> = (0..64).map(|t| (0..5).map(|i| a[(t + i) & 7]).sum()).collect();
        assert_eq!(ints(gpu, d, 64), wanted);
    });
}

#[test]
fn a_race_between_blocks_is_found() {
    each(|gpu, module| {
        let d = gpu.alloc(256);
        match gpu.launch(module, "block_race", Launch::new(2, 64), &[d.into()]) {
            Err(Error::Fault(fault)) => {
                assert!(matches!(fault.kind, FaultKind::Race { .. }), "{fault}");
                let other = fault.other.expect("a race has two parties");
                assert_ne!(other.block, fault.party.expect("one party").block);
            }
            other => panic!("no race found: {other:?}"),
        }
    });
}
