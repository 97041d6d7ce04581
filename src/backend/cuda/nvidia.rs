//! [`Driver`] on NVIDIA's driver, with cust's types.
//!
//! cust's safe wrappers own their contexts and streams, and an engine brings its own; so the functions are called
//! directly. They are declared here once more for their results' sake: a newer driver returns codes that cust's enum,
//! which is that of CUDA 11.4, does not have.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};

use cust::sys::{CUcontext, CUdevice, CUdeviceptr, CUfunction, CUmodule, CUstream};

use super::driver::{Driver, Kernel, LaunchConfig, StreamHandle, TiledTensor};
use super::images::{self, Image};
use super::queue::unsupported;
use super::{NAME, libcuda, unavailable};
use crate::error::{Error, Result};
use crate::tensor::DType;

#[allow(clashing_extern_declarations, reason = "cust returns an enum where a number comes")]
unsafe extern "C" {
    fn cuInit(flags: c_uint) -> c_int;
    fn cuGetErrorName(error: c_int, text: *mut *const c_char) -> c_int;
    fn cuGetErrorString(error: c_int, text: *mut *const c_char) -> c_int;
    fn cuDeviceGetCount(count: *mut c_int) -> c_int;
    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) -> c_int;
    fn cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice) -> c_int;
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: CUdevice) -> c_int;
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) -> c_int;
    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) -> c_int;
    fn cuCtxGetCurrent(context: *mut CUcontext) -> c_int;
    fn cuCtxGetDevice(device: *mut CUdevice) -> c_int;
    fn cuCtxPushCurrent_v2(context: CUcontext) -> c_int;
    fn cuCtxPopCurrent_v2(context: *mut CUcontext) -> c_int;
    fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void) -> c_int;
    fn cuModuleUnload(module: CUmodule) -> c_int;
    fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char) -> c_int;
    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: CUfunction) -> c_int;
    fn cuFuncSetAttribute(function: CUfunction, attribute: c_int, value: c_int) -> c_int;
    fn cuStreamCreate(stream: *mut CUstream, flags: c_uint) -> c_int;
    fn cuStreamDestroy_v2(stream: CUstream) -> c_int;
    fn cuStreamSynchronize(stream: CUstream) -> c_int;
    fn cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize) -> c_int;
    fn cuMemFree_v2(address: CUdeviceptr) -> c_int;
    fn cuMemsetD8Async(address: CUdeviceptr, value: u8, bytes: usize, stream: CUstream) -> c_int;
    fn cuMemcpyHtoDAsync_v2(target: CUdeviceptr, source: *const c_void, bytes: usize, stream: CUstream) -> c_int;
    fn cuMemcpyDtoHAsync_v2(target: *mut c_void, source: CUdeviceptr, bytes: usize, stream: CUstream) -> c_int;
    fn cuLaunchKernel(
        function: CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: CUstream,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> c_int;
}

/// The signature of `cuTensorMapEncodeTiled`, which is newer than cust's bindings.
type EncodeTiled = unsafe extern "C" fn(
    map: *mut TensorMap,
    dtype: c_int,
    rank: c_uint,
    address: *mut c_void,
    dims: *const u64,
    strides: *const u64,
    boxes: *const u32,
    element_strides: *const u32,
    interleave: c_int,
    swizzle: c_int,
    l2_promotion: c_int,
    fill: c_int,
) -> c_int;

/// A `CUtensorMap`, aligned as the driver wants it.
#[repr(C, align(64))]
struct TensorMap([u64; 16]);

