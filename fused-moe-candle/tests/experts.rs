//! The custom op against plain candle, for every type and every way a tensor can lie in memory.

mod common;

use candle_core::{D, DType, Device, Module, Result, Tensor};
use common::{distance, naive, random, tolerance};
use fused_moe_candle::fused_moe::config::{Activation, GateUpLayout, MoeConfig, WeightLayout};
use fused_moe_candle::fused_moe::routing::{Renormalize, RouterConfig};
use fused_moe_candle::fused_moe::weights::{ExpertWeights, MoeWeights, RouterWeights};
use fused_moe_candle::{ExpertsOptions, FusedMoe, Workspaces, moe_experts};

const T: usize = 9;
const E: usize = 7;
const K: usize = 3;
const H: usize = 20;
const I: usize = 12;
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

struct Case {
    xs: Tensor,
    gate_up: Tensor,
    down: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
}

impl Case {
    fn new(dtype: DType) -> Self {
        let ids: Vec<u32> = (0..T * K).map(|slot| ((slot / K * 2 + slot % K) % E) as u32).collect();
        Self {
            xs: random(1, &[T, H], dtype),
            gate_up: (random(2, &[E, 2 * I, H], DType::F32) * 0.3).unwrap().to_dtype(dtype).unwrap(),
            down: (random(3, &[E, H, I], DType::F32) * 0.3).unwrap().to_dtype(dtype).unwrap(),
            topk_ids: Tensor::from_vec(ids, (T, K), &Device::Cpu).unwrap(),
            topk_weights: random(4, &[T, K], DType::F32).abs().unwrap(),
        }
    }

    fn ours(&self, options: &ExpertsOptions) -> Result<Tensor> {
        moe_experts(&self.xs, &self.gate_up, &self.down, &self.topk_ids, &self.topk_weights, options)
    }

    fn naive(&self) -> Tensor {
        naive(&self.xs, &self.gate_up, &self.down, &self.topk_ids, &self.topk_weights).unwrap()
    }

    fn check(&self, what: &str) {
        let ours = self.ours(&ExpertsOptions::default()).unwrap();
        assert_eq!(ours.dtype(), self.xs.dtype());
        let (distance, tolerance) = (distance(&ours, &self.naive()), tolerance(self.gate_up.dtype()));
        assert!(distance <= tolerance, "{what}, {:?}: {distance:e} > {tolerance:e}", self.xs.dtype());
    }
}

/// The same values as a part of a larger tensor: rows before and behind, so an offset and, along columns, strides.
fn inside(tensor: &Tensor, dim: usize) -> Tensor {
    let mut dims = tensor.dims().to_vec();
    dims[dim] = 2;
    let fill = Tensor::full(99f32, dims, &Device::Cpu).unwrap().to_dtype(tensor.dtype()).unwrap();
    let larger = Tensor::cat(&[&fill, tensor, &fill], dim).unwrap();
    larger.narrow(dim, 2, tensor.dim(dim).unwrap()).unwrap()
}

/// The same values in memory that has the last two dimensions the other way round.
fn transposed(tensor: &Tensor) -> Tensor {
    tensor.transpose(D::Minus2, D::Minus1).unwrap().contiguous().unwrap().transpose(D::Minus2, D::Minus1).unwrap()
}

#[test]
fn contiguous() {
    for dtype in DTYPES {
        Case::new(dtype).check("contiguous");
    }
}

#[test]
fn views_with_an_offset() {
    for dtype in DTYPES {
        let case = Case::new(dtype);
        let view = Case {
            xs: inside(&case.xs, 0),
            gate_up: inside(&case.gate_up, 0),
            down: inside(&case.down, 0),
            topk_ids: inside(&case.topk_ids, 0),
            topk_weights: inside(&case.topk_weights, 0),
        };
        assert!(view.gate_up.is_contiguous() && view.gate_up.layout().start_offset() > 0);
        view.check("an offset");
    }
}

