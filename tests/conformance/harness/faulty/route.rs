//! Faults of `route`.

use fused_moe::backend::Backend;
use fused_moe::ops::RouteArgs;
use fused_moe::routing::{MASKED, RouterConfig};
use fused_moe::{Result, TensorView};

use super::f32s_mut;
use crate::harness::host_copy::HostCopy;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The best two of the last token the other way round, weights in place.
    SwappedIds,
    /// Where a logit is NaN, the best expert twice.
    RepeatedOnNan,
    /// Where a logit is infinite, a weight that is too.
    WeightNotFinite,
    /// Ties go to the highest id.
    TiesToHighest,
    /// The selection bias is added to the weights.
    BiasInWeights,
    /// The selection bias is left out.
    NoBias,
    /// No renormalisation.
    NoRenormalize,
    /// No scaling factor.
    NoScale,
    /// Any group may be chosen.
    NoGroups,
    /// Experts are never full.
    NoCapacity,
    /// The weights of the last token are those of the first.
    WrongRow,
}

impl Fault {
    /// Every fault.
    pub const ALL: &[Self] = &[
        Self::SwappedIds,
        Self::RepeatedOnNan,
        Self::WeightNotFinite,
        Self::TiesToHighest,
        Self::BiasInWeights,
        Self::NoBias,
        Self::NoRenormalize,
        Self::NoScale,
        Self::NoGroups,
        Self::NoCapacity,
        Self::WrongRow,
    ];
}

/// The op with `fault`.
pub fn run(fault: Fault, oracle: &dyn Backend, mut args: RouteArgs<'_>) -> Result<()> {
    let config = args.config.clone();
    let config = match fault {
        Fault::NoRenormalize => RouterConfig { renormalize: None, ..config },
        Fault::NoScale => RouterConfig { scaling_factor: 1.0, ..config },
        Fault::NoGroups => RouterConfig { groups: None, ..config },
        Fault::NoCapacity => RouterConfig { capacity: None, ..config },
        _ => config,
    };
    if fault == Fault::TiesToHighest {
        return run_reversed(oracle, args);
    }
    let (logits, bias) = (args.router_logits, args.selection_bias);
    oracle.route(RouteArgs {
        config: &config,
        selection_bias: bias.filter(|_| fault != Fault::NoBias),
        topk_ids: args.topk_ids.reborrow(),
        topk_weights: args.topk_weights.reborrow(),
        ..args
    })?;
    let (k, num_experts) = (config.top_k, logits.dims()[1]);
    let rows = floats(logits).chunks_exact(num_experts.max(1));
    let ids: &mut [u32] = args.topk_ids.as_mut_slice().unwrap_or_default();
    let weights = f32s_mut(&mut args.topk_weights);
    let num_tokens = rows.len();
    match fault {
        Fault::SwappedIds if num_tokens > 0 && k > 1 => ids.swap(ids.len() - k, ids.len() - k + 1),
        Fault::RepeatedOnNan if k > 1 => rows
            .enumerate()
            .filter(|(_, row)| row.iter().any(|x| x.is_nan()))
            .for_each(|(token, _)| ids[token * k + 1] = ids[token * k]),
        Fault::WeightNotFinite => rows
            .enumerate()
            .filter(|(_, row)| row.iter().any(|x| x.is_infinite()))
            .for_each(|(token, _)| weights[token * k] = f32::INFINITY),
        Fault::BiasInWeights => {
            let bias = bias.map(floats).unwrap_or_default();
            weights.iter_mut().zip(ids).for_each(|(w, id)| *w += bias.get(*id as usize).copied().unwrap_or(0.0));
        }
        Fault::WrongRow if num_tokens > 0 => weights.copy_within(..k, (num_tokens - 1) * k),
        _ => {}
    }
    Ok(())
}

/// Routes with the experts in reverse order: then the lowest id is the highest.
fn run_reversed(oracle: &dyn Backend, mut args: RouteArgs<'_>) -> Result<()> {
    let num_experts = args.router_logits.dims()[1];
    let mut logits = HostCopy::of(args.router_logits);
    logits.f32s_mut().chunks_exact_mut(num_experts.max(1)).for_each(<[f32]>::reverse);
    let mut bias = args.selection_bias.map(HostCopy::of);
    bias.iter_mut().for_each(|bias| bias.f32s_mut().reverse());
    oracle.route(RouteArgs {
        router_logits: logits.view(),
        selection_bias: bias.as_ref().map(HostCopy::view),
        topk_ids: args.topk_ids.reborrow(),
        ..args
    })?;
    let ids: &mut [u32] = args.topk_ids.as_mut_slice().unwrap_or_default();
    ids.iter_mut().filter(|id| **id != MASKED).for_each(|id| *id = num_experts as u32 - 1 - *id);
    Ok(())
}

fn floats(view: TensorView<'_>) -> &[f32] {
    view.as_slice().unwrap_or_default()
}
