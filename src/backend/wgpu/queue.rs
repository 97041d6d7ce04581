//! Launches wait in a list and go to the device as one command buffer; copies in and out; waits that end.

use std::sync::mpsc;

use super::bind::Binding;
use super::buffer::{COPY_ALIGNMENT, WgpuBuffer};
use super::device::{WgpuDevice, lock, make_buffer};
use super::kernel::{Constants, Kernel, MAX_PARAMS};
use crate::error::{Error, Result};

/// Launches after which work is submitted though nobody waits for it.
const MAX_PENDING: usize = 256;

/// Bytes of the buffer of parameters.
pub(super) const PARAMS_BYTES: u64 = (MAX_PENDING * MAX_PARAMS) as u64;

/// Bytes that go through one staging buffer.
const STAGING: u64 = 64 << 20;

/// Launches in the order of the calls, and their parameters.
#[derive(Debug, Default)]
pub(super) struct Pending {
    launches: Vec<Recorded>,
    params: Vec<u8>,
    /// How often launches were submitted.
    pub(super) submissions: usize,
}

#[derive(Debug)]
struct Recorded {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    params_at: u32,
    workgroups: [u32; 3],
}

/// A launch with its pipeline.
struct Ready {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    params: Vec<u8>,
    workgroups: [u32; 3],
}

/// One launch of a kernel.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) kernel: &'static Kernel,
    pub(super) entry: &'static str,
    pub(super) constants: Constants,
    pub(super) params: Vec<u8>,
    pub(super) bindings: Vec<Binding>,
    pub(super) workgroups: [u32; 3],
}

/// The parameters of a launch, of one of the structs in `params.rs`.
pub(super) fn bytes_of(params: &impl bytemuck::NoUninit) -> Vec<u8> {
    bytemuck::bytes_of(params).to_vec()
}

impl WgpuDevice {
    /// Records a launch behind those that wait.
    pub(super) fn launch(&self, launch: Launch) -> Result<()> {
        self.launch_all([launch])
    }

    /// Records launches behind those that wait, with none of another thread between them.
    pub(super) fn launch_all(&self, launches: impl IntoIterator<Item = Launch>) -> Result<()> {
        let ready: Vec<_> = launches
            .into_iter()
            .filter(|launch| !launch.workgroups.contains(&0))
            .map(|launch| self.prepare(launch))
            .collect::<Result<_>>()?;
        let mut pending = lock(&self.pending);
        if pending.launches.len() + ready.len() > MAX_PENDING {
            self.submit(&mut pending)?;
        }
        for Ready { pipeline, bind_group, params, workgroups } in ready {
            let params_at = pending.params.len();
            pending.params.extend_from_slice(&params);
            pending.params.resize(params_at + MAX_PARAMS, 0);
            pending.launches.push(Recorded { pipeline, bind_group, params_at: params_at as u32, workgroups });
        }
        Ok(())
    }

    fn prepare(&self, launch: Launch) -> Result<Ready> {
        let Launch { kernel, entry, constants, params, bindings, workgroups } = launch;
        let made = self.scoped(|| {
            let pipeline = self.pipelines.get(&self.device, kernel, entry, constants.clone());
            let bind_group = self.bind(&pipeline.bind_group_layout, &bindings);
            (pipeline.compute, bind_group)
        });
        let (pipeline, bind_group) = made.inspect_err(|_| self.pipelines.forget(kernel, entry, constants))?;
        Ok(Ready { pipeline, bind_group, params, workgroups })
    }

    fn bind(&self, layout: &wgpu::BindGroupLayout, bindings: &[Binding]) -> wgpu::BindGroup {
        let params =
            wgpu::BufferBinding { buffer: &self.params, offset: 0, size: wgpu::BufferSize::new(MAX_PARAMS as u64) };
        let entries: Vec<_> = std::iter::once(wgpu::BindingResource::Buffer(params))
            .chain(bindings.iter().map(Binding::resource))
            .zip(0..)
            .map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        self.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
    }

    /// Submits what is recorded, as one command buffer. Does not wait.
    ///
    /// # Errors
    /// [`Error::Device`] with the driver's words.
    pub fn flush(&self) -> Result<()> {
        self.submit(&mut lock(&self.pending))
    }

