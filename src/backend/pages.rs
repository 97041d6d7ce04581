//! Pages of large host memory.

use std::mem::MaybeUninit;

/// Memory from which on huge pages are worth asking for: several of them.
const LARGE: usize = 8 << 20;

/// Asks for huge pages where the system gives them to who asks. Weights are read once from end to end, and with pages of
/// 4 KiB a processor, a virtual one most of all, spends a good part of that time on where they are. To be called before
/// the memory is first touched; a wish, so that nothing is said where it is not granted.
pub(crate) fn prefer_huge<T>(memory: &mut [MaybeUninit<T>]) {
    if size_of_val(memory) >= LARGE {
        advise(memory);
    }
}

#[cfg(target_os = "linux")]
fn advise<T>(memory: &mut [MaybeUninit<T>]) {
    // The system's own page size is at most this on every Linux; it refuses what is not a multiple.
    const PAGE: usize = 64 << 10;
    let bytes = memory.as_mut_ptr_range();
    let (start, end) = ((bytes.start as usize).next_multiple_of(PAGE), bytes.end as usize / PAGE * PAGE);
    // SAFETY: the range lies within `memory`, borrowed exclusively; the advice changes no content.
    unsafe {
        libc::madvise(
            bytes.start.wrapping_byte_add(start - bytes.start as usize).cast(),
            end - start,
            libc::MADV_HUGEPAGE,
        );
    }
}

#[cfg(not(target_os = "linux"))]
fn advise<T>(_: &mut [MaybeUninit<T>]) {}
