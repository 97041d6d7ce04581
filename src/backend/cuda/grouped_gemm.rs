//! `grouped_gemm` with CUDA.

use super::queue::{Queue, unsupported};
use crate::error::Result;
use crate::ops::GroupedGemmArgs;

pub(super) fn grouped_gemm(_: &mut Queue<'_>, _: GroupedGemmArgs<'_>) -> Result<()> {
    Err(unsupported("grouped_gemm: its kernel is not in this build"))
}