#[test]
fn strided_views() {
    for dtype in DTYPES {
        let case = Case::new(dtype);
        let view = Case {
            xs: inside(&case.xs, 1),
            gate_up: inside(&case.gate_up, 2),
            down: inside(&case.down, 1),
            topk_ids: inside(&case.topk_ids, 1),
            topk_weights: inside(&case.topk_weights, 1),
        };
        assert!(!view.xs.is_contiguous() && !view.gate_up.is_contiguous() && !view.topk_ids.is_contiguous());
        view.check("strides");
    }
}

#[test]
fn transposed_views() {
    for dtype in DTYPES {
        let case = Case::new(dtype);
        let both = Case { gate_up: transposed(&case.gate_up), down: transposed(&case.down), ..Case::new(dtype) };
        both.check("weights transposed");
        let one = Case { gate_up: transposed(&case.gate_up), ..Case::new(dtype) };
        one.check("one weight transposed");
        let rest = Case {
            xs: transposed(&case.xs),
            topk_ids: transposed(&case.topk_ids),
            topk_weights: transposed(&case.topk_weights),
            ..case
        };
        assert!(!rest.xs.is_contiguous());
        rest.check("input and routing transposed");
    }
}

#[test]
fn broadcast_views() {
    for dtype in DTYPES {
        let mut case = Case::new(dtype);
        case.xs = case.xs.narrow(0, 3, 1).unwrap().broadcast_as((T, H)).unwrap();
        case.topk_weights = case.topk_weights.narrow(1, 0, 1).unwrap().broadcast_as((T, K)).unwrap();
        case.check("one token for all");
    }
}

#[test]
fn leading_dimensions_are_kept() {
    let case = Case::new(DType::F32);
    let [xs, topk_ids, topk_weights] =
        [(&case.xs, H), (&case.topk_ids, K), (&case.topk_weights, K)].map(|(t, n)| t.reshape((3, T / 3, n)).unwrap());
    let ours =
        moe_experts(&xs, &case.gate_up, &case.down, &topk_ids, &topk_weights, &ExpertsOptions::default()).unwrap();
    assert_eq!(ours.dims(), &[3, T / 3, H]);
    assert!(distance(&ours.reshape((T, H)).unwrap(), &case.naive()) < 1e-5);
}

#[test]
fn types_may_differ() {
    for (xs, weight) in [(DType::F32, DType::BF16), (DType::BF16, DType::F32), (DType::F16, DType::BF16)] {
        let mut case = Case::new(weight);
        case.xs = case.xs.to_dtype(xs).unwrap();
        case.topk_weights = case.topk_weights.to_dtype(weight).unwrap();
        let distance = distance(&case.ours(&ExpertsOptions::default()).unwrap(), &case.naive());
        assert!(distance < 5e-3, "{xs:?} tokens, {weight:?} weights: {distance:e}");
    }
}

#[test]
fn no_token_and_one_token() {
    for tokens in [0, 1] {
        let whole = Case::new(DType::F32);
        let narrow = |t: &Tensor| t.narrow(0, 0, tokens).unwrap();
        let [xs, topk_ids, topk_weights] = [&whole.xs, &whole.topk_ids, &whole.topk_weights].map(narrow);
        let expected = narrow(&whole.naive());
        let ours = Case { xs, topk_ids, topk_weights, ..whole }.ours(&ExpertsOptions::default()).unwrap();
        assert_eq!(ours.dims(), &[tokens, H]);
        assert!(distance(&ours, &expected) < 1e-5);
    }
}

#[test]
fn ids_of_no_expert_add_nothing() {
    let mut case = Case::new(DType::F32);
    let mut ids = case.topk_ids.to_vec2::<u32>().unwrap();
    ids[0] = vec![u32::MAX; K];
    ids[4][1] = E as u32;
    case.topk_ids = Tensor::new(ids, &Device::Cpu).unwrap();
    case.check("masked ids");
    let ours = case.ours(&ExpertsOptions::default()).unwrap();
    assert_eq!(ours.get(0).unwrap().to_vec1::<f32>().unwrap(), vec![0.; H]);
}

