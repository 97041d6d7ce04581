// What the kernels of grouped_gemm do with a product: bias, activation, store.

const ACTIVATION_NONE: u32 = 0u;
const SILU: u32 = 1u;
const GELU: u32 = 2u;
const GELU_TANH: u32 = 3u;
const RELU: u32 = 4u;
const RELU_SQUARED: u32 = 5u;
const CLAMPED_SWIGLU: u32 = 6u;

fn bias_quad(expert: u32, quad: u32) -> vec4<f32> {
    var values = vec4<f32>();
    if params.has_bias != 0u {
        let first = params.bias_at + (params.first_expert + expert) * params.n + quad_column(quad);
        for (var i = 0u; i < quad_count(quad); i++) {
            values[i] = bias[first + i * quad_stride()];
        }
    }
    return values;
}

fn activate(gate: f32, up: f32) -> f32 {
    if params.activation == SILU {
        return gate * sigmoid(gate) * up;
    }
    if params.activation == GELU {
        return gelu(gate) * up;
    }
    if params.activation == GELU_TANH {
        // x·(1 + tanh(z))/2 is x·sigmoid(2z): nothing cancels for x < 0.
        return gate * sigmoid(1.5957691 * gate * fma(0.044715 * gate, gate, 1.0)) * up;
    }
    if params.activation == RELU {
        return max(gate, 0.0) * up;
    }
    if params.activation == RELU_SQUARED {
        let x = max(gate, 0.0);
        return x * x * up;
    }
    if params.activation == CLAMPED_SWIGLU {
        let x = min(gate, params.activation_limit);
        let linear = clamp(up, -params.activation_limit, params.activation_limit);
        return (linear + 1.0) * x * sigmoid(params.activation_alpha * x);
    }
    return gate * up;
}

/// The outputs of a quad; `up` is 1 without a gate.
fn activate_quad(gate: vec4<f32>, up: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        activate(gate.x, up.x),
        activate(gate.y, up.y),
        activate(gate.z, up.z),
        activate(gate.w, up.w),
    );
}

/// Writes outputs `first..first + 4` of a row, as far as they are there.
fn store_quad(row: u32, first: u32, values: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        if first + i < params.n_out {
            store(params.output_at + row * params.n_out + first + i, values[i]);
        }
    }
}

/// Two quads of a row's product, the first of them `quad`: bias, activation, and into the output.
fn finish(row: u32, expert: u32, quad: u32, sums: array<vec4<f32>, 2>) {
    let y0 = sums[0] + bias_quad(expert, quad);
    let y1 = sums[1] + bias_quad(expert, quad + 1u);
    if GATE == GATE_NONE {
        store_quad(row, quad * 4u, activate_quad(y0, vec4<f32>(1.0)));
        store_quad(row, quad * 4u + 4u, activate_quad(y1, vec4<f32>(1.0)));
    } else {
        store_quad(row, quad * 2u, activate_quad(y0, y1));
    }
}
