//! Layers: made of the caller's weights, called with the caller's tensors.

use std::ffi::{c_char, c_void};
use std::ops::Range;
use std::sync::TryLockError;

use super::error::{FusedMoeStatus, guard};
use super::tensor::FusedMoeTensor;
use super::{FusedMoeDevice, FusedMoeWorkspace, free, give, handle, text};
use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::config::MoeConfig;
use crate::error::{Error, Result};
use crate::layer::{MoeLayer, Routing};
use crate::tensor::{AsView, DataMut, Tensor, TensorView, TensorViewMut};
use crate::weights::{ExpertWeights, LatentWeights, MoeWeights, RouterWeights, SharedWeights};
use crate::workspace::Workspace;

/// A layer. Several threads may call it at once, each with a workspace of its own.
pub struct FusedMoeLayer {
    weights: Weights,
    /// Where the borrowed weights are: no output may lie there.
    addresses: Vec<Range<usize>>,
}

/// Whose memory the weights are in.
#[allow(clippy::large_enum_variant, reason = "one per layer, on the heap")]
enum Weights {
    /// The caller's, for as long as the layer lives: the header says so.
    Borrowed(MoeLayer<TensorView<'static>>),
    /// The device's.
    Owned(MoeLayer<Tensor>),
}

/// The router's weights.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FusedMoeRouter {
    /// [E, H], or none where the caller routes; [E, R] behind a hidden layer.
    pub weight: FusedMoeTensor,
    /// [R, H], optional: a hidden layer before the logits.
    pub hidden: FusedMoeTensor,
    /// `[E]` f32, optional: added to the logits.
    pub bias: FusedMoeTensor,
    /// `[E]` f32, optional: added to the scores to choose by.
    pub selection_bias: FusedMoeTensor,
}

/// A stack of experts.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FusedMoeExperts {
    /// [E, 2I, H], or [E, I, H] without a gate; [E, H, 2I] where weight_layout is "kn".
    pub gate_up_proj: FusedMoeTensor,
    /// [E, 2I] f32, optional.
    pub gate_up_bias: FusedMoeTensor,
    /// [E, H, I]; [E, I, H] where weight_layout is "kn".
    pub down_proj: FusedMoeTensor,
    /// [E, H] f32, optional.
    pub down_bias: FusedMoeTensor,
}

/// The projections around experts that work in a latent space of L features.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FusedMoeLatent {
    /// [1, L, H].
    pub down: FusedMoeTensor,
    /// [1, L] f32, optional.
    pub down_bias: FusedMoeTensor,
    /// [1, H, L].
    pub up: FusedMoeTensor,
    /// [1, H] f32, optional.
    pub up_bias: FusedMoeTensor,
}

/// A layer's weights; what the configuration does not have is all zero.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FusedMoeWeights {
    /// The router.
    pub router: FusedMoeRouter,
    /// The routed experts.
    pub experts: FusedMoeExperts,
    /// The shared expert: a stack of one.
    pub shared: FusedMoeExperts,
    /// [1, H]: the sigmoid gate on the shared expert's output.
    pub shared_gate: FusedMoeTensor,
    /// The latent projections.
    pub latent: FusedMoeLatent,
}

/// The tensors of one call; T up to the workspace's max_tokens.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FusedMoeForward {
    /// [T, H] f32, bf16 or f16.
    pub hidden_states: FusedMoeTensor,
    /// [T, k] u32, or none for the layer's own router. An id of no expert (UINT32_MAX, say) adds nothing.
    pub topk_ids: FusedMoeTensor,
    /// [T, k] f32, with topk_ids.
    pub topk_weights: FusedMoeTensor,
    /// [T, H] f32, bf16 or f16; overlaps none of the others and no weight.
    pub output: FusedMoeTensor,
    /// The CUstream to enqueue on. NULL on devices without streams: there the call returns when it is done.
    pub stream: *mut c_void,
}

/// Makes a layer. `config_json` is a MoeConfig as JSON; docs/integrating.md lists its fields.
///
/// On a device that computes in host memory the weights are borrowed: they must stay, unchanged, until the layer is
/// freed. On others they are copied.
///
/// # Safety
/// `device` came from fused_moe_device_new and was not freed; `config_json` is a NUL-terminated string; `weights` and
/// what its tensors point to are readable; `layer` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_moe_layer_new(
    device: *const FusedMoeDevice,
    config_json: *const c_char,
    weights: *const FusedMoeWeights,
    layer: *mut *mut FusedMoeLayer,
) -> FusedMoeStatus {
    guard(|| {
        // SAFETY: the caller's promises.
        let (device, config, weights) =
            unsafe { (handle("device", device)?, text("config_json", config_json)?, handle("weights", weights)?) };
        let config: MoeConfig =
            serde_json::from_str(config).map_err(|error| Error::invalid("config_json", "a MoeConfig", error))?;
        let mut addresses = Vec::new();
        // SAFETY: the caller's promise, for as long as the layer lives where it borrows.
        let views = unsafe { weights.views(&mut addresses) }?;
        let device = &device.0;
        let weights = if device.backend().is_host() {
            Weights::Borrowed(MoeLayer::new(device, config, views)?)
        } else {
            addresses.clear();
            let weights = views.try_map(|view| Tensor::from_view(device, *view))?;
            Weights::Owned(MoeLayer::new(device, config, weights)?)
        };
        // SAFETY: the caller's promise.
        unsafe { give("layer", layer, FusedMoeLayer { weights, addresses }) }
    })
}

