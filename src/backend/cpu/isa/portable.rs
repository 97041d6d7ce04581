//! Plain Rust, for every architecture; the compiler vectorises what it can.

use half::{bf16, f16};

use super::{Lanes, MAX_LANES, Simd, TILE, Task};

/// Needs no proof.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Portable;

const LANES: usize = 4;

impl Simd for Portable {
    type Vector = [f32; LANES];

    const LANES: usize = LANES;
    const ROWS: usize = 2;

    #[inline(always)]
    fn vectorize(self, task: impl Task) {
        task.run();
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        [value; LANES]
    }

    // Not `f32::mul_add`: without the instruction that is a call into libm.
    #[inline(always)]
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn sums(self, vectors: [Self::Vector; TILE]) -> [f32; TILE] {
        vectors.map(|v| (v[0] + v[2]) + (v[1] + v[3]))
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> Self::Vector {
        // SAFETY: the caller's promise: LANES elements.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> Self::Vector {
        // SAFETY: the caller's promise: LANES elements.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> Self::Vector {
        // SAFETY: the caller's promise: LANES elements.
        let values = unsafe { from.cast::<[f16; LANES]>().read_unaligned() };
        values.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: Self::Vector) {
        // SAFETY: the caller's promise: LANES elements.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(vector) }
    }
}

impl Lanes for Portable {
    #[inline(always)]
    fn at_least(self, values: &[u32; MAX_LANES], bound: u32) -> u16 {
        values.iter().enumerate().fold(0, |bits, (i, &value)| bits | u16::from(value >= bound) << i)
    }

    #[inline(always)]
    fn max(self, blocks: &[[u32; MAX_LANES]]) -> [u32; MAX_LANES] {
        let max = |a: [u32; MAX_LANES], b: &[u32; MAX_LANES]| std::array::from_fn(|i| a[i].max(b[i]));
        blocks.iter().fold([0; MAX_LANES], max)
    }

    #[inline(always)]
    fn top2(self, blocks: &[[u32; MAX_LANES]]) -> [u32; 2] {
        blocks.as_flattened().iter().fold([0; 2], |[first, second], &x| [first.max(x), second.max(first.min(x))])
    }
}
