//! Fetching the weights of the next panel while this one is computed, evenly: so that memory and arithmetic overlap.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Weights to fetch into the second-level cache, so many lines a turn.
#[derive(Debug)]
pub(super) struct Ahead {
    at: *const u8,
    lines_left: usize,
    lines_per_turn: usize,
}

impl Ahead {
    /// All of `weights` in `turns` turns.
    pub(super) fn new<W>(weights: &[W], turns: usize) -> Self {
        let lines = size_of_val(weights).div_ceil(LINE);
        Self { at: weights.as_ptr().cast(), lines_left: lines, lines_per_turn: lines.div_ceil(turns.max(1)) }
    }

    /// One turn.
    #[inline(always)]
    pub(super) fn turn(&mut self) {
        let (at, lines) = self.take(1);
        for i in 0..lines {
            prefetch(at.wrapping_add(i * LINE));
        }
    }

    /// The first address and the number of lines of the next `turns` turns together.
    #[inline(always)]
    pub(super) fn take(&mut self, turns: usize) -> (*const u8, usize) {
        let lines = self.lines_left.min(turns * self.lines_per_turn);
        let at = self.at;
        self.at = at.wrapping_add(lines * LINE);
        self.lines_left -= lines;
        (at, lines)
    }
}

/// Asks for the cache line at `address` in the second-level cache, wherever that is.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not fault, and SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
