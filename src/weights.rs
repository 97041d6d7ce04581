//! A layer's weights, owned or borrowed.

use crate::backend::Device;
use crate::config::{GateUpLayout, MoeConfig, WeightLayout};
use crate::error::{Error, Result};
use crate::ops::Expect;
use crate::tensor::{AsView, DType, FLOATS, Shape, Tensor, TensorView};

/// A layer's weights; `T` is [`Tensor`] where the layer owns them, [`TensorView`] where an engine does.
#[derive(Clone, Debug)]
pub struct MoeWeights<T = Tensor> {
    /// The router; `None` where the caller routes ([`forward_routed`](crate::MoeLayer::forward_routed)).
    pub router: Option<RouterWeights<T>>,
    /// The routed experts.
    pub experts: ExpertWeights<T>,
    /// The shared expert.
    pub shared: Option<SharedWeights<T>>,
    /// The projections into and out of the latent space.
    pub latent: Option<LatentWeights<T>>,
}

/// The router's weights; E counts zero experts too.
#[derive(Clone, Debug)]
pub struct RouterWeights<T = Tensor> {
    /// `[R, H]` f32, bf16 or f16: a hidden layer before the logits, `tanh(hidden · x)` (LLaMA-MoE).
    pub hidden: Option<T>,
    /// `[E, H]` f32, bf16 or f16; `[E, R]` behind a hidden layer.
    pub weight: T,
    /// `[E]` f32, added to the logits.
    pub bias: Option<T>,
    /// `[E]` f32, added to the scores to choose by (`e_score_correction_bias`).
    pub selection_bias: Option<T>,
}

/// A stack of experts.
#[derive(Clone, Debug)]
pub struct ExpertWeights<T = Tensor> {
    /// `[E, 2I, H]`, or `[E, I, H]` without a gate; `[E, H, 2I]` where the layout is `Kn`.
    pub gate_up_proj: T,
    /// `[E, 2I]` f32.
    pub gate_up_bias: Option<T>,
    /// `[E, H, I]`; `[E, I, H]` where the layout is `Kn`.
    pub down_proj: T,
    /// `[E, H]` f32.
    pub down_bias: Option<T>,
}

/// The shared expert's weights.
#[derive(Clone, Debug)]
pub struct SharedWeights<T = Tensor> {
    /// A stack of one.
    pub experts: ExpertWeights<T>,
    /// `[1, H]`: the sigmoid gate on its output.
    pub gate: Option<T>,
}

/// The projections around experts that work in a latent space of L features.
#[derive(Clone, Debug)]
pub struct LatentWeights<T = Tensor> {
    /// `[1, L, H]`.
    pub down: T,
    /// `[1, L]` f32.
    pub down_bias: Option<T>,
    /// `[1, H, L]`.
    pub up: T,
    /// `[1, H]` f32.
    pub up_bias: Option<T>,
}

impl<T: AsView> MoeWeights<T> {
    /// Checks shapes, types and place against a configuration, field by field.
    pub(crate) fn check(&self, device: &Device, config: &MoeConfig) -> Result<()> {
        let check = Check { expect: Expect::on(device), prefix: "weights." };
        let hidden_size = config.hidden_size;
        if let Some(router) = &self.router {
            let logits = config.router.num_logits(config.num_experts);
            let choices = config.router.num_choices(config.num_experts);
            let hidden = config.router.hidden_size;
            check_presence("router.hidden", hidden.is_some(), router.hidden.is_some())?;
            if let (Some(width), Some(weight)) = (hidden, &router.hidden) {
                check.weight("router.hidden", weight, [width, hidden_size])?;
            }
            check.weight("router.weight", &router.weight, [logits, hidden.unwrap_or(hidden_size)])?;
            check.bias("router.bias", &router.bias, [logits])?;
            check.bias("router.selection_bias", &router.selection_bias, [choices])?;
        }
        let stack = StackShape {
            num_experts: config.num_experts,
            hidden_size: config.expert_hidden_size(),
            gate_up_size: config.gate_up_size(),
            intermediate_size: config.intermediate_size,
            weight_layout: config.weight_layout,
        };
        self.experts.check(&check, "experts", &stack)?;
        match (&config.shared, &self.shared) {
            (None, None) => {}
            (Some(shared), Some(weights)) => {
                let stack = StackShape {
                    num_experts: 1,
                    hidden_size,
                    gate_up_size: shared.gate_up_size(),
                    intermediate_size: shared.intermediate_size,
                    weight_layout: shared.weight_layout,
                };
                weights.experts.check(&check, "shared", &stack)?;
                check_presence("shared.gate", shared.sigmoid_gate, weights.gate.is_some())?;
                if let Some(gate) = &weights.gate {
                    check.weight("shared.gate", gate, [1, hidden_size])?;
                }
            }
            (expected, actual) => check_presence("shared", expected.is_some(), actual.is_some())?,
        }
        match (config.latent_size, &self.latent) {
            (None, None) => Ok(()),
            (Some(latent_size), Some(latent)) => {
                check.weight("latent.down", &latent.down, [1, latent_size, hidden_size])?;
                check.bias("latent.down_bias", &latent.down_bias, [1, latent_size])?;
                check.weight("latent.up", &latent.up, [1, hidden_size, latent_size])?;
                check.bias("latent.up_bias", &latent.up_bias, [1, hidden_size])
            }
            (expected, actual) => check_presence("latent", expected.is_some(), actual.is_some()),
        }
    }
}

