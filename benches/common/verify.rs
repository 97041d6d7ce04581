//! The check before the timing: a few tokens against the f64 oracle. A bench that computes the wrong thing stops here.

use fused_moe::MoeLayer;
use fused_moe::reference::{self, Experts, Layer, Linear, Route, Routing, SharedExpert};
use fused_moe::weights::ExpertWeights;
use fused_moe::{DType, Tensor, TensorView};
use half::{bf16, f16};

use super::stack::{Call, Stack};

/// Largest ‖out − ref‖ / ‖ref‖.
pub fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 5e-3 }
}

/// A call's output and routing, for its first and its last token. `routed` says whether the layer's router chose.
///
/// # Panics
/// If an id or the output is not the oracle's.
pub fn layer(stack: &Stack, call: &Call, topk_ids: &[u32], topk_weights: &[f32], output: &Tensor, routed: bool) {
    let layer = &stack.layers[call.layer];
    let top_k = layer.config().router.top_k;
    for token in first_and_last(call.num_tokens()) {
        let slots = token * top_k..(token + 1) * top_k;
        let x = wide(call.hidden_states.view().slice(token..token + 1).expect("a token of the call"));
        let mut routing = Routing {
            topk_ids: topk_ids[slots.clone()].to_vec(),
            topk_weights: topk_weights[slots].iter().map(|&w| f64::from(w)).collect(),
            token_offsets: None,
        };
        if routed {
            let expected = route(layer, &x);
            assert_eq!(routing.topk_ids, expected.topk_ids, "token {token}: the oracle's router chooses others");
            routing = expected;
        }
        let expected = oracle(layer, &x, routing);
        let actual = wide(output.view().slice(token..token + 1).expect("a token of the call"));
        check(&format!("{} {} token {token}", stack.preset.name, stack.dtype), &actual, &expected, stack.dtype);
    }
}

/// Panics where `actual` is not `expected` within the type's tolerance.
pub fn check(what: &str, actual: &[f64], expected: &[f64], dtype: DType) {
    let error = relative_error(actual, expected);
    assert!(error <= tolerance(dtype), "{what}: relative error {error:.1e} against the oracle, before any timing");
}

/// ‖a − b‖ / ‖b‖.
pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

/// The first and the last of `n`.
pub fn first_and_last(n: usize) -> Vec<usize> {
    if n == 1 { vec![0] } else { vec![0, n - 1] }
}

fn route(layer: &MoeLayer, x: &[f64]) -> Routing {
    let config = layer.config();
    let router = layer.weights().router.as_ref().expect("these layers have routers");
    let logits = reference::router_logits(x, &wide(router.weight.view()), None, config.hidden_size);
    reference::route(&Route::new(&config.router, &logits, config.num_experts))
}

/// One token through the oracle, with only the experts that it goes to: a whole layer in f64 would not fit memory.
fn oracle(layer: &MoeLayer, x: &[f64], routing: Routing) -> Vec<f64> {
    let mut config = layer.config().clone();
    config.num_experts = routing.topk_ids.len();
    let weights = layer.weights();
    let routing_here = Routing { topk_ids: (0..config.num_experts as u32).collect(), ..routing.clone() };
    let compact = Layer {
        config: &config,
        router_hidden: None,
        router: Linear { weight: Vec::new(), bias: None },
        selection_bias: None,
        experts: experts(&weights.experts, &routing.topk_ids),
        shared: weights.shared.as_ref().map(|shared| SharedExpert {
            experts: experts(&shared.experts, &[0]),
            gate: shared.gate.as_ref().map(|gate| wide(gate.view())),
        }),
        latent: None,
    };
    reference::moe_layer(&compact, x, Some(routing_here)).output
}

fn experts(weights: &ExpertWeights, ids: &[u32]) -> Experts {
    let linear = |weight: &Tensor, bias: &Option<Tensor>| Linear {
        weight: ids.iter().flat_map(|&id| expert(weight, id)).collect(),
        bias: bias.as_ref().map(|bias| ids.iter().flat_map(|&id| expert(bias, id)).collect()),
    };
    Experts {
        gate_up_proj: linear(&weights.gate_up_proj, &weights.gate_up_bias),
        down_proj: linear(&weights.down_proj, &weights.down_bias),
    }
}

/// One expert's part of a stack, in f64.
pub fn expert(stack: &Tensor, id: u32) -> Vec<f64> {
    let id = id as usize;
    wide(stack.view().slice(id..id + 1).expect("ids are below E"))
}

/// A tensor's elements in f64.
pub fn wide(view: TensorView<'_>) -> Vec<f64> {
    let device = super::device::device();
    let own = "the device's memory, and the tensor's own type";
    match view.dtype() {
        DType::F32 => view.to_vec::<f32>(device).expect(own).into_iter().map(f64::from).collect(),
        DType::BF16 => view.to_vec::<bf16>(device).expect(own).into_iter().map(f64::from).collect(),
        DType::F16 => view.to_vec::<f16>(device).expect(own).into_iter().map(f64::from).collect(),
        DType::U32 => unreachable!("floating-point tensors only"),
    }
}
