//! Laps on a GPU's own clock: events around each, all calls of a lap captured in one CUDA graph where asked.
//!
//! The driver's functions are those that the library finds when the program runs.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;

use fused_moe::backend::cuda::driver::StreamHandle;

type Handle = *mut c_void;

unsafe extern "C" {
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int;
    fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) -> c_int;
    fn cuCtxSetCurrent(context: Handle) -> c_int;
    fn cuStreamSynchronize(stream: Handle) -> c_int;
    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_uint) -> c_int;
    fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) -> c_int;
    fn cuGraphInstantiateWithFlags(executable: *mut Handle, graph: Handle, flags: u64) -> c_int;
    fn cuGraphLaunch(executable: Handle, stream: Handle) -> c_int;
    fn cuGraphExecDestroy(executable: Handle) -> c_int;
    fn cuGraphDestroy(graph: Handle) -> c_int;
    fn cuEventCreate(event: *mut Handle, flags: c_uint) -> c_int;
    fn cuEventRecord(event: Handle, stream: Handle) -> c_int;
    fn cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) -> c_int;
    fn cuEventDestroy_v2(event: Handle) -> c_int;
}

/// CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may do as they like meanwhile.
const THREAD_LOCAL: c_uint = 1;
/// Fewest and most laps.
const LAPS: (usize, usize) = (5, 200);

fn check(what: &str, code: c_int) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{what}: CUDA error {code}")) }
}

/// The stream of the first device that the library's work goes to; its context is current on this thread.
pub struct Stream(Handle);

/// The calls of a lap.
struct Graph(Handle);

impl Stream {
    pub fn new(stream: StreamHandle) -> Result<Self, String> {
        let (mut device, mut context) = (0, null_mut());
        // SAFETY: handles are written; the program keeps the context until it ends.
        unsafe {
            check("cuDeviceGet", cuDeviceGet(&mut device, 0))?;
            check("cuDevicePrimaryCtxRetain", cuDevicePrimaryCtxRetain(&mut context, device))?;
            check("cuCtxSetCurrent", cuCtxSetCurrent(context))?;
        }
        Ok(Self(stream.0 as Handle))
    }

    /// Seconds per call of each lap, for about `seconds`.
    pub fn laps(
        &self,
        calls: usize,
        seconds: f64,
        graph: bool,
        mut call: impl FnMut(usize),
    ) -> Result<Vec<f64>, String> {
        let mut lap = || (0..calls).for_each(&mut call);
        // What is allocated or loaded at first use is so now.
        lap();
        self.synchronize()?;
        let laps = if graph {
            let graph = Graph::capture(self, lap)?;
            self.timed_for(seconds, || graph.launch(self))?
        } else {
            self.timed_for(seconds, || {
                lap();
                Ok(())
            })?
        };
        Ok(laps.into_iter().map(|lap| lap / calls as f64).collect())
    }

    fn timed_for(&self, seconds: f64, mut lap: impl FnMut() -> Result<(), String>) -> Result<Vec<f64>, String> {
        let first = self.timed(2, &mut lap)?;
        let shortest = first.iter().copied().fold(f64::INFINITY, f64::min).max(1e-7);
        self.timed(((seconds / shortest) as usize).clamp(LAPS.0, LAPS.1), &mut lap)
    }

    /// Seconds of `n` laps between events. One more goes before them, so that the host is ahead.
    fn timed(&self, n: usize, lap: &mut impl FnMut() -> Result<(), String>) -> Result<Vec<f64>, String> {
        lap()?;
        let mut events = vec![Event::recorded(self)?];
        for _ in 0..n {
            lap()?;
            events.push(Event::recorded(self)?);
        }
        self.synchronize()?;
        events.windows(2).map(|pair| pair[0].seconds_to(&pair[1])).collect()
    }

    fn synchronize(&self) -> Result<(), String> {
        // SAFETY: the stream lives as long as the library's device.
        check("cuStreamSynchronize", unsafe { cuStreamSynchronize(self.0) })
    }
}

impl Graph {
    fn capture(stream: &Stream, mut lap: impl FnMut()) -> Result<Self, String> {
        let (mut graph, mut executable) = (null_mut(), null_mut());
        // SAFETY: handles are written; the graph is no longer needed when it is instantiated.
        unsafe {
            check("cuStreamBeginCapture", cuStreamBeginCapture_v2(stream.0, THREAD_LOCAL))?;
            lap();
            check("cuStreamEndCapture", cuStreamEndCapture(stream.0, &mut graph))?;
            let code = cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            cuGraphDestroy(graph);
            check("cuGraphInstantiateWithFlags", code)?;
        }
        Ok(Self(executable))
    }

    fn launch(&self, stream: &Stream) -> Result<(), String> {
        // SAFETY: the memory that the graph uses belongs to the caller of `laps`, who holds it.
        check("cuGraphLaunch", unsafe { cuGraphLaunch(self.0, stream.0) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: `capture` made it; destroying waits for nothing, and `timed` has synchronised.
        unsafe { cuGraphExecDestroy(self.0) };
    }
}

struct Event(Handle);

impl Event {
    fn recorded(stream: &Stream) -> Result<Self, String> {
        let mut event = null_mut();
        // SAFETY: the handle is written, then used.
        unsafe {
            check("cuEventCreate", cuEventCreate(&mut event, 0))?;
            let event = Self(event);
            check("cuEventRecord", cuEventRecord(event.0, stream.0))?;
            Ok(event)
        }
    }

    fn seconds_to(&self, end: &Self) -> Result<f64, String> {
        let mut milliseconds = 0.0;
        // SAFETY: both are recorded, and the stream has passed them.
        check("cuEventElapsedTime", unsafe { cuEventElapsedTime(&mut milliseconds, self.0, end.0) })?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: `recorded` made it.
        unsafe { cuEventDestroy_v2(self.0) };
    }
}
