//! Fetching the weights of the next panel while this one is computed, evenly: so that memory and arithmetic overlap.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Places at which weights are fetched side by side: one alone would wait at every page.
const STREAMS: usize = 4;

/// Weights to fetch into the second-level cache, so many lines a turn.
#[derive(Debug)]
pub(super) struct Ahead {
    at: *const u8,
    /// Lines between one stream and the next.
    stride: usize,
    /// Lines left to each stream.
    left: usize,
    per_turn: usize,
}

impl Ahead {
    /// All of `weights` in `turns` turns.
    pub(super) fn new<W>(weights: &[W], turns: usize) -> Self {
        let lines = size_of_val(weights).div_ceil(LINE * STREAMS);
        Self { at: weights.as_ptr().cast(), stride: lines, left: lines, per_turn: lines.div_ceil(turns.max(1)) }
    }

    /// Nothing, in any number of turns.
    pub(super) fn nothing() -> Self {
        Self::new::<u8>(&[], 1)
    }

    /// One turn.
    #[inline(always)]
    pub(super) fn turn(&mut self) {
        let lines = self.left.min(self.per_turn);
        for _ in 0..lines {
            for stream in 0..STREAMS {
                prefetch_far(self.at.wrapping_add(stream * self.stride * LINE));
            }
            self.at = self.at.wrapping_add(LINE);
        }
        self.left -= lines;
    }
}

/// Asks for the cache line at `address` in the first-level cache, wherever that is.
#[inline(always)]
pub(super) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not fault, and SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// As [`prefetch`], in the second-level cache.
#[inline(always)]
fn prefetch_far(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `prefetch`.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
