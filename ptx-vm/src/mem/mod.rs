//! Memories and what the machine knows about their bytes.

pub(crate) mod bytes;
pub(crate) mod clock;
pub(crate) mod global;
pub(crate) mod shadow;