#[test]
fn the_other_layouts() {
    let case = Case::new(DType::F32);
    let expected = case.naive();
    let [gate, up] = <[Tensor; 2]>::try_from(case.gate_up.chunk(2, 1).unwrap()).unwrap();
    let interleaved = Tensor::stack(&[&gate, &up], 2).unwrap().reshape((E, 2 * I, H)).unwrap();
    let kn = |t: &Tensor| t.transpose(1, 2).unwrap().contiguous().unwrap();
    let cases = [
        (Tensor::cat(&[&up, &gate], 1).unwrap(), case.down.clone(), GateUpLayout::UpThenGate, WeightLayout::Nk),
        (interleaved.clone(), case.down.clone(), GateUpLayout::Interleaved, WeightLayout::Nk),
        (kn(&interleaved), kn(&case.down), GateUpLayout::Interleaved, WeightLayout::Kn),
        (transposed(&kn(&interleaved)), transposed(&kn(&case.down)), GateUpLayout::Interleaved, WeightLayout::Kn),
    ];
    for (gate_up, down, gate_up_layout, weight_layout) in cases {
        let options =
            ExpertsOptions { gate_up_layout: Some(gate_up_layout), weight_layout, ..ExpertsOptions::default() };
        let ours = moe_experts(&case.xs, &gate_up, &down, &case.topk_ids, &case.topk_weights, &options).unwrap();
        assert!(distance(&ours, &expected) < 1e-5, "{gate_up_layout:?} {weight_layout:?}");
    }
}

#[test]
fn biases_of_any_type() {
    let case = Case::new(DType::F32);
    // A bias on down alone adds Σ weight · bias, which needs no layer to compute.
    for dtype in DTYPES {
        let bias = random(5, &[E, H], dtype);
        let options = ExpertsOptions { down_bias: Some(bias.clone()), ..ExpertsOptions::default() };
        let rows = bias.to_dtype(DType::F32).unwrap().index_select(&case.topk_ids.flatten_all().unwrap(), 0).unwrap();
        let weights = case.topk_weights.reshape((T * K, 1)).unwrap();
        let added = rows.broadcast_mul(&weights).unwrap().reshape((T, K, H)).unwrap().sum(1).unwrap();
        let expected = (case.naive().to_dtype(DType::F32).unwrap() + added).unwrap();
        assert!(distance(&case.ours(&options).unwrap(), &expected) < 1e-5, "{dtype:?}");
    }
}

#[test]
fn the_module_routes_by_itself() {
    for dtype in DTYPES {
        let case = Case::new(dtype);
        let router = random(6, &[E, H], DType::F32);
        let moe = FusedMoe::new(config(true), weights(&case, Some(router.clone()))).unwrap();
        let logits = case.xs.to_dtype(DType::F32).unwrap().matmul(&router.t().unwrap()).unwrap();
        let topk_ids = logits.arg_sort_last_dim(false).unwrap().narrow(1, 0, K).unwrap().contiguous().unwrap();
        let chosen = logits.gather(&topk_ids, 1).unwrap().exp().unwrap();
        let topk_weights = chosen.broadcast_div(&chosen.sum_keepdim(1).unwrap()).unwrap();
        let routed = moe.forward_routed(&case.xs, &topk_ids, &topk_weights).unwrap();
        let expected = Case { topk_ids, topk_weights, ..case };
        let ours = moe.forward(&expected.xs).unwrap();
        assert!(distance(&ours, &expected.naive()) <= tolerance(dtype), "{dtype:?}");
        assert!(distance(&routed, &expected.naive()) <= tolerance(dtype), "{dtype:?}");
        let module: &dyn Module = &moe;
        assert_eq!(distance(&module.forward(&inside(&expected.xs, 1)).unwrap(), &ours), 0.);
    }
}

