//! The layer as a candle module.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Error, Module, Result, Tensor};
use fused_moe::layer::Routing;
use fused_moe::tensor::AsView;
use fused_moe::weights::ExpertWeights;
use fused_moe::{Device, MoeConfig, MoeLayer, MoeWeights, TensorView, TensorViewMut};

use crate::borrow::{self, invalid};
use crate::op::{MoeOp, TokenRouting};
use crate::workspaces::{Key, Workspaces};

/// A MoE layer: router, experts, shared expert, whatever its [`MoeConfig`] has. Cheap to clone.
///
/// It can be called from several threads at once; each call then takes a workspace of its own.
#[derive(Clone, Debug)]
pub struct FusedMoe {
    source: Source,
    workspaces: Workspaces,
}

/// Where the weights are.
#[derive(Clone, Debug)]
enum Source {
    /// In candle tensors, borrowed for each call.
    Candle(Arc<CandleWeights>),
    /// In `fused_moe`'s own tensors.
    Layer(Arc<MoeLayer>),
}

#[derive(Debug)]
pub(crate) struct CandleWeights {
    pub(crate) config: MoeConfig,
    pub(crate) weights: MoeWeights<Tensor>,
}

impl FusedMoe {
    /// A layer of candle tensors. Strided weights are made contiguous and biases f32, here and once; everything else
    /// stays where it is.
    ///
    /// # Errors
    /// With `fused_moe`'s text, naming the first field of the configuration or weight that does not fit; or that the
    /// weights are on a device that has no backend.
    pub fn new(config: MoeConfig, weights: MoeWeights<Tensor>) -> Result<Self> {
        let mut weights = weights.try_map(Tensor::contiguous)?;
        biases_to_f32(&mut weights)?;
        let layer = CandleWeights { config, weights };
        layer.check()?;
        Ok(Self { source: Source::Candle(Arc::new(layer)), workspaces: Workspaces::default() })
    }

    /// A layer that `fused_moe` has loaded.
    ///
    /// # Errors
    /// If it is on a device that does not compute in host memory.
    pub fn from_layer(layer: MoeLayer) -> Result<Self> {
        if !layer.device().backend().is_host() {
            return Err(invalid("layer", "a layer on a device that computes in host memory", layer.device()));
        }
        Ok(Self { source: Source::Layer(Arc::new(layer)), workspaces: Workspaces::default() })
    }

    /// The same layer with its memory from `workspaces`: give all layers of a model the same ones.
    pub fn with_workspaces(self, workspaces: Workspaces) -> Self {
        Self { workspaces, ..self }
    }

    /// What the layer is.
    pub fn config(&self) -> &MoeConfig {
        match &self.source {
            Source::Candle(layer) => &layer.config,
            Source::Layer(layer) => layer.config(),
        }
    }