/// The signature of `cuLaunchKernelEx`, which is newer than cust's bindings.
type LaunchKernelEx = unsafe extern "C" fn(
    config: *const LaunchConfigEx,
    function: CUfunction,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> c_int;

/// A `CUlaunchConfig`.
#[repr(C)]
struct LaunchConfigEx {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: CUstream,
    attributes: *mut LaunchAttribute,
    num_attributes: c_uint,
}

/// A `CUlaunchAttribute` whose value is a number.
#[repr(C, align(8))]
struct LaunchAttribute {
    id: c_uint,
    padding: c_uint,
    value: [c_uint; 16],
}

const _: () = assert!(size_of::<LaunchAttribute>() == 72 && size_of::<LaunchConfigEx>() == 56);

// Numbers of cuda.h.
const PROGRAMMATIC_STREAM_SERIALIZATION: c_uint = 6;
const TENSOR_F16: c_int = 6;
const TENSOR_BF16: c_int = 9;
const SWIZZLE_128B: c_int = 3;
const L2_PROMOTION_256B: c_int = 3;
const NON_BLOCKING: c_uint = 1;
const MULTIPROCESSOR_COUNT: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const SHARED_BYTES_OPTIN: c_int = 97;
const FUNCTION_SHARED_BYTES: c_int = 1;
const FUNCTION_MAX_DYNAMIC_SHARED_BYTES: c_int = 8;

/// One device and one of its contexts, with every kernel loaded.
#[derive(Debug)]
pub(super) struct Nvidia {
    device: CUdevice,
    context: CUcontext,
    /// Whether `context` is the primary one, which was retained.
    retained: bool,
    modules: Vec<CUmodule>,
    functions: HashMap<Kernel, Function>,
    launch_ex: Option<LaunchKernelEx>,
    stream: CUstream,
    encode_tiled: Option<EncodeTiled>,
    name: String,
    capability: (u32, u32),
    num_sms: u32,
}

/// A kernel that is loaded.
#[derive(Clone, Copy, Debug)]
struct Function {
    handle: CUfunction,
    /// Whether it waits for the launches before it by itself, and so may start before they are done.
    follows: bool,
}

// SAFETY: the handles are the driver's, which any thread may use; nothing of them is written after `open`.
unsafe impl Send for Nvidia {}
// SAFETY: as above.
unsafe impl Sync for Nvidia {}

/// The driver's answer as a result.
fn check(what: &str, code: c_int) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Error::Device { backend: NAME, message: format!("{what}: {}", describe(code)) }),
    }
}

fn describe(code: c_int) -> String {
    let text = |function: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
        let mut text = null();
        // SAFETY: the function writes a pointer to a text that lives as long as the driver, or none.
        let text = unsafe { (function(code, &mut text) == 0 && !text.is_null()).then(|| CStr::from_ptr(text)) };
        text.map(|text| text.to_string_lossy().into_owned())
    };
    let name = text(cuGetErrorName).unwrap_or_else(|| format!("error {code}"));
    format!("{name}, {}", text(cuGetErrorString).unwrap_or_else(|| "unknown to the driver".into()))
}

/// Makes a context the thread's current one, and puts the caller's back.
struct Current;

impl Current {
    fn new(context: CUcontext) -> Result<Self> {
        // SAFETY: the context lives as long as the driver's value, or as its engine promised.
        check("cuCtxPushCurrent", unsafe { cuCtxPushCurrent_v2(context) })?;
        Ok(Self)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // SAFETY: pops what `new` pushed.
        unsafe { cuCtxPopCurrent_v2(&mut null_mut()) };
    }
}

/// Loads the driver and counts its devices.
///
/// # Errors
/// [`Error::Unavailable`] if there is no driver, or it has no device.
pub(super) fn num_devices() -> Result<usize> {
    libcuda::load().map_err(|reason| unavailable(format!("no NVIDIA driver: {reason}")))?;
    let mut count = 0;
    // SAFETY: no flags are defined.
    let code = unsafe { cuInit(0) };
    // SAFETY: the count is written.
    let code = if code == 0 { unsafe { cuDeviceGetCount(&mut count) } } else { code };
    match (code, count) {
        (0, 1..) => Ok(count as usize),
        (0, _) => Err(unavailable("NVIDIA's driver has no device")),
        (code, _) => Err(unavailable(format!("NVIDIA's driver: {}", describe(code)))),
    }
}

