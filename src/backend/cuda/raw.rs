//! The layer on an engine's own stream, memory and context: for engines that are written against CUDA.
//!
//! [`RawLayer::enqueue`] puts a layer's work on a stream and returns. It allocates no device memory, waits for nothing
//! and touches no other stream, so it may be captured in a CUDA graph; as long as the layer or its [`Cuda`] is there, the
//! graph may be replayed with other hidden states and so other routing, which stays on the device. What it needs between the
//! steps is in a workspace of [`RawLayer::workspace_bytes`] that the caller gives.

use std::marker::PhantomData;
use std::sync::Arc;

use super::Cuda;
use super::arena::{Arena, Measuring};
use super::driver::{Driver, StreamHandle};
use super::memory::CudaBuffer;
use super::queue::unsupported;
use super::tickets::Tickets;
use crate::backend::{Backend, Device};
use crate::config::MoeConfig;
use crate::error::{Error, Result};
use crate::layer::{LayerOptions, MoeLayer, Routing};
use crate::ops::RouteInputs;
use crate::routing::NoiseKind;
use crate::tensor::{AsView, DType, Shape, TensorView, TensorViewMut};
use crate::weights::MoeWeights;
use crate::workspace::Workspace;

/// A tensor in memory of an engine, which lends it for `'a`.
#[derive(Debug)]
pub struct RawTensor<'a> {
    buffer: CudaBuffer,
    dtype: DType,
    shape: Shape,
    lifetime: PhantomData<&'a ()>,
}

impl<'a> RawTensor<'a> {
    /// A dense row-major tensor from `address` on.
    ///
    /// # Safety
    /// There are that many elements of that type on the device for all of `'a`, and nothing writes them meanwhile but in
    /// the order of the streams that they are used on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the size overflows or the address is not aligned for the type.
    pub unsafe fn new(cuda: &Cuda, address: u64, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let bytes = shape.byte_len(dtype)?;
        if !address.is_multiple_of(dtype.size() as u64) {
            return Err(Error::invalid("address", format!("a multiple of {}", dtype.size()), address));
        }
        // SAFETY: the caller's promise.
        let buffer = unsafe { CudaBuffer::borrowed(&cuda.driver, address, bytes) };
        Ok(Self { buffer, dtype, shape, lifetime: PhantomData })
    }

    /// The same memory for another driver of the same device.
    fn on(&self, driver: &Arc<dyn Driver>) -> Self {
        // SAFETY: as when `self` was made; what `on` returns lives no longer than a call.
        let buffer = unsafe { CudaBuffer::borrowed(driver, self.buffer.address(), self.buffer.bytes()) };
        Self { buffer, dtype: self.dtype, shape: self.shape, lifetime: self.lifetime }
    }
}

impl RawTensor<'_> {
    /// The tensor, to be written: a call's output, of which there is one.
    fn as_view_mut(&self) -> TensorViewMut<'_> {
        TensorViewMut::of_checked(&self.buffer, self.dtype, self.shape)
    }
}

impl AsView for RawTensor<'_> {
    fn as_view(&self) -> TensorView<'_> {
        TensorView::of_checked(&self.buffer, self.dtype, self.shape)
    }
}

/// Where a call's routing comes from. All of it is device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawRouting {
    /// The layer's own router.
    Router,
    /// The engine's logits, `[T, E]` f32; the layer's rule chooses.
    Logits {
        /// Their address.
        router_logits: u64,
    },
    /// The engine's choice: `[T, k]` u32 and `[T, k]` f32. An id of no expert (`u32::MAX`) adds nothing.
    TopK {
        /// Address of the ids.
        topk_ids: u64,
        /// Address of the weights.
        topk_weights: u64,
    },
}

/// One call of a layer. Addresses are device addresses.
#[derive(Clone, Copy, Debug)]
pub struct RawCall {
    /// The stream, as `CUstream`: a handle of the driver, or 1 or 2 for its default streams.
    pub stream: StreamHandle,
    /// `[T, H]` of [`RawLayer::io_dtype`].
    pub hidden_states: u64,
    /// Who chooses the experts.
    pub routing: RawRouting,
    /// `[T, H]`, of the same type.
    pub output: u64,
    /// [`RawLayer::workspace_bytes`] bytes, aligned to 256; no other call uses them at the same time.
    pub workspace: u64,
    /// How many bytes the workspace has.
    pub workspace_bytes: usize,
    /// T.
    pub num_tokens: usize,
}

/// A layer whose weights stay where the engine has them.
#[derive(Debug)]
pub struct RawLayer<'w> {
    driver: Arc<dyn Driver>,
    tickets: Arc<Tickets>,
    config: MoeConfig,
    weights: MoeWeights<RawTensor<'w>>,
    options: LayerOptions,
    io_dtype: DType,
}

impl<'w> RawLayer<'w> {
    /// A layer of weights that lie on the device of `cuda`; only shapes are looked at.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first field of the configuration or weight that does not fit;
    /// [`Error::Unsupported`] for a router with noise on its input, which is made on the host.
    pub fn new(cuda: &Cuda, config: MoeConfig, weights: MoeWeights<RawTensor<'w>>, io_dtype: DType) -> Result<Self> {
        let noise = config.router.noise.map(|noise| noise.kind);
        if matches!(noise, Some(NoiseKind::InputJitter { .. })) {
            return Err(unsupported("noise on the router's input on an engine's stream"));
        }
        config.validate()?;
        weights.check(&Device::new(cuda.clone()), &config)?;
        let driver = Arc::clone(&cuda.driver);
        let tickets = Arc::clone(&cuda.tickets);
        Ok(Self { driver, tickets, config, weights, options: LayerOptions::default(), io_dtype })
    }

