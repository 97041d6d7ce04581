//! Sorting slots by expert: `permute/<preset>/T<tokens>/<distribution>`. Ids rotate over eight batches.

mod common;

use common::report::{self, Floors, Report};
use common::routing::{self, Distribution};
use common::stack::Work;
use criterion::Criterion;
use fused_moe::ops::{PermuteArgs, permute};
use fused_moe::plan::PermutePlanMut;
use fused_moe::{DType, Device, MoeConfig, Tensor, reference};

struct Ready {
    batches: Vec<Tensor>,
    expert_offsets: Tensor,
    permuted_idx: Tensor,
    inv_permuted_idx: Tensor,
    next: usize,
}

impl Ready {
    fn new(device: &Device, config: &MoeConfig, distribution: Distribution, num_tokens: usize) -> Self {
        let num_slots = num_tokens * config.router.top_k;
        let batch = |call| {
            let topk_ids = routing::draw(config, distribution, num_tokens, 0, call);
            Tensor::from_slice(device, &topk_ids, [num_tokens, config.router.top_k]).expect("k ids per token")
        };
        let zeros = |n| Tensor::zeros(device, DType::U32, [n]).expect("small");
        let mut ready = Self {
            batches: (0..8).map(batch).collect(),
            expert_offsets: zeros(config.num_experts + 1),
            permuted_idx: zeros(num_slots),
            inv_permuted_idx: zeros(num_slots),
            next: 0,
        };
        ready.verify(config.num_experts);
        ready
    }

    fn run(&mut self) {
        let topk_ids = &self.batches[self.next];
        self.next = (self.next + 1) % self.batches.len();
        let plan = PermutePlanMut {
            expert_offsets: self.expert_offsets.view_mut().expect("memory of its own"),
            permuted_idx: self.permuted_idx.view_mut().expect("memory of its own"),
            inv_permuted_idx: self.inv_permuted_idx.view_mut().expect("memory of its own"),
        };
        permute(topk_ids.device(), PermuteArgs { topk_ids: topk_ids.view(), plan }).expect("shapes fit");
    }

    /// Plans are exact.
    fn verify(&mut self, num_experts: usize) {
        self.run();
        self.next = 0;
        let expected = reference::permute(&self.batches[0].to_vec::<u32>().expect("u32"), num_experts);
        let values = |tensor: &Tensor| tensor.to_vec::<u32>().expect("u32");
        let actual = reference::Plan {
            expert_offsets: values(&self.expert_offsets),
            permuted_idx: values(&self.permuted_idx),
            inv_permuted_idx: values(&self.inv_permuted_idx),
        };
        assert!(actual == expected, "the plan is not the oracle's, before any timing");
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
    let mut group = report::group(criterion, "permute");
    for preset in common::unfitted_presets() {
        for &num_tokens in common::token_counts().iter().chain(common::many_tokens()) {
            for distribution in [Distribution::Uniform, Distribution::Zipf] {
                let id = format!("{}/T{num_tokens}/{distribution}", preset.name);
                let num_slots = num_tokens * preset.config.router.top_k;
                // Ids read once, both indices written once.
                let work = Work { bytes: (num_slots * 12) as f64, flops: 0.0 };
                let mut ready = None;
                group.throughput(criterion::Throughput::Elements(num_slots as u64));
                group.bench_function(&id, |bencher| {
                    let ready =
                        ready.get_or_insert_with(|| Ready::new(device, &preset.config, distribution, num_tokens));
                    report.time(bencher, &id, work, Floors::of_device(), || ready.run());
                });
            }
        }
    }
    group.finish();
}