impl Nvidia {
    /// A device's primary context, which every engine in the process shares. It does not become current.
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        let count = num_devices()?;
        if ordinal >= count {
            return Err(unavailable(format!("there is no CUDA device {ordinal}, but {count}")));
        }
        let (mut device, mut context) = (0, null_mut());
        // SAFETY: the ordinal is one; handles are written.
        unsafe {
            check("cuDeviceGet", cuDeviceGet(&mut device, ordinal as c_int))?;
            check("cuDevicePrimaryCtxRetain", cuDevicePrimaryCtxRetain(&mut context, device))?;
        }
        Self::of(device, context, true)
    }

    /// The calling thread's current context.
    pub(super) fn current() -> Result<Self> {
        num_devices()?;
        let (mut device, mut context) = (0, null_mut());
        // SAFETY: handles are written.
        unsafe {
            check("cuCtxGetCurrent", cuCtxGetCurrent(&mut context))?;
            if context.is_null() {
                return Err(Error::invalid("context", "a current one", "none"));
            }
            check("cuCtxGetDevice", cuCtxGetDevice(&mut device))?;
        }
        Self::of(device, context, false)
    }

    fn of(device: CUdevice, context: CUcontext, retained: bool) -> Result<Self> {
        let mut name = [0u8; 128];
        // SAFETY: the buffer is as long as said.
        check("cuDeviceGetName", unsafe { cuDeviceGetName(name.as_mut_ptr().cast(), 128, device) })?;
        let name = CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned());
        let attribute = |attribute| attribute_of(device, attribute);
        // From here on dropping gives back what was taken.
        let mut driver = Self {
            device,
            context,
            retained,
            modules: Vec::new(),
            functions: HashMap::new(),
            // SAFETY: this is the function's signature in cuda.h.
            launch_ex: libcuda::driver_function("cuLaunchKernelEx\0")
                .map(|function| unsafe { std::mem::transmute::<*mut c_void, LaunchKernelEx>(function) }),
            stream: null_mut(),
            // SAFETY: this is the function's signature in cuda.h.
            encode_tiled: libcuda::driver_function("cuTensorMapEncodeTiled\0")
                .map(|function| unsafe { std::mem::transmute::<*mut c_void, EncodeTiled>(function) }),
            name: name.unwrap_or_else(|_| "NVIDIA GPU".into()),
            capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
            num_sms: attribute(MULTIPROCESSOR_COUNT)?,
        };
        super::check_capability(&driver)?;
        let current = Current::new(context)?;
        // SAFETY: the handle is written.
        check("cuStreamCreate", unsafe { cuStreamCreate(&mut driver.stream, NON_BLOCKING) })?;
        let shared_bytes = attribute(SHARED_BYTES_OPTIN)?;
        let fits = |image: &&Image| !image.file.ends_with("_sm90") || driver.capability.0 == 9;
        for image in images::IMAGES.iter().filter(fits).collect::<Vec<_>>() {
            driver.load(image, shared_bytes)?;
        }
        drop(current);
        Ok(driver)
    }

    /// Loads a file and finds its kernels now, so that a launch while a graph is captured loads nothing.
    fn load(&mut self, image: &'static Image, shared_bytes: u32) -> Result<()> {
        let mut module = null_mut();
        let what = format!("loading {}.cu", image.file);
        // SAFETY: the image is a fatbin that nvcc made.
        check(&what, unsafe { cuModuleLoadData(&mut module, image.fatbin.as_ptr().cast()) })?;
        self.modules.push(module);
        for &name in image.kernels {
            let kernel = Kernel { file: image.file, name };
            let c_name = CString::new(name).map_err(|_| Error::invalid("kernel", "a C name", name))?;
            let (mut function, mut fixed) = (null_mut(), 0);
            // SAFETY: the module is loaded; handle and number are written.
            unsafe {
                check(&what, cuModuleGetFunction(&mut function, module, c_name.as_ptr()))?;
                check(&what, cuFuncGetAttribute(&mut fixed, FUNCTION_SHARED_BYTES, function))?;
                let most = shared_bytes as c_int - fixed;
                check(&what, cuFuncSetAttribute(function, FUNCTION_MAX_DYNAMIC_SHARED_BYTES, most))?;
            }
            // Only the code for sm_90 waits.
            let follows = self.capability == (9, 0) && image.following.contains(&name);
            self.functions.insert(kernel, Function { handle: function, follows });
        }
        Ok(())
    }
}

