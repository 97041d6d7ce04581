//! The four kernels with ragged inputs, each checked against a plain Rust computation.

use ptx_vm::{Arg, Config, Gpu, Launch, Module, OobFill, Swizzle, TensorMap, TensorType};

use super::*;

/// A kernel file, its architecture and what runs it.
pub struct Case {
    pub file: &'static str,
    pub arch: &'static str,
    pub run: fn(&Module, Config) -> Result<(), String>,
}

pub const CASES: &[Case] = &[
    Case { file: "topk_gate.cu", arch: "80", run: topk_gate },
    Case { file: "permute.cu", arch: "80", run: permute },
    Case { file: "grouped_gemm_sm80.cu", arch: "80", run: grouped_gemm },
    Case { file: "gemm_sm90.cu", arch: "90a", run: gemm_sm90 },
];

const TOKENS: usize = 141;
const EXPERTS: usize = 64;
const TOP_K: usize = 4;

fn check(ok: bool, what: &str) -> Result<(), String> {
    if ok { Ok(()) } else { Err(format!("wrong result: {what}")) }
}

/// Logits with many ties, and the ids that follow from them.
fn logits() -> (Vec<f32>, Vec<i32>) {
    let mut data = Data(0x1234_5678_9abc_def1);
    let logits: Vec<f32> = (0..TOKENS * EXPERTS).map(|_| (data.unit() * 16.0).floor() / 4.0).collect();
    let mut ids = vec![];
    for row in logits.chunks(EXPERTS) {
        let mut order: Vec<usize> = (0..EXPERTS).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        ids.extend(order[..TOP_K].iter().map(|&e| e as i32));
    }
    (logits, ids)
}

fn launch(gpu: &mut Gpu, module: &Module, kernel: &str, launch: Launch, args: &[Arg]) -> Result<(), String> {
    let name = module.find(kernel).ok_or_else(|| format!("no kernel {kernel}"))?;
    gpu.launch(module, name, launch, args).map(|_| ()).map_err(|e| e.to_string())
}

fn topk_gate(module: &Module, config: Config) -> Result<(), String> {
    let (logits, expected) = logits();
    let mut gpu = Gpu::new(config);
    let d_logits = gpu.upload(&f32_bytes(&logits));
    let d_ids = gpu.alloc(TOKENS * TOP_K * 4);
    let d_weights = gpu.alloc(TOKENS * TOP_K * 4);
    let d_counts = gpu.upload(&[0; EXPERTS * 4]);
    let args = [d_logits.into(), (TOKENS as i32).into(), d_ids.into(), d_weights.into(), d_counts.into()];
    launch(&mut gpu, module, "topk_gate", Launch::new(TOKENS.div_ceil(4) as u32, 128), &args)?;

    let mut read = |at, n| gpu.copy_from(at, n).map_err(|e| e.to_string());
    check(to_i32(&read(d_ids, TOKENS * TOP_K * 4)?) == expected, "topk_ids")?;
    let weights = to_f32(&read(d_weights, TOKENS * TOP_K * 4)?);
    for (t, (row, ids)) in weights.chunks(TOP_K).zip(expected.chunks(TOP_K)).enumerate() {
        let chosen = ids.iter().map(|&e| logits[t * EXPERTS + e as usize]);
        let exps: Vec<f32> = chosen.map(|v| (v - logits[t * EXPERTS + ids[0] as usize]).exp()).collect();
        let sum: f32 = exps.iter().sum();
        let wanted: Vec<f32> = exps.iter().map(|e| e / sum).collect();
        check(max_error(row, &wanted) < 1e-5, "topk_weights")?;
    }
    let counts = to_i32(&read(d_counts, EXPERTS * 4)?);
    let count = |e: usize| expected.iter().filter(|&&id| id as usize == e).count() as i32;
    check((0..EXPERTS).all(|e| counts[e] == count(e)), "counts")
}

fn permute(module: &Module, config: Config) -> Result<(), String> {
    let (_, ids) = logits();
    let n = ids.len();
    let mut gpu = Gpu::new(config);
    let d_ids = gpu.upload(&i32_bytes(&ids));
    let (d_offsets, d_inv, d_idx) = (gpu.alloc((EXPERTS + 1) * 4), gpu.alloc(n * 4), gpu.alloc(n * 4));
    let args = [d_ids.into(), (n as i32).into(), d_offsets.into(), d_inv.into(), d_idx.into()];
    launch(&mut gpu, module, "permute_scan", Launch::new(1, 256), &args)?;

    let mut order: Vec<i32> = (0..n as i32).collect();
    order.sort_by_key(|&slot| ids[slot as usize]);
    let mut inverse = vec![0; n];
    for (row, &slot) in order.iter().enumerate() {
        inverse[slot as usize] = row as i32;
    }
    let below = |e: usize| ids.iter().filter(|&&id| (id as usize) < e).count() as i32;
    let offsets: Vec<i32> = (0..=EXPERTS).map(below).collect();
    let mut read = |at, n| gpu.copy_from(at, n).map_err(|e| e.to_string());
    check(to_i32(&read(d_offsets, (EXPERTS + 1) * 4)?) == offsets, "expert_offsets")?;
    check(to_i32(&read(d_inv, n * 4)?) == inverse, "inv_permuted_idx")?;
    check(to_i32(&read(d_idx, n * 4)?) == order, "permuted_idx")
}

