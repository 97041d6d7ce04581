//! `permute` on the CPU.

use crate::backend::Backend;
use crate::backend::reference::Reference;
use crate::error::Result;
use crate::ops::PermuteArgs;

pub(super) fn permute(args: PermuteArgs<'_>) -> Result<()> {
    Reference.permute(args)
}
