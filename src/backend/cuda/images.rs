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
    /// Those that, in the code for sm_90, wait for the launches before them, and so may start before those are done.
    pub(super) following: &'static [&'static str],
}

/// The driver reads a fatbin's header in words.
#[allow(dead_code, reason = "a build without nvcc has no fatbins")]
#[repr(C, align(64))]
struct Aligned<T>(T);

include!(concat!(env!("OUT_DIR"), "/cuda/images.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there is code for sm_90, every launch of a decoded token, and of routing with the permutation, follows the one
    /// before with nothing in between.
    #[test]
    fn the_launches_of_few_tokens_follow_each_other() {
        let has_sm90 = IMAGES.iter().any(|image| !image.following.is_empty());
        for file in ["router_logits", "route_permute", "permute", "decode", "decode_combine", "combine"] {
            for image in IMAGES.iter().filter(|image| image.file == file) {
                let expected = if has_sm90 { image.kernels } else { &[] };
                let mut following = image.following.to_vec();
                let mut expected = expected.to_vec();
                following.sort_unstable();
                expected.sort_unstable();
                assert_eq!(following, expected, "{file}");
            }
        }
    }
}
