//! The layer on candle's CUDA tensors: on candle's stream, in candle's memory.

#![allow(unsafe_code, reason = "device memory is known by its address alone")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::{CudaStorage, Error, Layout, Result, Storage};
use fused_moe::DType;
use fused_moe::backend::cuda::Cuda;
use fused_moe::backend::cuda::driver::StreamHandle;
use fused_moe::backend::cuda::raw::{RawCall, RawLayer, RawRouting, RawTensor};
use fused_moe::tensor::Shape;

use crate::borrow::{self, Held, hold, invalid};
use crate::module::CandleWeights;
use crate::op::MoeOp;
use crate::workspaces::Key;

/// Device memory of a candle tensor, and the guard by which cudarc learns that its use was enqueued.
struct Lent<'a> {
    address: u64,
    dtype: DType,
    shape: Shape,
    _guard: SyncOnDrop<'a>,
}

/// Whether the weights make a layer, on the device they are on.
pub(crate) fn check(layer: &CandleWeights, device: &CudaDevice) -> Result<()> {
    with_layer(layer, &device.cuda_stream(), DType::F32, |_, _| Ok(()))
}

/// What [`MoeOp`] computes, on device memory.
pub(crate) fn forward<T: CudaDType + DeviceRepr>(
    op: &MoeOp,
    io_dtype: DType,
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<CudaStorage> {
    let device = storage.device();
    let stream = device.cuda_stream();
    let numel = layout.shape().elem_count();
    // The driver refuses to allocate nothing.
    // SAFETY: the layer writes every element before anything reads.
    let mut output = unsafe { device.alloc::<T>(numel.max(1)) }?;
    if numel > 0 {
        with_layer(op.moe.candle_weights()?, &stream, io_dtype, |layer, key| {
            let input = lend(storage, layout, &stream)?;
            let (output, _written) = output.device_ptr_mut(&stream);
            enqueue(op, layer, key, &stream, &input, output)
        })?;
    }
    Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
}

/// Runs `call` with the layer that the weights are; they are lent until it returns.
fn with_layer<R>(
    layer: &CandleWeights,
    stream: &CudaStream,
    io_dtype: DType,
    call: impl FnOnce(&RawLayer<'_>, &Key<'_>) -> Result<R>,
) -> Result<R> {
    let ordinal = stream.context().ordinal();
    let cuda = device(ordinal)?;
    let held = layer.weights.try_map(|tensor| Ok::<_, Error>(hold(tensor)))?;
    let lent = held.try_map(|held| lend(cuda_storage(held)?, held.1, stream))?;
    // SAFETY: candle's memory of this device, as large as its layout says; it is held, and so not written, until the work
    // is enqueued, and what writes or frees it later waits for that work by the guards' events.
    let weights = lent.try_map(|lent| unsafe { RawTensor::new(&cuda, lent.address, lent.dtype, lent.shape) });
    let raw = weights.and_then(|weights| RawLayer::new(&cuda, layer.config.clone(), weights, io_dtype));
    let key = Key { config: &layer.config, weight_dtype: lent.experts.down_proj.dtype, ordinal };
    call(&raw.map_err(Error::wrap)?, &key)
}

/// Puts the layer on the stream.
fn enqueue(
    op: &MoeOp,
    layer: &RawLayer<'_>,
    key: &Key<'_>,
    stream: &Arc<CudaStream>,
    input: &Lent<'_>,
    output: u64,
) -> Result<()> {
    let num_tokens = input.shape.dims()[0];
    expect("xs", input, input.dtype, [num_tokens, key.config.hidden_size])?;
    let held = op.routing.as_ref().map(|routing| [hold(&routing.topk_ids), hold(&routing.topk_weights)]);
    // Lent until the work is enqueued.
    let lent = held.as_ref().map(|held| lend_routing(held, key.config.router.top_k, num_tokens, stream)).transpose()?;
    let routing = lent.as_ref().map_or(RawRouting::Router, |[ids, weights]| RawRouting::TopK {
        topk_ids: ids.address,
        topk_weights: weights.address,
    });
    let make = |max_tokens| {
        let bytes = layer.workspace_bytes(max_tokens).map_err(Error::wrap)?;
        // SAFETY: what a workspace holds before a call means nothing.
        unsafe { stream.alloc::<u8>(bytes.max(1)) }.w()
    };
    op.moe.workspaces().on_cuda(key, num_tokens, make, |memory| {
        let workspace_bytes = memory.len();
        let (workspace, _used) = memory.device_ptr_mut(stream);
        let (stream, hidden_states) = (handle(stream), input.address);
        let call = RawCall { stream, hidden_states, routing, output, workspace, workspace_bytes, num_tokens };
        // SAFETY: the memory is as large as was checked, all guards live until the work is enqueued, and cudarc frees
        // memory in the order of the streams.
        unsafe { layer.enqueue(&call) }.map_err(Error::wrap)
    })
}

fn lend_routing<'a>(
    [ids, weights]: &'a [Held<'_>; 2],
    top_k: usize,
    num_tokens: usize,
    stream: &'a CudaStream,
) -> Result<[Lent<'a>; 2]> {
    let ids = lend(cuda_storage(ids)?, ids.1, stream)?;
    let weights = lend(cuda_storage(weights)?, weights.1, stream)?;
    expect("topk_ids", &ids, DType::U32, [num_tokens, top_k])?;
    expect("topk_weights", &weights, DType::F32, [num_tokens, top_k])?;
    Ok([ids, weights])
}

