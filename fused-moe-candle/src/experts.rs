//! The experts alone, as a function of tensors: for engines that keep the weights and do the routing.

use candle_core::{Result, Tensor};
use fused_moe::config::{Activation, GateUpLayout, WeightLayout};
use fused_moe::routing::RouterConfig;
use fused_moe::weights::ExpertWeights;
use fused_moe::{MoeConfig, MoeWeights};

use crate::borrow::invalid;
use crate::module::FusedMoe;
use crate::workspaces::Workspaces;

/// What [`moe_experts`] cannot see in the shapes of its tensors.
#[derive(Clone, Debug)]
pub struct ExpertsOptions {
    /// The nonlinearity between the two projections.
    pub activation: Activation,
    /// How gate and up are stacked in `gate_up`; `None` where there is no gate.
    pub gate_up_layout: Option<GateUpLayout>,
    /// Whether an expert's matrix is `[N, K]`, as in PyTorch's `Linear`, or `[K, N]`.
    pub weight_layout: WeightLayout,
    /// `[E, 2I]`. One that is not f32 is converted in every call.
    pub gate_up_bias: Option<Tensor>,
    /// `[E, H]`. One that is not f32 is converted in every call.
    pub down_bias: Option<Tensor>,
    /// Memory that is kept from call to call; clone one value into all options of a model.
    pub workspaces: Workspaces,
}

impl Default for ExpertsOptions {
    /// SwiGLU, gate before up, `[E, N, K]`, no biases: Qwen, Mixtral, DeepSeek and most others.
    fn default() -> Self {
        Self {
            activation: Activation::Silu,
            gate_up_layout: Some(GateUpLayout::GateThenUp),
            weight_layout: WeightLayout::Nk,
            gate_up_bias: None,
            down_bias: None,
            workspaces: Workspaces::default(),
        }
    }
}

/// `Σₖ topk_weights · expert(xs)`, in the shape and type of `xs`.
///
/// `xs` `[.., H]` f32, bf16 or f16; `gate_up` `[E, 2I, H]` and `down` `[E, H, I]`, of the same or another of these
/// types; `topk_ids` `[.., k]` u32 and `topk_weights` `[.., k]`. Ids of no expert (`u32::MAX`, say) add nothing.
///
/// All may be strided. Weights that are contiguous, at any offset, or the transpose of contiguous ones are read in
/// place; others are copied, in every call.
///
/// # Errors
/// With `fused_moe`'s text, naming the argument that does not fit; or that the tensors are on a device that has no
/// backend.
pub fn moe_experts(
    xs: &Tensor,
    gate_up: &Tensor,
    down: &Tensor,
    topk_ids: &Tensor,
    topk_weights: &Tensor,
    options: &ExpertsOptions,
) -> Result<Tensor> {
    let top_k = *topk_ids.dims().last().ok_or_else(|| invalid("topk_ids", "rank 2 or more", "a scalar"))?;
    layer(gate_up, down, top_k, options)?.forward_routed(xs, topk_ids, topk_weights)
}

/// The layer that the tensors' shapes and the options imply; making it checks that they fit each other.
pub(crate) fn layer(gate_up: &Tensor, down: &Tensor, top_k: usize, options: &ExpertsOptions) -> Result<FusedMoe> {
    for (name, weight) in [("gate_up", gate_up), ("down", down)] {
        if weight.rank() != 3 {
            return Err(invalid(name, "rank 3", format!("shape {:?}", weight.dims())));
        }
    }
    let (gate_up_proj, down_proj, weight_layout) = in_place(gate_up, down, options.weight_layout)?;
    let (num_experts, d1, d2) = down_proj.dims3()?;
    let (hidden_size, intermediate_size) = match weight_layout {
        WeightLayout::Nk => (d1, d2),
        WeightLayout::Kn => (d2, d1),
    };
    let config = MoeConfig {
        num_experts,
        hidden_size,
        intermediate_size,
        router: RouterConfig::softmax_top_k(top_k),
        activation: options.activation,
        gate_up_layout: options.gate_up_layout,
        weight_layout,
        shared: None,
        latent_size: None,
    };
    let experts = ExpertWeights {
        gate_up_proj,
        gate_up_bias: options.gate_up_bias.clone(),
        down_proj,
        down_bias: options.down_bias.clone(),
    };
    let moe = FusedMoe::new(config, MoeWeights { router: None, experts, shared: None, latent: None })?;
    Ok(moe.with_workspaces(options.workspaces.clone()))
}

/// The weights such that contiguous memory is described as what it is: a transposed view of `[E, K, N]` is `[E, K, N]`.
fn in_place(gate_up: &Tensor, down: &Tensor, layout: WeightLayout) -> Result<(Tensor, Tensor, WeightLayout)> {
    let [gate_up_t, down_t] = [gate_up.transpose(1, 2)?, down.transpose(1, 2)?];
    let as_they_are = gate_up.is_contiguous() || down.is_contiguous();
    if as_they_are || !gate_up_t.is_contiguous() || !down_t.is_contiguous() {
        return Ok((gate_up.clone(), down.clone(), layout));
    }
    let transposed = match layout {
        WeightLayout::Nk => WeightLayout::Kn,
        WeightLayout::Kn => WeightLayout::Nk,
    };
    Ok((gate_up_t, down_t, transposed))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn weights_are_not_copied() {
        let stack = |n, k| Tensor::zeros((5, n, k), DType::BF16, &Device::Cpu).unwrap();
        let (gate_up, down) = (stack(8, 6), stack(6, 4));
        let offset = |t: &Tensor| t.narrow(0, 2, 3).unwrap();
        let transposed = |t: &Tensor| t.transpose(1, 2).unwrap();
        for (a, b, layout) in [
            (gate_up.clone(), down.clone(), WeightLayout::Nk),
            (offset(&gate_up), offset(&down), WeightLayout::Nk),
            (transposed(&gate_up), transposed(&down), WeightLayout::Kn),
        ] {
            let (a, b, seen) = in_place(&a, &b, WeightLayout::Nk).unwrap();
            assert_eq!(seen, layout);
            for (seen, whole) in [(a, &gate_up), (b, &down)] {
                assert!(seen.is_contiguous());
                assert!(std::ptr::eq(&*seen.storage_and_layout().0, &*whole.storage_and_layout().0));
            }
        }
    }
}
