//! The device under measurement: the CPU, or the one that `FUSED_MOE_BENCH_DEVICE` names (`wgpu`).

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use fused_moe::Device;

#[cfg(feature = "wgpu")]
use fused_moe::backend::wgpu::{WgpuDevice, WgpuOptions};

/// The variable.
const VARIABLE: &str = "FUSED_MOE_BENCH_DEVICE";

struct Measured {
    device: Device,
    #[cfg(feature = "wgpu")]
    wgpu: Option<WgpuDevice>,
}

static MEASURED: LazyLock<Measured> = LazyLock::new(|| {
    let name = std::env::var(VARIABLE).unwrap_or_else(|_| "cpu".into());
    #[cfg(feature = "wgpu")]
    if name == "wgpu" {
        let mut options = WgpuOptions::default();
        options.features |= wgpu::Features::TIMESTAMP_QUERY;
        let wgpu = WgpuDevice::with_options(&options).unwrap_or_else(|error| panic!("{VARIABLE}: {error}"));
        return Measured { device: Device::new(wgpu.clone()), wgpu: Some(wgpu) };
    }
    Measured {
        device: Device::by_name(&name).unwrap_or_else(|error| panic!("{VARIABLE}: {error}")),
        #[cfg(feature = "wgpu")]
        wgpu: None,
    }
});

/// The device.
pub fn device() -> &'static Device {
    &MEASURED.device
}

/// The device's time for `work`: by its own clock where it has one that can be asked, else by ours until it is idle.
pub fn timed(work: impl FnOnce()) -> Duration {
    #[cfg(feature = "wgpu")]
    if let Some(device) = &MEASURED.wgpu
        && device.wgpu_device().features().contains(wgpu::Features::TIMESTAMP_QUERY)
    {
        return between_timestamps(device, work);
    }
    let start = Instant::now();
    work();
    device().synchronize().expect("the device answers");
    start.elapsed()
}

/// The time between two passes that do nothing, one before the work and one behind it.
#[cfg(feature = "wgpu")]
fn between_timestamps(device: &WgpuDevice, work: impl FnOnce()) -> Duration {
    let (gpu, queue) = (device.wgpu_device(), device.wgpu_queue());
    let descriptor = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count: 2 };
    let query_set = &gpu.create_query_set(&descriptor);
    let mark = |query| {
        let mut encoder = gpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(query),
            end_of_pass_write_index: None,
        });
        drop(encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes }));
        queue.submit([encoder.finish()]);
    };
    mark(0);
    work();
    device.flush().expect("the device takes work");
    mark(1);
    let buffer = |usage| wgpu::BufferDescriptor { label: None, size: 16, usage, mapped_at_creation: false };
    let ticks = gpu.create_buffer(&buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC));
    let staging = gpu.create_buffer(&buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST));
    let mut encoder = gpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.resolve_query_set(query_set, 0..2, &ticks, 0);
    encoder.copy_buffer_to_buffer(&ticks, 0, &staging, 0, 16);
    queue.submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |mapped| mapped.expect("the buffer is ours"));
    gpu.poll(wgpu::PollType::wait_indefinitely()).expect("the device answers");
    let mapped = staging.get_mapped_range(..).expect("the wait is over");
    let [start, end] = *bytemuck::from_bytes::<[u64; 2]>(&mapped);
    Duration::from_secs_f64(end.saturating_sub(start) as f64 * f64::from(queue.get_timestamp_period()) / 1e9)
}

/// Bytes per second that the device reads and writes where it copies a buffer of 256 MiB, the best of five; `None` for
/// devices in host memory, whose floor is reading.
pub fn copy_bandwidth() -> Option<f64> {
    static BANDWIDTH: LazyLock<Option<f64>> = LazyLock::new(|| {
        #[cfg(feature = "wgpu")]
        return MEASURED.wgpu.as_ref().map(wgpu_copy_bandwidth);
        #[cfg(not(feature = "wgpu"))]
        None
    });
    *BANDWIDTH
}

#[cfg(feature = "wgpu")]
fn wgpu_copy_bandwidth(device: &WgpuDevice) -> f64 {
    let size = (256 << 20).min(device.limits().max_buffer_size);
    let buffer = || {
        device.wgpu_device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    };
    let (source, target) = (buffer(), buffer());
    let pass = || {
        let mut encoder = device.wgpu_device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&source, 0, &target, 0, size);
        let start = Instant::now();
        device.wgpu_queue().submit([encoder.finish()]);
        device.wgpu_device().poll(wgpu::PollType::wait_indefinitely()).expect("the device answers");
        2.0 * size as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}
