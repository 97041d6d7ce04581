//! The memory between a layer's steps, allocated once.

use crate::backend::Device;
use crate::config::{MoeConfig, SharedExpertConfig};
use crate::error::{Error, Result};
use crate::layer::Routing;
use crate::ops::Expect;
use crate::tensor::{DType, Tensor};

/// Everything a layer needs besides its weights, allocated once for up to `max_tokens` tokens.
#[derive(Debug)]
pub struct Workspace {
    pub(crate) max_tokens: usize,
    sizes: Sizes,
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
}

#[derive(Debug)]
pub(crate) struct PlanBuffers {
    pub(crate) expert_offsets: Tensor,
    pub(crate) permuted_idx: Tensor,
    pub(crate) inv_permuted_idx: Tensor,
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
    num_choices: usize,
    router_hidden_size: Option<usize>,
    top_k: usize,
    hidden_size: usize,
    intermediate_size: usize,
    latent_size: Option<usize>,
    shared_intermediate_size: Option<usize>,
}

impl Sizes {
    fn of(config: &MoeConfig) -> Self {
        Self {
            num_experts: config.num_experts,
            num_choices: config.router.num_choices(config.num_experts),
            router_hidden_size: config.router.hidden_size,
            top_k: config.router.top_k,
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
        let expected = Sizes::of(config);
        if self.sizes == expected {
            return Ok(());
        }
        Err(Error::invalid("workspace", format!("one made for {expected:?}"), format!("{:?}", self.sizes)))
    }

    pub(crate) fn new(device: &Device, config: &MoeConfig, dtype: DType, max_tokens: usize) -> Result<Self> {
        let slots = max_tokens
            .checked_mul(config.router.top_k)
            .ok_or_else(|| Error::invalid("max_tokens", "a number of slots that fits usize", max_tokens))?;
        let zeros = |dtype, shape: [usize; 2]| Tensor::zeros(device, dtype, shape);
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
        let latent = |size| -> Result<_> {
            Ok(LatentBuffers {
                input: zeros(dtype, [max_tokens, size])?,
                combined: zeros(dtype, [max_tokens, size])?,
                output: zeros(dtype, [max_tokens, config.hidden_size])?,
            })
        };
        Ok(Self {
            max_tokens,
            sizes: Sizes::of(config),
            routing: RoutingBuffers {
                router_hidden: config
                    .router
                    .hidden_size
                    .map(|size| zeros(DType::F32, [max_tokens, size]))
                    .transpose()?,
                router_logits: zeros(DType::F32, [max_tokens, config.router.num_choices(config.num_experts)])?,
                topk_ids: zeros(DType::U32, [max_tokens, config.router.top_k])?,
                topk_weights: zeros(DType::F32, [max_tokens, config.router.top_k])?,
            },
            plan: PlanBuffers {
                expert_offsets: Tensor::zeros(device, DType::U32, [config.num_experts + 1])?,
                permuted_idx: Tensor::zeros(device, DType::U32, [slots])?,
                inv_permuted_idx: Tensor::zeros(device, DType::U32, [slots])?,
            },
            routed: stack(slots, config.intermediate_size, config.expert_hidden_size())?,
            shared: config.shared.as_ref().map(shared).transpose()?,
            latent: config.latent_size.map(latent).transpose()?,
        })
    }

    /// The routing of the last [`MoeLayer::forward`] of `num_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `num_tokens` exceeds the workspace.
    pub fn routing(&self, num_tokens: usize) -> Result<Routing<'_>> {
        Ok(Routing {
            topk_ids: self.routing.topk_ids.view().slice(0..num_tokens)?,
            topk_weights: self.routing.topk_weights.view().slice(0..num_tokens)?,
        })
    }
}
