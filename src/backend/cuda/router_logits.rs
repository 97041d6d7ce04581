//! `router_logits` with CUDA.

use super::queue::{Queue, unsupported};
use crate::error::Result;
use crate::ops::RouterLogitsArgs;

pub(super) fn router_logits(_: &mut Queue<'_>, _: RouterLogitsArgs<'_>) -> Result<()> {
    Err(unsupported("router_logits: its kernel is not in this build"))
}
