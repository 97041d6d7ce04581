//! Adding experts to a layer, and rows for them to its router.

use super::ExpertLayout;
use super::host::Host;
use crate::backend::Device;
use crate::config::MoeConfig;
use crate::error::{Error, Result};
use crate::routing::noise::{Stream, normal};
use crate::routing::{ExpertState, Selection};
use crate::tensor::{AsView, Shape, Tensor, TensorView};
use crate::weights::{ExpertWeights, LatentWeights, MoeWeights, RouterWeights, SharedWeights};

/// What the router's rows of added experts start as.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NewRows<'a> {
    /// Zero, biases too: the logit of an added expert is 0.
    Zeros,
    /// Normal with mean 0; biases are zero.
    Normal {
        /// Of the generator in [`crate::routing::noise`].
        seed: u64,
        /// The standard deviation.
        std: f32,
    },
    /// The mean of the old experts' rows, and of their biases.
    Mean,
    /// Each the row and biases of this old expert: for experts that start as copies.
    CopiesOf(&'a [u32]),
}

/// The layer with `added` experts behind its own, and its router widened by `rows` (Lifelong-MoE, Chen et al. 2023).
///
/// What was there stays as it is: an old expert keeps its id, its weights and, bit for bit, its logits. In the
/// configuration returned the old experts are [`Frozen`](ExpertState::Frozen), unless disabled, and the new ones
/// [`Added`](ExpertState::Added); the ids of zero experts move up, behind the new ones. Without a router, where the
/// caller routes, the experts alone are added.
///
/// # Errors
/// [`Error::InvalidArgument`] if the weights do not fit the configuration or each other, the rule counts experts in
/// groups or maps them to ranks (an added one would move the others), or `rows` names no old expert for each added one;
/// otherwise the backend's.
pub fn add_experts<T: AsView, U: AsView>(
    device: &Device,
    config: &MoeConfig,
    weights: &MoeWeights<T>,
    added: &ExpertWeights<U>,
    rows: NewRows<'_>,
) -> Result<(MoeConfig, MoeWeights)> {
    config.validate_with(weights.router.is_some())?;
    weights.check(device, config)?;
    let num_added = check_added(device, config, &weights.experts, added)?;
    let wider = widened_config(config, num_added)?;
    check_rows(config, num_added, rows)?;
    let mut copy = |tensor: &T| Host::read(device, tensor.as_view())?.upload(device, tensor.as_view().shape());
    let widen =
        |tensor: &T, is_weight| widened(device, tensor.as_view(), config.num_experts, num_added, rows, is_weight);
    let router = weights.router.as_ref().map(|router| -> Result<_> {
        Ok(RouterWeights {
            hidden: router.hidden.as_ref().map(&mut copy).transpose()?,
            weight: widen(&router.weight, true)?,
            bias: router.bias.as_ref().map(|bias| widen(bias, false)).transpose()?,
            selection_bias: router.selection_bias.as_ref().map(|bias| widen(bias, false)).transpose()?,
        })
    });
    let router = router.transpose()?;
    let shared = weights.shared.as_ref().map(|shared| -> Result<_> {
        let gate = shared.gate.as_ref().map(&mut copy).transpose()?;
        Ok(SharedWeights { experts: shared.experts.try_map(&mut copy)?, gate })
    });
    let shared = shared.transpose()?;
    let latent = weights.latent.as_ref().map(|latent| -> Result<_> {
        Ok(LatentWeights {
            down: copy(&latent.down)?,
            down_bias: latent.down_bias.as_ref().map(&mut copy).transpose()?,
            up: copy(&latent.up)?,
            up_bias: latent.up_bias.as_ref().map(&mut copy).transpose()?,
        })
    });
    let latent = latent.transpose()?;
    let experts = stacked(device, &weights.experts, added)?;
    Ok((wider, MoeWeights { router, experts, shared, latent }))
}

/// The added experts are as the old ones; returns how many there are.
fn check_added<T: AsView, U: AsView>(
    device: &Device,
    config: &MoeConfig,
    old: &ExpertWeights<T>,
    added: &ExpertWeights<U>,
) -> Result<usize> {
    let layout = ExpertLayout::from(config);
    let shape = added.check_alone(device, "added", layout.gate_up_layout, layout.weight_layout)?;
    let sizes = [shape.hidden_size, shape.intermediate_size];
    let expected = [config.expert_hidden_size(), config.intermediate_size];
    if sizes != expected || shape.num_experts == 0 {
        let expected = format!("1 or more experts with [H, I] = {expected:?}");
        return Err(Error::invalid("added", expected, format!("{} with {sizes:?}", shape.num_experts)));
    }
    for (name, old, new) in [
        ("added.gate_up_proj", old.gate_up_proj.as_view(), added.gate_up_proj.as_view()),
        ("added.down_proj", old.down_proj.as_view(), added.down_proj.as_view()),
    ] {
        if new.dtype() != old.dtype() {
            return Err(Error::invalid(name, old.dtype(), new.dtype()));
        }
    }
    for (name, old, new) in [
        ("added.gate_up_bias", old.gate_up_bias.is_some(), added.gate_up_bias.is_some()),
        ("added.down_bias", old.down_bias.is_some(), added.down_bias.is_some()),
    ] {
        if new != old {
            let word = |there| if there { "one" } else { "none" };
            return Err(Error::invalid(name, format!("{}, as the layer has", word(old)), word(new)));
        }
    }
    Ok(shape.num_experts)
}

