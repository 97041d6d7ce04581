//! `combine` with CUDA.

use super::queue::{Queue, unsupported};
use crate::error::Result;
use crate::ops::CombineArgs;

pub(super) fn combine(_: &mut Queue<'_>, _: CombineArgs<'_>) -> Result<()> {
    Err(unsupported("combine: its kernel is not in this build"))
}
