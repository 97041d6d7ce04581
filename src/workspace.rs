//! The memory between a layer's steps, allocated once.

use std::cell::RefCell;

use crate::backend::Device;
use crate::config::{MoeConfig, SharedExpertConfig};
use crate::error::{Error, Result};
use crate::layer::Routing;
use crate::ops::{Expect, RaggedMut};
use crate::plan::{PermutePlan, PermutePlanMut, Slots};
use crate::routing::{NoiseKind, RouterConfig};
use crate::tensor::{DType, Shape, Tensor};

/// Everything a layer needs besides its weights, allocated once for up to `max_tokens` tokens.
#[derive(Debug)]
pub struct Workspace {
    pub(crate) max_tokens: usize,
    sizes: Sizes,
    router: RouterConfig,
    pub(crate) routing: RoutingBuffers,
    pub(crate) plan: PlanBuffers,
    pub(crate) routed: ExpertBuffers,
    pub(crate) shared: Option<SharedBuffers>,
    pub(crate) latent: Option<LatentBuffers>,
}

#[derive(Debug)]
pub(crate) struct RoutingBuffers {
    pub(crate) router_hidden: Option<Tensor>,
    pub(crate) router_logits: Tensor,
    pub(crate) topk_ids: Tensor,
    pub(crate) topk_weights: Tensor,
    /// Where tokens have different numbers of slots.
    pub(crate) ragged: Option<RaggedBuffers>,
    /// The router's input, where there is noise on it.
    pub(crate) jittered: Option<Tensor>,
}

#[derive(Debug)]
pub(crate) struct RaggedBuffers {
    token_offsets: Tensor,
    slot_tokens: Tensor,
}

impl RaggedBuffers {
    pub(crate) fn prefix_mut(&mut self, num_tokens: usize, num_slots: usize) -> Result<RaggedMut<'_>> {
        Ok(RaggedMut {
            token_offsets: self.token_offsets.prefix_mut([num_tokens + 1])?,
            slot_tokens: self.slot_tokens.prefix_mut([num_slots])?,
        })
    }

    pub(crate) fn slots(&self, num_tokens: usize, num_slots: usize) -> Slots<'_> {
        Slots::Ragged {
            token_offsets: self.token_offsets.prefix([num_tokens + 1]),
            slot_tokens: self.slot_tokens.prefix([num_slots]),
        }
    }
}

#[derive(Debug)]
pub(crate) struct PlanBuffers {
    pub(crate) expert_offsets: Tensor,
    pub(crate) permuted_idx: Tensor,
    pub(crate) inv_permuted_idx: Tensor,
}

impl PlanBuffers {
    pub(crate) fn view_mut(&mut self, num_slots: usize) -> Result<PermutePlanMut<'_>> {
        Ok(PermutePlanMut {
            expert_offsets: self.expert_offsets.view_mut()?,
            permuted_idx: self.permuted_idx.prefix_mut([num_slots])?,
            inv_permuted_idx: self.inv_permuted_idx.prefix_mut([num_slots])?,
        })
    }

    pub(crate) fn view(&self, num_slots: usize) -> PermutePlan<'_> {
        PermutePlan {
            expert_offsets: self.expert_offsets.view(),
            permuted_idx: self.permuted_idx.prefix([num_slots]),
            inv_permuted_idx: self.inv_permuted_idx.prefix([num_slots]),
        }
    }
}

/// What a stack of experts writes: `act` between its projections, and its output.
#[derive(Debug)]
pub(crate) struct ExpertBuffers {
    pub(crate) act: Tensor,
    pub(crate) expert_out: Tensor,
}

#[derive(Debug)]
pub(crate) struct SharedBuffers {
    pub(crate) experts: ExpertBuffers,
    pub(crate) gate_logits: Tensor,
}

#[derive(Debug)]
pub(crate) struct LatentBuffers {
    pub(crate) input: Tensor,
    pub(crate) combined: Tensor,
    pub(crate) output: Tensor,
}

/// Everything of a configuration that a workspace's shapes depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    num_experts: usize,
    router_hidden_size: Option<usize>,
    num_logits: usize,
    /// For the workspace's tokens.
    max_slots: Option<usize>,
    is_ragged: bool,
    input_jitter: bool,
    hidden_size: usize,
    intermediate_size: usize,
    latent_size: Option<usize>,
    shared_intermediate_size: Option<usize>,
}

impl Sizes {
    fn of(config: &MoeConfig, max_tokens: usize) -> Self {
        let router = &config.router;
        Self {
            num_experts: config.num_experts,
            router_hidden_size: router.hidden_size,
            num_logits: router.num_logits(config.num_experts),
            max_slots: router.num_slots(max_tokens, router.num_choices(config.num_experts)),
            is_ragged: router.is_ragged(),
            input_jitter: matches!(router.noise.map(|noise| noise.kind), Some(NoiseKind::InputJitter { .. })),
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            latent_size: config.latent_size,
            shared_intermediate_size: config.shared.as_ref().map(|shared| shared.intermediate_size),
        }
    }
}

impl Workspace {
    /// The workspace was made for a layer of these sizes, on this device.
    pub(crate) fn check(&self, device: &Device, config: &MoeConfig) -> Result<()> {
        Expect::on(device).elements("workspace", self.routing.topk_ids.view(), &[DType::U32])?;
        let expected = Sizes::of(config, self.max_tokens);
        if self.sizes == expected {
            return Ok(());
        }
        Err(Error::invalid("workspace", format!("one made for {expected:?}"), format!("{:?}", self.sizes)))
    }