#[test]
fn calls_from_threads_share_workspaces() {
    let case = Case::new(DType::F32);
    let expected = case.naive();
    let workspaces = Workspaces::default();
    let moe = FusedMoe::new(config(false), weights(&case, None)).unwrap().with_workspaces(workspaces);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for tokens in [1, T, 2, T] {
                    let [xs, ids, weights] =
                        [&case.xs, &case.topk_ids, &case.topk_weights].map(|t| t.narrow(0, 0, tokens).unwrap());
                    let ours = moe.forward_routed(&xs, &ids, &weights).unwrap();
                    assert!(distance(&ours, &expected.narrow(0, 0, tokens).unwrap()) < 1e-5);
                }
            });
        }
    });
}

#[test]
fn errors_name_the_argument() {
    let text = |change: &dyn Fn(&mut Case)| {
        let mut case = Case::new(DType::F32);
        change(&mut case);
        case.ours(&ExpertsOptions::default()).unwrap_err().to_string()
    };
    let cpu = &Device::Cpu;
    let down = text(&|case| case.down = Tensor::zeros((E + 1, H, I), DType::F32, cpu).unwrap());
    assert!(down.contains("gate_up_proj: expected shape [8, 24, 20], got [7, 24, 20]"), "{down}");
    let rank = text(&|case| case.gate_up = Tensor::zeros((E, H), DType::F32, cpu).unwrap());
    assert!(rank.contains("gate_up: expected rank 3, got shape [7, 20]"), "{rank}");
    let xs = text(&|case| case.xs = Tensor::zeros((T, H + 1), DType::F32, cpu).unwrap());
    assert!(xs.contains("hidden_states: expected shape [T, 20]"), "{xs}");
    let ids = text(&|case| case.topk_ids = case.topk_ids.to_dtype(DType::I64).unwrap());
    assert!(ids.contains("expected f32, bf16, f16 or u32, got i64"), "{ids}");
    let few = text(&|case| case.topk_ids = case.topk_ids.narrow(0, 1, 2).unwrap());
    assert!(few.contains("topk_ids: expected shape [9, 3], got [2, 3]"), "{few}");
    let wide = text(&|case| case.xs = case.xs.to_dtype(DType::F64).unwrap());
    assert!(wide.contains("xs: expected f32, bf16 or f16, got f64"), "{wide}");
    let no_router = FusedMoe::new(config(false), weights(&Case::new(DType::F32), None)).unwrap();
    let error = no_router.forward(&Case::new(DType::F32).xs).unwrap_err().to_string();
    assert!(error.contains("weights.router: expected a router"), "{error}");
}

#[test]
fn gradients_are_refused() {
    let case = Case::new(DType::F32);
    let xs = candle_core::Var::from_tensor(&case.xs).unwrap();
    let ys = Case { xs: xs.as_tensor().clone(), ..case }.ours(&ExpertsOptions::default()).unwrap();
    let error = ys.sum_all().unwrap().backward().unwrap_err().to_string();
    assert!(error.contains("fused-moe"), "{error}");
}

fn config(renormalize: bool) -> MoeConfig {
    let mut router = RouterConfig::softmax_top_k(K);
    router.renormalize = renormalize.then(Renormalize::default);
    MoeConfig {
        num_experts: E,
        hidden_size: H,
        intermediate_size: I,
        router,
        activation: Activation::Silu,
        gate_up_layout: Some(GateUpLayout::GateThenUp),
        weight_layout: WeightLayout::Nk,
        shared: None,
        latent_size: None,
    }
}

fn weights(case: &Case, router: Option<Tensor>) -> MoeWeights<Tensor> {
    MoeWeights {
        router: router.map(|weight| RouterWeights { hidden: None, weight, bias: None, selection_bias: None }),
        experts: ExpertWeights {
            gate_up_proj: case.gate_up.clone(),
            gate_up_bias: None,
            down_proj: case.down.clone(),
            down_bias: None,
        },
        shared: None,
        latent: None,
    }
}
