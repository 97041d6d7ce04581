//! AMX: eight tile registers of 16 rows × 64 bytes, and a multiply of two of them.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;

use half::bf16;

use super::Task;
use super::avx512bf16::Avx512Bf16;
use crate::backend::cpu::kernel::dot::Dot;

/// Proof that the machine has AMX with bf16, that the operating system grants it, and what [`Avx512Bf16`] proves.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Amx(Avx512Bf16);

/// Rows of a tile.
pub(in crate::backend::cpu) const ROWS: usize = 16;
/// bf16 elements of a tile's row.
pub(in crate::backend::cpu) const DEPTH: usize = 32;

/// A tile of f32 in memory: 16 rows, one after the other, of as many columns as are configured.
pub(in crate::backend::cpu) type Tile = [f32; ROWS * ROWS];

impl Amx {
    pub(super) fn detect() -> Option<Self> {
        let avx512 = Avx512Bf16::detect()?;
        (cpu_has_amx() && granted()).then_some(Self(avx512))
    }

    pub(in crate::backend::cpu) fn avx512bf16(self) -> Avx512Bf16 {
        self.0
    }

    pub(in crate::backend::cpu) fn vectorize(self, task: impl Task) {
        self.0.vectorize(task);
    }

    /// Sets the thread's tile registers up for products of `columns` columns, up to 16.
    pub(in crate::backend::cpu) fn configure(self, columns: usize) -> Configured {
        assert!((1..=ROWS).contains(&columns), "a tile has up to 16 columns");
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for tile in 0..8 {
            config.rows[tile] = ROWS as u8;
            // A tiles, of weights, are whole; B tiles, of inputs, and C tiles, of sums, have a dword per column.
            config.row_bytes[tile] = if tile == A_TILE { 64 } else { 4 * columns as u16 };
        }
        // SAFETY: `self` proves AMX; the configuration is valid: palette 1, up to 16 rows of up to 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
        Configured(PhantomData)
    }
}

/// Registers 0 to 3 hold C, 4 holds A, 5 and 6 hold B.
const A_TILE: usize = 4;

/// The 64 bytes that LDTILECFG reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<Config>() == 64);

/// Proof that this thread's tile registers are set up; gives them back when dropped.
pub(in crate::backend::cpu) struct Configured(PhantomData<*const ()>);

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: a value of this type is made only after LDTILECFG, so AMX is there.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// A run of A tiles along K: 16 rows of weights.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Weights {
    pub(in crate::backend::cpu) start: *const bf16,
    /// Bytes from a row to the next.
    pub(in crate::backend::cpu) stride: usize,
}

/// N runs of B tiles along K, each tile 16 rows of a pair of input elements per column.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Inputs<const N: usize> {
    pub(in crate::backend::cpu) starts: [*const bf16; N],
    /// Bytes of a tile's row: 4 per column.
    pub(in crate::backend::cpu) stride: usize,
}

impl Configured {
    /// Adds to `sum` the product of a run of weights and a run of inputs, `steps` tiles long.
    ///
    /// # Safety
    /// - `weights` is valid for 16 rows, `stride` apart, of `steps·64` bytes, `inputs` for `steps·16·stride` bytes.
    /// - `inputs.stride` is 4 bytes for each column of the configuration.
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn multiply_1x1(
        &self,
        weights: Weights,
        inputs: Inputs<1>,
        steps: usize,
        sum: &mut Tile,
    ) {
        if steps == 0 {
            return;
        }
        // SAFETY: AMX is there and configured: `self`. The caller promises that what is read is there; what is
        // written is `sum`: 16 rows of `inputs.stride` bytes, which is up to 64. All registers used are declared.
        unsafe {
            asm!(
                "tileloadd tmm0, [{c} + {ldb}]",
                "2:",
                "tileloadd tmm4, [{a} + {lda}]",
                "tileloadd tmm5, [{b} + {ldb}]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "add {a}, 64",
                "add {b}, {step}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c} + {ldb}], tmm0",
                a = inout(reg) weights.start => _,
                lda = in(reg) weights.stride,
                b = inout(reg) inputs.starts[0] => _,
                ldb = in(reg) inputs.stride,
                step = in(reg) inputs.stride * ROWS,
                steps = inout(reg) steps => _,
                c = in(reg) sum.as_mut_ptr(),
                out("tmm0") _, out("tmm4") _, out("tmm5") _,
                options(nostack),
            );
        }
    }

    /// As [`Configured::multiply_1x1`], of the same weights and four runs of inputs.
    ///
    /// # Safety
    /// As [`Configured::multiply_1x1`], for each of the runs.
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn multiply_1x4(
        &self,
        weights: Weights,
        inputs: Inputs<4>,
        steps: usize,
        sums: &mut [Tile; 4],
    ) {
        if steps == 0 {
            return;
        }
        // SAFETY: as in `multiply_1x1`.
        unsafe {
            asm!(
                "tileloadd tmm0, [{c} + {ldb}]",
                "tileloadd tmm1, [{c} + {ldb} + 1024]",
                "tileloadd tmm2, [{c} + {ldb} + 2048]",
                "tileloadd tmm3, [{c} + {ldb} + 3072]",
                "2:",
                "tileloadd tmm4, [{a} + {lda}]",
                "tileloadd tmm5, [{b0} + {ldb}]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "tileloadd tmm6, [{b1} + {ldb}]",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "tileloadd tmm5, [{b2} + {ldb}]",
                "tdpbf16ps tmm2, tmm4, tmm5",
                "tileloadd tmm6, [{b3} + {ldb}]",
                "tdpbf16ps tmm3, tmm4, tmm6",
                "add {a}, 64",
                "add {b0}, {step}",
                "add {b1}, {step}",
                "add {b2}, {step}",
                "add {b3}, {step}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c} + {ldb}], tmm0",
                "tilestored [{c} + {ldb} + 1024], tmm1",
                "tilestored [{c} + {ldb} + 2048], tmm2",
                "tilestored [{c} + {ldb} + 3072], tmm3",
                a = inout(reg) weights.start => _,
                lda = in(reg) weights.stride,
                b0 = inout(reg) inputs.starts[0] => _,
                b1 = inout(reg) inputs.starts[1] => _,
                b2 = inout(reg) inputs.starts[2] => _,
                b3 = inout(reg) inputs.starts[3] => _,
                ldb = in(reg) inputs.stride,
                step = in(reg) inputs.stride * ROWS,
                steps = inout(reg) steps => _,
                c = in(reg) sums.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _,
                options(nostack),
            );
        }
    }
}

/// CPUID: AMX tiles and their bf16 product, and XSAVE in use by the operating system with both tile components.
fn cpu_has_amx() -> bool {
    const TILE: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATE: u64 = 0b11 << 17;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: OSXSAVE says that XGETBV is there.
    let enabled = unsafe { std::arch::x86_64::_xgetbv(0) };
    features & TILE != 0 && features & BF16 != 0 && enabled & TILE_STATE == TILE_STATE
}

/// Asks Linux for the tile registers, for all threads of the process.
#[cfg(target_os = "linux")]
fn granted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two integers and changes nothing but the process's permissions.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Other systems' ways are not known here.
#[cfg(not(target_os = "linux"))]
fn granted() -> bool {
    false
}
