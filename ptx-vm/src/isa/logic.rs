//! Bitwise logic, shifts, bit fields and byte permutation.

use super::scalar::{Row, row};

macro_rules! bit_rows {
    ($suffix:literal, $t:ident) => {
        &[
            row(concat!("and.", $suffix), 2, |_, a, b, _, _| (a as $t & b as $t) as u64),
            row(concat!("or.", $suffix), 2, |_, a, b, _, _| (a as $t | b as $t) as u64),
            row(concat!("xor.", $suffix), 2, |_, a, b, _, _| (a as $t ^ b as $t) as u64),
            row(concat!("not.", $suffix), 1, |_, a, _, _, _| !(a as $t) as u64),
            row(concat!("cnot.", $suffix), 1, |_, a, _, _, _| (a as $t == 0) as u64),
            row(concat!("shl.", $suffix), 2, |_, a, b, _, _| (a as $t).checked_shl(b as u32).unwrap_or(0) as u64),
        ]
    };
}

/// Right shifts clamp the amount: a logical one gives zero, an arithmetic one the sign.
macro_rules! shift_rows {
    ($bits:literal, $u:ident, $s:ident, $un:literal, $sn:literal, $bn:literal) => {
        &[
            row($un, 2, |_, a, b, _, _| (a as $u).checked_shr(b as u32).unwrap_or(0) as u64),
            row($bn, 2, |_, a, b, _, _| (a as $u).checked_shr(b as u32).unwrap_or(0) as u64),
            row($sn, 2, |_, a, b, _, _| ((a as $s) >> (b as u32).min($bits - 1)) as $u as u64),
        ]
    };
}

/// Bit-field extract; positions and lengths are taken modulo 256 and clamped as the ISA says.
fn bfe(a: i128, bits: u32, pos: u64, len: u64, signed: bool) -> u64 {
    let (pos, len) = (pos as u8 as u32, len as u8 as u32);
    let msb = bits - 1;
    if len == 0 {
        return 0;
    }
    let value = if pos > msb { if signed { a >> 127 } else { 0 } } else { a >> pos };
    // Bits past the end of the source repeat the sign (signed) or are zero.
    let len = len.min(bits);
    let value = if signed {
        if pos + len > bits { value } else { (value << (128 - len)) >> (128 - len) }
    } else {
        value & ((1i128 << len) - 1)
    };
    if bits == 32 { value as u32 as u64 } else { value as u64 }
}

fn bfi(a: u64, b: u64, pos: u64, len: u64, bits: u32) -> u64 {
    let (pos, len) = (pos as u8 as u32, len as u8 as u32);
    if pos >= bits || len == 0 {
        return b;
    }
    let mask = (((1u128 << len.min(64)) - 1) << pos) as u64;
    b & !mask | (a.checked_shl(pos).unwrap_or(0)) & mask
}

/// Position of the highest bit that differs from the sign, or all ones.
fn bfind(a: u64, bits: u32, signed: bool) -> u32 {
    let value = if signed && a >> (bits - 1) & 1 == 1 { !a } else { a };
    let value = if bits == 32 { value as u32 as u64 } else { value };
    if value == 0 { u32::MAX } else { 63 - value.leading_zeros() }
}

fn shiftamt(position: u32, bits: u32) -> u64 {
    if position == u32::MAX { u32::MAX as u64 } else { (bits - 1 - position) as u64 }
}

/// Funnel shift left of `hi:lo`, giving the high word; right gives the low word.
fn shf(lo: u64, hi: u64, amount: u64, left: bool, clamp: bool) -> u64 {
    let n = if clamp { (amount as u32).min(32) } else { amount as u32 & 31 };
    let wide = (hi as u32 as u64) << 32 | lo as u32 as u64;
    (if left { ((wide as u128) << n >> 32) as u32 } else { (wide >> n) as u32 }) as u64
}

fn bmsk(pos: u64, width: u64, clamp: bool) -> u64 {
    let (mut pos, mut width) = (pos as u32, width as u32);
    if !clamp {
        pos &= 31;
        width &= 31;
    }
    if pos >= 32 || width == 0 {
        return 0;
    }
    let ones = if width >= 32 { u32::MAX } else { (1 << width) - 1 };
    (ones << pos) as u64
}

fn szext(a: u64, width: u64, clamp: bool, signed: bool) -> u64 {
    let width = if clamp { (width as u32).min(32) } else { width as u32 & 31 };
    if width == 0 {
        return 0;
    }
    let shift = 32 - width;
    if signed { (((a as i32) << shift) >> shift) as u32 as u64 } else { ((a as u32) << shift >> shift) as u64 }
}

/// The n-th set bit of `mask` from `base`, upwards for positive `offset`.
fn fns(mask: u64, base: u64, offset: u64) -> u64 {
    let (mask, base, offset) = (mask as u32, base as u32, offset as i32);
    let at = |i: u32| mask >> i & 1 == 1;
    let found = match offset {
        0 => (base < 32 && at(base)).then_some(base),
        n if n > 0 => (base..32).filter(|&i| at(i)).nth(n as usize - 1),
        n => (0..=base.min(31)).rev().filter(|&i| at(i)).nth(n.unsigned_abs() as usize - 1),
    };
    found.map_or(u32::MAX as u64, |i| i as u64)
}

/// Byte permutation by selector nibbles; bit 3 of a nibble repeats the byte's sign.
fn prmt(a: u64, b: u64, selector: u64) -> u64 {
    let bytes = (b as u32 as u64) << 32 | a as u32 as u64;
    (0..4).fold(0, |out, i| {
        let nibble = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (nibble & 7))) as u8;
        let byte = if nibble & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        out | (byte as u64) << (8 * i)
    })
}

