//! The weighted sum over a token's slots: `combine/<preset>/T<tokens>`. Its input is warm, as behind the GEMM.

mod common;

use common::report::{self, Floors, Report};
use common::routing::{self, Distribution, Uniform};
use common::stack::Work;
use common::{stack, verify};
use criterion::Criterion;
use fused_moe::ops::{CombineArgs, combine};
use fused_moe::plan::Slots;
use fused_moe::{DType, Device, MoeConfig, Tensor, reference};

struct Ready {
    top_k: usize,
    expert_out: Tensor,
    inv_permuted_idx: Tensor,
    topk_weights: Tensor,
    output: Tensor,
}

impl Ready {
    fn new(device: &Device, config: &MoeConfig, num_tokens: usize) -> Self {
        let (top_k, hidden_size) = (config.router.top_k, config.hidden_size);
        let num_slots = num_tokens * top_k;
        let topk_ids = routing::draw(config, Distribution::Uniform, num_tokens, 0, 1);
        let plan = reference::permute(&topk_ids, config.num_experts);
        let mut random = Uniform::new(num_tokens as u64);
        let mut values = |n: usize| -> Vec<f32> { (0..n).map(|_| (random.draw() - 0.5) as f32).collect() };
        let dtype = device.backend().intermediate_dtype(DType::BF16);
        let mut ready = Self {
            top_k,
            expert_out: stack::from_f32(device, dtype, &values(num_slots * hidden_size), [num_slots, hidden_size]),
            inv_permuted_idx: Tensor::from_slice(device, &plan.inv_permuted_idx, [num_slots]).expect("one per slot"),
            topk_weights: Tensor::from_slice(device, &values(num_slots), [num_slots]).expect("one per slot"),
            output: Tensor::zeros(device, DType::BF16, [num_tokens, hidden_size]).expect("small"),
        };
        ready.verify(num_tokens, hidden_size);
        ready
    }

    fn run(&mut self) {
        let args = CombineArgs {
            expert_out: self.expert_out.view(),
            inv_permuted_idx: Some(self.inv_permuted_idx.view()),
            topk_weights: Some(self.topk_weights.view()),
            slots: Slots::PerToken { top_k: self.top_k },
            zero_experts: None,
            shared: None,
            output: self.output.view_mut().expect("memory of its own"),
        };
        combine(self.expert_out.device(), args).expect("shapes fit");
    }

    fn verify(&mut self, num_tokens: usize, hidden_size: usize) {
        self.run();
        let expert_out = verify::wide(self.expert_out.view());
        for token in verify::first_and_last(num_tokens) {
            let slots = token * self.top_k..(token + 1) * self.top_k;
            let rows = self.inv_permuted_idx.to_vec::<u32>().expect("u32");
            let expected = reference::combine(&reference::Combine {
                expert_out: &expert_out,
                hidden_size,
                inv_permuted_idx: &rows[slots.clone()],
                topk_weights: Some(&verify::wide(self.topk_weights.view())[slots]),
                token_offsets: &[0, self.top_k as u32],
                zero_experts: None,
                shared: None,
            });
            let actual = verify::wide(self.output.view().slice(token..token + 1).expect("a token"));
            verify::check("combine", &actual, &expected, DType::BF16);
        }
    }
}

fn main() {
    let mut criterion = report::criterion();
    let report = Report::default();
    bench(&mut criterion, &report);
    criterion.final_summary();
    report.print();
}

fn bench(criterion: &mut Criterion, report: &Report) {
    let device = common::device::device();
    let element = device.backend().intermediate_dtype(DType::BF16).size();
    let mut group = report::group(criterion, "combine");
    for preset in common::unfitted_presets() {
        for &num_tokens in common::token_counts() {
            let id = format!("{}/T{num_tokens}", preset.name);
            let num_slots = num_tokens * preset.config.router.top_k;
            let work = Work {
                bytes: ((num_slots * element + num_tokens * 2) * preset.config.hidden_size) as f64,
                flops: (2 * num_slots * preset.config.hidden_size) as f64,
            };
            let mut ready = None;
            group.throughput(report::throughput(work));
            group.bench_function(&id, |bencher| {
                let ready = ready.get_or_insert_with(|| Ready::new(device, &preset.config, num_tokens));
                report.time(bencher, &id, work, Floors::of_device(), || ready.run());
            });
        }
    }
    group.finish();
}
