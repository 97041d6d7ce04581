//! The kernels that build.rs compiled, embedded.

/// One compiled file of kernels.
#[derive(Debug)]
pub(super) struct Image {
    /// `kernels/cuda/<file>.cu`.
    pub(super) file: &'static str,
    /// Machine code and PTX, as the driver loads them.
    pub(super) fatbin: &'static [u8],
    /// Every kernel in it.
    pub(super) kernels: &'static [&'static str],
}

/// The driver reads a fatbin's header in words.
#[allow(dead_code, reason = "a build without nvcc has no fatbins")]
#[repr(C, align(64))]
struct Aligned<T>(T);

include!(concat!(env!("OUT_DIR"), "/cuda/images.rs"));