fn expect(name: &str, lent: &Lent<'_>, dtype: DType, shape: [usize; 2]) -> Result<()> {
    let shape = Shape::from(shape);
    if (lent.dtype, lent.shape) != (dtype, shape) {
        return Err(invalid(name, format!("{dtype} {shape}"), format!("{} {}", lent.dtype, lent.shape)));
    }
    Ok(())
}

fn handle(stream: &CudaStream) -> StreamHandle {
    StreamHandle(stream.cu_stream() as usize)
}

fn cuda_storage<'h>((storage, _): &'h Held<'_>) -> Result<&'h CudaStorage> {
    match &**storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => Err(invalid("tensor", "a tensor on the device of the others, which is CUDA's", "one elsewhere")),
    }
}

fn lend<'a>(storage: &'a CudaStorage, layout: &Layout, stream: &'a CudaStream) -> Result<Lent<'a>> {
    let ordinal = stream.context().ordinal();
    let actual = storage.device().cuda_stream().context().ordinal();
    if actual != ordinal {
        return Err(invalid("tensor", format!("a tensor on CUDA device {ordinal}"), format!("on {actual}")));
    }
    match &storage.slice {
        CudaStorageSlice::F32(slice) => lend_slice(slice, DType::F32, layout, stream),
        CudaStorageSlice::BF16(slice) => lend_slice(slice, DType::BF16, layout, stream),
        CudaStorageSlice::F16(slice) => lend_slice(slice, DType::F16, layout, stream),
        CudaStorageSlice::U32(slice) => lend_slice(slice, DType::U32, layout, stream),
        _ => Err(borrow::other_dtype(storage.dtype())),
    }
}

fn lend_slice<'a, T>(
    slice: &'a CudaSlice<T>,
    dtype: DType,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<Lent<'a>> {
    let range = borrow::contiguous(layout, slice.len())?;
    let (start, guard) = slice.device_ptr(stream);
    let address = start + (range.start * dtype.size()) as u64;
    Ok(Lent { address, dtype, shape: borrow::shape(layout.dims())?, _guard: guard })
}

/// The device of `fused_moe` in the context that candle uses, with its kernels loaded once.
fn device(ordinal: usize) -> Result<Cuda> {
    static DEVICES: Mutex<BTreeMap<usize, Cuda>> = Mutex::new(BTreeMap::new());
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = devices.get(&ordinal) {
        return Ok(device.clone());
    }
    let device = Cuda::open(ordinal).map_err(Error::wrap)?;
    devices.insert(ordinal, device.clone());
    Ok(device)
}
