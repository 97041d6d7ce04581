//! `jitter` on the CPU.

use rayon::prelude::*;

use crate::backend::host::{Floats, slice_mut};
use crate::error::Result;
use crate::ops::JitterArgs;
use crate::routing::noise::{Stream, uniform};

pub(in crate::backend) fn jitter(mut args: JitterArgs<'_>) -> Result<()> {
    let hidden_size = args.hidden_states.dims()[1];
    let hidden_states = Floats::new("hidden_states", args.hidden_states)?;
    let (seed, epsilon) = (args.seed, args.epsilon);
    let output: &mut [f32] = slice_mut("output", &mut args.output)?;
    output.par_chunks_mut(hidden_size.max(1)).enumerate().for_each(|(token, row)| {
        for (h, out) in row.iter_mut().enumerate() {
            let draw = uniform(seed, Stream::Input, token as u32, h as u32);
            *out = hidden_states.get(token * hidden_size + h) * (1.0 + epsilon * (2.0 * draw - 1.0));
        }
    });
    Ok(())
}
