//! The whole layer, router included: `layer/<preset>/<dtype>/T<tokens>/<distribution>`.
//!
//! `cargo bench --bench layer -- qwen3-30b-a3b/bf16` runs one preset. Weights rotate past the last-level cache.

mod common;

use std::cell::LazyCell;

use common::report::{self, Floors, Report};
use common::routing::{self, Distribution};
use common::stack::{self, Call, Calls, Stack};
use common::verify;
use criterion::Criterion;
use fused_moe::{Tensor, Workspace};

/// What is ready to be timed.
struct Ready {
    calls: Calls,
    workspace: Workspace,
    output: Tensor,
}

impl Ready {
    fn new(stack: &Stack, distribution: Distribution, num_tokens: usize) -> Self {
        let calls = stack.calls(distribution, num_tokens);
        let layer = &stack.layers[0];
        let hidden_size = stack.preset.config.hidden_size;
        let workspace = layer.workspace(num_tokens).expect("the preset was fitted to memory");
        let output = Tensor::zeros(layer.device(), stack.dtype, [num_tokens, hidden_size]).expect("small");
        let mut ready = Self { calls, workspace, output };
        ready.verify(stack);
        ready
    }

    fn verify(&mut self, stack: &Stack) {
        let device = stack.layers[0].device();
        let Self { calls, workspace, output } = self;
        let call = &calls.all()[0];
        forward(stack, call, workspace, output);
        let routing = workspace.routing(call.num_tokens()).expect("as many tokens as the workspace has");
        let topk_ids: Vec<u32> = routing.topk_ids.to_vec(device).expect("ids are u32");
        let topk_weights: Vec<f32> = routing.topk_weights.to_vec(device).expect("weights are f32");
        verify::layer(stack, call, &topk_ids, &topk_weights, output, true);
        let num_experts = stack.preset.config.num_experts;
        let planted = call.topk_ids.to_vec::<u32>().expect("ids are u32");
        assert_eq!(
            routing::count(&topk_ids, num_experts),
            routing::count(&planted, num_experts),
            "the router does not choose as the bench planted"
        );
    }

    fn run(&mut self, stack: &Stack) {
        forward(stack, self.calls.next(), &mut self.workspace, &mut self.output);
    }
}

fn forward(stack: &Stack, call: &Call, workspace: &mut Workspace, output: &mut Tensor) {
    let output = output.view_mut().expect("memory of its own");
    stack.layers[call.layer].forward(call.hidden_states.view(), output, workspace).expect("shapes fit");
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
    for dtype in common::DTYPES {
        for preset in common::presets(dtype) {
            let stack = LazyCell::new(|| Stack::new(device, &preset, dtype));
            let floors = LazyCell::new(|| Floors::measure(device, &stack));
            let mut group = report::group(criterion, "layer");
            for (&num_tokens, distribution) in common::cases() {
                let id = format!("{}/{dtype}/T{num_tokens}/{distribution}", preset.name);
                let work = stack::mean_work(&preset, dtype, distribution, num_tokens);
                let mut ready = None;
                group.throughput(report::throughput(work));
                group.bench_function(&id, |bencher| {
                    let ready = ready.get_or_insert_with(|| Ready::new(&stack, distribution, num_tokens));
                    report.time(bencher, &id, work, *floors, || ready.run(&stack));
                });
            }
            group.finish();
        }
    }
}