    /// The layer's output for `xs` `[.., H]` f32, bf16 or f16, in its shape and type. The residual is the caller's.
    ///
    /// # Errors
    /// With `fused_moe`'s text, if `xs` does not fit or the layer has no router.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.apply(xs, None)
    }

    /// As [`FusedMoe::forward`], with the routing made by the caller: `topk_ids` `[.., k]` u32, `topk_weights`
    /// `[.., k]`, both with the leading extents of `xs`. Ids of no expert (`u32::MAX`, say) add nothing.
    ///
    /// # Errors
    /// With `fused_moe`'s text, if an argument does not fit.
    pub fn forward_routed(&self, xs: &Tensor, topk_ids: &Tensor, topk_weights: &Tensor) -> Result<Tensor> {
        let routing = TokenRouting {
            topk_ids: tokens("topk_ids", topk_ids)?.contiguous()?,
            topk_weights: tokens("topk_weights", topk_weights)?.to_dtype(DType::F32)?.contiguous()?,
        };
        self.apply(xs, Some(routing))
    }

    /// The layer's own tensors.
    #[cfg(feature = "cuda")]
    pub(crate) fn candle_weights(&self) -> Result<&CandleWeights> {
        match &self.source {
            Source::Candle(layer) => Ok(layer),
            Source::Layer(layer) => Err(invalid("xs", format!("a tensor on {}", layer.device()), "one on CUDA")),
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn workspaces(&self) -> &Workspaces {
        &self.workspaces
    }

    fn apply(&self, xs: &Tensor, routing: Option<TokenRouting>) -> Result<Tensor> {
        let input = tokens("xs", xs)?.contiguous()?;
        let output = input.apply_op1(MoeOp { moe: self.clone(), routing })?;
        output.reshape(xs.shape())
    }

    /// What [`MoeOp`] computes, on host memory.
    pub(crate) fn run(
        &self,
        input: TensorView<'_>,
        routing: Option<Routing<'_>>,
        output: TensorViewMut<'_>,
    ) -> Result<()> {
        match &self.source {
            Source::Layer(layer) => self.run_layer(layer, input, routing, output),
            Source::Candle(layer) => layer.borrow(|layer| self.run_layer(layer, input, routing, output)),
        }
    }

    fn run_layer<T: AsView>(
        &self,
        layer: &MoeLayer<T>,
        input: TensorView<'_>,
        routing: Option<Routing<'_>>,
        output: TensorViewMut<'_>,
    ) -> Result<()> {
        let weight_dtype = layer.weights().experts.down_proj.as_view().dtype();
        let key = Key { config: layer.config(), weight_dtype, ordinal: 0 };
        let make = |max_tokens| layer.workspace(max_tokens).map_err(Error::wrap);
        self.workspaces.on_host(&key, input.dims()[0], make, |workspace| {
            match routing {
                None => layer.forward(input, output, workspace),
                Some(routing) => layer.forward_routed(input, routing, output, workspace),
            }
            .map_err(Error::wrap)
        })
    }
}

impl Module for FusedMoe {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Self::forward(self, xs)
    }
}

impl CandleWeights {
    fn check(&self) -> Result<()> {
        match self.weights.experts.down_proj.device() {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(device) => crate::cuda::check(self, device),
            _ => self.borrow(|_| Ok(())),
        }
    }

    /// Runs `call` with the layer that these weights are; they can be read by others meanwhile, and not be written.
    fn borrow<R>(&self, call: impl FnOnce(&MoeLayer<TensorView<'_>>) -> Result<R>) -> Result<R> {
        let held = self.weights.try_map(|tensor| Ok::<_, Error>(borrow::hold(tensor)))?;
        let weights = held.try_map(borrow::view)?;
        call(&MoeLayer::new(cpu(), self.config.clone(), weights).map_err(Error::wrap)?)
    }
}

fn cpu() -> &'static Device {
    static CPU: OnceLock<Device> = OnceLock::new();
    CPU.get_or_init(Device::cpu)
}

/// `[.., N]` as `[T, N]`.
fn tokens(name: &str, tensor: &Tensor) -> Result<Tensor> {
    match *tensor.dims() {
        [.., n] if tensor.rank() > 1 => {
            tensor.reshape((tensor.dims()[..tensor.rank() - 1].iter().product::<usize>(), n))
        }
        _ => Err(invalid(name, "rank 2 or more", format!("shape {:?}", tensor.dims()))),
    }
}

/// The biases as `fused_moe` takes them.
fn biases_to_f32(weights: &mut MoeWeights<Tensor>) -> Result<()> {
    let experts = |experts: &mut ExpertWeights<Tensor>| -> Result<()> {
        to_f32(&mut experts.gate_up_bias)?;
        to_f32(&mut experts.down_bias)
    };
    experts(&mut weights.experts)?;
    if let Some(router) = &mut weights.router {
        to_f32(&mut router.bias)?;
        to_f32(&mut router.selection_bias)?;
    }
    if let Some(shared) = &mut weights.shared {
        experts(&mut shared.experts)?;
    }
    if let Some(latent) = &mut weights.latent {
        to_f32(&mut latent.down_bias)?;
        to_f32(&mut latent.up_bias)?;
    }
    Ok(())
}

fn to_f32(bias: &mut Option<Tensor>) -> Result<()> {
    if let Some(bias) = bias {
        *bias = bias.to_dtype(DType::F32)?;
    }
    Ok(())
}
