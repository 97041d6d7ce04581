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
            config.row_bytes[tile] = if A_TILES.contains(&tile) { 64 } else { 4 * columns as u16 };
        }
        // SAFETY: `self` proves AMX; the configuration is valid: palette 1, up to 16 rows of up to 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
        Configured(PhantomData)
    }
}

/// Registers 0 to 3 hold C; [`Configured::multiply_4x1`] has one B in 7, [`Configured::multiply_2x2`] also one in 6.
const A_TILES: std::ops::Range<usize> = 4..6;

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

/// A run of tiles along K: the address of the first, and bytes between the rows of one.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Weights<const N: usize> {
    /// The first row of each of N tiles, `[16, K]` row-major.
    pub(in crate::backend::cpu) tiles: [*const bf16; N],
    /// Bytes from a row to the next.
    pub(in crate::backend::cpu) stride: usize,
}

/// N runs of packed input: tiles one after the other, each 16 rows of a pair of elements per column.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Inputs<const N: usize> {
    pub(in crate::backend::cpu) tiles: [*const bf16; N],
    /// Bytes of a tile's row: 4 per column.
    pub(in crate::backend::cpu) stride: usize,
}

impl Configured {
    /// Adds to `sums[i]` the products of four runs of weights with one run of inputs, `steps` tiles long. Meanwhile
    /// asks for cache lines from `ahead.0` on, `ahead.1` in each step.
    ///
    /// # Safety
    /// - Each of the runs is valid for `steps` tiles: 16 rows, `stride` apart, of `steps·64` bytes of weights;
    ///   `steps·16` rows of `stride` bytes of inputs.
    /// - `inputs.stride` is 4 bytes for each column of the configuration.
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn multiply_4x1(
        &self,
        weights: Weights<4>,
        inputs: Inputs<1>,
        steps: usize,
        sums: &mut [Tile; 4],
        ahead: (*const u8, usize),
    ) {
        if steps == 0 {
            return;
        }
        // SAFETY: AMX is there and configured: `self`. The caller promises that what is read is there; what is
        // written is `sums`: 16 rows of `inputs.stride` bytes each, which is up to 64. All tile registers are declared.
        unsafe {
            asm!(
                "tileloadd tmm0, [{c} + {ldb}]",
                "tileloadd tmm1, [{c} + {ldb} + 1024]",
                "tileloadd tmm2, [{c} + {ldb} + 2048]",
                "tileloadd tmm3, [{c} + {ldb} + 3072]",
                "2:",
                "mov {i}, {lines}",
                "test {i}, {i}",
                "jz 4f",
                "3:",
                "prefetcht1 [{next}]",
                "add {next}, 64",
                "dec {i}",
                "jnz 3b",
                "4:",
                "tileloadd tmm7, [{b} + {ldb}]",
                "tileloadd tmm4, [{a0} + {lda}]",
                "tdpbf16ps tmm0, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {lda}]",
                "tdpbf16ps tmm1, tmm5, tmm7",
                "tileloadd tmm4, [{a2} + {lda}]",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "tileloadd tmm5, [{a3} + {lda}]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 64",
                "add {a1}, 64",
                "add {a2}, 64",
                "add {a3}, 64",
                "lea {b}, [{b} + 8*{ldb}]",
                "lea {b}, [{b} + 8*{ldb}]",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c} + {ldb}], tmm0",
                "tilestored [{c} + {ldb} + 1024], tmm1",
                "tilestored [{c} + {ldb} + 2048], tmm2",
                "tilestored [{c} + {ldb} + 3072], tmm3",
                a0 = inout(reg) weights.tiles[0] => _,
                a1 = inout(reg) weights.tiles[1] => _,
                a2 = inout(reg) weights.tiles[2] => _,
                a3 = inout(reg) weights.tiles[3] => _,
                lda = in(reg) weights.stride,
                b = inout(reg) inputs.tiles[0] => _,
                ldb = in(reg) inputs.stride,
                steps = inout(reg) steps => _,
                c = in(reg) sums.as_mut_ptr(),
                next = inout(reg) ahead.0 => _,
                lines = in(reg) ahead.1,
                i = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Adds to `sums[2·i + j]` the products of weights `i` with inputs `j`, `steps` tiles long.
    ///
    /// # Safety
    /// As [`Configured::multiply_4x1`].
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn multiply_2x2(
        &self,
        weights: Weights<2>,
        inputs: Inputs<2>,
        steps: usize,
        sums: &mut [Tile; 4],
        ahead: (*const u8, usize),
    ) {
        if steps == 0 {
            return;
        }
        // SAFETY: as in `multiply_4x1`.
        unsafe {
            asm!(
                "tileloadd tmm0, [{c} + {ldb}]",
                "tileloadd tmm1, [{c} + {ldb} + 1024]",
                "tileloadd tmm2, [{c} + {ldb} + 2048]",
                "tileloadd tmm3, [{c} + {ldb} + 3072]",
                "2:",
                "mov {i}, {lines}",
                "test {i}, {i}",
                "jz 4f",
                "3:",
                "prefetcht1 [{next}]",
                "add {next}, 64",
                "dec {i}",
                "jnz 3b",
                "4:",
                "tileloadd tmm6, [{b0} + {ldb}]",
                "tileloadd tmm4, [{a0} + {lda}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {ldb}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {lda}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 64",
                "add {a1}, 64",
                "lea {b0}, [{b0} + 8*{ldb}]",
                "lea {b0}, [{b0} + 8*{ldb}]",
                "lea {b1}, [{b1} + 8*{ldb}]",
                "lea {b1}, [{b1} + 8*{ldb}]",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c} + {ldb}], tmm0",
                "tilestored [{c} + {ldb} + 1024], tmm1",
                "tilestored [{c} + {ldb} + 2048], tmm2",
                "tilestored [{c} + {ldb} + 3072], tmm3",
                a0 = inout(reg) weights.tiles[0] => _,
                a1 = inout(reg) weights.tiles[1] => _,
                lda = in(reg) weights.stride,
                b0 = inout(reg) inputs.tiles[0] => _,
                b1 = inout(reg) inputs.tiles[1] => _,
                ldb = in(reg) inputs.stride,
                steps = inout(reg) steps => _,
                c = in(reg) sums.as_mut_ptr(),
                next = inout(reg) ahead.0 => _,
                lines = in(reg) ahead.1,
                i = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
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
