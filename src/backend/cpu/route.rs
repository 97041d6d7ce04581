//! `route` on the CPU.

use crate::backend::Backend;
use crate::backend::reference::Reference;
use crate::error::Result;
use crate::ops::RouteArgs;

pub(super) fn route(args: RouteArgs<'_>) -> Result<()> {
    Reference.route(args)
}