/// The special modes of prmt, as selectors by the low two bits of the third operand.
fn prmt_mode(a: u64, b: u64, c: u64, selectors: [u64; 4]) -> u64 {
    prmt(a, b, selectors[c as usize & 3])
}

const BIT_FIELDS: &[Row] = &[
    row("bfe.u32", 3, |_, a, b, c, _| bfe(a as u32 as i128, 32, b, c, false)),
    row("bfe.s32", 3, |_, a, b, c, _| bfe(a as i32 as i128, 32, b, c, true)),
    row("bfe.u64", 3, |_, a, b, c, _| bfe(a as i128, 64, b, c, false)),
    row("bfe.s64", 3, |_, a, b, c, _| bfe(a as i64 as i128, 64, b, c, true)),
    row("bfi.b32", 4, |_, a, b, c, d| bfi(a, b, c, d, 32) as u32 as u64),
    row("bfi.b64", 4, |_, a, b, c, d| bfi(a, b, c, d, 64)),
    row("bfind.u32", 1, |_, a, _, _, _| bfind(a, 32, false) as u64),
    row("bfind.s32", 1, |_, a, _, _, _| bfind(a, 32, true) as u64),
    row("bfind.u64", 1, |_, a, _, _, _| bfind(a, 64, false) as u64),
    row("bfind.s64", 1, |_, a, _, _, _| bfind(a, 64, true) as u64),
    row("bfind.shiftamt.u32", 1, |_, a, _, _, _| shiftamt(bfind(a, 32, false), 32)),
    row("bfind.shiftamt.s32", 1, |_, a, _, _, _| shiftamt(bfind(a, 32, true), 32)),
    row("bfind.shiftamt.u64", 1, |_, a, _, _, _| shiftamt(bfind(a, 64, false), 64)),
    row("bfind.shiftamt.s64", 1, |_, a, _, _, _| shiftamt(bfind(a, 64, true), 64)),
    row("popc.b32", 1, |_, a, _, _, _| (a as u32).count_ones() as u64),
    row("popc.b64", 1, |_, a, _, _, _| a.count_ones() as u64),
    row("clz.b32", 1, |_, a, _, _, _| (a as u32).leading_zeros() as u64),
    row("clz.b64", 1, |_, a, _, _, _| a.leading_zeros() as u64),
    row("brev.b32", 1, |_, a, _, _, _| (a as u32).reverse_bits() as u64),
    row("brev.b64", 1, |_, a, _, _, _| a.reverse_bits()),
    row("bmsk.clamp.b32", 2, |_, a, b, _, _| bmsk(a, b, true)),
    row("bmsk.wrap.b32", 2, |_, a, b, _, _| bmsk(a, b, false)),
    row("szext.clamp.u32", 2, |_, a, b, _, _| szext(a, b, true, false)),
    row("szext.clamp.s32", 2, |_, a, b, _, _| szext(a, b, true, true)),
    row("szext.wrap.u32", 2, |_, a, b, _, _| szext(a, b, false, false)),
    row("szext.wrap.s32", 2, |_, a, b, _, _| szext(a, b, false, true)),
    row("fns.b32", 3, |_, a, b, c, _| fns(a, b, c)),
    row("shf.l.clamp.b32", 3, |_, a, b, c, _| shf(a, b, c, true, true)),
    row("shf.l.wrap.b32", 3, |_, a, b, c, _| shf(a, b, c, true, false)),
    row("shf.r.clamp.b32", 3, |_, a, b, c, _| shf(a, b, c, false, true)),
    row("shf.r.wrap.b32", 3, |_, a, b, c, _| shf(a, b, c, false, false)),
    row("prmt.b32", 3, |_, a, b, c, _| prmt(a, b, c)),
    row("prmt.b32.f4e", 3, |_, a, b, c, _| prmt_mode(a, b, c, [0x3210, 0x4321, 0x5432, 0x6543])),
    row("prmt.b32.b4e", 3, |_, a, b, c, _| prmt_mode(a, b, c, [0x5670, 0x6701, 0x7012, 0x0123])),
    row("prmt.b32.rc8", 3, |_, a, b, c, _| prmt_mode(a, b, c, [0x0000, 0x1111, 0x2222, 0x3333])),
    row("prmt.b32.ecl", 3, |_, a, b, c, _| prmt_mode(a, b, c, [0x3210, 0x3211, 0x3222, 0x3333])),
    row("prmt.b32.ecr", 3, |_, a, b, c, _| prmt_mode(a, b, c, [0x0000, 0x1110, 0x2210, 0x3210])),
    row("prmt.b32.rc16", 3, |_, a, b, c, _| prmt_mode(a, b, c, [0x1010, 0x3232, 0x1010, 0x3232])),
    // The table is an immediate: bit i of it is the result for inputs (a, b, c) = bits of i.
    row("lop3.b32", 4, |_, a, b, c, table| {
        (0..8).filter(|i| table >> i & 1 == 1).fold(0u32, |out, i| {
            let term = |v: u64, bit: u32| {
                if i >> bit & 1 == 1 { v as u32 } else { !(v as u32) }
            };
            out | term(a, 2) & term(b, 1) & term(c, 0)
        }) as u64
    }),
];

/// The table of this family.
pub(crate) const ROWS: &[&[Row]] = &[
    bit_rows!("b16", u16),
    bit_rows!("b32", u32),
    bit_rows!("b64", u64),
    shift_rows!(16, u16, i16, "shr.u16", "shr.s16", "shr.b16"),
    shift_rows!(32, u32, i32, "shr.u32", "shr.s32", "shr.b32"),
    shift_rows!(64, u64, i64, "shr.u64", "shr.s64", "shr.b64"),
    BIT_FIELDS,
];
