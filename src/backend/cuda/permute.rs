//! `permute` with CUDA.

use super::queue::{Queue, unsupported};
use crate::error::Result;
use crate::ops::PermuteArgs;

pub(super) fn permute(_: &mut Queue<'_>, _: PermuteArgs<'_>) -> Result<()> {
    Err(unsupported("permute: its kernel is not in this build"))
}
