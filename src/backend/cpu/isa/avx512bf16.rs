//! AVX-512 with its bf16 dot product.

use std::arch::x86_64::*;

use half::bf16;

use super::avx512::Avx512;
use super::{Simd, TILE, Task};
use crate::backend::cpu::kernel::dot::Dot;
use crate::backend::cpu::kernel::rows::{Rows, Source};

/// Proof that the machine has AVX512-BF16, and what [`Avx512`] proves.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    pub(super) fn detect() -> Option<Self> {
        let avx512 = Avx512::detect()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self(avx512))
    }

    pub(in crate::backend::cpu) fn avx512(self) -> Avx512 {
        self.0
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")]
fn run(task: impl Task) {
    task.run();
}

/// bf16 weights and input rounded to bf16, pairs of products summed in f32.
impl Dot for Avx512Bf16 {
    type Input = bf16;
    type Weight = bf16;
    type Vector = __m512;
    type Inputs = __m512bh;
    type Weights = __m512bh;

    const STEP: usize = 32;
    const ROWS: usize = Avx512::ROWS;
    const ROUNDS: bool = true;

    #[inline(always)]
    fn vectorize(self, task: impl Task) {
        // SAFETY: `self` proves the features.
        unsafe { run(task) }
    }

    #[inline(always)]
    fn zero(self) -> __m512 {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn multiply_add(self, x: __m512bh, w: __m512bh, sum: __m512) -> __m512 {
        // SAFETY: `self` proves AVX512-BF16.
        unsafe { _mm512_dpbf16_ps(sum, x, w) }
    }

    #[inline(always)]
    fn sums(self, vectors: [__m512; TILE]) -> [f32; TILE] {
        self.0.sums(vectors)
    }

    #[inline(always)]
    fn read(self, rows: &Rows<'_>, source: Source, to: &mut [bf16]) {
        rows.read_bf16(source, 0, to);
    }

    #[inline(always)]
    unsafe fn inputs(self, from: *const bf16) -> __m512bh {
        // SAFETY: the caller promises 32 elements, which are the 64 bytes of the vector.
        unsafe { from.cast::<__m512bh>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn weights(self, from: *const bf16) -> __m512bh {
        // SAFETY: as for inputs.
        unsafe { self.inputs(from) }
    }
}