/// `rows[r] * b[e]^T` in f32.
fn matmul(row: &[half::bf16], b: &[half::bf16], n: usize) -> Vec<f32> {
    let k = row.len();
    let dot = |x: usize| {
        let column = &b[x * k..(x + 1) * k];
        row.iter().zip(column).map(|(a, b)| a.to_f32() * b.to_f32()).sum()
    };
    (0..n).map(dot).collect()
}

/// Three experts with 70, 0 and 37 rows, gathered from tokens in a mixed order.
fn grouped_gemm(module: &Module, config: Config) -> Result<(), String> {
    let (experts, top_k, n, k) = (3, 2, 128usize, 160usize);
    let offsets = [0, 70, 70, 107];
    let rows = 107usize;
    let tokens = rows.div_ceil(top_k);
    let permuted: Vec<i32> = (0..rows as i32).map(|r| r * 41 % rows as i32).collect();
    let mut data = Data(77);
    let (a, b) = (data.bf16(tokens * k), data.bf16(experts * n * k));
    let mut gpu = Gpu::new(config);
    let (d_a, d_b) = (gpu.upload(&bf16_bytes(&a)), gpu.upload(&bf16_bytes(&b)));
    let (d_offsets, d_idx) = (gpu.upload(&i32_bytes(&offsets)), gpu.upload(&i32_bytes(&permuted)));
    // One row more than there are: what lies behind the last must stay as it is.
    let d_c = gpu.alloc((rows + 1) * n * 2);
    let args = [
        d_a.into(),
        d_b.into(),
        d_offsets.into(),
        d_idx.into(),
        (top_k as i32).into(),
        (experts as i32).into(),
        (n as i32).into(),
        (k as i32).into(),
        d_c.into(),
    ];
    let grid = Launch::new((n as u32 / 64, 4), 128).shared(2 * 8192);
    launch(&mut gpu, module, "grouped_gemm_sm80", grid, &args)?;

    check(!gpu.is_initialised(d_c + (rows * n * 2) as u64, 1), "row behind the end was written")?;
    let c = to_bf16(&gpu.copy_from(d_c, rows * n * 2).map_err(|e| e.to_string())?);
    for r in 0..rows {
        let token = permuted[r] as usize / top_k;
        let expert = (1..=experts).position(|e| r < offsets[e] as usize).unwrap_or(0);
        let wanted = matmul(&a[token * k..][..k], &b[expert * n * k..][..n * k], n);
        check(max_error(&c[r * n..][..n], &wanted) < 0.01, "C")?;
    }
    Ok(())
}

/// Tensor map of a row-major bf16 matrix with tiles of 64x64.
pub fn matrix_map(address: u64, rows: usize, columns: usize) -> TensorMap {
    let dims = [columns as u64, rows as u64];
    let strides = [columns as u64 * 2];
    let (ty, swizzle) = (TensorType::BF16, Swizzle::B128);
    TensorMap::tiled(ty, address, &dims, &strides, &[64, 64], &[1, 1], swizzle, OobFill::Zeros).expect("a valid map")
}

/// M off the tile, and more k steps than stages.
fn gemm_sm90(module: &Module, config: Config) -> Result<(), String> {
    let (m, n, k) = (100usize, 128usize, 320usize);
    let mut data = Data(99);
    let (a, b) = (data.bf16(m * k), data.bf16(n * k));
    let bias: Vec<f32> = (0..n).map(|_| data.unit()).collect();
    let mut gpu = Gpu::new(config);
    let (d_a, d_b) = (gpu.upload(&bf16_bytes(&a)), gpu.upload(&bf16_bytes(&b)));
    let (d_bias, d_c) = (gpu.upload(&f32_bytes(&bias)), gpu.alloc(m * n * 2));
    let args = [
        (&matrix_map(d_a, m, k)).into(),
        (&matrix_map(d_b, n, k)).into(),
        d_bias.into(),
        d_c.into(),
        (m as i32).into(),
        (n as i32).into(),
        (k as i32).into(),
    ];
    let shared = 3 * 16384 + 8192 + 256 + 56;
    let grid = Launch::new((n as u32 / 64, m.div_ceil(64) as u32), 256).shared(shared);
    launch(&mut gpu, module, "gemm_sm90", grid, &args)?;

    let c = to_bf16(&gpu.copy_from(d_c, m * n * 2).map_err(|e| e.to_string())?);
    for r in 0..m {
        let product = matmul(&a[r * k..][..k], &b, n);
        let wanted: Vec<f32> = product.iter().zip(&bias).map(|(p, b)| p + b).collect();
        check(max_error(&c[r * n..][..n], &wanted) < 0.01, "C")?;
    }
    Ok(())
}