/// Loads a layer of a Hugging Face checkpoint directory. `layer_id` is its index, "3", or "encoder.1" and "decoder.1" in
/// an encoder-decoder; NULL takes the first that has experts. The files may be memory-mapped: they must not change until
/// the layer is freed.
///
/// # Safety
/// `device` came from fused_moe_device_new and was not freed; `directory` is a NUL-terminated string, `layer_id` too or
/// NULL; `layer` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_moe_layer_load(
    device: *const FusedMoeDevice,
    directory: *const c_char,
    layer_id: *const c_char,
    layer: *mut *mut FusedMoeLayer,
) -> FusedMoeStatus {
    guard(|| {
        // SAFETY: the caller's promises.
        let (device, directory) = unsafe { (handle("device", device)?, text("directory", directory)?) };
        let checkpoint = Checkpoint::open(directory)?;
        let id = if layer_id.is_null() {
            checkpoint.first_layer_with_experts()?
        } else {
            // SAFETY: the caller's promise.
            unsafe { text("layer_id", layer_id) }?.parse()?
        };
        let weights = Weights::Owned(checkpoint.load(&device.0, id, LoadOptions::default())?);
        // SAFETY: the caller's promise.
        unsafe { give("layer", layer, FusedMoeLayer { weights, addresses: Vec::new() }) }
    })
}

/// Frees a layer.
///
/// # Safety
/// `layer` came from this library, was not freed, and no call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_moe_layer_free(layer: *mut FusedMoeLayer) {
    // SAFETY: the caller's promise.
    unsafe { free(layer) }
}

/// output = layer(hidden_states). The residual is the caller's.
///
/// # Safety
/// `layer` and `workspace` came from this library and were not freed; `args` is readable; the tensors in it are
/// readable, `output` is writable and used by nobody else, until the call is done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_moe_forward(
    layer: *const FusedMoeLayer,
    args: *const FusedMoeForward,
    workspace: *const FusedMoeWorkspace,
) -> FusedMoeStatus {
    guard(|| {
        // SAFETY: the caller's promises.
        let (layer, args, workspace) =
            unsafe { (handle("layer", layer)?, handle("args", args)?, handle("workspace", workspace)?) };
        let mut workspace = match workspace.0.try_lock() {
            Ok(workspace) => workspace,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::invalid("workspace", "one that no other call uses", "one in use"));
            }
        };
        if !args.stream.is_null() {
            return Err(Error::invalid("stream", "NULL on a device without CUDA streams", "a stream"));
        }
        args.check_overlap(&layer.addresses)?;
        // SAFETY: the caller's promises, and the output overlaps nothing.
        let (hidden_states, routing, output) =
            unsafe { (args.hidden_states.view("hidden_states")?, args.routing()?, args.output.view_mut("output")?) };
        match &layer.weights {
            Weights::Borrowed(layer) => run(layer, hidden_states, routing, output, &mut workspace),
            Weights::Owned(layer) if layer.device().backend().is_host() => {
                run(layer, hidden_states, routing, output, &mut workspace)
            }
            Weights::Owned(layer) => run_staged(layer, hidden_states, routing, output, &mut workspace),
        }
    })
}

impl FusedMoeLayer {
    pub(super) fn workspace(&self, max_tokens: usize) -> Result<Workspace> {
        match &self.weights {
            Weights::Borrowed(layer) => layer.workspace(max_tokens),
            Weights::Owned(layer) => layer.workspace(max_tokens),
        }
    }
}

fn run<T: AsView>(
    layer: &MoeLayer<T>,
    hidden_states: TensorView<'_>,
    routing: Option<Routing<'_>>,
    output: TensorViewMut<'_>,
    workspace: &mut Workspace,
) -> Result<()> {
    match routing {
        None => layer.forward(hidden_states, output, workspace),
        Some(routing) => layer.forward_routed(hidden_states, routing, output, workspace),
    }
}

/// On a device with memory of its own: the caller's tensors are copied there and back.
fn run_staged(
    layer: &MoeLayer,
    hidden_states: TensorView<'_>,
    routing: Option<Routing<'_>>,
    output: TensorViewMut<'_>,
    workspace: &mut Workspace,
) -> Result<()> {
    let device = layer.device();
    let there = |view| Tensor::from_view(device, view);
    let hidden_states = there(hidden_states)?;
    let routing = routing.map(|r| Ok::<_, Error>((there(r.topk_ids)?, there(r.topk_weights)?))).transpose()?;
    let routing = routing.as_ref().map(|(ids, weights)| Routing::per_token(ids.view(), weights.view()));
    let mut result = Tensor::zeros(device, output.dtype(), output.shape())?;
    run(layer, hidden_states.view(), routing, result.view_mut()?, workspace)?;
    match output.data() {
        DataMut::Host(bytes) => device.backend().read(result.view(), bytes),
        DataMut::Device { .. } => Err(Error::invalid("output", "host memory", "device memory")),
    }
}

