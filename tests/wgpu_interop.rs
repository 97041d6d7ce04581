//! An engine that has a wgpu device of its own shares it: buffers in and out without a copy, its queue, one command
//! buffer per forward.
#![cfg(feature = "wgpu")]

mod wgpu_common;

use fused_moe::backend::wgpu::{WgpuBuffer, WgpuDevice};
use fused_moe::{DType, Device, Error, Tensor, TensorView, TensorViewMut};
use wgpu_common::{HIDDEN, Problem, TOKENS, assert_close, engine, opened};

fn storage(device: &wgpu::Device, size: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("the engine's"),
        size,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

#[test]
fn an_engine_shares_its_device_and_buffers() {
    let Some((device, queue)) = engine() else { return };
    let problem = Problem::small();
    let bytes = (TOKENS * HIDDEN * 4) as u64;
    // Hidden states lie at an offset that no binding may start at, in a buffer with other things.
    let (input, output) = (storage(&device, 1024 + bytes), storage(&device, bytes));
    queue.write_buffer(&input, 36, bytemuck::cast_slice(&problem.hidden_states));

    let ours = WgpuDevice::from_parts(device.clone(), queue.clone()).unwrap();
    let handle = Device::new(ours.clone());
    let layer = problem.layer(&handle).unwrap();
    let mut workspace = layer.workspace(TOKENS).unwrap();
    let (input, mut wrapped) = (ours.wrap(input).unwrap(), ours.wrap(output.clone()).unwrap());
    let hidden_states = TensorView::from_device(&input, 36, DType::F32, [TOKENS, HIDDEN]).unwrap();
    let out = TensorViewMut::from_device(&mut wrapped, 0, DType::F32, [TOKENS, HIDDEN]).unwrap();
    layer.forward(hidden_states, out, &mut workspace).unwrap();
    ours.flush().unwrap();

    // The engine's own work on the same queue comes behind ours.
    let copy = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(&output, 0, &copy, 0, bytes);
    queue.submit([encoder.finish()]);
    copy.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(&copy.get_mapped_range(..).unwrap());
    assert_close(&values, &problem.expected());
}

#[test]
fn a_tensor_lends_its_buffer() {
    let Some(device) = opened() else { return };
    let handle = Device::new(device.clone());
    let tensor = Tensor::from_slice(&handle, &[1u32, 2, 3], [3]).unwrap();
    let (buffer, offset) = WgpuBuffer::of(tensor.view().slice(1..3).unwrap()).unwrap();
    assert_eq!((buffer.buffers().len(), offset), (1, 4));
    let again = device.wrap(buffer.buffers()[0].clone()).unwrap();
    let view = TensorView::from_device(&again, 4, DType::U32, [2]).unwrap();
    assert_eq!(view.to_vec::<u32>(&handle).unwrap(), [2, 3]);
}

#[test]
fn a_forward_is_one_submission_and_pipelines_are_made_once() {
    let Some(device) = opened() else { return };
    let handle = Device::new(device.clone());
    let problem = Problem::small();
    let layer = problem.layer(&handle).unwrap();
    let mut workspace = layer.workspace(TOKENS).unwrap();
    let input = Tensor::from_slice(&handle, &problem.hidden_states, [TOKENS, HIDDEN]).unwrap();
    let mut output = Tensor::zeros(&handle, DType::F32, [TOKENS, HIDDEN]).unwrap();
    handle.synchronize().unwrap();
    let (mut submissions, mut pipelines) = (device.num_submissions(), None);
    for _ in 0..3 {
        layer.forward(input.view(), output.view_mut().unwrap(), &mut workspace).unwrap();
        assert_eq!(device.num_submissions(), submissions, "a forward does not submit before it is asked to");
        device.flush().unwrap();
        submissions += 1;
        assert_eq!(device.num_submissions(), submissions);
        assert_eq!(*pipelines.get_or_insert(device.num_pipelines()), device.num_pipelines());
    }
    assert_close(&output.to_vec().unwrap(), &problem.expected());
}

#[test]
fn what_cannot_be_bound_is_refused() {
    let Some(device) = opened() else { return };
    let handle = Device::new(device.clone());
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let descriptor = wgpu::BufferDescriptor { label: None, size: 64, usage, mapped_at_creation: false };
    let not_storage = device.wgpu_device().create_buffer(&descriptor);
    assert!(matches!(device.wrap(not_storage), Err(Error::InvalidArgument { .. })));

    // A view beyond its buffer, and an output in its input's buffer.
    let buffer = device.wrap(storage(device.wgpu_device(), 64)).unwrap();
    let view = TensorView::from_device(&buffer, 32, DType::F32, [16]).unwrap();
    assert!(matches!(view.to_vec::<f32>(&handle), Err(Error::InvalidArgument { .. })));
}

#[test]
fn writes_that_end_within_a_word_keep_what_is_beside_them() {
    let Some(device) = opened() else { return };
    let handle = Device::new(device.clone());
    let mut buffer = device.wrap(storage(device.wgpu_device(), 16)).unwrap();
    let half = |x: f32| half::f16::from_f32(x);
    let all: Vec<_> = (0..8).map(|i| half(i as f32)).collect();
    let write = |buffer: &mut WgpuBuffer, offset, values: &[half::f16]| {
        let target = TensorViewMut::from_device(buffer, offset, DType::F16, [values.len()]).unwrap();
        handle.backend().write(target, bytemuck::cast_slice(values)).unwrap();
    };
    write(&mut buffer, 0, &all);
    write(&mut buffer, 2, &[half(10.0), half(20.0), half(30.0)]);
    write(&mut buffer, 14, &[half(70.0)]);
    let view = TensorView::from_device(&buffer, 0, DType::F16, [8]).unwrap();
    let expected = [0.0, 10.0, 20.0, 30.0, 4.0, 5.0, 6.0, 70.0].map(half);
    assert_eq!(view.to_vec::<half::f16>(&handle).unwrap(), expected);
    let odd = TensorView::from_device(&buffer, 6, DType::F16, [3]).unwrap();
    assert_eq!(odd.to_vec::<half::f16>(&handle).unwrap(), [30.0, 4.0, 5.0].map(half));
}
