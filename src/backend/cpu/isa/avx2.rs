//! AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Lanes, MAX_LANES, Simd, TILE, Task};

/// Proof that the machine has AVX2, FMA and F16C, and BMI and POPCNT, which came before them.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let here = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("popcnt");
        here.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn run(task: impl Task) {
    task.run();
}

impl Simd for Avx2 {
    type Vector = __m256;

    const LANES: usize = 8;
    // 12 sums, 3 inputs and a weight vector: the 16 registers.
    const ROWS: usize = 3;

    #[inline(always)]
    fn vectorize(self, task: impl Task) {
        // SAFETY: `self` proves the features.
        unsafe { run(task) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sums(self, [a, b, c, d]: [__m256; TILE]) -> [f32; TILE] {
        let mut sums = [0.0; TILE];
        // SAFETY: `self` proves AVX; `sums` takes the 4 floats.
        unsafe {
            let lanes = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let both = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
            _mm_storeu_ps(sums.as_mut_ptr(), both);
        }
        sums
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> __m256 {
        // SAFETY: `self` proves AVX; the caller promises 8 elements.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m256 {
        // SAFETY: `self` proves AVX2; the caller promises 8 elements.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m256 {
        // SAFETY: `self` proves F16C; the caller promises 8 elements.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: __m256) {
        // SAFETY: `self` proves AVX; the caller promises 8 elements.
        unsafe { _mm256_storeu_ps(to, vector) }
    }
}

/// The two halves of a block.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn halves(block: &[u32; MAX_LANES]) -> [__m256i; 2] {
    let half = block.as_ptr().cast::<__m256i>();
    // SAFETY: a block is two vectors; the caller promises AVX2.
    unsafe { [_mm256_loadu_si256(half), _mm256_loadu_si256(half.add(1))] }
}

/// Of `first` and, no larger, `second` in each place: the two largest of all.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn top2_of(first: __m256i, second: __m256i) -> [u32; 2] {
    // SAFETY: the caller promises AVX2.
    unsafe {
        let merge = |f: [__m128i; 2], s: [__m128i; 2]| {
            let second = _mm_max_epu32(_mm_max_epu32(s[0], s[1]), _mm_min_epu32(f[0], f[1]));
            (_mm_max_epu32(f[0], f[1]), second)
        };
        let halves = |v| [_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)];
        let (f, s) = merge(halves(first), halves(second));
        let (f, s) = merge([f, _mm_shuffle_epi32::<0x4e>(f)], [s, _mm_shuffle_epi32::<0x4e>(s)]);
        let (f, s) = merge([f, _mm_shuffle_epi32::<0xb1>(f)], [s, _mm_shuffle_epi32::<0xb1>(s)]);
        [_mm_cvtsi128_si32(f) as u32, _mm_cvtsi128_si32(s) as u32]
    }
}

impl Lanes for Avx2 {
    #[inline(always)]
    fn at_least(self, values: &[u32; MAX_LANES], bound: u32) -> u16 {
        // SAFETY: `self` proves AVX2.
        let [low, high] = unsafe {
            let bound = _mm256_set1_epi32(bound as i32);
            halves(values).map(|half| {
                let is_max = _mm256_cmpeq_epi32(_mm256_max_epu32(half, bound), half);
                _mm256_movemask_ps(_mm256_castsi256_ps(is_max)) as u16
            })
        };
        low | high << 8
    }

    #[inline(always)]
    fn max(self, blocks: &[[u32; MAX_LANES]]) -> [u32; MAX_LANES] {
        // SAFETY: `self` proves AVX2; two vectors are a block.
        unsafe {
            let mut max = [_mm256_setzero_si256(); 2];
            for block in blocks {
                let [low, high] = halves(block);
                max = [_mm256_max_epu32(max[0], low), _mm256_max_epu32(max[1], high)];
            }
            std::mem::transmute::<[__m256i; 2], [u32; MAX_LANES]>(max)
        }
    }

    #[inline(always)]
    fn top2(self, blocks: &[[u32; MAX_LANES]]) -> [u32; 2] {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let (mut first, mut second) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            for block in blocks {
                for half in halves(block) {
                    second = _mm256_max_epu32(second, _mm256_min_epu32(first, half));
                    first = _mm256_max_epu32(first, half);
                }
            }
            top2_of(first, second)
        }
    }
}
