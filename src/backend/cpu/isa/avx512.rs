//! AVX-512 F, BW, DQ and VL.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::avx2::top2_of;
use super::{Lanes, MAX_LANES, Simd, TILE, Task};

/// Proof that the machine has AVX-512 F, BW, DQ and VL (with them come FMA, F16C, BMI and POPCNT).
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let here = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("popcnt");
        here.then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,bmi1,popcnt")]
fn run(task: impl Task) {
    task.run();
}

impl Avx512 {
    /// Rows to columns: 16 rows of 16 dwords.
    #[inline(always)]
    pub(in crate::backend::cpu) fn transpose_tile(self, from: &[f32], to: &mut [f32]) {
        assert!(from.len() == 256 && to.len() == 256, "tiles of 16 x 16");
        // SAFETY: `self` proves AVX-512F; 16 vectors are within each slice.
        unsafe {
            let mut rows = [_mm512_setzero_ps(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = self.load_f32(from.as_ptr().add(16 * i));
            }
            for (i, column) in self.transpose(rows).into_iter().enumerate() {
                self.store(to.as_mut_ptr().add(16 * i), column);
            }
        }
    }

    #[inline(always)]
    fn transpose(self, rows: [__m512; 16]) -> [__m512; 16] {
        // SAFETY: `self` proves AVX-512F.
        unsafe {
            // Within each 128-bit part, columns of 4 rows; then parts among 4 vectors that hold the same columns.
            let mut quads = [_mm512_setzero_ps(); 16];
            for i in 0..4 {
                let [a, b, c, d] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
                let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                quads[4 * i] = _mm512_shuffle_ps::<0x44>(ab, cd);
                quads[4 * i + 1] = _mm512_shuffle_ps::<0xee>(ab, cd);
                let (ab, cd) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                quads[4 * i + 2] = _mm512_shuffle_ps::<0x44>(ab, cd);
                quads[4 * i + 3] = _mm512_shuffle_ps::<0xee>(ab, cd);
            }
            let mut columns = [_mm512_setzero_ps(); 16];
            for i in 0..4 {
                let [a, b, c, d] = [quads[i], quads[4 + i], quads[8 + i], quads[12 + i]];
                let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
                columns[i] = _mm512_shuffle_f32x4::<0x88>(ab, cd);
                columns[4 + i] = _mm512_shuffle_f32x4::<0xdd>(ab, cd);
                let (ab, cd) = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
                columns[8 + i] = _mm512_shuffle_f32x4::<0x88>(ab, cd);
                columns[12 + i] = _mm512_shuffle_f32x4::<0xdd>(ab, cd);
            }
            columns
        }
    }
}

impl Simd for Avx512 {
    type Vector = __m512;

    const LANES: usize = 16;
    // 24 sums, 4 weight vectors and an input: of 32 registers.
    const ROWS: usize = 6;

    #[inline(always)]
    fn vectorize(self, task: impl Task) {
        // SAFETY: `self` proves the features.
        unsafe { run(task) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sums(self, [a, b, c, d]: [__m512; TILE]) -> [f32; TILE] {
        let mut sums = [0.0; TILE];
        // SAFETY: `self` proves AVX-512 F and DQ; `sums` takes the 4 floats.
        unsafe {
            // Pairs, then pairs of pairs: every 128-bit part ends up with one partial sum of each vector.
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let parts = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
            let half = _mm256_add_ps(_mm512_castps512_ps256(parts), _mm512_extractf32x8_ps::<1>(parts));
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            _mm_storeu_ps(sums.as_mut_ptr(), quarter);
        }
        sums
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> __m512 {
        // SAFETY: `self` proves AVX-512F; the caller promises 16 elements.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m512 {
        // SAFETY: `self` proves AVX-512F; the caller promises 16 elements.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m512 {
        // SAFETY: `self` proves AVX-512F; the caller promises 16 elements.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: __m512) {
        // SAFETY: `self` proves AVX-512F; the caller promises 16 elements.
        unsafe { _mm512_storeu_ps(to, vector) }
    }
}

impl Lanes for Avx512 {
    #[inline(always)]
    fn at_least(self, values: &[u32; MAX_LANES], bound: u32) -> u16 {
        // SAFETY: `self` proves AVX-512F; a block is a vector.
        unsafe { _mm512_cmpge_epu32_mask(_mm512_loadu_si512(values.as_ptr().cast()), _mm512_set1_epi32(bound as i32)) }
    }

    #[inline(always)]
    fn max(self, blocks: &[[u32; MAX_LANES]]) -> [u32; MAX_LANES] {
        // SAFETY: `self` proves AVX-512F; a block is a vector.
        unsafe {
            let mut max = _mm512_setzero_si512();
            for block in blocks {
                max = _mm512_max_epu32(max, _mm512_loadu_si512(block.as_ptr().cast()));
            }
            std::mem::transmute::<__m512i, [u32; MAX_LANES]>(max)
        }
    }

    #[inline(always)]
    fn top2(self, blocks: &[[u32; MAX_LANES]]) -> [u32; 2] {
        // SAFETY: `self` proves AVX-512 F and VL, and with them AVX2; a block is a vector.
        unsafe {
            let (mut first, mut second) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            for block in blocks {
                let block = _mm512_loadu_si512(block.as_ptr().cast());
                second = _mm512_max_epu32(second, _mm512_min_epu32(first, block));
                first = _mm512_max_epu32(first, block);
            }
            let halves = |v| [_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64::<1>(v)];
            let ([f0, f1], [s0, s1]) = (halves(first), halves(second));
            let second = _mm256_max_epu32(_mm256_max_epu32(s0, s1), _mm256_min_epu32(f0, f1));
            top2_of(_mm256_max_epu32(f0, f1), second)
        }
    }
}