fn widened_config(config: &MoeConfig, num_added: usize) -> Result<MoeConfig> {
    let router = &config.router;
    let moves_others = [
        ("router.groups", router.groups.is_some()),
        ("router.expert_map", !router.expert_map.is_empty()),
        ("router.selection.hierarchical", matches!(router.selection, Selection::Hierarchical { .. })),
    ];
    if let Some((name, _)) = moves_others.into_iter().find(|(_, is_set)| *is_set) {
        return Err(Error::invalid(name, "none where experts are added", "some"));
    }
    let zero = config.num_experts..config.num_experts + router.num_zero_experts;
    let state = |e: usize| router.expert_states.get(e).copied().unwrap_or_default();
    let frozen = |e| if state(e) == ExpertState::Disabled { ExpertState::Disabled } else { ExpertState::Frozen };
    let states = (0..config.num_experts).map(frozen);
    let states = states.chain(std::iter::repeat_n(ExpertState::Added, num_added)).chain(zero.map(state));
    let mut wider = config.clone();
    wider.router.expert_states = states.collect();
    wider.num_experts += num_added;
    wider.validate_with(false)?;
    Ok(wider)
}

fn check_rows(config: &MoeConfig, num_added: usize, rows: NewRows<'_>) -> Result<()> {
    match rows {
        NewRows::Normal { std, .. } if !(std.is_finite() && std >= 0.0) => {
            Err(Error::invalid("rows.std", "a finite number ≥ 0", std))
        }
        NewRows::CopiesOf(of) if of.len() != num_added || of.iter().any(|&e| e as usize >= config.num_experts) => {
            let expected = format!("{num_added} experts below {}", config.num_experts);
            Err(Error::invalid("rows", expected, format!("{of:?}")))
        }
        _ => Ok(()),
    }
}

/// `[E + Z, K]` or `[E + Z]` with rows for added experts behind those of the E old ones.
fn widened(
    device: &Device,
    tensor: TensorView<'_>,
    num_old: usize,
    num_added: usize,
    rows: NewRows<'_>,
    is_weight: bool,
) -> Result<Tensor> {
    let old = Host::read(device, tensor)?;
    let row_len = tensor.dims().get(1).copied().unwrap_or(1);
    let (before, zero_experts) = old.bytes.split_at(num_old * row_len * old.dtype.size());
    let mut all = Host { dtype: old.dtype, bytes: before.to_vec() };
    match rows {
        NewRows::Normal { seed, std } if is_weight => {
            let element = |row, i| std * normal(seed, Stream::Weight, row as u32, i as u32);
            (0..num_added).for_each(|row| all.extend((0..row_len).map(|i| element(row, i))));
        }
        NewRows::Zeros | NewRows::Normal { .. } => all.extend(std::iter::repeat_n(0.0, num_added * row_len)),
        NewRows::Mean => {
            let mean = old.mean_row(num_old, row_len);
            (0..num_added).for_each(|_| all.extend(mean.iter().copied()));
        }
        NewRows::CopiesOf(of) => of.iter().for_each(|&e| all.bytes.extend_from_slice(old.row(e as usize, row_len))),
    }
    all.bytes.extend_from_slice(zero_experts);
    let mut shape = tensor.dims().to_vec();
    shape[0] += num_added;
    let shape: Shape = if let [n, k] = shape[..] { [n, k].into() } else { [shape[0]].into() };
    all.upload(device, shape)
}

/// The old stack with the added one behind it.
fn stacked<T: AsView, U: AsView>(
    device: &Device,
    old: &ExpertWeights<T>,
    added: &ExpertWeights<U>,
) -> Result<ExpertWeights> {
    let join = |old: TensorView<'_>, added: TensorView<'_>| {
        let mut all = Host::read(device, old)?;
        all.bytes.extend(Host::read(device, added)?.bytes);
        let num_experts = old.dims()[0] + added.dims()[0];
        match *old.dims() {
            [_, n, m] => all.upload(device, [num_experts, n, m]),
            _ => all.upload(device, [num_experts, old.dims()[1]]),
        }
    };
    let bias = |old: &Option<T>, added: &Option<U>| {
        old.as_ref().zip(added.as_ref()).map(|(old, added)| join(old.as_view(), added.as_view())).transpose()
    };
    Ok(ExpertWeights {
        gate_up_proj: join(old.gate_up_proj.as_view(), added.gate_up_proj.as_view())?,
        gate_up_bias: bias(&old.gate_up_bias, &added.gate_up_bias)?,
        down_proj: join(old.down_proj.as_view(), added.down_proj.as_view())?,
        down_bias: bias(&old.down_bias, &added.down_bias)?,
    })
}
