//! Parts of sm_90a, one small kernel each: tensor copies of 1 to 3 dimensions with every swizzle, wgmma with
//! A in registers and with MN-major operands, clusters with multicast, copies that arrive at mbarriers.

mod common;

use std::sync::LazyLock;

use common::*;
use ptx_vm::{Arg, Config, Error, FaultKind, Gpu, Launch, Module, OobFill, Swizzle, TensorMap, TensorType};

/// The file, compiled once for all tests.
static MODULE: LazyLock<Option<Module>> = LazyLock::new(|| {
    let nvcc = nvcc()?;
    let file = "sm90_features.cu";
    let source = std::fs::read_to_string(kernels_dir().join(file)).unwrap();
    let ptx = compile(&nvcc, file, &source, &kernels_dir(), "90a").unwrap();
    Some(Module::parse(&ptx, file).unwrap_or_else(|e| panic!("{e}")))
});

fn seeds() -> impl Iterator<Item = Config> {
    (1..=5).map(Config::with_seed)
}

fn run(gpu: &mut Gpu, module: &Module, kernel: &str, launch: Launch, args: &[Arg]) {
    gpu.launch(module, kernel, launch, args).unwrap_or_else(|e| panic!("{e}"));
}

/// A 3-D f32 tensor of 24 x 5 x 3 with padded rows, boxes of 16 x 2 x 2.
fn tensor(address: u64, boxes: [u32; 3], swizzle: Swizzle, fill: OobFill) -> TensorMap {
    let (dims, strides) = ([24, 5, 3], [112, 112 * 5]);
    TensorMap::tiled(TensorType::F32, address, &dims, &strides, &boxes, &[1; 3], swizzle, fill).unwrap()
}

#[test]
fn tensor_3d_round_trip_with_every_swizzle() {
    let Some(module) = &*MODULE else { return };
    let elements = 28 * 5 * 3;
    let data: Vec<f32> = (0..elements).map(|i| i as f32).collect();
    let cases = [(Swizzle::None, 16), (Swizzle::B32, 8), (Swizzle::B64, 16), (Swizzle::B128, 16), (Swizzle::B128, 32)];
    for (config, (swizzle, inner)) in seeds().zip(cases) {
        let mut gpu = Gpu::new(config);
        let (d_in, d_out) = (gpu.upload(&f32_bytes(&data)), gpu.upload(&f32_bytes(&vec![0.0; elements])));
        let boxes = [inner, 2, 2];
        // The corner lies such that the box leaves the tensor on several sides.
        let corner = [-4i32, 4, 2];
        let args = [
            (&tensor(d_in, boxes, swizzle, OobFill::Zeros)).into(),
            (&tensor(d_out, boxes, swizzle, OobFill::Zeros)).into(),
            corner[0].into(),
            corner[1].into(),
            corner[2].into(),
            (inner as i32 * 4).into(),
        ];
        run(&mut gpu, module, "tensor_3d", Launch::new(1, 64), &args);
        let out = to_f32(&gpu.copy_from(d_out, elements * 4).unwrap());
        for (i, (&v, &before)) in out.iter().zip(&data).enumerate() {
            let (x, y, z) = (i % 28, i / 28 % 5, i / 28 / 5);
            let inside = x < 24 && x < inner as usize - 4 && y >= 4 && z >= 2;
            assert_eq!(v, if inside { before + 1.0 } else { 0.0 }, "{swizzle:?} at {x} {y} {z}");
        }
    }
}

#[test]
fn tensor_1d_and_reducing_copy() {
    let Some(module) = &*MODULE else { return };
    for config in seeds() {
        let mut gpu = Gpu::new(config);
        let data: Vec<f32> = (0..150).map(|i| i as f32).collect();
        let (d_in, d_out) = (gpu.upload(&f32_bytes(&data)), gpu.upload(&f32_bytes(&[0.0; 64])));
        let map =
            TensorMap::tiled(TensorType::F32, d_in, &[150], &[], &[64], &[1], Swizzle::None, OobFill::Zeros).unwrap();
        run(&mut gpu, module, "tensor_1d", Launch::new(3, 32), &[(&map).into(), d_out.into()]);
        let out = to_f32(&gpu.copy_from(d_out, 256).unwrap());
        let at = |i: usize| data.get(i).copied().unwrap_or(0.0);
        assert_eq!(out, (0..64).map(|i| at(i) + at(i + 64) + at(i + 128)).collect::<Vec<_>>());
    }
}

