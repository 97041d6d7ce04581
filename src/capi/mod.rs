//! The C interface: `include/fused_moe.h` is made of these items by cbindgen.
//!
//! Handles are opaque and freed by their `_free` function; NULL is refused with an error, and freeing NULL does nothing.
//! Every function that can fail returns a [`FusedMoeStatus`] and leaves its text for `fused_moe_last_error`. A panic
//! does not cross the border: it becomes `FUSED_MOE_STATUS_PANIC`.

// Pointers come from C here and nowhere else; each block says what the header asks of the caller.
mod error;
mod layer;
mod tensor;

use std::ffi::{CStr, c_char};
use std::sync::Mutex;

use crate::backend::Device;
use crate::error::{Error, Result};
use crate::workspace::Workspace;

pub use error::{FusedMoeStatus, fused_moe_last_error};
pub use layer::{
    FusedMoeExperts, FusedMoeForward, FusedMoeLatent, FusedMoeLayer, FusedMoeRouter, FusedMoeWeights,
    fused_moe_forward, fused_moe_layer_free, fused_moe_layer_load, fused_moe_layer_new,
};
pub use tensor::{FusedMoeDtype, FusedMoeMemory, FusedMoeTensor};

use error::guard;

/// Changes with every change of the header that a compiled caller would notice.
pub const FUSED_MOE_ABI_VERSION: u32 = 1;

/// A device. It may be used by several threads at once, and freed before the layers that were made on it.
pub struct FusedMoeDevice(Device);

/// The memory between a layer's steps. One call at a time may use it: a second one at the same time gets
/// FUSED_MOE_STATUS_INVALID_ARGUMENT.
pub struct FusedMoeWorkspace(Mutex<Workspace>);

/// FUSED_MOE_ABI_VERSION of the library; compare it with the header's before anything else.
#[unsafe(no_mangle)]
pub extern "C" fn fused_moe_abi_version() -> u32 {
    FUSED_MOE_ABI_VERSION
}

/// Opens a device by the name of its backend: "auto" (the best there is), "cpu", "wgpu", "cuda" or "reference" (the slow
/// oracle). FUSED_MOE_STATUS_UNAVAILABLE says what is missing.
///
/// # Safety
/// `backend` is a NUL-terminated string, `device` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_moe_device_new(
    backend: *const c_char,
    device: *mut *mut FusedMoeDevice,
) -> FusedMoeStatus {
    guard(|| {
        // SAFETY: the caller's promise.
        let backend = unsafe { text("backend", backend) }?;
        let opened = Device::by_name(backend)?;
        // SAFETY: the caller's promise.
        unsafe { give("device", device, FusedMoeDevice(opened)) }
    })
}

/// Frees a device.
///
/// # Safety
/// `device` came from fused_moe_device_new and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_moe_device_free(device: *mut FusedMoeDevice) {
    // SAFETY: the caller's promise.
    unsafe { free(device) }
}

/// Waits for all work given to the device.
///
/// # Safety
/// `device` came from fused_moe_device_new and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_moe_device_synchronize(device: *const FusedMoeDevice) -> FusedMoeStatus {
    // SAFETY: the caller's promise.
    guard(|| unsafe { handle("device", device) }?.0.synchronize())
}

/// Allocates the memory that calls of `layer` with up to `max_tokens` tokens need.
///
/// # Safety
/// `layer` came from this library and was not freed; `workspace` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_moe_workspace_new(
    layer: *const FusedMoeLayer,
    max_tokens: usize,
    workspace: *mut *mut FusedMoeWorkspace,
) -> FusedMoeStatus {
    guard(|| {
        // SAFETY: the caller's promise.
        let made = unsafe { handle("layer", layer) }?.workspace(max_tokens)?;
        // SAFETY: the caller's promise.
        unsafe { give("workspace", workspace, FusedMoeWorkspace(Mutex::new(made))) }
    })
}

/// The bytes that a workspace holds; 0 for NULL and for one that is in use.
///
/// # Safety
/// `workspace` is NULL, or came from fused_moe_workspace_new and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_moe_workspace_bytes(workspace: *const FusedMoeWorkspace) -> usize {
    // SAFETY: the caller's promise.
    let workspace = unsafe { workspace.as_ref() };
    workspace.and_then(|workspace| workspace.0.try_lock().ok()).map_or(0, |workspace| workspace.bytes())
}

/// Frees a workspace.
///
/// # Safety
/// `workspace` came from fused_moe_workspace_new, was not freed, and no call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_moe_workspace_free(workspace: *mut FusedMoeWorkspace) {
    // SAFETY: the caller's promise.
    unsafe { free(workspace) }
}

/// A handle that is not NULL.
///
/// # Safety
/// `pointer` is NULL or valid for `'h`.
unsafe fn handle<'h, T>(name: &str, pointer: *const T) -> Result<&'h T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| Error::invalid(name, "a handle", "NULL"))
}

/// A string that is not NULL, in UTF-8.
///
/// # Safety
/// `pointer` is NULL or a NUL-terminated string that is valid for `'h`.
unsafe fn text<'h>(name: &str, pointer: *const c_char) -> Result<&'h str> {
    if pointer.is_null() {
        return Err(Error::invalid(name, "a string", "NULL"));
    }
    // SAFETY: not NULL; the rest is the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|error| Error::invalid(name, "UTF-8", error))
}

/// Hands a new handle to the caller.
///
/// # Safety
/// `target` is NULL or writable.
unsafe fn give<T>(name: &str, target: *mut *mut T, value: T) -> Result<()> {
    if target.is_null() {
        return Err(Error::invalid(name, "where to put the handle", "NULL"));
    }
    // SAFETY: not NULL; the rest is the caller's promise.
    unsafe { target.write(Box::into_raw(Box::new(value))) };
    Ok(())
}

/// Takes a handle back.
///
/// # Safety
/// `pointer` is NULL or came from [`give`] and was not freed.
unsafe fn free<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // SAFETY: the caller's promise. Nothing behind a handle panics when dropped.
        drop(unsafe { Box::from_raw(pointer) });
    }
}
