//! Instruction sets: which there are, which this machine has, and what a kernel can do with one.
//!
//! A value of an instruction set's type proves that the machine has it; that is what makes its intrinsics safe to call.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::tensor::Element;

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512bf16;
pub(super) mod portable;

/// The instruction sets that the CPU backend has kernels for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InstructionSet {
    /// What every machine of the architecture has.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with its bf16 dot product.
    Avx512Bf16,
    /// AMX tiles with bf16, where the operating system grants them.
    Amx,
}

impl InstructionSet {
    /// All of them, slowest first.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        Isa::detect(self).is_some()
    }

    /// The name by which `FUSED_MOE_CPU_ISA` asks for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for InstructionSet {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|isa| isa.name() == name);
        found.ok_or_else(|| Error::invalid("instruction set", Self::ALL.map(Self::name).join(", "), name))
    }
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Isa {
    Portable(portable::Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(avx512bf16::Avx512Bf16),
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Amx),
}

impl Isa {
    /// The instruction set, if this machine has it.
    pub(super) fn detect(set: InstructionSet) -> Option<Self> {
        match set {
            InstructionSet::Portable => Some(Self::Portable(portable::Portable)),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => avx2::Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => avx512::Avx512::detect().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Bf16 => avx512bf16::Avx512Bf16::detect().map(Self::Avx512Bf16),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx => amx::Amx::detect().map(Self::Amx),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// The best that this machine has.
    pub(super) fn best() -> Self {
        let best = InstructionSet::ALL.into_iter().rev().find_map(Self::detect);
        best.unwrap_or(Self::Portable(portable::Portable))
    }

    /// Runs `task` with everything inlined into it compiled for the instruction set's floats and integers: those of
    /// AVX-512 are also those of the sets above it.
    pub(super) fn vectorize(self, task: impl LanesTask) {
        match self {
            Self::Portable(portable) => portable.vectorize(WithLanes(portable, task)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.vectorize(WithLanes(avx2, task)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(avx512) => avx512.vectorize(WithLanes(avx512, task)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(set) => Self::Avx512(set.avx512()).vectorize(task),
            #[cfg(target_arch = "x86_64")]
            Self::Amx(set) => Self::Avx512Bf16(set.avx512bf16()).vectorize(task),
        }
    }

    pub(super) fn set(self) -> InstructionSet {
        match self {
            Self::Portable(_) => InstructionSet::Portable,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => InstructionSet::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => InstructionSet::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(_) => InstructionSet::Avx512Bf16,
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => InstructionSet::Amx,
        }
    }
}

/// Work that an instruction set compiles for itself: implementors mark `run` `#[inline(always)]`.
pub(super) trait Task {
    fn run(self);
}

/// As [`Task`], for work that needs an instruction set's [`Lanes`].
pub(super) trait LanesTask {
    fn run(self, lanes: impl Lanes);
}

struct WithLanes<L, T>(L, T);

impl<L: Lanes, T: LanesTask> Task for WithLanes<L, T> {
    #[inline(always)]
    fn run(self) {
        self.1.run(self.0);
    }
}

/// What the compiler makes no vectors of by itself, on 16 integers at a time: everywhere the same results.
pub(super) trait Lanes: Simd {
    /// Bit i: whether the i-th is at least `bound`.
    fn at_least(self, values: &[u32; MAX_LANES], bound: u32) -> u16;

    /// The largest in each place; of no blocks, 0.
    fn max(self, blocks: &[[u32; MAX_LANES]]) -> [u32; MAX_LANES];

    /// The two largest of all, the largest first; 0 for what is not there.
    fn top2(self, blocks: &[[u32; MAX_LANES]]) -> [u32; 2];
}

/// Vectors of f32, and widening loads into them.
pub(super) trait Simd: Copy + Send + Sync {
    /// A vector of [`Simd::LANES`] f32.
    type Vector: Copy;

    const LANES: usize;

    /// Rows in a register tile of [`Simd::TILE`] vectors per row.
    const ROWS: usize;

    /// Runs `task` with everything inlined into it compiled for this instruction set.
    fn vectorize(self, task: impl Task);

    fn splat(self, value: f32) -> Self::Vector;

    /// `a·b + c`.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;

    /// The sum of each vector's lanes.
    fn sums(self, vectors: [Self::Vector; TILE]) -> [f32; TILE];

    /// # Safety
    /// `from` is valid for [`Simd::LANES`] elements.
    unsafe fn load_f32(self, from: *const f32) -> Self::Vector;

    /// # Safety
    /// As [`Simd::load_f32`].
    unsafe fn load_bf16(self, from: *const bf16) -> Self::Vector;

    /// # Safety
    /// As [`Simd::load_f32`].
    unsafe fn load_f16(self, from: *const f16) -> Self::Vector;

    /// # Safety
    /// `to` is valid for writes of [`Simd::LANES`] elements.
    unsafe fn store(self, to: *mut f32, vector: Self::Vector);
}

/// Vectors side by side in a register tile: weight rows of a dot product, or vectors along N.
pub(super) const TILE: usize = 4;

/// The most lanes of any instruction set.
pub(super) const MAX_LANES: usize = 16;

/// An element type of weights.
pub(super) trait Weight: Element {
    /// # Safety
    /// `from` is valid for [`Simd::LANES`] elements.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::Vector;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { simd.load_f32(from) }
    }
}

impl Weight for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { simd.load_bf16(from) }
    }
}

impl Weight for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { simd.load_f16(from) }
    }
}
