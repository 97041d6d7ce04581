//! The two projections of the experts apart: `grouped_gemm/<projection>/<preset>/<dtype>/T<tokens>/<distribution>`.

mod common;

use std::cell::LazyCell;

use common::report::{self, Floors, Report};
use common::routing::{self, Distribution};
use common::stack::{self, Call, Calls, Stack, Work};
use common::verify;
use criterion::Criterion;
use fused_moe::config::MoeConfig;
use fused_moe::ops::{Epilogue, GroupedGemmArgs, InputRows, PermuteArgs, grouped_gemm, permute};
use fused_moe::plan::{PermutePlanMut, Slots};
use fused_moe::reference;
use fused_moe::{DType, Device, Tensor};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Projection {
    GateUp,
    Down,
}

impl Projection {
    fn name(self) -> &'static str {
        match self {
            Self::GateUp => "gate_up",
            Self::Down => "down",
        }
    }

    fn epilogue(self, config: &MoeConfig) -> Epilogue {
        match self {
            Self::GateUp => Epilogue::of(config.activation, config.gate_up_layout),
            Self::Down => Epilogue::None,
        }
    }

    /// N and K.
    fn size(self, config: &MoeConfig) -> (usize, usize) {
        match self {
            Self::GateUp => (config.gate_up_size(), config.hidden_size),
            Self::Down => (config.hidden_size, config.intermediate_size),
        }
    }

    fn weights<'s>(self, stack: &'s Stack, call: &Call) -> (&'s Tensor, Option<&'s Tensor>) {
        let experts = &stack.layers[call.layer].weights().experts;
        match self {
            Self::GateUp => (&experts.gate_up_proj, experts.gate_up_bias.as_ref()),
            Self::Down => (&experts.down_proj, experts.down_bias.as_ref()),
        }
    }

    /// This projection's part of the routed experts' work.
    fn work(self, stack_work: Work, config: &MoeConfig) -> Work {
        let (n, k) = self.size(config);
        let part = (n * k) as f64 / ((config.gate_up_size() + config.intermediate_size) * config.hidden_size) as f64;
        Work { bytes: stack_work.bytes * part, flops: stack_work.flops * part }
    }
}

/// A plan on the device.
struct Plan {
    expert_offsets: Tensor,
    permuted_idx: Tensor,
}

impl Plan {
    fn new(device: &Device, call: &Call, num_experts: usize) -> Self {
        let num_slots = call.topk_ids.shape().numel();
        let zeros = |n| Tensor::zeros(device, DType::U32, [n]).expect("small");
        let (mut expert_offsets, mut permuted_idx, mut inv) =
            (zeros(num_experts + 1), zeros(num_slots), zeros(num_slots));
        let plan = PermutePlanMut {
            expert_offsets: expert_offsets.view_mut().expect("memory of its own"),
            permuted_idx: permuted_idx.view_mut().expect("memory of its own"),
            inv_permuted_idx: inv.view_mut().expect("memory of its own"),
        };
        permute(device, PermuteArgs { topk_ids: call.topk_ids.view(), plan }).expect("shapes fit");
        Self { expert_offsets, permuted_idx }
    }
}

/// What is ready to be timed.
struct Ready {
    projection: Projection,
    calls: Calls,
    plans: Vec<Plan>,
    /// `[T·k, I]`, the down projection's input, numbers of order 1.
    act: Tensor,
    output: Tensor,
    next: usize,
}

impl Ready {
    fn new(stack: &Stack, projection: Projection, distribution: Distribution, num_tokens: usize) -> Self {
        let config = &stack.preset.config;
        let device = stack.layers[0].device();
        let calls = stack.calls(distribution, num_tokens);
        let plans = calls.all().iter().map(|call| Plan::new(device, call, config.num_experts)).collect();
        let rows = num_tokens * config.router.top_k;
        let dtype = device.backend().intermediate_dtype(stack.dtype);
        let mut random = routing::Uniform::new(7);
        let act: Vec<f32> = (0..rows * config.intermediate_size).map(|_| (2.0 * random.draw() - 1.0) as f32).collect();
        let columns = projection.epilogue(config).output_size(projection.size(config).0);
        let mut ready = Self {
            projection,
            calls,
            plans,
            act: stack::from_f32(device, dtype, &act, [rows, config.intermediate_size]),
            output: Tensor::zeros(device, dtype, [rows, columns]).expect("small"),
            next: 0,
        };
        ready.verify(stack);
        ready
    }

