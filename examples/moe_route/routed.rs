//! The two steps: route, then permute.

use fused_moe::ops::{FiguresMut, PermuteArgs, RaggedMut, RouteArgs, RouteInputs, permute, route};
use fused_moe::plan::PermutePlanMut;
use fused_moe::routing::{Figures, MASKED, NUM_SCALARS, RouterConfig};
use fused_moe::{DType, Device, Error, Result, Tensor, TensorView};

use crate::inputs::Inputs;
use crate::{Failure, Rule};

/// Where the tokens went.
pub struct Routed {
    pub ids: Vec<u32>,
    pub weights: Vec<f32>,
    /// Of both.
    pub shape: Vec<usize>,
    /// Where tokens have different numbers of slots.
    pub token_offsets: Option<Vec<u32>>,
    pub expert_offsets: Vec<u32>,
    pub permuted_idx: Vec<u32>,
    pub figures: Figures,
}

impl Routed {
    pub fn of(device: &Device, rule: &Rule, inputs: &Inputs, sequence: Option<usize>) -> Result<Self, Failure> {
        let config = &rule.config;
        let logits = inputs.logits()?;
        let [num_tokens, columns] = [logits.dims()[0], logits.dims()[1]];
        let num_choices = columns.saturating_sub(config.num_logits(0) - config.num_choices(0));
        let here = match config.expert_map.is_empty() {
            true => num_choices.saturating_sub(config.num_zero_experts),
            false => config.expert_map.iter().flatten().count().saturating_sub(config.num_zero_experts),
        };
        config.validate(here).map_err(|error| rule.at(&error))?;
        let noise_logits = inputs.noise_logits(device, config, [num_tokens, num_choices])?;
        let route_inputs = RouteInputs {
            tokens_per_sequence: sequence,
            noise_logits: noise_logits.as_ref().map(Tensor::view),
            token_ids: inputs.get("token_ids"),
            hash_table: inputs.get("hash_table"),
        };
        let mut buffers = Buffers::new(device, config, [num_tokens, num_choices])?;
        let bias = inputs.get("selection_bias");
        buffers.route(device, config, logits, bias, route_inputs).map_err(|error| match &error {
            Error::InvalidArgument { argument, .. } if argument.starts_with("router.") => rule.at(&error),
            _ => inputs.at(&error),
        })?;
        Ok(buffers.finish(device, config)?)
    }

    /// Tokens that miss a slot, or under expert choice have none.
    pub fn unlucky(&self) -> Vec<usize> {
        let is_unlucky = |token: &usize| match &self.token_offsets {
            Some(offsets) => offsets[*token] == offsets[token + 1],
            None => self.ids[token * self.shape[1]..][..self.shape[1]].contains(&MASKED),
        };
        let num_tokens = self.token_offsets.as_ref().map_or(self.shape[0], |offsets| offsets.len() - 1);
        (0..num_tokens).filter(is_unlucky).collect()
    }
}

/// What `route` writes.
struct Buffers {
    ids: Tensor,
    weights: Tensor,
    token_offsets: Tensor,
    slot_tokens: Tensor,
    load: Tensor,
    importance: Tensor,
    scalars: Tensor,
}

impl Buffers {
    fn new(device: &Device, config: &RouterConfig, [num_tokens, num_choices]: [usize; 2]) -> Result<Self, Failure> {
        let num_slots = config.num_slots(num_tokens, num_choices).ok_or("logits: too many slots")?;
        let zeros = |dtype, n: usize| Tensor::zeros(device, dtype, [n]);
        let slots = |dtype| match config.is_ragged() {
            true => Tensor::zeros(device, dtype, [num_slots]),
            false => Tensor::zeros(device, dtype, [num_tokens, config.top_k]),
        };
        Ok(Self {
            ids: slots(DType::U32)?,
            weights: slots(DType::F32)?,
            token_offsets: zeros(DType::U32, num_tokens + 1)?,
            slot_tokens: zeros(DType::U32, num_slots)?,
            load: zeros(DType::U32, num_choices)?,
            importance: zeros(DType::F32, num_choices)?,
            scalars: zeros(DType::F32, NUM_SCALARS)?,
        })
    }

    fn route(
        &mut self,
        device: &Device,
        config: &RouterConfig,
        router_logits: TensorView<'_>,
        selection_bias: Option<TensorView<'_>>,
        inputs: RouteInputs<'_>,
    ) -> Result<()> {
        let ragged = match config.is_ragged() {
            true => Some(RaggedMut {
                token_offsets: self.token_offsets.view_mut()?,
                slot_tokens: self.slot_tokens.view_mut()?,
            }),
            false => None,
        };
        let figures = FiguresMut {
            tokens_per_expert: self.load.view_mut()?,
            importance: self.importance.view_mut()?,
            scalars: self.scalars.view_mut()?,
        };
        let args = RouteArgs {
            config,
            router_logits,
            selection_bias,
            inputs,
            topk_ids: self.ids.view_mut()?,
            topk_weights: self.weights.view_mut()?,
            ragged,
            figures: Some(figures),
        };
        route(device, args)
    }

    /// The plan of the ids, and everything on the host.
    fn finish(mut self, device: &Device, config: &RouterConfig) -> Result<Routed> {
        let num_slots = self.ids.shape().numel();
        let zeros = |n: usize| Tensor::zeros(device, DType::U32, [n]);
        let mut expert_offsets = zeros(self.load.shape().numel() + 1)?;
        let (mut permuted_idx, mut inv_permuted_idx) = (zeros(num_slots)?, zeros(num_slots)?);
        let plan = PermutePlanMut {
            expert_offsets: expert_offsets.view_mut()?,
            permuted_idx: permuted_idx.view_mut()?,
            inv_permuted_idx: inv_permuted_idx.view_mut()?,
        };
        permute(device, PermuteArgs { topk_ids: self.ids.view(), plan })?;
        let figures = FiguresMut {
            tokens_per_expert: self.load.view_mut()?,
            importance: self.importance.view_mut()?,
            scalars: self.scalars.view_mut()?,
        };
        Ok(Routed {
            ids: self.ids.to_vec()?,
            weights: self.weights.to_vec()?,
            shape: self.ids.shape().dims().to_vec(),
            token_offsets: config.is_ragged().then(|| self.token_offsets.to_vec()).transpose()?,
            expert_offsets: expert_offsets.to_vec()?,
            permuted_idx: permuted_idx.to_vec()?,
            figures: figures.to_figures(device)?,
        })
    }
}
