//! More than 2^31 elements behind one index: zero pages that nobody touches, and something to find far out.

use std::sync::Arc;

use fused_moe::config::WeightLayout;
use fused_moe::ops::{self, CombineArgs, Epilogue, GroupedGemmArgs, InputRows, PermuteArgs};
use fused_moe::plan::{PermutePlanMut, Slots};
use fused_moe::{DType, Device, Error, Tensor};
use memmap2::MmapOptions;

use crate::errors::names;
use crate::harness::values::{download, garbage};
use crate::harness::{Failure, Log, Problem, Test, compare};

/// For devices that work in the caller's memory; one that cannot share it says so.
pub const TESTS: &[Test] = &[
    Test { op: "grouped_gemm", name: "far_expert", body: far_expert },
    Test { op: "grouped_gemm", name: "far_tokens", body: far_tokens },
    Test { op: "combine", name: "far_rows", body: far_rows },
    Test { op: "permute", name: "too_many_slots", body: too_many_slots },
];

const FAR: usize = 1 << 31;

#[derive(Clone, Copy, Debug)]
struct Case {
    #[allow(dead_code, reason = "read by Debug")]
    seed: u64,
    dtype: DType,
    rows: usize,
    row_len: usize,
}

impl Case {
    /// Rows of `row_len` elements, 64 of them beyond 2^31 elements.
    fn new(dtype: DType, row_len: usize) -> Self {
        Self { seed: 0, dtype, rows: FAR / row_len + 64, row_len }
    }

    /// A tensor of zeros but for `row`, whose elements are 1, 2, 3, 1, 2, 3, …
    fn tensor<const N: usize>(&self, device: &Device, row: usize, shape: [usize; N]) -> Result<Tensor, Problem> {
        if !device.backend().is_host() {
            let what = "tensors over the caller's memory".into();
            return Err(Problem::Error(Error::Unsupported { backend: device.name(), what }));
        }
        let size = self.dtype.size();
        // Address space only: a machine with less memory than this can run it too.
        let len = self.rows * self.row_len * size;
        let mut map = MmapOptions::new().len(len).no_reserve_swap().map_anon().expect("address space for 8 GiB");
        for (i, element) in map[row * self.row_len * size..][..self.row_len * size].chunks_exact_mut(size).enumerate() {
            // The high half of an f32 is the bf16.
            let bytes = value(i).to_le_bytes();
            element.copy_from_slice(&bytes[4 - size..]);
        }
        let bytes = 0..map.len();
        let owner = Arc::new(map.make_read_only().expect("a mapping of our own"));
        Ok(Tensor::from_shared(device, owner, bytes, self.dtype, shape)?)
    }
}

fn value(i: usize) -> f32 {
    (i % 3 + 1) as f32
}

fn far_expert(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in [DType::F32, DType::BF16] {
        for weight_layout in [WeightLayout::Nk, WeightLayout::Kn] {
            log.case(device, &Case::new(dtype, 64 * 96), |device, case| {
                let (k, n, expert) = (64, 96, case.rows - 1);
                let weight = case.tensor(device, expert, weight_layout.shape(case.rows, n, k))?;
                let input = Tensor::from_slice(device, &[1.0f32; 2 * 64], [2, k])?;
                let mut offsets = vec![0u32; case.rows + 1];
                offsets[case.rows] = 2;
                let offsets = Tensor::from_slice(device, &offsets, [offsets.len()])?;
                let mut output = garbage(device, DType::F32, [2, n])?;
                let args = GroupedGemmArgs {
                    input: input.view(),
                    rows: InputRows::Same,
                    expert_offsets: Some(offsets.view()),
                    weight: weight.view(),
                    weight_layout,
                    bias: None,
                    epilogue: Epilogue::None,
                    output: output.view_mut()?,
                    batch_invariant: false,
                };
                ops::grouped_gemm(device, args)?;
                let at = |n_: usize, k_: usize| match weight_layout {
                    WeightLayout::Nk => n_ * k + k_,
                    WeightLayout::Kn => k_ * n + n_,
                };
                let row: Vec<f64> = (0..n).map(|n| (0..k).map(|k| f64::from(value(at(n, k)))).sum()).collect();
                compare::floats("output", &download(device, output.view())?, &row.repeat(2), n, 1e-5)
            })?;
        }
    }
    Ok(())
}