    /// The lock is held until the work is submitted, so that other threads' work stays behind it.
    fn submit(&self, pending: &mut Pending) -> Result<()> {
        if pending.launches.is_empty() {
            return Ok(());
        }
        let (launches, params) = (std::mem::take(&mut pending.launches), std::mem::take(&mut pending.params));
        pending.submissions += 1;
        self.scoped(|| {
            self.queue.write_buffer(&self.params, 0, &params);
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for Recorded { pipeline, bind_group, params_at, workgroups: [x, y, z] } in &launches {
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, bind_group, &[*params_at]);
                pass.dispatch_workgroups(*x, *y, *z);
            }
            drop(pass);
            self.queue.submit([encoder.finish()]);
        })
    }

    /// Waits for everything submitted so far.
    pub(super) fn wait(&self) -> Result<()> {
        let timeout = wgpu::PollType::Wait { submission_index: None, timeout: Some(self.timeout) };
        match self.scoped(|| self.device.poll(timeout))? {
            Ok(_) => self.scoped(|| ()),
            Err(error) => Err(self.failure(format!("no answer within {:?}: {error}", self.timeout))),
        }
    }

    /// Copies bytes of a tensor's memory to the host.
    pub(super) fn read_bytes(&self, source: &WgpuBuffer, start: u64, target: &mut [u8]) -> Result<()> {
        self.flush()?;
        let mut target = target;
        for piece in source.pieces(start, target.len() as u64) {
            let mut offset = piece.offset;
            let end = piece.offset + piece.len;
            while offset < end {
                let next = end.min(offset / COPY_ALIGNMENT * COPY_ALIGNMENT + STAGING);
                let (chunk, rest) = target.split_at_mut((next - offset) as usize);
                self.read_chunk(piece.buffer, offset, chunk)?;
                target = rest;
                offset = next;
            }
        }
        Ok(())
    }

    fn read_chunk(&self, buffer: &wgpu::Buffer, offset: u64, target: &mut [u8]) -> Result<()> {
        let start = offset / COPY_ALIGNMENT * COPY_ALIGNMENT;
        let len = (offset + target.len() as u64 - start).next_multiple_of(COPY_ALIGNMENT);
        let (sender, receiver) = mpsc::channel();
        let staging = self.scoped(|| {
            let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
            let staging = make_buffer(&self.device, len, usage);
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(buffer, start, &staging, 0, len);
            self.queue.submit([encoder.finish()]);
            staging
        })?;
        self.scoped(|| {
            staging.map_async(wgpu::MapMode::Read, .., move |result| {
                // The receiver is gone only if the wait was given up.
                let _ = sender.send(result);
            });
        })?;
        self.wait()?;
        // Where several threads wait, it may be another one that is about to make the call.
        match receiver.recv_timeout(self.timeout) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.failure(error.to_string())),
            Err(error) => return Err(self.failure(format!("a buffer was not mapped: {error}"))),
        }
        let mapped = staging.get_mapped_range(..).map_err(|error| self.failure(error.to_string()))?;
        let skip = (offset - start) as usize;
        target.copy_from_slice(&mapped[skip..skip + target.len()]);
        Ok(())
    }

    /// Copies host bytes into a tensor's memory, after the launches recorded so far.
    pub(super) fn write_bytes(&self, target: &WgpuBuffer, start: u64, source: &[u8]) -> Result<()> {
        self.flush()?;
        let mut source = source;
        for piece in target.pieces(start, source.len() as u64) {
            let mut offset = piece.offset;
            let end = piece.offset + piece.len;
            while offset < end {
                let next = end.min(offset / COPY_ALIGNMENT * COPY_ALIGNMENT + STAGING);
                let (chunk, rest) = source.split_at((next - offset) as usize);
                self.write_chunk(piece.buffer, offset, piece.in_part, chunk)?;
                source = rest;
                offset = next;
            }
        }
        Ok(())
    }

    /// wgpu copies whole words: where the ends are not on words, what is beside them is read and written back.
    fn write_chunk(&self, buffer: &wgpu::Buffer, offset: u64, in_part: u64, source: &[u8]) -> Result<()> {
        let end = offset + source.len() as u64;
        let (start, padded_end) = (offset / COPY_ALIGNMENT * COPY_ALIGNMENT, end.next_multiple_of(COPY_ALIGNMENT));
        if start == offset && padded_end == end {
            return self.write_words(buffer, offset, source);
        }
        let mut words = vec![0; (padded_end - start) as usize];
        if start != offset || end != in_part {
            self.read_chunk(buffer, start, &mut words)?;
        }
        let skip = (offset - start) as usize;
        words[skip..skip + source.len()].copy_from_slice(source);
        self.write_words(buffer, start, &words)
    }

    fn write_words(&self, buffer: &wgpu::Buffer, offset: u64, source: &[u8]) -> Result<()> {
        self.scoped(|| {
            self.queue.write_buffer(buffer, offset, source);
            if source.len() as u64 >= STAGING / 2 {
                // Hands the staging memory on, so that a large model does not wait in it as a whole.
                self.queue.submit([]);
            }
        })
    }
}

/// Workgroups in x and y for `count` of them; kernels number them `y · workgroups.x + x`.
pub(super) fn grid(count: u64, max_per_dimension: u32) -> Result<[u32; 3]> {
    let max = u64::from(max_per_dimension);
    let x = count.min(max);
    let y = if x == 0 { 0 } else { count.div_ceil(x) };
    if y > max {
        return Err(Error::invalid("shape", format!("work for at most {} workgroups", max * max), count));
    }
    Ok([x as u32, y as u32, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_covers_the_count() {
        for count in [0u64, 1, 7, 65535, 65536, 1 << 20, 65535 * 65535] {
            let [x, y, z] = grid(count, 65535).unwrap().map(u64::from);
            assert!(x * y * z >= count && x <= 65535 && y <= 65535, "{count}: {x} {y} {z}");
            assert_eq!(x * y == 0, count == 0);
        }
        assert!(grid(1 << 40, 65535).is_err());
    }
}
