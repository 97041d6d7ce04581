// The floating-point types that lie in memory as words of 32 bits. All arithmetic is f32.

const F32: u32 = 0u;
const BF16: u32 = 1u;
const F16: u32 = 2u;

/// The id of a slot that no expert takes, and the row of a slot that has none.
const MASKED: u32 = 0xffffffffu;

/// The row of a slot whose expert returns the token itself.
const ZERO_EXPERT: u32 = 0xfffffffeu;

/// The word that holds element `i`.
fn word_of(i: u32, dtype: u32) -> u32 {
    if dtype == F32 {
        return i;
    }
    return i >> 1u;
}

/// Element `i`, out of its word.
fn widen(word: u32, i: u32, dtype: u32) -> f32 {
    if dtype == F32 {
        return bitcast<f32>(word);
    }
    let bits = select(word & 0xffffu, word >> 16u, (i & 1u) == 1u);
    if dtype == BF16 {
        return bitcast<f32>(bits << 16u);
    }
    return unpack2x16float(bits).x;
}

/// Four elements from `i` on, a multiple of 4, out of the 16 bytes that hold them.
fn widen_quad(words: vec4<u32>, i: u32, dtype: u32) -> vec4<f32> {
    if dtype == F32 {
        return bitcast<vec4<f32>>(words);
    }
    let pair = select(words.xy, words.zw, (i & 4u) != 0u);
    if dtype == BF16 {
        return bitcast<vec4<f32>>(vec4<u32>(
            pair.x << 16u,
            pair.x & 0xffff0000u,
            pair.y << 16u,
            pair.y & 0xffff0000u,
        ));
    }
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}

/// The bits of `x` in `dtype`, rounded to nearest even; 16-bit types in the low half.
fn narrow(x: f32, dtype: u32) -> u32 {
    let bits = bitcast<u32>(x);
    if dtype == F32 {
        return bits;
    }
    if dtype == BF16 {
        if (bits & 0x7fffffffu) > 0x7f800000u {
            return (bits >> 16u) | 0x40u;
        }
        return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    }
    return narrow_f16(bits);
}

// Written out, for WGSL leaves pack2x16float open above the largest f16.
fn narrow_f16(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return sign | 0x7e00u;
    }
    if magnitude >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    if magnitude < 0x38800000u {
        // Below the normal numbers: at 0.5 the last bit of an f32 is worth the smallest f16, and the sum rounds to it.
        return sign | (bitcast<u32>(bitcast<f32>(magnitude) + 0.5) - 0x3f000000u);
    }
    return sign | ((magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u);
}