    /// The same layer, run as `options` say.
    pub fn with_options(self, options: LayerOptions) -> Self {
        Self { options, ..self }
    }

    /// The type of hidden states and output.
    pub fn io_dtype(&self) -> DType {
        self.io_dtype
    }

    /// Bytes of workspace that are enough for every call of up to `max_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a size overflows; what the layer's ops do not support.
    pub fn workspace_bytes(&self, max_tokens: usize) -> Result<usize> {
        // The calls themselves are asked, on a driver that launches nothing: few tokens can take another way than many.
        let powers = std::iter::successors(Some(1usize), |n| n.checked_mul(2));
        let mut most = 0;
        for num_tokens in powers.take_while(|&n| n < max_tokens).chain([max_tokens]) {
            most = self.measure(num_tokens, max_tokens)?.max(most);
        }
        Ok(most)
    }

    fn measure(&self, num_tokens: usize, max_tokens: usize) -> Result<usize> {
        let driver: Arc<dyn Driver> = Arc::new(Measuring(Arc::clone(&self.driver)));
        // No tickets: what is done without takes more scratch memory.
        let cuda = Cuda::in_workspace(&driver, StreamHandle::PER_THREAD, &Arc::default(), Arena::measuring());
        let weights = self.weights.try_map(|tensor| Ok::<_, Error>(tensor.on(&driver)))?;
        // Any address: nothing is launched.
        let routing = [RawRouting::Router, RawRouting::Logits { router_logits: 256 }];
        let routing = routing[usize::from(self.weights.router.is_none())];
        let (stream, hidden_states, output, workspace) = (StreamHandle::PER_THREAD, 256, 256, 256);
        let call = RawCall { stream, hidden_states, routing, output, workspace, workspace_bytes: 0, num_tokens };
        let tensors = self.run(&cuda, &driver, weights, &call, max_tokens)?;
        // Between the sizes that are asked, scratch may be up to twice as large.
        let scratch = cuda.measured_scratch().next_power_of_two();
        Ok(tensors + scratch.next_multiple_of(256))
    }

    /// Puts the layer on `call.stream`: `output = layer(hidden_states)`.
    ///
    /// # Safety
    /// The addresses are memory of this device, of the sizes that [`RawCall`] names, and stay so until the stream has got
    /// there; nothing else uses output and workspace meanwhile. The stream is one of the device's context.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the workspace is too small or an address not aligned; the driver's, for a launch.
    pub unsafe fn enqueue(&self, call: &RawCall) -> Result<()> {
        for (name, address, unit) in [
            ("hidden_states", call.hidden_states, self.io_dtype.size() as u64),
            ("output", call.output, self.io_dtype.size() as u64),
            ("workspace", call.workspace, 256),
        ] {
            if !address.is_multiple_of(unit) {
                return Err(Error::invalid(name, format!("an address that is a multiple of {unit}"), address));
            }
        }
        let arena = Arena::new(call.workspace, call.workspace_bytes);
        let cuda = Cuda::in_workspace(&self.driver, call.stream, &self.tickets, arena);
        let weights = self.weights.try_map(|tensor| Ok::<_, Error>(tensor.as_view()))?;
        self.run(&cuda, &self.driver, weights, call, call.num_tokens).map(drop)
    }

    /// The call on `cuda`, with buffers for `max_tokens`; returns their bytes.
    fn run<T: AsView>(
        &self,
        cuda: &Cuda,
        driver: &Arc<dyn Driver>,
        weights: MoeWeights<T>,
        call: &RawCall,
        max_tokens: usize,
    ) -> Result<usize> {
        let device = Device::new(cuda.clone());
        let intermediate = cuda.intermediate_dtype(self.weights.experts.down_proj.dtype);
        let mut workspace = Workspace::new(&device, &self.config, intermediate, max_tokens)?;
        let bytes = cuda.rest_is_scratch();
        let layer = MoeLayer::new(&device, self.config.clone(), weights)?.with_options(self.options);
        let num_tokens = call.num_tokens;
        let tensor = |address, dtype, columns| borrow(driver, address, dtype, [num_tokens, columns]);
        let hidden_states = tensor(call.hidden_states, self.io_dtype, self.config.hidden_size)?;
        let output = tensor(call.output, self.io_dtype, self.config.hidden_size)?;
        let (input, output) = (hidden_states.as_view(), output.as_view_mut());
        match call.routing {
            RawRouting::Router => layer.forward(input, output, &mut workspace),
            RawRouting::Logits { router_logits } => {
                let num_logits = self.config.router.num_logits(self.config.num_experts);
                let logits = tensor(router_logits, DType::F32, num_logits)?;
                layer.forward_logits(input, logits.as_view(), RouteInputs::default(), output, &mut workspace)
            }
            RawRouting::TopK { topk_ids, topk_weights } => {
                let top_k = self.config.router.top_k;
                let ids = tensor(topk_ids, DType::U32, top_k)?;
                let weights = tensor(topk_weights, DType::F32, top_k)?;
                let routing = Routing::per_token(ids.as_view(), weights.as_view());
                layer.forward_routed(input, routing, output, &mut workspace)
            }
        }?;
        Ok(bytes)
    }
}

/// An argument of a call.
fn borrow<'a>(driver: &Arc<dyn Driver>, address: u64, dtype: DType, shape: [usize; 2]) -> Result<RawTensor<'a>> {
    let shape = Shape::from(shape);
    // SAFETY: the promise of `enqueue`'s caller; it lives no longer than the call.
    let buffer = unsafe { CudaBuffer::borrowed(driver, address, shape.byte_len(dtype)?) };
    Ok(RawTensor { buffer, dtype, shape, lifetime: PhantomData })
}
