//! Counters by which the blocks of a launch find out which of them is the last, to go on alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::driver::{Driver, StreamHandle};
use super::memory::CudaBuffer;
use crate::error::Result;

/// How many counters there are. Who writes to more places than these gets none for the rest.
const MOST: usize = 1024;

/// A counter for each place that launches write to. A launch needs one to itself while it runs, a captured one whenever it is
/// replayed, on whatever stream; and two that write to the same place never run at the same time. A caller's workspace would
/// do as well if it was zeroed; clearing it would be one more launch. A counter is 0 between launches: the last block of each
/// leaves it so.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    counters: Option<CudaBuffer>,
    /// By the address of the place, the address of its counter.
    places: Mutex<HashMap<u64, u64>>,
}

impl Tickets {
    /// Waits until the counters are cleared: launches on every stream may use them.
    pub(super) fn new(driver: &Arc<dyn Driver>, stream: StreamHandle) -> Result<Self> {
        let counters = CudaBuffer::alloc(driver, MOST * size_of::<u32>())?;
        // SAFETY: the memory is new, and this big.
        unsafe { driver.zero(counters.address(), counters.bytes(), stream)? };
        driver.synchronize(stream)?;
        Ok(Self { counters: Some(counters), places: Mutex::default() })
    }

    /// The address of the counter of launches that write to `place`.
    pub(super) fn of(&self, place: u64) -> Option<u64> {
        let counters = self.counters.as_ref()?.address();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = places.len();
        match places.get(&place) {
            Some(&counter) => Some(counter),
            None if taken == MOST => None,
            None => Some(*places.entry(place).or_insert(counters + (taken * size_of::<u32>()) as u64)),
        }
    }
}
