//! Device memory: separate buffers with gaps between, so that running past one is found.

use super::bytes::Bytes;
use super::shadow::Shadow;

/// First address handed out.
const FIRST: u64 = 0x10_0000_0000;
const ALIGN: u64 = 256;
const GAP: u64 = 0x1_0000;

#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    base: u64,
    pub bytes: Bytes,
    pub shadow: Shadow,
    pub read_only: bool,
}

/// All buffers, by rising address.
#[derive(Clone, Debug)]
pub(crate) struct Global {
    buffers: Vec<Buffer>,
    next: u64,
    /// The buffer found last: most accesses hit the same one again.
    last: usize,
}

impl Default for Global {
    fn default() -> Self {
        Global { buffers: vec![], next: FIRST, last: 0 }
    }
}

impl Global {
    /// Adds a poisoned buffer.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let base = self.next;
        self.next = (base + len as u64 + GAP).next_multiple_of(ALIGN);
        self.insert(base, Bytes::poisoned(len), false);
        base
    }

    /// Puts a buffer at a given address, unless it is there already.
    pub fn place(&mut self, base: u64, data: &[u8], read_only: bool) {
        if !self.buffers.iter().any(|b| b.base == base) {
            self.insert(base, Bytes::from_data(data.to_vec()), read_only);
        }
    }

    fn insert(&mut self, base: u64, bytes: Bytes, read_only: bool) {
        let at = self.buffers.partition_point(|b| b.base < base);
        let shadow = Shadow::new(bytes.len());
        self.buffers.insert(at, Buffer { base, bytes, shadow, read_only });
    }

    /// Removes the buffer that starts at `base`.
    pub fn free(&mut self, base: u64) -> bool {
        let before = self.buffers.len();
        self.buffers.retain(|b| b.base != base);
        self.last = 0;
        self.buffers.len() != before
    }

    /// Buffer and offset of `len` bytes at `address`, if they lie in one buffer.
    #[inline]
    pub fn locate(&mut self, address: u64, len: usize) -> Option<(usize, usize)> {
        let inside = |b: &Buffer| {
            let offset = address.wrapping_sub(b.base);
            let end = offset.checked_add(len as u64)?;
            (address >= b.base && end <= b.bytes.len() as u64).then_some(offset as usize)
        };
        if let Some(offset) = self.buffers.get(self.last).and_then(inside) {
            return Some((self.last, offset));
        }
        let index = self.buffers.partition_point(|b| b.base <= address).checked_sub(1)?;
        let offset = inside(&self.buffers[index])?;
        self.last = index;
        Some((index, offset))
    }

    pub fn buffer(&self, index: usize) -> &Buffer {
        &self.buffers[index]
    }

    pub fn buffer_mut(&mut self, index: usize) -> &mut Buffer {
        &mut self.buffers[index]
    }

    /// Forgets who wrote what: launches are ordered.
    pub fn clear_history(&mut self) {
        self.buffers.iter_mut().for_each(|b| b.shadow.clear());
    }
}
