//! Choosing experts by logits: `route/<preset>/T<tokens>`. Logits rotate over eight batches of random numbers.

mod common;

use common::report::{self, Floors, Report};
use common::routing::Uniform;
use common::stack::Work;
use criterion::Criterion;
use fused_moe::ops::{RouteArgs, RouteInputs, route};
use fused_moe::{DType, Device, MoeConfig, Tensor, reference};

struct Ready<'a> {
    config: &'a MoeConfig,
    batches: Vec<Tensor>,
    topk_ids: Tensor,
    topk_weights: Tensor,
    next: usize,
}

impl<'a> Ready<'a> {
    fn new(device: &Device, config: &'a MoeConfig, num_tokens: usize) -> Self {
        let mut random = Uniform::new(num_tokens as u64);
        let mut logits = || {
            let values: Vec<f32> =
                (0..num_tokens * config.num_experts).map(|_| (8.0 * random.draw() - 4.0) as f32).collect();
            Tensor::from_slice(device, &values, [num_tokens, config.num_experts]).expect("as many as the shape says")
        };
        let output = |dtype| Tensor::zeros(device, dtype, [num_tokens, config.router.top_k]).expect("small");
        let mut ready = Self {
            config,
            batches: (0..8).map(|_| logits()).collect(),
            topk_ids: output(DType::U32),
            topk_weights: output(DType::F32),
            next: 0,
        };
        ready.verify();
        ready
    }

    fn run(&mut self) {
        let router_logits = &self.batches[self.next];
        self.next = (self.next + 1) % self.batches.len();
        let args = RouteArgs {
            config: &self.config.router,
            router_logits: router_logits.view(),
            selection_bias: None,
            inputs: RouteInputs::default(),
            topk_ids: self.topk_ids.view_mut().expect("memory of its own"),
            topk_weights: self.topk_weights.view_mut().expect("memory of its own"),
            ragged: None,
            figures: None,
        };
        route(router_logits.device(), args).expect("shapes fit");
    }

    /// The first 64 tokens: ids exactly, weights to f32 rounding.
    fn verify(&mut self) {
        self.run();
        self.next = 0;
        let config = self.config;
        let logits: Vec<f64> = self.batches[0].to_vec::<f32>().expect("f32").into_iter().map(f64::from).collect();
        let few = logits.len().min(64 * config.num_experts);
        let expected = reference::route(&reference::Route::new(&config.router, &logits[..few], config.num_experts));
        let slots = expected.topk_ids.len();
        assert_eq!(self.topk_ids.to_vec::<u32>().expect("u32")[..slots], expected.topk_ids, "ids before any timing");
        let weights: Vec<f64> = self.topk_weights.to_vec::<f32>().expect("f32").into_iter().map(f64::from).collect();
        common::verify::check("weights", &weights[..slots], &expected.topk_weights, DType::F32);
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
    let mut group = report::group(criterion, "route");
    for preset in common::unfitted_presets() {
        for &num_tokens in common::token_counts().iter().chain(common::many_tokens()) {
            let id = format!("{}/T{num_tokens}", preset.name);
            let work = Work { bytes: (num_tokens * preset.config.num_experts * 4) as f64, flops: num_tokens as f64 };
            let mut ready = None;
            group.throughput(criterion::Throughput::Elements(num_tokens as u64));
            group.bench_function(&id, |bencher| {
                let ready = ready.get_or_insert_with(|| Ready::new(device, &preset.config, num_tokens));
                report.time(bencher, &id, work, Floors::of_device(), || ready.run());
            });
        }
    }
    group.finish();
}
