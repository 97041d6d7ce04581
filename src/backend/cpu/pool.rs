//! The threads, and how tasks share memory.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use crate::error::{Error, Result};

/// The threads that the CPU backend works on.
#[derive(Debug)]
pub(super) enum Pool {
    /// Rayon's current pool: the one a caller has installed, or the global one.
    Current,
    /// A pool of the device's own.
    Own(rayon::ThreadPool),
}

impl Pool {
    pub(super) fn own(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.map(Self::Own).map_err(|error| Error::Unavailable { backend: "cpu", reason: error.to_string() })
    }

    pub(super) fn threads(&self) -> usize {
        match self {
            Self::Current => rayon::current_num_threads(),
            Self::Own(pool) => pool.current_num_threads(),
        }
    }

    /// Runs `task(0..count)`, on all threads. Neighbours in the order tend to be neighbours on a thread.
    pub(super) fn for_each(&self, count: usize, task: impl Fn(usize) + Sync) {
        if count <= 1 || self.threads() == 1 {
            return (0..count).for_each(task);
        }
        self.install(|| (0..count).into_par_iter().with_max_len(1).for_each(&task));
    }

    /// Runs `work` where rayon finds these threads.
    pub(super) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self {
            Self::Current => work(),
            Self::Own(pool) => pool.install(work),
        }
    }
}

/// A slice that tasks write at the same time, each in places of its own.
#[derive(Debug)]
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: as `&mut [T]` that is split: the caller of `range` keeps what it hands out apart.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// A part to write.
    ///
    /// # Safety
    /// Nobody else has any of these elements while the result lives.
    #[allow(clippy::mut_from_ref, reason = "the caller keeps the parts apart")]
    pub(super) unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "within the slice");
        // SAFETY: within the slice, as just checked; nobody else's, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
