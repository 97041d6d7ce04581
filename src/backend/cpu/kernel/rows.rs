//! The rows of a grouped GEMM's input: found through the plan, gathered, scaled.

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::backend::host::{self, Floats, SlotTokens};
use crate::error::{Error, Result};
use crate::ops::InputRows;
use crate::tensor::TensorView;

/// Where each row is read, with the contents of the plan checked.
#[derive(Debug)]
pub(in crate::backend::cpu) struct Rows<'a> {
    input: Floats<'a>,
    k: usize,
    gather: Option<Gather<'a>>,
}

/// Where a row's elements start in the input, and its factor.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::backend::cpu) struct Source {
    start: usize,
    factor: f32,
    /// Not the elements rounded to bf16, but what the rounding takes away, rounded.
    rest: bool,
}

/// Rows to be packed: a range, or, where the kernel rounds to bf16 and there is time to lose nothing by it, the range
/// rounded and then the rest of each: twice as many rows, whose products are added up.
#[derive(Clone, Debug)]
pub(in crate::backend::cpu) struct Lines<'a, 'r> {
    pub(in crate::backend::cpu) rows: &'a Rows<'r>,
    pub(in crate::backend::cpu) range: Range<usize>,
    pub(in crate::backend::cpu) split: bool,
}

impl Lines<'_, '_> {
    /// Packed rows.
    pub(in crate::backend::cpu) fn len(&self) -> usize {
        self.range.len() << u8::from(self.split)
    }

    /// Where to read the `i`th of them.
    #[inline(always)]
    pub(in crate::backend::cpu) fn source(&self, i: usize) -> Source {
        let rest = i >= self.range.len();
        let row = self.range.start + if rest { i - self.range.len() } else { i };
        Source { rest, ..self.rows.source(row) }
    }
}

#[derive(Debug)]
struct Gather<'a> {
    /// Slots of the rows in use.
    permuted_idx: &'a [u32],
    tokens: SlotTokens<'a>,
    slot_scale: Option<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// The rows `0..used`, of which [`crate::ops`] has checked the shapes.
    pub(in crate::backend::cpu) fn new(input: TensorView<'a>, rows: InputRows<'a>, used: usize) -> Result<Self> {
        let &[num_tokens, k] = input.dims() else { return Err(Error::invalid("input", "rank 2", input.shape())) };
        let input = Floats::new("input", input)?;
        let InputRows::Gathered { permuted_idx, slots, slot_scale } = rows else {
            return Ok(Self { input, k, gather: None });
        };
        let tokens = SlotTokens::new(slots, num_tokens)?;
        let permuted_idx: &[u32] = host::slice("permuted_idx", permuted_idx)?;
        let num_slots = permuted_idx.len();
        let permuted_idx = permuted_idx
            .get(..used)
            .ok_or_else(|| Error::invalid("expert_offsets", format!("at most {num_slots} rows"), used))?;
        host::check_below("permuted_idx", permuted_idx, num_slots)?;
        let slot_scale = slot_scale.map(|scale| host::slice("slot_scale", scale)).transpose()?;
        Ok(Self { input, k, gather: Some(Gather { permuted_idx, tokens, slot_scale }) })
    }

    /// K.
    pub(in crate::backend::cpu) fn k(&self) -> usize {
        self.k
    }

    #[inline(always)]
    fn source(&self, row: usize) -> Source {
        let Some(gather) = &self.gather else { return Source { start: row * self.k, factor: 1.0, rest: false } };
        let slot = gather.permuted_idx[row] as usize;
        let factor = gather.slot_scale.map_or(1.0, |scale| scale[slot]);
        Source { start: gather.tokens.token(slot) * self.k, factor, rest: false }
    }

    /// A row's elements from `start` on, scaled.
    #[inline(always)]
    pub(in crate::backend::cpu) fn read_f32(&self, source: Source, start: usize, to: &mut [f32]) {
        let range = source.start + start..source.start + start + to.len();
        let factor = source.factor;
        match self.input {
            Floats::F32(input) => to.iter_mut().zip(&input[range]).for_each(|(to, x)| *to = x * factor),
            Floats::BF16(input) => to.iter_mut().zip(&input[range]).for_each(|(to, x)| *to = widen(*x) * factor),
            Floats::F16(input) => {
                input[range].convert_to_f32_slice(to);
                to.iter_mut().for_each(|to| *to *= factor);
            }
        }
    }

    /// As [`Rows::read_f32`], rounded to bf16; or the rest.
    #[inline(always)]
    pub(in crate::backend::cpu) fn read_bf16(&self, source: Source, start: usize, to: &mut [bf16]) {
        const STEP: usize = 32;
        let mut wide = [0.0; STEP];
        for (i, to) in to.chunks_mut(STEP).enumerate() {
            let wide = &mut wide[..to.len()];
            self.read_f32(source, start + i * STEP, wide);
            if source.rest {
                wide.iter_mut().for_each(|x| *x = rest(*x));
            }
            to.iter_mut().zip(&*wide).for_each(|(to, x)| *to = narrow(*x));
        }
    }
}

/// `bf16::to_f32`, in the form that vectorises.
#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// `bf16::from_f32` (to nearest, ties to even, NaN stays NaN), in the form that vectorises.
#[inline(always)]
fn narrow(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    bf16::from_bits(if x.is_nan() { (bits >> 16) | 0x40 } else { rounded } as u16)
}

/// What rounding to bf16 takes away; nothing where that is not a number.
#[inline(always)]
fn rest(x: f32) -> f32 {
    let rest = x - widen(narrow(x));
    if rest.is_finite() { rest } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    #[test]
    fn a_split_loses_little_and_keeps_what_is_not_finite() {
        for x in [1.0f32, 1.2345678, -7.654321e-3, 3e38, 0.0] {
            let sum = super::widen(super::narrow(x)) + super::widen(super::narrow(super::rest(x)));
            assert!((sum - x).abs() <= x.abs() * 2f32.powi(-16), "{x}: {sum}");
        }
        assert_eq!((super::rest(f32::INFINITY), super::rest(f32::NAN), super::rest(f32::MAX)), (0.0, 0.0, 0.0));
    }

    #[test]
    fn rounds_as_half_does() {
        let specials = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-40];
        let ties = (0..0x4000u32).map(|i| f32::from_bits(0x3f80_0000 + i * 0x800));
        for x in specials.into_iter().chain(ties) {
            assert_eq!(super::narrow(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(super::narrow(f32::NAN).is_nan() && super::narrow(f32::from_bits(0x7f80_0001)).is_nan());
    }
}
