//! `combine` on the CPU.

use crate::backend::Backend;
use crate::backend::reference::Reference;
use crate::error::Result;
use crate::ops::CombineArgs;

pub(super) fn combine(args: CombineArgs<'_>) -> Result<()> {
    Reference.combine(args)
}
