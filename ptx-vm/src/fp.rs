//! Floating-point formats: exact rounding of an f64 (plus what it leaves out) to any narrower format.

use crate::isa::scalar::Round;

/// A binary format of at most 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    exp_bits: u32,
    man_bits: u32,
    /// e4m3 has no infinity and one NaN magnitude.
    infinite: bool,
}

pub(crate) const F32: Format = Format { exp_bits: 8, man_bits: 23, infinite: true };
pub(crate) const TF32: Format = Format { exp_bits: 8, man_bits: 10, infinite: true };
pub(crate) const F16: Format = Format { exp_bits: 5, man_bits: 10, infinite: true };
pub(crate) const BF16: Format = Format { exp_bits: 8, man_bits: 7, infinite: true };
pub(crate) const E5M2: Format = Format { exp_bits: 5, man_bits: 2, infinite: true };
pub(crate) const E4M3: Format = Format { exp_bits: 4, man_bits: 3, infinite: false };

impl Format {
    fn sign(self) -> u32 {
        1 << (self.exp_bits + self.man_bits)
    }

    /// The NaN that arithmetic produces: all bits but the sign set.
    pub fn nan(self) -> u32 {
        self.sign() - 1
    }

    fn max_finite(self) -> u32 {
        if self.infinite { self.infinity() - 1 } else { self.nan() - 1 }
    }

    fn infinity(self) -> u32 {
        ((1 << self.exp_bits) - 1) << self.man_bits
    }

    fn bias(self) -> i32 {
        (1 << (self.exp_bits - 1)) - 1
    }

    /// The value of an encoding.
    pub fn decode(self, bits: u32) -> f64 {
        let magnitude = bits & (self.sign() - 1);
        let sign = if bits & self.sign() != 0 { -1.0 } else { 1.0 };
        let man = (magnitude & ((1 << self.man_bits) - 1)) as f64;
        let exp = (magnitude >> self.man_bits) as i32;
        if magnitude > self.max_finite() {
            let infinite = self.infinite && magnitude == self.infinity();
            return if infinite { sign * f64::INFINITY } else { f64::NAN };
        }
        let scale = |e: i32| f64::from_bits(((e + 1023) as u64) << 52);
        let unit = scale(exp.max(1) - self.bias() - self.man_bits as i32);
        let hidden = if exp > 0 { (1u32 << self.man_bits) as f64 } else { 0.0 };
        sign * (hidden + man) * unit
    }

    /// `value + rest` rounded to this format, where `rest` is what rounding to f64 left out; only
    /// its sign counts. With `saturate`, what overflows is the largest finite value.
    pub fn encode(self, value: f64, rest: f64, round: Round, saturate: bool) -> u32 {
        let negative = value.is_sign_negative();
        let sign = if negative { self.sign() } else { 0 };
        if value.is_nan() {
            return self.nan();
        }
        if value == 0.0 {
            return sign;
        }
        if value.is_infinite() {
            return sign | self.overflow(Round::Nearest, negative, saturate);
        }
        let magnitude = self.round_magnitude(value, rest, round, negative);
        let overflows = magnitude > self.max_finite();
        sign | if overflows { self.overflow(round, negative, saturate) } else { magnitude }
    }

    /// Encoded magnitude of a finite non-zero value, which may lie past the largest finite one.
    fn round_magnitude(self, value: f64, rest: f64, round: Round, negative: bool) -> u32 {
        const GUARD: u32 = 8;
        let bits = value.abs().to_bits();
        let biased = (bits >> 52) as i32;
        let man = bits & ((1 << 52) - 1) | if biased > 0 { 1 << 52 } else { 0 };
        let nudge = if rest == 0.0 { 0 } else { (rest.is_sign_negative() == negative) as i128 * 2 - 1 };
        let man = (((man as i128) << GUARD) + nudge) as u128;
        let exp = biased.max(1) - 1075 - GUARD as i32;

        let leading = exp + 127 - man.leading_zeros() as i32;
        let min_exp = 1 - self.bias();
        let quantum = leading.max(min_exp) - self.man_bits as i32;
        let shift = (quantum - exp).clamp(1, 127) as u32;
        let whole = (man >> shift) as u32;
        let part = man & ((1 << shift) - 1);
        let half = 1u128 << (shift - 1);
        let up = match round {
            Round::Nearest => part > half || part == half && whole & 1 == 1,
            Round::NearestAway => part >= half,
            Round::Zero => false,
            Round::Down => negative && part != 0,
            Round::Up => !negative && part != 0,
        };
        let whole = whole + up as u32;
        let past = leading.max(min_exp) - min_exp;
        if past >= 1 << self.exp_bits {
            return self.sign() - 1;
        }
        // The hidden bit of `whole` adds the exponent of 1 that normal numbers start with.
        ((past as u32) << self.man_bits) + whole
    }