fn attribute_of(device: CUdevice, attribute: c_int) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the number is written.
    check("cuDeviceGetAttribute", unsafe { cuDeviceGetAttribute(&mut value, attribute, device) })?;
    u32::try_from(value)
        .map_err(|_| Error::Device { backend: NAME, message: format!("attribute {attribute}: {value}") })
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        if let Ok(_current) = Current::new(self.context) {
            // SAFETY: these are this value's own. Errors of earlier work come again here, and were reported there.
            unsafe {
                if !self.stream.is_null() {
                    cuStreamSynchronize(self.stream);
                    cuStreamDestroy_v2(self.stream);
                }
                for &module in &self.modules {
                    cuModuleUnload(module);
                }
            }
        }
        if self.retained {
            // SAFETY: `open` retained it.
            unsafe { cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}

fn raw(stream: StreamHandle) -> CUstream {
    stream.0 as CUstream
}

// SAFETY: each function is called as cuda.h says, in the context that the addresses belong to, and copies are waited for.
unsafe impl Driver for Nvidia {
    fn device_name(&self) -> String {
        self.name.clone()
    }

    fn compute_capability(&self) -> (u32, u32) {
        self.capability
    }

    fn num_sms(&self) -> u32 {
        self.num_sms
    }

    fn tensor_map(&self, tensor: &TiledTensor) -> Result<[u64; 16]> {
        let encode = self.encode_tiled.ok_or_else(|| unsupported("tensor maps, which came with CUDA 12"))?;
        let dtype = if tensor.dtype == DType::F16 { TENSOR_F16 } else { TENSOR_BF16 };
        let mut map = TensorMap([0; 16]);
        let (TiledTensor { address, dims, strides, boxes, .. }, steps) = (tensor, [1; 4]);
        // SAFETY: the map is written; arrays are as long as the rank says. Nothing at the address is read.
        let code = unsafe {
            let address = *address as *mut c_void;
            let (dims, strides, boxes) = (dims.as_ptr(), strides.as_ptr(), boxes.as_ptr());
            encode(
                &mut map,
                dtype,
                4,
                address,
                dims,
                strides,
                boxes,
                steps.as_ptr(),
                0,
                SWIZZLE_128B,
                L2_PROMOTION_256B,
                0,
            )
        };
        check(&format!("cuTensorMapEncodeTiled of {tensor:?}"), code)?;
        Ok(map.0)
    }

    fn stream(&self) -> StreamHandle {
        StreamHandle(self.stream as usize)
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let _current = Current::new(self.context)?;
        let mut address = 0;
        // SAFETY: the address is written.
        check(&format!("cuMemAlloc of {bytes} bytes"), unsafe { cuMemAlloc_v2(&mut address, bytes) })?;
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        if let Ok(_current) = Current::new(self.context) {
            // SAFETY: the caller's promise. It waits for all work; an error of that work is reported by its reader.
            unsafe { cuMemFree_v2(address) };
        }
    }

    unsafe fn zero(&self, address: u64, bytes: usize, stream: StreamHandle) -> Result<()> {
        let _current = Current::new(self.context)?;
        // SAFETY: the caller's promise.
        check("cuMemsetD8Async", unsafe { cuMemsetD8Async(address, 0, bytes, raw(stream)) })
    }

    unsafe fn copy_to_device(&self, address: u64, source: &[u8], stream: StreamHandle) -> Result<()> {
        let _current = Current::new(self.context)?;
        // SAFETY: the caller's promise; the source is borrowed until the copy is done.
        unsafe {
            check(
                "cuMemcpyHtoDAsync",
                cuMemcpyHtoDAsync_v2(address, source.as_ptr().cast(), source.len(), raw(stream)),
            )?;
            check("cuStreamSynchronize", cuStreamSynchronize(raw(stream)))
        }
    }

    unsafe fn copy_to_host(&self, address: u64, target: &mut [u8], stream: StreamHandle) -> Result<()> {
        let _current = Current::new(self.context)?;
        // SAFETY: the caller's promise; the target is borrowed until the copy is done.
        unsafe {
            let copy = cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), address, target.len(), raw(stream));
            check("cuMemcpyDtoHAsync", copy)?;
            check("cuStreamSynchronize", cuStreamSynchronize(raw(stream)))
        }
    }

    unsafe fn launch(&self, kernel: Kernel, config: LaunchConfig, params: &[u8], stream: StreamHandle) -> Result<()> {
        let function = self.functions.get(&kernel);
        let &Function { handle: function, follows } =
            function.ok_or_else(|| unsupported(format!("{kernel}: not in this build")))?;
        if config.cluster != [1; 3] {
            return Err(unsupported(format!("{kernel}: clusters chosen at launch")));
        }
        let _current = Current::new(self.context)?;
        let ([x, y, z], [bx, by, bz]) = (config.grid, config.block);
        let mut params = [params.as_ptr().cast_mut().cast()];
        let (params, shared) = (params.as_mut_ptr(), config.shared_bytes);
        // SAFETY: the kernel takes one struct, which the driver copies before it returns; the rest is the caller's
        // promise. A kernel that follows waits for the launches before it.
        let code = unsafe {
            match self.launch_ex.filter(|_| follows) {
                Some(launch_ex) => {
                    let id = PROGRAMMATIC_STREAM_SERIALIZATION;
                    let mut value = [0; 16];
                    value[0] = 1;
                    let mut attribute = LaunchAttribute { id, padding: 0, value };
                    let config = LaunchConfigEx {
                        grid: config.grid,
                        block: config.block,
                        shared_bytes: shared,
                        stream: raw(stream),
                        attributes: &mut attribute,
                        num_attributes: 1,
                    };
                    launch_ex(&config, function, params, null_mut())
                }
                None => cuLaunchKernel(function, x, y, z, bx, by, bz, shared, raw(stream), params, null_mut()),
            }
        };
        if code == 0 {
            return Ok(());
        }
        check(&format!("{kernel}, grid {:?}, block {:?}, {shared} shared bytes", config.grid, config.block), code)
    }

    fn synchronize(&self, stream: StreamHandle) -> Result<()> {
        let _current = Current::new(self.context)?;
        // SAFETY: the stream is this driver's, or its owner's promise.
        check("cuStreamSynchronize", unsafe { cuStreamSynchronize(raw(stream)) })
    }
}