/// The tokens of the last three slots are the last three: their rows start beyond 2^31 elements.
fn far_tokens(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in [DType::F32, DType::BF16] {
        log.case(device, &Case::new(dtype, 8190), |device, case| {
            let (k, tokens) = (case.row_len, case.rows as u32);
            let input = case.tensor(device, case.rows - 2, [case.rows, k])?;
            let slot_tokens = Tensor::from_slice(device, &[tokens - 3, tokens - 2, tokens - 1], [3])?;
            let mut offsets = vec![0u32; case.rows - 2];
            offsets.extend([1, 2, 3]);
            let token_offsets = Tensor::from_slice(device, &offsets, [case.rows + 1])?;
            let permuted_idx = Tensor::from_slice(device, &[0u32, 1, 2], [3])?;
            let weight = Tensor::from_slice(device, &vec![1.0f32; k], [1, 1, k])?;
            let expert_offsets = Tensor::from_slice(device, &[0u32, 3], [2])?;
            let mut output = garbage(device, DType::F32, [3, 1])?;
            let slots = Slots::Ragged { token_offsets: token_offsets.view(), slot_tokens: slot_tokens.view() };
            let args = GroupedGemmArgs {
                input: input.view(),
                rows: InputRows::Gathered { permuted_idx: permuted_idx.view(), slots, slot_scale: None },
                expert_offsets: Some(expert_offsets.view()),
                weight: weight.view(),
                weight_layout: WeightLayout::Nk,
                bias: None,
                epilogue: Epilogue::None,
                output: output.view_mut()?,
                batch_invariant: false,
            };
            ops::grouped_gemm(device, args)?;
            let sum = (0..k).map(|i| f64::from(value(i))).sum();
            compare::floats("output", &download(device, output.view())?, &[0.0, sum, 0.0], 1, 1e-5)
        })?;
    }
    Ok(())
}

fn far_rows(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for dtype in [DType::F32, DType::BF16] {
        log.case(device, &Case::new(dtype, 8190), |device, case| {
            let (row, hidden_size) = (case.rows - 2, case.row_len);
            let expert_out = case.tensor(device, row, [case.rows, hidden_size])?;
            let inv_permuted_idx = Tensor::from_slice(device, &[row as u32 + 1, row as u32], [2])?;
            let topk_weights = Tensor::from_slice(device, &[1.0f32, 0.5], [2])?;
            let mut output = garbage(device, DType::F32, [1, hidden_size])?;
            let args = CombineArgs {
                expert_out: expert_out.view(),
                inv_permuted_idx: Some(inv_permuted_idx.view()),
                topk_weights: Some(topk_weights.view()),
                slots: Slots::PerToken { top_k: 2 },
                zero_experts: None,
                shared: None,
                output: output.view_mut()?,
            };
            ops::combine(device, args)?;
            let expected: Vec<f64> = (0..hidden_size).map(|i| 0.5 * f64::from(value(i))).collect();
            compare::floats("output", &download(device, output.view())?, &expected, hidden_size, 1e-5)
        })?;
    }
    Ok(())
}

/// Slots are counted in u32, and half of that is enough: more is the caller's mistake, found before a slot is read.
fn too_many_slots(device: &Device, log: &mut Log) -> Result<(), Failure> {
    log.case(device, &Case { rows: FAR + 1, ..Case::new(DType::U32, 1) }, |device, case| {
        let topk_ids = case.tensor(device, 0, [case.rows])?;
        let mut expert_offsets = Tensor::zeros(device, DType::U32, [2])?;
        let mut permuted_idx = Tensor::zeros(device, DType::U32, [1])?;
        let mut inv_permuted_idx = Tensor::zeros(device, DType::U32, [1])?;
        let plan = PermutePlanMut {
            expert_offsets: expert_offsets.view_mut()?,
            permuted_idx: permuted_idx.view_mut()?,
            inv_permuted_idx: inv_permuted_idx.view_mut()?,
        };
        names(ops::permute(device, PermuteArgs { topk_ids: topk_ids.view(), plan }), "topk_ids")
    })
}
