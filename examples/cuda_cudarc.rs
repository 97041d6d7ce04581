//! A layer on a stream and in memory of an engine that is written with cudarc.
//!
//! `cargo run --example cuda_cudarc --features cudarc`; without a driver it says so.

use cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut};
use fused_moe::backend::cuda::Cuda;
use fused_moe::backend::cuda::raw::{RawCall, RawLayer, RawRouting, RawTensor};
use fused_moe::config::{Activation, GateUpLayout, MoeConfig, WeightLayout};
use fused_moe::routing::RouterConfig;
use fused_moe::weights::{ExpertWeights, MoeWeights, RouterWeights};
use fused_moe::{DType, Error};

const TOKENS: usize = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // cudarc and this backend both work in the device's primary context.
    let cuda = match Cuda::open(0) {
        Err(Error::Unavailable { reason, .. }) => {
            println!("no CUDA here: {reason}");
            return Ok(());
        }
        cuda => cuda?,
    };
    let stream = CudaContext::new(0)?.new_stream()?;

    let config = MoeConfig {
        num_experts: 8,
        hidden_size: 64,
        intermediate_size: 96,
        router: RouterConfig::softmax_top_k(2),
        activation: Activation::Silu,
        gate_up_layout: Some(GateUpLayout::GateThenUp),
        weight_layout: WeightLayout::Nk,
        shared: None,
        latent_size: None,
    };
    let [e, h, i] = [config.num_experts, config.hidden_size, config.intermediate_size];
    let numbers = |n: usize| (0..n).map(|i| (i * 37 % 101) as f32 / 1000.0).collect::<Vec<_>>();
    let router = stream.clone_htod(&numbers(e * h))?;
    let gate_up = stream.clone_htod(&numbers(e * 2 * i * h))?;
    let down = stream.clone_htod(&numbers(e * h * i))?;
    // SAFETY: the slices are of device 0, which is that of `cuda`, and nothing writes them.
    let weights = unsafe {
        MoeWeights {
            router: Some(RouterWeights {
                weight: RawTensor::from_cudarc(&cuda, &router, &stream, DType::F32, [e, h])?,
                bias: None,
                selection_bias: None,
                hidden: None,
            }),
            experts: ExpertWeights {
                gate_up_proj: RawTensor::from_cudarc(&cuda, &gate_up, &stream, DType::F32, [e, 2 * i, h])?,
                gate_up_bias: None,
                down_proj: RawTensor::from_cudarc(&cuda, &down, &stream, DType::F32, [e, h, i])?,
                down_bias: None,
            },
            shared: None,
            latent: None,
        }
    };
    let layer = RawLayer::new(&cuda, config, weights, DType::F32)?;

    let hidden_states = stream.clone_htod(&numbers(TOKENS * h))?;
    let mut output = stream.alloc_zeros::<f32>(TOKENS * h)?;
    let workspace_bytes = layer.workspace_bytes(TOKENS)?;
    let mut workspace = stream.alloc_zeros::<u8>(workspace_bytes)?;
    {
        // The guards live until the work is enqueued.
        let (hidden_states, _read) = hidden_states.device_ptr(&stream);
        let (output, _written) = output.device_ptr_mut(&stream);
        let (workspace, _used) = workspace.device_ptr_mut(&stream);
        let (stream, routing) = ((&*stream).into(), RawRouting::Router);
        let call = RawCall { stream, hidden_states, routing, output, workspace, workspace_bytes, num_tokens: TOKENS };
        // SAFETY: the memory is as large as the call says, and cudarc frees it in the stream's order.
        unsafe { layer.enqueue(&call)? };
    }
    let output = stream.clone_dtoh(&output)?;
    println!("the first token's output begins with {:?}", &output[..4]);
    Ok(())
}
