// Functions whose precision WGSL leaves to the driver, written out: the same on every adapter, and good to about 1e-7.

fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

/// e^x for x ≤ 0; 0 where that is below the normal numbers.
fn exp_nonpositive(x: f32) -> f32 {
    if x < -87.0 {
        return 0.0;
    }
    // x = n·ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts, the first short enough that n times it is exact.
    let n = round(x * 1.44269504);
    let r = fma(n, 2.12194440e-4, fma(n, -0.693359375, x));
    var p = 1.0 / 5040.0;
    p = fma(p, r, 1.0 / 720.0);
    p = fma(p, r, 1.0 / 120.0);
    p = fma(p, r, 1.0 / 24.0);
    p = fma(p, r, 1.0 / 6.0);
    p = fma(p, r, 0.5);
    p = fma(p, r, 1.0);
    p = fma(p, r, 1.0);
    return p * bitcast<f32>(u32(i32(n) + 127) << 23u);
}

fn sigmoid(x: f32) -> f32 {
    let e = exp_nonpositive(-abs(x));
    return select(1.0, e, x < 0.0) / (1.0 + e);
}

/// Odd around 0, where a quotient of exponentials would cancel.
fn tanh_exact(x: f32) -> f32 {
    let a = abs(x);
    if a < 0.3 {
        let s = x * x;
        var p = 62.0 / 2835.0;
        p = fma(p, s, -17.0 / 315.0);
        p = fma(p, s, 2.0 / 15.0);
        p = fma(p, s, -1.0 / 3.0);
        return fma(p * s, x, x);
    }
    let e = exp_nonpositive(-2.0 * a);
    return sign(x) * ((1.0 - e) / (1.0 + e));
}

/// ln(1 + y) for y in [−0.3, 1], by the series of 2·artanh(y / (2 + y)).
fn log1p_unit(y: f32) -> f32 {
    let s = y / (2.0 + y);
    let s2 = s * s;
    var p = 1.0 / 15.0;
    p = fma(p, s2, 1.0 / 13.0);
    p = fma(p, s2, 1.0 / 11.0);
    p = fma(p, s2, 1.0 / 9.0);
    p = fma(p, s2, 1.0 / 7.0);
    p = fma(p, s2, 1.0 / 5.0);
    p = fma(p, s2, 1.0 / 3.0);
    p = fma(p, s2, 1.0);
    return 2.0 * s * p;
}

/// ln x of a normal number > 0.
fn ln(x: f32) -> f32 {
    // x = m·2^n with m in √½..√2.
    let bits = bitcast<u32>(x) + 0x3f800000u - 0x3f3504f3u;
    let n = f32(i32(bits >> 23u) - 127);
    let m = bitcast<f32>((bits & 0x7fffffu) + 0x3f3504f3u);
    return fma(n, 0.693147181, log1p_unit(m - 1.0));
}

fn softplus(x: f32) -> f32 {
    return max(x, 0.0) + log1p_unit(exp_nonpositive(-abs(x)));
}

/// x·Φ(x). The tail of Φ by Abramowitz and Stegun 7.1.26 (error below 1.5e-7), so that nothing cancels for x < 0.
fn gelu(x: f32) -> f32 {
    let z = abs(x) * 0.70710678;
    let t = 1.0 / fma(0.3275911, z, 1.0);
    var p = 1.061405429;
    p = fma(p, t, -1.453152027);
    p = fma(p, t, 1.421413741);
    p = fma(p, t, -0.284496736);
    p = fma(p, t, 0.254829592);
    let tail = 0.5 * p * t * exp_nonpositive(-z * z);
    return x * select(1.0 - tail, tail, x < 0.0);
}

/// A logit within `±clip`, then `cap·tanh(x / cap)` unless the cap is 0; a NaN stays one.
fn transform(x: f32, clip: f32, cap: f32) -> f32 {
    if is_nan(x) {
        return x;
    }
    let clipped = clamp(x, -clip, clip);
    if cap > 0.0 {
        return cap * tanh_exact(clipped / cap);
    }
    return clipped;
}
