//! `route` with CUDA.

use super::queue::{Queue, unsupported};
use crate::error::Result;
use crate::ops::RouteArgs;

pub(super) fn route(_: &mut Queue<'_>, _: RouteArgs<'_>) -> Result<()> {
    Err(unsupported("route: its kernel is not in this build"))
}
