//! Where the time of a layer goes, step by step: `cargo bench --bench steps -- [PART OF A PRESET'S NAME]`.
//!
//! One CSV row per preset and number of tokens, in bf16: microseconds of the whole call and in each op, medians over the
//! calls of the rotation, and the share that is not in products (the router's is one). What the layer does between its
//! ops counts as such time.

mod common;

use common::routing::Distribution;
use common::stack::{Call, Stack};
use common::timed::{Clocks, OPS, Timed};
use fused_moe::backend::cpu::Cpu;
use fused_moe::{DType, Device, Tensor, Workspace};

/// The router's product and the experts' among [`OPS`].
const PRODUCTS: [usize; 2] = [0, 3];

/// Passes over the rotation; the first is not counted.
const PASSES: usize = 4;

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let clocks = Clocks::default();
    let device = Device::new(Timed::new(Cpu::new(), clocks.clone()));
    common::announce(&common::machine::describe());
    println!("preset,dtype,tokens,calls,layer_us,{},outside_products_percent", OPS.join("_us,") + "_us");
    for preset in common::presets(DType::BF16).into_iter().filter(|preset| preset.name.contains(&filter)) {
        let stack = Stack::new(&device, &preset, DType::BF16);
        for &num_tokens in common::token_counts() {
            print_row(&stack, num_tokens, &clocks);
        }
    }
}

fn print_row(stack: &Stack, num_tokens: usize, clocks: &Clocks) {
    let calls = stack.calls(Distribution::Uniform, num_tokens);
    let mut workspace = stack.layers[0].workspace(num_tokens).expect("the preset was fitted to memory");
    let shape = [num_tokens, stack.preset.config.hidden_size];
    let mut output = Tensor::zeros(stack.layers[0].device(), stack.dtype, shape).expect("small");
    let mut pass = || calls.all().iter().map(|call| time(stack, call, &mut workspace, &mut output, clocks)).collect();
    let _: Vec<_> = pass();
    let times: Vec<_> = (1..PASSES).flat_map(|_| -> Vec<_> { pass() }).collect();
    let medians = std::array::from_fn::<_, { OPS.len() + 1 }, _>(|i| median(times.iter().map(|call| call[i])));
    let outside = median(times.iter().map(|call| 1.0 - PRODUCTS.iter().map(|&op| call[1 + op]).sum::<f64>() / call[0]));
    let columns = medians.map(|us| format!("{us:.1}")).join(",");
    println!("{},{},{num_tokens},{},{columns},{:.2}", stack.preset.name, stack.dtype, times.len(), outside * 100.0);
}

/// Microseconds: of the call, then in each op.
fn time(
    stack: &Stack,
    call: &Call,
    workspace: &mut Workspace,
    output: &mut Tensor,
    clocks: &Clocks,
) -> [f64; OPS.len() + 1] {
    clocks.take();
    let start = std::time::Instant::now();
    let view = output.view_mut().expect("memory of its own");
    stack.layers[call.layer].forward(call.hidden_states.view(), view, workspace).expect("shapes fit");
    let whole = start.elapsed();
    let ops = clocks.take();
    std::array::from_fn(|i| if i == 0 { whole } else { ops[i - 1] }.as_secs_f64() * 1e6)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