impl<T> MoeWeights<T> {
    /// The same weights in another form: `f` of every tensor. How an engine borrows its own tensors for one call.
    ///
    /// # Errors
    /// The first of `f`.
    pub fn try_map<'t, U, E>(&'t self, mut f: impl FnMut(&'t T) -> Result<U, E>) -> Result<MoeWeights<U>, E> {
        let f = &mut f;
        let router = self.router.as_ref().map(|w| {
            Ok(RouterWeights {
                hidden: w.hidden.as_ref().map(&mut *f).transpose()?,
                weight: f(&w.weight)?,
                bias: w.bias.as_ref().map(&mut *f).transpose()?,
                selection_bias: w.selection_bias.as_ref().map(&mut *f).transpose()?,
            })
        });
        let router = router.transpose()?;
        let experts = self.experts.try_map(f)?;
        let shared = self.shared.as_ref().map(|w| {
            Ok(SharedWeights { experts: w.experts.try_map(f)?, gate: w.gate.as_ref().map(&mut *f).transpose()? })
        });
        let shared = shared.transpose()?;
        let latent = self.latent.as_ref().map(|w| {
            Ok(LatentWeights {
                down: f(&w.down)?,
                down_bias: w.down_bias.as_ref().map(&mut *f).transpose()?,
                up: f(&w.up)?,
                up_bias: w.up_bias.as_ref().map(&mut *f).transpose()?,
            })
        });
        Ok(MoeWeights { router, experts, shared, latent: latent.transpose()? })
    }
}

impl<T> ExpertWeights<T> {
    pub(crate) fn try_map<'t, U, E>(
        &'t self,
        f: &mut impl FnMut(&'t T) -> Result<U, E>,
    ) -> Result<ExpertWeights<U>, E> {
        Ok(ExpertWeights {
            gate_up_proj: f(&self.gate_up_proj)?,
            gate_up_bias: self.gate_up_bias.as_ref().map(&mut *f).transpose()?,
            down_proj: f(&self.down_proj)?,
            down_bias: self.down_bias.as_ref().map(&mut *f).transpose()?,
        })
    }
}

/// The sizes of a stack of experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StackShape {
    pub(crate) num_experts: usize,
    pub(crate) hidden_size: usize,
    pub(crate) gate_up_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) weight_layout: WeightLayout,
}

impl<T: AsView> ExpertWeights<T> {
    /// Checks a stack that stands alone, under the caller's name for it; returns its sizes.
    pub(crate) fn check_alone(
        &self,
        device: &Device,
        name: &str,
        gate_up_layout: Option<GateUpLayout>,
        weight_layout: WeightLayout,
    ) -> Result<StackShape> {
        let down = self.down_proj.as_view();
        let &[num_experts, first, second] = down.dims() else {
            return Err(Error::invalid(format!("{name}.down_proj"), "rank 3", format!("shape {}", down.shape())));
        };
        let (hidden_size, intermediate_size) = match weight_layout {
            WeightLayout::Nk => (first, second),
            WeightLayout::Kn => (second, first),
        };
        let gate_up_size = intermediate_size * if gate_up_layout.is_some() { 2 } else { 1 };
        let shape = StackShape { num_experts, hidden_size, gate_up_size, intermediate_size, weight_layout };
        self.check(&Check { expect: Expect::on(device), prefix: "" }, name, &shape)?;
        Ok(shape)
    }

    fn check(&self, check: &Check<'_>, name: &str, shape: &StackShape) -> Result<()> {
        let &StackShape { num_experts, hidden_size, gate_up_size, intermediate_size, weight_layout } = shape;
        let gate_up = weight_layout.shape(num_experts, gate_up_size, hidden_size);
        let down = weight_layout.shape(num_experts, hidden_size, intermediate_size);
        check.weight(&format!("{name}.gate_up_proj"), &self.gate_up_proj, gate_up)?;
        check.weight(&format!("{name}.down_proj"), &self.down_proj, down)?;
        check.bias(&format!("{name}.gate_up_bias"), &self.gate_up_bias, [num_experts, gate_up_size])?;
        check.bias(&format!("{name}.down_bias"), &self.down_bias, [num_experts, hidden_size])
    }
}

struct Check<'d> {
    expect: Expect<'d>,
    /// Before the names of fields.
    prefix: &'static str,
}

impl Check<'_> {
    fn weight(&self, name: &str, tensor: &impl AsView, shape: impl Into<Shape>) -> Result<()> {
        self.expect.tensor(&format!("{}{name}", self.prefix), tensor.as_view(), shape, FLOATS)
    }

    fn bias(&self, name: &str, bias: &Option<impl AsView>, shape: impl Into<Shape>) -> Result<()> {
        let Some(bias) = bias else { return Ok(()) };
        self.expect.tensor(&format!("{}{name}", self.prefix), bias.as_view(), shape, &[DType::F32])
    }
}

fn check_presence(name: &str, expected: bool, actual: bool) -> Result<()> {
    if expected == actual {
        return Ok(());
    }
    let word = |present| if present { "weights" } else { "none" };
    Err(Error::invalid(
        format!("weights.{name}"),
        format!("{}, as the configuration says", word(expected)),
        word(actual),
    ))
}

/// An optional weight as a view.
pub(crate) fn view<T: AsView>(weight: &Option<T>) -> Option<TensorView<'_>> {
    weight.as_ref().map(AsView::as_view)
}
