// The generator of src/routing/noise.rs, in the same bits: Philox 4×32-10 (Salmon et al. 2011).

const STREAM_INPUT: u32 = 1u;
const STREAM_KEEP: u32 = 3u;
const STREAM_HASH: u32 = 4u;

/// The upper half of a product.
fn multiply_high(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let middle = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let other = (a & 0xffffu) * (b >> 16u) + (middle & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (middle >> 16u) + (other >> 16u);
}

/// 32 random bits of the counter (`a`, `b`, stream, 0) under the key `seed`, low half first.
fn random_bits(seed: vec2<u32>, stream: u32, a: u32, b: u32) -> u32 {
    var counter = vec4<u32>(a, b, stream, 0u);
    var key = seed;
    for (var round = 0u; round < 10u; round++) {
        counter = vec4<u32>(
            multiply_high(counter.z, 0xcd9e8d57u) ^ counter.y ^ key.x,
            counter.z * 0xcd9e8d57u,
            multiply_high(counter.x, 0xd2511f53u) ^ counter.w ^ key.y,
            counter.x * 0xd2511f53u,
        );
        key += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return counter.x;
}

/// Uniform in (0, 1).
fn random_uniform(seed: vec2<u32>, stream: u32, a: u32, b: u32) -> f32 {
    return (f32(random_bits(seed, stream, a, b) >> 8u) + 0.5) * (1.0 / 16777216.0);
}

/// A whole number below `n`.
fn random_below(seed: vec2<u32>, stream: u32, a: u32, b: u32, n: u32) -> u32 {
    return multiply_high(random_bits(seed, stream, a, b), n);
}