    pub(crate) fn new(device: &Device, config: &MoeConfig, dtype: DType, max_tokens: usize) -> Result<Self> {
        // Once without memory, to know all sizes before anything is allocated.
        let (host, sizes) = (Device::cpu(), RefCell::new(Vec::new()));
        Self::make(config, dtype, max_tokens, |dtype, shape| {
            sizes.borrow_mut().push((dtype, shape));
            Tensor::zeros(&host, dtype, [0])
        })?;
        device.backend().check_sizes(&sizes.into_inner())?;
        Self::make(config, dtype, max_tokens, |dtype, shape| Tensor::zeros(device, dtype, shape))
    }

    fn make(
        config: &MoeConfig,
        dtype: DType,
        max_tokens: usize,
        tensor: impl Fn(DType, Shape) -> Result<Tensor>,
    ) -> Result<Self> {
        let sizes = Sizes::of(config, max_tokens);
        let slots = sizes
            .max_slots
            .ok_or_else(|| Error::invalid("max_tokens", "a number of slots that fits usize", max_tokens))?;
        let zeros = |dtype, shape: [usize; 2]| tensor(dtype, shape.into());
        let indices = |len: usize| tensor(DType::U32, [len].into());
        let stack = |rows, intermediate_size, hidden_size| -> Result<_> {
            Ok(ExpertBuffers {
                act: zeros(dtype, [rows, intermediate_size])?,
                expert_out: zeros(dtype, [rows, hidden_size])?,
            })
        };
        let shared = |shared: &SharedExpertConfig| -> Result<_> {
            Ok(SharedBuffers {
                experts: stack(max_tokens, shared.intermediate_size, config.hidden_size)?,
                gate_logits: zeros(DType::F32, [max_tokens, 1])?,
            })
        };
        let ragged = || -> Result<_> {
            Ok(RaggedBuffers { token_offsets: indices(max_tokens.saturating_add(1))?, slot_tokens: indices(slots)? })
        };
        let latent = |size| -> Result<_> {
            Ok(LatentBuffers {
                input: zeros(dtype, [max_tokens, size])?,
                combined: zeros(dtype, [max_tokens, size])?,
                output: zeros(dtype, [max_tokens, config.hidden_size])?,
            })
        };
        Ok(Self {
            max_tokens,
            sizes,
            router: config.router.clone(),
            routing: RoutingBuffers {
                router_hidden: config
                    .router
                    .hidden_size
                    .map(|size| zeros(DType::F32, [max_tokens, size]))
                    .transpose()?,
                router_logits: zeros(DType::F32, [max_tokens, sizes.num_logits])?,
                topk_ids: zeros(DType::U32, [slots, 1])?,
                topk_weights: zeros(DType::F32, [slots, 1])?,
                ragged: sizes.is_ragged.then(ragged).transpose()?,
                jittered: sizes
                    .input_jitter
                    .then(|| zeros(DType::F32, [max_tokens, config.hidden_size]))
                    .transpose()?,
            },
            plan: PlanBuffers {
                expert_offsets: indices(config.num_experts + 1)?,
                permuted_idx: indices(slots)?,
                inv_permuted_idx: indices(slots)?,
            },
            routed: stack(slots, config.intermediate_size, config.expert_hidden_size())?,
            shared: config.shared.as_ref().map(shared).transpose()?,
            latent: config.latent_size.map(latent).transpose()?,
        })
    }

    /// The slots that there is room for.
    pub(crate) fn max_slots(&self) -> usize {
        self.sizes.max_slots.unwrap_or(0)
    }

    /// The bytes of device memory it holds.
    pub fn bytes(&self) -> usize {
        let Self { routing, plan, routed, shared, latent, .. } = self;
        let mut tensors = vec![&routing.router_logits, &routing.topk_ids, &routing.topk_weights];
        tensors.extend([&plan.expert_offsets, &plan.permuted_idx, &plan.inv_permuted_idx]);
        tensors.extend([&routed.act, &routed.expert_out]);
        tensors.extend(routing.router_hidden.iter().chain(&routing.jittered));
        if let Some(RaggedBuffers { token_offsets, slot_tokens }) = &routing.ragged {
            tensors.extend([token_offsets, slot_tokens]);
        }
        if let Some(SharedBuffers { experts, gate_logits }) = shared {
            tensors.extend([&experts.act, &experts.expert_out, gate_logits]);
        }
        if let Some(LatentBuffers { input, combined, output }) = latent {
            tensors.extend([input, combined, output]);
        }
        tensors.into_iter().map(|tensor| tensor.shape().numel() * tensor.dtype().size()).sum()
    }

    /// The routing of the last [`MoeLayer::forward`](crate::MoeLayer::forward) of `num_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `num_tokens` exceeds the workspace.
    pub fn routing(&self, num_tokens: usize) -> Result<Routing<'_>> {
        if num_tokens > self.max_tokens {
            return Err(Error::invalid("num_tokens", format!("at most {}", self.max_tokens), num_tokens));
        }
        let RoutingBuffers { topk_ids, topk_weights, ragged, .. } = &self.routing;
        let top_k = self.router.top_k;
        let num_choices = self.router.num_choices(self.sizes.num_experts);
        let num_slots = self.router.num_slots(num_tokens, num_choices).unwrap_or(0);
        let (shape, slots): (Shape, _) = match ragged {
            Some(ragged) => ([num_slots].into(), ragged.slots(num_tokens, num_slots)),
            None => ([num_tokens, top_k].into(), Slots::PerToken { top_k }),
        };
        Ok(Routing { topk_ids: topk_ids.prefix(shape), topk_weights: topk_weights.prefix(shape), slots })
    }
}
