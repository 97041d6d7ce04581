//! Routes on a device, from plain vectors.

use fused_moe::ops::{RouteArgs, RouteInputs, route};
use fused_moe::routing::{MASKED, RouterConfig};
use fused_moe::{Device, Result, TensorView, TensorViewMut};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A batch to be routed.
#[derive(Clone, Debug)]
pub struct Case {
    pub config: RouterConfig,
    pub logits: Vec<f32>,
    pub num_choices: usize,
    pub bias: Option<Vec<f32>>,
    pub inputs: RouteInputs,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Routed {
    pub ids: Vec<u32>,
    pub weights: Vec<f32>,
}

impl Case {
    pub fn new(config: RouterConfig, logits: Vec<f32>, num_choices: usize) -> Self {
        Self { config, logits, num_choices, bias: None, inputs: RouteInputs::default() }
    }

    /// Standard normal logits (by twelve uniforms, close enough), times 2.
    pub fn random(config: RouterConfig, num_tokens: usize, num_choices: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let logits = (0..num_tokens * num_choices).map(|_| normal(&mut rng) * 2.0).collect();
        Self::new(config, logits, num_choices)
    }

    pub fn with_bias(mut self, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        self.bias = Some((0..self.num_choices).map(|_| normal(&mut rng) * 0.2).collect());
        self
    }

    pub fn num_tokens(&self) -> usize {
        self.logits.len() / self.num_choices
    }

    /// Poisoned buffers in, results out.
    pub fn route_on(&self, device: &Device) -> Result<Routed> {
        let shape = [self.num_tokens(), self.config.top_k];
        let mut ids = vec![0xdead_beef; shape[0] * shape[1]];
        let mut weights = vec![f32::NAN; shape[0] * shape[1]];
        let bias = self.bias.as_ref().map(|b| TensorView::from_slice(b, [b.len()])).transpose()?;
        let args = RouteArgs {
            config: &self.config,
            router_logits: TensorView::from_slice(&self.logits, [shape[0], self.num_choices])?,
            selection_bias: bias,
            inputs: self.inputs,
            topk_ids: TensorViewMut::from_slice(&mut ids, shape)?,
            topk_weights: TensorViewMut::from_slice(&mut weights, shape)?,
        };
        route(device, args)?;
        Ok(Routed { ids, weights })
    }

    /// The oracle's result, after the CPU's was found to be the same.
    pub fn checked(&self) -> Routed {
        let expected = self.route_on(&Device::reference()).expect("the oracle routes");
        let actual = self.route_on(&Device::cpu()).expect("the CPU routes");
        assert_eq!(actual.ids, expected.ids, "{:?}", self.config);
        for (slot, (a, b)) in actual.weights.iter().zip(&expected.weights).enumerate() {
            assert!((a - b).abs() <= 2e-6 * b.abs().max(1e-3), "slot {slot}: {a} for {b}, {:?}", self.config);
        }
        let k = self.config.top_k;
        for (ids, weights) in expected.ids.chunks(k).zip(expected.weights.chunks(k)) {
            for (i, (&id, weight)) in ids.iter().zip(weights).enumerate() {
                assert!(weight.is_finite());
                assert!(id == MASKED || (id as usize) < self.num_choices, "id {id}");
                assert!(id == MASKED || !ids[..i].contains(&id), "id {id} twice");
                assert!(id != MASKED || *weight == 0.0);
            }
        }
        expected
    }
}

fn normal(rng: &mut StdRng) -> f32 {
    (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0
}
