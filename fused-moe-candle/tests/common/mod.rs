//! What the tests share: random tensors, a distance, and the layer as anyone would write it in candle.

use candle_core::{D, DType, Device, Result, Tensor};

/// Seeded values of about unit variance, rounded to `dtype`.
pub fn random(seed: u64, dims: &[usize], dtype: DType) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let values: Vec<f32> = (0..dims.iter().product::<usize>())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 1.7
        })
        .collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// ‖a − b‖ / ‖b‖.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let norm = |t: Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    let [a, b] = [a, b].map(|t| t.to_dtype(DType::F64).unwrap());
    norm((&a - &b).unwrap()) / norm(b).max(1e-30)
}

/// How far two answers may be apart, by the type of the weights.
pub fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 5e-3 }
}

/// The experts in plain candle, in f64: `[T, H]`, `[E, 2I, H]`, `[E, H, I]`, `[T, k]`, `[T, k]`; SwiGLU, gate first.
/// An expert runs over all tokens, and its weight, 0 for most, picks.
pub fn naive(xs: &Tensor, gate_up: &Tensor, down: &Tensor, ids: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let [xs, gate_up, down, weights] = [xs, gate_up, down, weights].map(|t| t.to_dtype(DType::F64).unwrap());
    let mut sum = xs.zeros_like()?;
    for expert in 0..gate_up.dim(0)? {
        let chosen = ids.eq(expert as u32)?.to_dtype(DType::F64)?;
        let weight = (chosen * &weights)?.sum_keepdim(D::Minus1)?;
        let gate_up = xs.matmul(&gate_up.get(expert)?.t()?)?;
        let [gate, up] = <[Tensor; 2]>::try_from(gate_up.chunk(2, D::Minus1)?).unwrap();
        let act = (gate.silu()? * up)?;
        sum = (sum + act.matmul(&down.get(expert)?.t()?)?.broadcast_mul(&weight)?)?;
    }
    Ok(sum)
}
