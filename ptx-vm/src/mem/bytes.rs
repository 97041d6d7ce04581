//! Bytes of which each is known to be written or not.

/// Memory with a poison flag per byte.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bytes {
    data: Vec<u8>,
    /// Non-zero where the byte was never written.
    poison: Vec<u8>,
}

/// What unwritten bytes hold: a quiet NaN in every float format, a large negative integer.
const FILL: u8 = 0xff;

impl Bytes {
    pub fn poisoned(len: usize) -> Self {
        Bytes { data: vec![FILL; len], poison: vec![1; len] }
    }

    pub fn from_data(data: Vec<u8>) -> Self {
        let poison = vec![0; data.len()];
        Bytes { data, poison }
    }

    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Up to eight bytes, little-endian, and whether any is poison.
    #[inline]
    pub fn read(&self, at: usize, len: usize) -> (u64, bool) {
        let mut value = [0; 8];
        let mut poison = [0; 8];
        value[..len].copy_from_slice(&self.data[at..at + len]);
        poison[..len].copy_from_slice(&self.poison[at..at + len]);
        (u64::from_le_bytes(value), u64::from_le_bytes(poison) != 0)
    }

    /// Writes the low `len` bytes of `value`.
    #[inline]
    pub fn write(&mut self, at: usize, len: usize, value: u64, poison: bool) {
        self.data[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        self.poison[at..at + len].fill(poison as u8);
    }

    pub fn is_poisoned(&self, at: usize, len: usize) -> bool {
        self.poison[at..at + len].iter().any(|&p| p != 0)
    }

    pub fn slice(&self, at: usize, len: usize) -> &[u8] {
        &self.data[at..at + len]
    }

    pub fn poison(&mut self, at: usize, len: usize) {
        self.data[at..at + len].fill(FILL);
        self.poison[at..at + len].fill(1);
    }

    pub fn fill_zero(&mut self, at: usize, len: usize) {
        self.data[at..at + len].fill(0);
        self.poison[at..at + len].fill(0);
    }

    pub fn store(&mut self, at: usize, data: &[u8]) {
        self.data[at..at + data.len()].copy_from_slice(data);
        self.poison[at..at + data.len()].fill(0);
    }

    /// A copy of some bytes, poison included.
    pub fn clone_range(&self, at: usize, len: usize) -> Bytes {
        Bytes { data: self.data[at..at + len].to_vec(), poison: self.poison[at..at + len].to_vec() }
    }

    /// Copies bytes together with their poison.
    pub fn copy_from(&mut self, at: usize, from: &Bytes, from_at: usize, len: usize) {
        self.data[at..at + len].copy_from_slice(&from.data[from_at..from_at + len]);
        self.poison[at..at + len].copy_from_slice(&from.poison[from_at..from_at + len]);
    }
}
