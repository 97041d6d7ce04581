//! A layer on a stream and in memory of an engine that is written with cust.
//!
//! `cargo run --example cuda_cust --features cuda`; without a driver it says so.

use cust::memory::{CopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};
use fused_moe::backend::cuda::Cuda;
use fused_moe::backend::cuda::raw::{RawCall, RawLayer, RawRouting, RawTensor};
use fused_moe::config::{Activation, GateUpLayout, MoeConfig, WeightLayout};
use fused_moe::routing::RouterConfig;
use fused_moe::weights::{ExpertWeights, MoeWeights, RouterWeights};
use fused_moe::{DType, Error};

const TOKENS: usize = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Whether this build and machine can: no engine would be here otherwise.
    if let Err(Error::Unavailable { reason, .. }) = Cuda::open(0) {
        println!("no CUDA here: {reason}");
        return Ok(());
    }
    // The engine's own context and stream.
    let _context = cust::quick_init()?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let cuda = Cuda::current()?;

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
    // The engine's weights, which stay where they are.
    let router = DeviceBuffer::from_slice(&numbers(e * h))?;
    let gate_up = DeviceBuffer::from_slice(&numbers(e * 2 * i * h))?;
    let down = DeviceBuffer::from_slice(&numbers(e * h * i))?;
    // SAFETY: the buffers were made in the current context, which is that of `cuda`, and nothing writes them.
    let weights = unsafe {
        MoeWeights {
            router: Some(RouterWeights {
                weight: RawTensor::from_cust(&cuda, &router, DType::F32, [e, h])?,
                bias: None,
                selection_bias: None,
                hidden: None,
            }),
            experts: ExpertWeights {
                gate_up_proj: RawTensor::from_cust(&cuda, &gate_up, DType::F32, [e, 2 * i, h])?,
                gate_up_bias: None,
                down_proj: RawTensor::from_cust(&cuda, &down, DType::F32, [e, h, i])?,
                down_bias: None,
            },
            shared: None,
            latent: None,
        }
    };
    let layer = RawLayer::new(&cuda, config, weights, DType::F32)?;

    let hidden_states = DeviceBuffer::from_slice(&numbers(TOKENS * h))?;
    let output = DeviceBuffer::<f32>::zeroed(TOKENS * h)?;
    let workspace_bytes = layer.workspace_bytes(TOKENS)?;
    let workspace = DeviceBuffer::<u8>::zeroed(workspace_bytes)?;
    let call = RawCall {
        stream: (&stream).into(),
        hidden_states: hidden_states.as_device_ptr().as_raw(),
        routing: RawRouting::Router,
        output: output.as_device_ptr().as_raw(),
        workspace: workspace.as_device_ptr().as_raw(),
        workspace_bytes,
        num_tokens: TOKENS,
    };
    // SAFETY: the memory is as large as the call says, and lives until the stream is waited for.
    unsafe { layer.enqueue(&call)? };
    stream.synchronize()?;
    let mut first = [0.0f32; 4];
    output.index(0..4).copy_to(&mut first)?;
    println!("the first token's output begins with {first:?}");
    Ok(())
}
