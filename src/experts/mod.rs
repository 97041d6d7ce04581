//! Experts made out of weights that are there: a dense FFN [copied](fn@upcycle) into experts or [split](fn@split)
//! into smaller ones, and experts [added](add_experts) to a layer.
//!
//! All of it happens on the host and once, before a layer is made; the results lie on the device that is named, in the
//! type and layout of the weights they came from.

mod add;
mod host;
mod split;
mod upcycle;

pub use add::{NewRows, add_experts};
pub use split::{Split, SplitOrder, split};
pub use upcycle::{CopyNoise, upcycle};

use crate::backend::Device;
use crate::config::{GateUpLayout, MoeConfig, SharedExpertConfig, WeightLayout};
use crate::error::{Error, Result};
use crate::tensor::AsView;
use crate::weights::{ExpertWeights, StackShape};

/// How the matrices of a dense FFN, or of a stack of experts, lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertLayout {
    /// How gate and up are stacked; `None` without a gate.
    pub gate_up_layout: Option<GateUpLayout>,
    /// How one expert's matrix lies in memory.
    pub weight_layout: WeightLayout,
}

impl From<&MoeConfig> for ExpertLayout {
    /// That of the routed experts.
    fn from(config: &MoeConfig) -> Self {
        Self { gate_up_layout: config.gate_up_layout, weight_layout: config.weight_layout }
    }
}

impl From<&SharedExpertConfig> for ExpertLayout {
    fn from(config: &SharedExpertConfig) -> Self {
        Self { gate_up_layout: config.gate_up_layout, weight_layout: config.weight_layout }
    }
}

/// A dense FFN is a stack of one expert.
fn check_dense<T: AsView>(device: &Device, dense: &ExpertWeights<T>, layout: ExpertLayout) -> Result<StackShape> {
    let shape = dense.check_alone(device, "dense", layout.gate_up_layout, layout.weight_layout)?;
    if shape.num_experts != 1 {
        return Err(Error::invalid("dense", "a stack of one expert", format!("{} experts", shape.num_experts)));
    }
    Ok(shape)
}
