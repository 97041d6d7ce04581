//! `router_logits` on the CPU.

use crate::backend::Backend;
use crate::backend::reference::Reference;
use crate::error::Result;
use crate::ops::RouterLogitsArgs;

pub(super) fn router_logits(args: RouterLogitsArgs<'_>) -> Result<()> {
    Reference.router_logits(args)
}
