//! Routing and the permutation in one call, as the layer makes it: from logits to the plan that the grouped GEMMs take, by
//! the model's own rule.

use fused_moe::ops::{RouteArgs, RouteInputs, RoutePermuteArgs, route_permute};
use fused_moe::plan::PermutePlanMut;
use fused_moe::routing::RouterConfig;
use fused_moe::{DType, Device, Tensor, reference};

use super::inputs::{self, Case, Shape};
use crate::common::data::{Part, Source};
use crate::common::verify;

/// Logits are uniform in (−4, 4).
const SCALE: f32 = 4.0;

/// The batches of a case, and what is written.
pub struct Ready {
    config: RouterConfig,
    batches: Vec<Tensor>,
    topk_ids: Tensor,
    topk_weights: Tensor,
    expert_offsets: Tensor,
    permuted_idx: Tensor,
    inv_permuted_idx: Tensor,
}

impl Ready {
    pub fn new(device: &Device, shape: &Shape, tiny: bool, case: &Case) -> Result<Self, String> {
        let config = inputs::preset(&shape.preset, tiny)?.config.router;
        let logits = Source::new().rounded(SCALE, |x| x);
        let batch = |i| {
            let mut values = vec![0f32; case.tokens * shape.num_experts];
            logits.window(Part::Logits.id(i), 0, &mut values);
            Tensor::from_slice(device, &values, [case.tokens, shape.num_experts])
        };
        let slots = case.tokens * config.top_k;
        let make = || -> fused_moe::Result<Self> {
            Ok(Self {
                batches: (0..case.batches).map(batch).collect::<fused_moe::Result<_>>()?,
                topk_ids: Tensor::zeros(device, DType::U32, [case.tokens, config.top_k])?,
                topk_weights: Tensor::zeros(device, DType::F32, [case.tokens, config.top_k])?,
                expert_offsets: Tensor::zeros(device, DType::U32, [shape.num_experts + 1])?,
                permuted_idx: Tensor::zeros(device, DType::U32, [slots])?,
                inv_permuted_idx: Tensor::zeros(device, DType::U32, [slots])?,
                config: config.clone(),
            })
        };
        make().map_err(|error| error.to_string())
    }

    pub fn run(&mut self, i: usize) {
        let own = "memory of its own";
        let logits = &self.batches[i];
        let route = RouteArgs {
            config: &self.config,
            router_logits: logits.view(),
            selection_bias: None,
            inputs: RouteInputs::default(),
            topk_ids: self.topk_ids.view_mut().expect(own),
            topk_weights: self.topk_weights.view_mut().expect(own),
            ragged: None,
            figures: None,
        };
        let plan = PermutePlanMut {
            expert_offsets: self.expert_offsets.view_mut().expect(own),
            permuted_idx: self.permuted_idx.view_mut().expect(own),
            inv_permuted_idx: self.inv_permuted_idx.view_mut().expect(own),
        };
        route_permute(logits.device(), RoutePermuteArgs { route, plan }).expect("shapes fit");
    }

    /// The first batch: ids of the first and the last token, and the whole plan of the ids that came out.
    pub fn verify(&mut self) -> Result<(), String> {
        self.run(0);
        let values = |tensor: &Tensor| tensor.to_vec::<u32>().map_err(|error| error.to_string());
        let topk_ids = values(&self.topk_ids)?;
        let logits: Vec<f32> = self.batches[0].to_vec().map_err(|error| error.to_string())?;
        let dims = self.batches[0].shape();
        let (tokens, num_experts) = (dims.dims()[0], dims.dims()[1]);
        for token in verify::first_and_last(tokens) {
            let row: Vec<f64> = logits[token * num_experts..][..num_experts].iter().map(|&x| f64::from(x)).collect();
            let expected = reference::route(&reference::Route::new(&self.config, &row, num_experts)).topk_ids;
            let actual = &topk_ids[token * self.config.top_k..][..self.config.top_k];
            if actual != expected {
                return Err(format!("token {token} goes to {actual:?}, the oracle's to {expected:?}"));
            }
        }
        let plan = reference::Plan {
            expert_offsets: values(&self.expert_offsets)?,
            permuted_idx: values(&self.permuted_idx)?,
            inv_permuted_idx: values(&self.inv_permuted_idx)?,
        };
        let right = plan == reference::permute(&topk_ids, num_experts);
        if right { Ok(()) } else { Err("the plan is not the oracle's".into()) }
    }
}
