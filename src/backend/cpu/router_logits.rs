//! `router_logits` on the CPU: a grouped GEMM of one expert, always in f32.

use super::Cpu;
use super::grouped_gemm::{Gemm, Output};
use super::kernel::rows::Rows;
use crate::backend::host::{self, Floats};
use crate::error::{Error, Result};
use crate::ops::{Epilogue, InputRows, RouterLogitsArgs};

pub(super) fn router_logits(cpu: &Cpu, args: RouterLogitsArgs<'_>) -> Result<()> {
    let isa = cpu.isa()?;
    let num_tokens = args.hidden_states.dims()[0];
    let rows = u32::try_from(num_tokens).map_err(|_| Error::invalid("hidden_states", "fewer than 2^32", num_tokens))?;
    let gemm = Gemm {
        pool: cpu.pool(),
        n: args.weight.dims()[0],
        rows: Rows::new(args.hidden_states, InputRows::Same, num_tokens)?,
        expert_offsets: &[0, rows],
        bias: args.bias.map(|bias| host::slice("bias", bias)).transpose()?,
        epilogue: Epilogue::None,
        batch_invariant: true,
    };
    let weight = Floats::new("weight", args.weight)?;
    let mut output = args.output;
    let logits = Output::new(&mut output)?;
    cpu.with_scratch(|scratch| gemm.exact(isa, weight, logits, scratch));
    if args.tanh {
        // As wide as the experts are many: nothing beside the products.
        host::slice_mut::<f32>("output", &mut output)?.iter_mut().for_each(|x| *x = libm::tanhf(*x));
    }
    Ok(())
}
