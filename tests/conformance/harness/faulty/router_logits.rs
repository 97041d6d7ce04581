//! Faults of `router_logits`.

use fused_moe::Result;
use fused_moe::backend::Backend;
use fused_moe::ops::RouterLogitsArgs;
use half::bf16;

use super::{drop_tail, f32s_mut, restore_last_row};
use crate::harness::host_copy::HostCopy;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The last token's row is not written.
    StaleRow,
    /// The last token has the logits of the first.
    WrongRow,
    /// No bias.
    NoBias,
    /// No tanh.
    NoTanh,
    /// Only whole vectors of H.
    NoTail,
    /// Logits rounded to bf16.
    Rounded,
    /// A token's logits change, by little, with the number of tokens.
    DependsOnBatch,
}

impl Fault {
    /// Every fault.
    pub const ALL: &[Self] = &[
        Self::StaleRow,
        Self::WrongRow,
        Self::NoBias,
        Self::NoTanh,
        Self::NoTail,
        Self::Rounded,
        Self::DependsOnBatch,
    ];
}

/// The op with `fault`.
pub fn run(fault: Fault, oracle: &dyn Backend, mut args: RouterLogitsArgs<'_>) -> Result<()> {
    let [num_tokens, num_experts] = *args.output.dims() else { unreachable!("validated") };
    let before = HostCopy::of(args.output.as_view());
    match fault {
        Fault::NoBias => return oracle.router_logits(RouterLogitsArgs { bias: None, ..args }),
        Fault::NoTanh => return oracle.router_logits(RouterLogitsArgs { tanh: false, ..args }),
        Fault::NoTail => {
            let mut hidden_states = HostCopy::of(args.hidden_states);
            drop_tail(hidden_states.f32s_mut(), args.hidden_states.dims()[1]);
            return oracle.router_logits(RouterLogitsArgs { hidden_states: hidden_states.view(), ..args });
        }
        Fault::StaleRow | Fault::WrongRow | Fault::Rounded | Fault::DependsOnBatch => {}
    }
    oracle.router_logits(RouterLogitsArgs { output: args.output.reborrow(), ..args })?;
    if fault == Fault::StaleRow {
        restore_last_row(&mut args.output, num_tokens, &before);
    }
    let output = f32s_mut(&mut args.output);
    match fault {
        Fault::WrongRow if num_tokens > 0 => output.copy_within(..num_experts, (num_tokens - 1) * num_experts),
        Fault::Rounded => output.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        Fault::DependsOnBatch if num_tokens % 2 == 1 => output.iter_mut().for_each(|x| *x = x.next_up()),
        _ => {}
    }
    Ok(())
}
