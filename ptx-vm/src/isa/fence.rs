//! Fences: memory order between threads, and between the proxies of one.

use super::memory::Scope;
use super::{Form, Op};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine};
use crate::parse::ast::Operand;
use crate::report::Raise;

pub(crate) const FORMS: &[&str] = &[
    "fence[.sc|.acq_rel|.acquire|.release].(cta|cluster|gpu|sys)",
    "membar.(cta|gl|sys)",
    "fence.mbarrier_init.release.cluster",
    "fence.proxy.async[.global|.shared::cta|.shared::cluster]",
    "fence.proxy.async::generic.acquire.sync_restrict::shared::cluster.cluster",
    "fence.proxy.async::generic.release.sync_restrict::shared::cta.cluster",
    "fence.proxy.alias",
    "fence.proxy.tensormap::generic.(acquire|release).(cta|cluster|gpu|sys)",
];

#[derive(Debug)]
pub(crate) enum Fence {
    Memory(Scope),
    /// Generic writes before it are visible to the async proxy after it.
    AsyncProxy,
    /// mbarrier initialisations become visible to the cluster and the async proxy.
    MbarrierInit,
    /// Orders proxies that are not modelled apart.
    OtherProxy,
}

pub(crate) fn decode(_: &mut Cx, form: &mut Form, _: &[Operand]) -> Result<Op, String> {
    let fence = if form.next() == "membar" || !matches!(form.peek(), "mbarrier_init" | "proxy") {
        let _ = form.take("sc") || form.take("acq_rel") || form.take("acquire") || form.take("release");
        Fence::Memory(form.take_with(Scope::parse).ok_or_else(|| form.unknown())?)
    } else if form.take("mbarrier_init") {
        form.require("release")?;
        form.require("cluster")?;
        Fence::MbarrierInit
    } else {
        form.require("proxy")?;
        match form.next() {
            "async" => {
                let _ = form.take("global") || form.take("shared::cta") || form.take("shared::cluster");
                Fence::AsyncProxy
            }
            "async::generic" => {
                while !form.peek().is_empty() {
                    form.next();
                }
                Fence::AsyncProxy
            }
            "alias" => Fence::OtherProxy,
            "tensormap::generic" => {
                while !form.peek().is_empty() {
                    form.next();
                }
                Fence::OtherProxy
            }
            _ => return Err(form.unknown()),
        }
    };
    form.end()?;
    Ok(Op::Fence(fence))
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Fence) -> Result<Flow, Raise> {
    match op {
        Fence::Memory(scope) => m.fence(at, *scope),
        Fence::AsyncProxy | Fence::MbarrierInit => m.fence_proxy(at),
        Fence::OtherProxy => {}
    }
    Ok(Flow::Next)
}
