//! `permute`: sorts slots by expert, stably.

use super::{Expect, MAX_SLOTS, RouteArgs, dims};
use crate::backend::Device;
use crate::error::{Error, Result};
use crate::plan::PermutePlanMut;
use crate::tensor::{DType, TensorView};

/// Arguments of [`permute`].
#[derive(Debug)]
pub struct PermuteArgs<'a> {
    /// `[T, k]` or `[S]` u32: the expert of each slot. Ids of E and above have no row.
    pub topk_ids: TensorView<'a>,
    /// `[E + 1]`, `[S]`, `[S]` u32; see [`PermutePlan`](crate::plan::PermutePlan).
    pub plan: PermutePlanMut<'a>,
}

/// Arguments of [`route_permute`].
#[derive(Debug)]
pub struct RoutePermuteArgs<'a> {
    /// What routes.
    pub route: RouteArgs<'a>,
    /// The plan of the ids that it picks.
    pub plan: PermutePlanMut<'a>,
}

impl RoutePermuteArgs<'_> {
    /// One step after the other.
    ///
    /// # Errors
    /// Those of the steps.
    pub fn in_steps(
        self,
        route: impl FnOnce(RouteArgs<'_>) -> Result<()>,
        permute: impl FnOnce(PermuteArgs<'_>) -> Result<()>,
    ) -> Result<()> {
        let Self { route: mut args, plan } = self;
        route(RouteArgs { topk_ids: args.topk_ids.reborrow(), ..args })?;
        permute(PermuteArgs { topk_ids: args.topk_ids.as_view(), plan })
    }
}

/// Makes the plan that sorts slots by expert, each expert's in the order of their slots.
///
/// # Errors
/// [`Error::InvalidArgument`] if a shape, type or memory does not fit, or there are more than 2^31 slots.
pub fn permute(device: &Device, args: PermuteArgs<'_>) -> Result<()> {
    check(device, args.topk_ids, &args.plan)?;
    device.backend().permute(args)
}

/// [`route`](fn@super::route) and [`permute`] of its ids, which a backend may do in one go.
///
/// # Errors
/// As the two.
pub fn route_permute(device: &Device, args: RoutePermuteArgs<'_>) -> Result<()> {
    super::route::check(device, &args.route)?;
    check(device, args.route.topk_ids.as_view(), &args.plan)?;
    device.backend().route_permute(args)
}

fn check(device: &Device, topk_ids: TensorView<'_>, plan: &PermutePlanMut<'_>) -> Result<()> {
    let expect = Expect::on(device);
    expect.elements("topk_ids", topk_ids, &[DType::U32])?;
    let num_slots = topk_ids.shape().numel();
    if num_slots > MAX_SLOTS {
        return Err(Error::invalid("topk_ids", format!("at most {MAX_SLOTS} slots"), num_slots));
    }
    let PermutePlanMut { expert_offsets, permuted_idx, inv_permuted_idx } = plan;
    let [offsets] = dims("expert_offsets", expert_offsets.as_view())?;
    if offsets < 2 {
        return Err(Error::invalid("expert_offsets", "shape [E + 1]", expert_offsets.shape()));
    }
    expect.elements("expert_offsets", expert_offsets.as_view(), &[DType::U32])?;
    expect.tensor("permuted_idx", permuted_idx.as_view(), [num_slots], &[DType::U32])?;
    expect.tensor("inv_permuted_idx", inv_permuted_idx.as_view(), [num_slots], &[DType::U32])?;
    Ok(())
}