impl FusedMoeForward {
    /// # Safety
    /// As [`FusedMoeTensor::view`].
    unsafe fn routing<'t>(&self) -> Result<Option<Routing<'t>>> {
        if self.topk_ids.is_none() && self.topk_weights.is_none() {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        let (topk_ids, topk_weights) =
            unsafe { (self.topk_ids.view("topk_ids")?, self.topk_weights.view("topk_weights")?) };
        Ok(Some(Routing::per_token(topk_ids, topk_weights)))
    }

    /// The output is exclusive: what a view to write to takes for granted.
    fn check_overlap(&self, weights: &[Range<usize>]) -> Result<()> {
        let output = self.output.addresses("output")?;
        let overlaps = |other: &Range<usize>| other.start < output.end && output.start < other.end;
        let inputs = [
            ("hidden_states", &self.hidden_states),
            ("topk_ids", &self.topk_ids),
            ("topk_weights", &self.topk_weights),
        ];
        for (name, input) in inputs.into_iter().filter(|(_, input)| !input.is_none()) {
            if overlaps(&input.addresses(name)?) {
                return Err(Error::invalid("output", "memory of its own", format!("memory of {name}")));
            }
        }
        if weights.iter().any(overlaps) {
            return Err(Error::invalid("output", "memory of its own", "memory of a weight"));
        }
        Ok(())
    }
}

/// Collects the views of weights and where they are.
struct Views<'a>(&'a mut Vec<Range<usize>>);

impl Views<'_> {
    /// # Safety
    /// As [`FusedMoeTensor::view`].
    unsafe fn get(&mut self, name: &str, tensor: &FusedMoeTensor) -> Result<TensorView<'static>> {
        self.0.push(tensor.addresses(name)?);
        // SAFETY: the caller's promise.
        unsafe { tensor.view(name) }
    }

    /// # Safety
    /// As [`FusedMoeTensor::view`].
    unsafe fn find(&mut self, name: &str, tensor: &FusedMoeTensor) -> Result<Option<TensorView<'static>>> {
        if tensor.is_none() {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        unsafe { self.get(name, tensor) }.map(Some)
    }

    /// # Safety
    /// As [`FusedMoeTensor::view`].
    unsafe fn experts(&mut self, name: &str, experts: &FusedMoeExperts) -> Result<ExpertWeights<TensorView<'static>>> {
        // SAFETY: the caller's promise.
        unsafe {
            Ok(ExpertWeights {
                gate_up_proj: self.get(&format!("weights.{name}.gate_up_proj"), &experts.gate_up_proj)?,
                gate_up_bias: self.find(&format!("weights.{name}.gate_up_bias"), &experts.gate_up_bias)?,
                down_proj: self.get(&format!("weights.{name}.down_proj"), &experts.down_proj)?,
                down_bias: self.find(&format!("weights.{name}.down_bias"), &experts.down_bias)?,
            })
        }
    }
}

impl FusedMoeWeights {
    /// # Safety
    /// As [`FusedMoeTensor::view`], for every tensor that is there, for as long as the views are used.
    unsafe fn views(&self, addresses: &mut Vec<Range<usize>>) -> Result<MoeWeights<TensorView<'static>>> {
        let mut views = Views(addresses);
        // SAFETY: the caller's promise.
        unsafe {
            let router = match views.find("weights.router.weight", &self.router.weight)? {
                None => None,
                Some(weight) => Some(RouterWeights {
                    weight,
                    hidden: views.find("weights.router.hidden", &self.router.hidden)?,
                    bias: views.find("weights.router.bias", &self.router.bias)?,
                    selection_bias: views.find("weights.router.selection_bias", &self.router.selection_bias)?,
                }),
            };
            let experts = views.experts("experts", &self.experts)?;
            let shared = match self.shared.gate_up_proj.is_none() {
                true => None,
                false => Some(SharedWeights {
                    experts: views.experts("shared", &self.shared)?,
                    gate: views.find("weights.shared.gate", &self.shared_gate)?,
                }),
            };
            let latent = match views.find("weights.latent.down", &self.latent.down)? {
                None => None,
                Some(down) => Some(LatentWeights {
                    down,
                    down_bias: views.find("weights.latent.down_bias", &self.latent.down_bias)?,
                    up: views.get("weights.latent.up", &self.latent.up)?,
                    up_bias: views.find("weights.latent.up_bias", &self.latent.up_bias)?,
                }),
            };
            Ok(MoeWeights { router, experts, shared, latent })
        }
    }
}