    fn run(&mut self, stack: &Stack) {
        let config = &stack.preset.config;
        let (call, plan) = (&self.calls.all()[self.next], &self.plans[self.next]);
        self.next = (self.next + 1) % self.plans.len();
        let (weight, bias) = self.projection.weights(stack, call);
        let slots = Slots::PerToken { top_k: config.router.top_k };
        let (input, rows) = match self.projection {
            Projection::GateUp => {
                let permuted_idx = plan.permuted_idx.view();
                (call.hidden_states.view(), InputRows::Gathered { permuted_idx, slots, slot_scale: None })
            }
            Projection::Down => (self.act.view(), InputRows::Same),
        };
        let args = GroupedGemmArgs {
            input,
            rows,
            expert_offsets: Some(plan.expert_offsets.view()),
            weight: weight.view(),
            weight_layout: config.weight_layout,
            bias: bias.map(Tensor::view),
            epilogue: self.projection.epilogue(config),
            output: self.output.view_mut().expect("memory of its own"),
            batch_invariant: false,
        };
        grouped_gemm(stack.layers[0].device(), args).expect("shapes fit");
    }

    /// The first call's first and last row against the oracle.
    fn verify(&mut self, stack: &Stack) {
        self.run(stack);
        self.next = 0;
        let config = &stack.preset.config;
        let (call, plan) = (&self.calls.all()[0], &self.plans[0]);
        let offsets = plan.expert_offsets.to_vec::<u32>().expect("offsets are u32");
        let slots = plan.permuted_idx.to_vec::<u32>().expect("indices are u32");
        let (n, k) = self.projection.size(config);
        for row in verify::first_and_last(slots.len()) {
            let expert = offsets.partition_point(|&offset| offset as usize <= row) - 1;
            let (input, from) = match self.projection {
                Projection::GateUp => (&call.hidden_states, slots[row] as usize / config.router.top_k),
                Projection::Down => (&self.act, row),
            };
            let (weight, bias) = self.projection.weights(stack, call);
            let expected = reference::grouped_gemm(&reference::GroupedGemm {
                input: &verify::wide(input.view().slice(from..from + 1).expect("a row of the input")),
                k,
                n,
                expert_offsets: &[0, 1],
                weight: &verify::expert(weight, expert as u32),
                weight_layout: config.weight_layout,
                bias: bias.map(|bias| verify::expert(bias, expert as u32)).as_deref(),
                epilogue: self.projection.epilogue(config),
            });
            let actual = verify::wide(self.output.view().slice(row..row + 1).expect("a row of the output"));
            let what = format!("{} {} row {row}", stack.preset.name, self.projection.name());
            verify::check(&what, &actual, &expected, stack.dtype);
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
    for dtype in common::DTYPES {
        for mut preset in common::presets(dtype) {
            preset.config.shared = None;
            let stack = LazyCell::new(|| Stack::new(device, &preset, dtype));
            let floors = LazyCell::new(|| Floors::measure(device, &stack));
            let mut group = report::group(criterion, "grouped_gemm");
            for ((&num_tokens, distribution), projection) in
                common::cases().flat_map(|case| [(case, Projection::GateUp), (case, Projection::Down)])
            {
                let projection_name = projection.name();
                let id = format!("{projection_name}/{}/{dtype}/T{num_tokens}/{distribution}", preset.name);
                let work = stack::mean_work(&preset, dtype, distribution, num_tokens);
                let work = projection.work(work, &preset.config);
                let mut ready = None;
                group.throughput(report::throughput(work));
                group.bench_function(&id, |bencher| {
                    let ready = ready.get_or_insert_with(|| Ready::new(&stack, projection, distribution, num_tokens));
                    report.time(bencher, &id, work, *floors, || ready.run(&stack));
                });
            }
            group.finish();
        }
    }
}