#[test]
fn wgmma_with_a_in_registers() {
    let Some(module) = &*MODULE else { return };
    let k = 96;
    let mut data = Data(5);
    let f16 =
        |n: usize, data: &mut Data| -> Vec<half::f16> { (0..n).map(|_| half::f16::from_f32(data.unit())).collect() };
    let (a, b) = (f16(64 * k, &mut data), f16(16 * k, &mut data));
    let bytes = |v: &[half::f16]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    for config in seeds() {
        let mut gpu = Gpu::new(config);
        let (d_a, d_b, d_c) = (gpu.upload(&bytes(&a)), gpu.upload(&bytes(&b)), gpu.alloc(64 * 16 * 4));
        let (dims, strides) = ([k as u64, 16], [k as u64 * 2]);
        let ty = TensorType::F16;
        let map = TensorMap::tiled(ty, d_b, &dims, &strides, &[32, 16], &[1, 1], Swizzle::B64, OobFill::Zeros).unwrap();
        let args = [d_a.into(), (&map).into(), d_c.into(), (k as i32).into()];
        run(&mut gpu, module, "wgmma_rs", Launch::new(1, 128), &args);
        let c = to_f32(&gpu.copy_from(d_c, 64 * 16 * 4).unwrap());
        let dot = |r: usize, x: usize| -> f32 { (0..k).map(|i| a[r * k + i].to_f32() * b[x * k + i].to_f32()).sum() };
        let wanted: Vec<f32> = (0..64 * 16).map(|i| dot(i / 16, i % 16)).collect();
        assert!(max_error(&c, &wanted) < 1e-4);
    }
}

#[test]
fn wgmma_with_mn_major_operands() {
    let Some(module) = &*MODULE else { return };
    let mut data = Data(6);
    let (a, b) = (data.bf16(16 * 64), data.bf16(16 * 16));
    for config in seeds() {
        let mut gpu = Gpu::new(config);
        let (d_a, d_b) = (gpu.upload(&bf16_bytes(&a)), gpu.upload(&bf16_bytes(&b)));
        let d_c = gpu.alloc(64 * 16 * 4);
        let map = |address, columns: u32, swizzle| {
            let (dims, strides) = ([columns as u64, 16], [columns as u64 * 2]);
            let (ty, fill) = (TensorType::BF16, OobFill::Zeros);
            TensorMap::tiled(ty, address, &dims, &strides, &[columns, 16], &[1, 1], swizzle, fill).unwrap()
        };
        let args = [(&map(d_a, 64, Swizzle::B128)).into(), (&map(d_b, 16, Swizzle::B32)).into(), d_c.into()];
        run(&mut gpu, module, "wgmma_mn_major", Launch::new(1, 128), &args);
        let c = to_f32(&gpu.copy_from(d_c, 64 * 16 * 4).unwrap());
        let dot =
            |r: usize, x: usize| -> f32 { (0..16).map(|k| a[k * 64 + r].to_f32() * b[k * 16 + x].to_f32()).sum() };
        let wanted: Vec<f32> = (0..64 * 16).map(|i| dot(i / 16, i % 16)).collect();
        assert!(max_error(&c, &wanted) < 1e-4);
    }
}

#[test]
fn clusters_multicast_and_distributed_shared_memory() {
    let Some(module) = &*MODULE else { return };
    for config in seeds() {
        let mut gpu = Gpu::new(config);
        let data: Vec<i32> = (0..64 * 3).collect();
        let (d_in, d_out) = (gpu.upload(&i32_bytes(&data)), gpu.alloc(6 * 64 * 4));
        let ty = TensorType::U32;
        let map =
            TensorMap::tiled(ty, d_in, &[64, 3], &[256], &[64, 1], &[1, 1], Swizzle::None, OobFill::Zeros).unwrap();
        run(&mut gpu, module, "cluster_multicast", Launch::new(6, 64), &[(&map).into(), d_out.into()]);
        let out = to_i32(&gpu.copy_from(d_out, 6 * 64 * 4).unwrap());
        for (i, v) in out.into_iter().enumerate() {
            let (cluster, thread) = (i as i32 / 128, i as i32 % 64);
            assert_eq!(v, (cluster * 64 + thread) * 1000 + cluster * 64 + 63 - thread);
        }
    }
}

#[test]
fn a_block_that_leaves_its_cluster_early_is_found() {
    let Some(module) = &*MODULE else { return };
    let mut found = 0;
    for config in seeds() {
        let mut gpu = Gpu::new(config);
        let d_out = gpu.alloc(32 * 4);
        let result = gpu.launch(module, "cluster_leaves_early", Launch::new(2, 32), &[d_out.into()]);
        found += match result {
            Err(Error::Fault(fault)) => {
                assert!(matches!(fault.kind, FaultKind::Cluster(_)), "{fault}");
                1
            }
            _ => 0,
        };
    }
    assert!(found >= 1, "no seed of five shows the early exit");
}

#[test]
fn cp_async_arrives_at_an_mbarrier() {
    let Some(module) = &*MODULE else { return };
    for config in seeds() {
        let mut gpu = Gpu::new(config);
        let data: Vec<i32> = (0..256).collect();
        let (d_in, d_out) = (gpu.upload(&i32_bytes(&data)), gpu.alloc(1024));
        run(&mut gpu, module, "cp_async_mbarrier", Launch::new(1, 64), &[d_in.into(), d_out.into()]);
        let out = to_i32(&gpu.copy_from(d_out, 1024).unwrap());
        let wanted: Vec<i32> = (0..64).rev().flat_map(|i| [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3]).collect();
        assert_eq!(out, wanted);
    }
}