    fn overflow(self, round: Round, negative: bool, saturate: bool) -> u32 {
        let toward_zero = match round {
            Round::Zero => true,
            Round::Down => !negative,
            Round::Up => negative,
            Round::Nearest | Round::NearestAway => false,
        };
        if saturate || toward_zero {
            self.max_finite()
        } else if self.infinite {
            self.infinity()
        } else {
            self.nan()
        }
    }
}

/// An f64 and the sign of what it lacks to the exact result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exact {
    pub value: f64,
    pub rest: f64,
}

impl Exact {
    pub fn sum(a: f64, b: f64) -> Exact {
        let value = a + b;
        if !value.is_finite() {
            return Exact { value, rest: 0.0 };
        }
        // Knuth's two-sum: value + rest = a + b exactly.
        let part = value - a;
        Exact { value, rest: (a - (value - part)) + (b - part) }
    }

    /// Exact for factors of at most 26 bits each.
    pub fn product(a: f64, b: f64) -> Exact {
        Exact { value: a * b, rest: 0.0 }
    }

    pub fn fma(a: f64, b: f64, c: f64) -> Exact {
        Exact::sum(a * b, c)
    }

    pub fn quotient(a: f64, b: f64) -> Exact {
        let value = a / b;
        let rest = (-value).mul_add(b, a) * b.signum();
        Exact { value, rest: if rest.is_nan() { 0.0 } else { rest } }
    }

    pub fn root(a: f64) -> Exact {
        let value = a.sqrt();
        let rest = (-value).mul_add(value, a);
        Exact { value, rest: if rest.is_nan() { 0.0 } else { rest } }
    }

    pub fn encode(self, format: Format, round: Round, saturate: bool) -> u32 {
        format.encode(self.value, self.rest, round, saturate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_small_encoding_survives() {
        for (format, bits) in [(F16, 16), (BF16, 16), (E5M2, 8), (E4M3, 8)] {
            for code in 0..1u32 << bits {
                let value = format.decode(code);
                let back = format.encode(value, 0.0, Round::Nearest, false);
                assert!(value.is_nan() && back == format.nan() || back == code, "{format:?} {code:x}");
            }
        }
    }

    #[test]
    fn agrees_with_the_half_crate() {
        let mut x = 1u32;
        for _ in 0..100_000 {
            x = x.wrapping_mul(1664525).wrapping_add(1013904223);
            let f = f32::from_bits(x);
            if f.is_nan() {
                continue;
            }
            let near = |format: Format| format.encode(f as f64, 0.0, Round::Nearest, false);
            assert_eq!(near(F16), half::f16::from_f32_const(f).to_bits() as u32, "{f}");
            assert_eq!(near(BF16), half::bf16::from_f32(f).to_bits() as u32, "{f}");
            assert_eq!(near(F32), x, "{f}");
        }
    }

    #[test]
    fn directed_rounding_uses_the_rest() {
        let f = |v: f64, r: f64, m| f32::from_bits(F32.encode(v, r, m, false));
        assert_eq!(f(1.0, -1e-30, Round::Zero), 1.0f32.next_down());
        assert_eq!(f(1.0, 1e-30, Round::Up), 1.0f32.next_up());
        assert_eq!(f(-1.0, 1e-30, Round::Down), -1.0);
        assert_eq!(f(-1.0, -1e-30, Round::Down), (-1.0f32).next_down());
        assert_eq!(f(1e300, 0.0, Round::Zero), f32::MAX);
        assert_eq!(f(1e300, 0.0, Round::Nearest), f32::INFINITY);
    }
}
