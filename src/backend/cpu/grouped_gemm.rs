//! `grouped_gemm` on the CPU.

use crate::backend::Backend;
use crate::backend::reference::Reference;
use crate::error::Result;
use crate::ops::GroupedGemmArgs;

pub(super) fn grouped_gemm(args: GroupedGemmArgs<'_>) -> Result<()> {
    Reference.grouped_gemm(args)
}
