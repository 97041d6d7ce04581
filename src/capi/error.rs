//! Status codes, and the text of the last error.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::error::{Error, Result};

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum FusedMoeStatus {
    /// Done.
    Ok = 0,
    /// The caller's mistake; the text names the argument, what was expected and what came.
    InvalidArgument = 1,
    /// Hardware, driver or build lacks the backend.
    Unavailable = 2,
    /// Valid, and not implemented by this backend.
    Unsupported = 3,
    /// The device or its driver failed.
    Device = 4,
    /// A checkpoint on disk is not what it should be.
    Checkpoint = 5,
    /// A bug in the library. The handles of the call should not be used again.
    Panic = 6,
}

impl From<&Error> for FusedMoeStatus {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidArgument { .. } => Self::InvalidArgument,
            Error::Unavailable { .. } => Self::Unavailable,
            Error::Unsupported { .. } => Self::Unsupported,
            Error::Device { .. } => Self::Device,
            Error::Checkpoint(_) => Self::Checkpoint,
        }
    }
}

thread_local! {
    static LAST_ERROR: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// The text of the last error of this thread, or NULL if there was none. It is valid until the next failing call of
/// this thread, or its end.
#[unsafe(no_mangle)]
pub extern "C" fn fused_moe_last_error() -> *const c_char {
    LAST_ERROR.with_borrow(|error| error.as_ref().map_or(ptr::null(), |error| error.as_ptr()))
}

/// Runs what is behind an exported function, and turns errors and panics into a status and a text.
pub(super) fn guard(call: impl FnOnce() -> Result<()>) -> FusedMoeStatus {
    // What a panic leaves half done is the callee's; the status says not to use it again.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => FusedMoeStatus::Ok,
        Ok(Err(error)) => fail(FusedMoeStatus::from(&error), error.to_string()),
        Err(panic) => fail(FusedMoeStatus::Panic, format!("panic: {}", panic_text(&*panic))),
    }
}

fn fail(status: FusedMoeStatus, text: String) -> FusedMoeStatus {
    let text = CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
    LAST_ERROR.set(Some(text));
    status
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("of no known kind")
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last_error() -> String {
        // SAFETY: a string of this thread, which makes no other call meanwhile.
        unsafe { CStr::from_ptr(fused_moe_last_error()) }.to_str().unwrap().into()
    }

    #[test]
    fn panics_stop_at_the_border() {
        assert_eq!(guard(|| panic!("row {}", 7)), FusedMoeStatus::Panic);
        assert_eq!(last_error(), "panic: row 7");
    }

    #[test]
    fn each_thread_has_its_own_error() {
        assert_eq!(guard(|| Err(Error::invalid("a", "b\0", "c"))), FusedMoeStatus::InvalidArgument);
        std::thread::spawn(|| assert!(fused_moe_last_error().is_null())).join().unwrap();
        assert_eq!(last_error(), "a: expected b\u{fffd}, got c");
        assert_eq!(guard(|| Ok(())), FusedMoeStatus::Ok);
        assert_eq!(last_error(), "a: expected b\u{fffd}, got c", "success leaves the text alone");
    }
}
