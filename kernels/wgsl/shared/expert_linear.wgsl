// What the kernels of grouped_gemm share: their parameters, and where inputs and weights lie.

struct Params {
    /// R: rows of the output.
    num_rows: u32,
    /// N: columns of the product.
    n: u32,
    /// K.
    k: u32,
    /// Columns of the output: N, or N/2 with a gate.
    n_out: u32,
    /// The experts of this launch, whose weights are bound: `first_expert..first_expert + num_experts`.
    first_expert: u32,
    num_experts: u32,
    top_k: u32,
    activation_alpha: f32,
    activation_limit: f32,
    input_at: u32,
    permuted_idx_at: u32,
    slot_tokens_at: u32,
    slot_scale_at: u32,
    expert_offsets_at: u32,
    weight_at: u32,
    bias_at: u32,
    output_at: u32,
    /// How rows of the input are found.
    rows: u32,
    activation: u32,
    has_slot_scale: u32,
    has_expert_offsets: u32,
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> permuted_idx: array<u32>;
@group(0) @binding(3) var<storage, read> slot_tokens: array<u32>;
@group(0) @binding(4) var<storage, read> slot_scale: array<f32>;
@group(0) @binding(5) var<storage, read> expert_offsets: array<u32>;
@group(0) @binding(6) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read> bias: array<f32>;

override INPUT_DTYPE: u32 = F32;
override WEIGHT_DTYPE: u32 = F32;
override OUTPUT_DTYPE: u32 = F32;

const ROWS_SAME: u32 = 0u;
const ROWS_PER_TOKEN: u32 = 1u;
const ROWS_RAGGED: u32 = 2u;

/// Weights lie [E, K, N].
override KN: bool = false;
/// Whether rows of the input, and of a weight matrix, start on 16 bytes (8 in 16-bit types), and so hold whole quads.
override INPUT_QUADS: bool = true;
override WEIGHT_QUADS: bool = true;

const GATE_NONE: u32 = 0u;
const GATE_THEN_UP: u32 = 1u;
const UP_THEN_GATE: u32 = 2u;
const INTERLEAVED: u32 = 3u;
override GATE: u32 = GATE_NONE;

/// Where the rows of an expert of this launch start; of `num_experts`, where the last one's end.
fn expert_offset(expert: u32) -> u32 {
    if params.has_expert_offsets != 0u {
        return min(expert_offsets[params.expert_offsets_at + params.first_expert + expert], params.num_rows);
    }
    return select(params.num_rows, 0u, expert == 0u);
}

/// An input row, and what scales it.
struct InputRow {
    start: u32,
    scale: f32,
}

fn input_row(row: u32) -> InputRow {
    if params.rows == ROWS_SAME {
        return InputRow(params.input_at + row * params.k, 1.0);
    }
    let slot = permuted_idx[params.permuted_idx_at + row];
    var token = slot / params.top_k;
    if params.rows == ROWS_RAGGED {
        token = slot_tokens[params.slot_tokens_at + slot];
    }
    var scale = 1.0;
    if params.has_slot_scale != 0u {
        scale = slot_scale[params.slot_scale_at + slot];
    }
    return InputRow(params.input_at + token * params.k, scale);
}

fn input_element(at: u32) -> f32 {
    let word = word_of(at, INPUT_DTYPE);
    return widen(input[word >> 2u][word & 3u], at, INPUT_DTYPE);
}

/// Columns `k..k + 4` of the input row that starts at `start`; 0 beyond K.
fn input_quad(start: u32, k: u32) -> vec4<f32> {
    if INPUT_QUADS {
        if k >= params.k {
            return vec4<f32>();
        }
        return widen_quad(input[word_of(start + k, INPUT_DTYPE) >> 2u], start + k, INPUT_DTYPE);
    }
    var quad = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if k + i < params.k {
            quad[i] = input_element(start + k + i);
        }
    }
    return quad;
}

fn weight_element(at: u32) -> f32 {
    let word = word_of(at, WEIGHT_DTYPE);
    return widen(weight[word >> 2u][word & 3u], at, WEIGHT_DTYPE);
}

/// The element of an expert's matrix from K-index `k` to column `n` of the product.
fn weight_at(expert: u32, n: u32, k: u32) -> u32 {
    let matrix = params.weight_at + expert * params.n * params.k;
    return matrix + select(n * params.k + k, k * params.n + n, KN);
}

/// Four elements that follow each other in memory, from `at` on, of which `count` are there; 0 for the others.
fn weight_quad(at: u32, count: u32) -> vec4<f32> {
    if WEIGHT_QUADS {
        if count == 0u {
            return vec4<f32>();
        }
        return widen_quad(weight[word_of(at, WEIGHT_DTYPE) >> 2u], at, WEIGHT_DTYPE);
    }
    var quad = vec4<f32>();
    for (var i = 0u; i < min(count, 4u); i++) {
        quad[i] = weight_element(at + i);
    }
    return quad;
}

/// The columns of the product are computed in quads: with a gate, quad 2·q is the gate's and quad 2·q + 1 the up
/// projection's columns for outputs 4·q to 4·q + 3. The first column of a quad.
fn quad_column(quad: u32) -> u32 {
    if GATE == GATE_NONE {
        return quad * 4u;
    }
    let first = quad / 2u * 4u;
    let is_up = (quad & 1u) == 1u;
    if GATE == INTERLEAVED {
        return first * 2u + u32(is_up);
    }
    return first + select(0u, params.n_out, is_up == (GATE == GATE_THEN_UP));
}

/// How far its columns are apart.
fn quad_stride() -> u32 {
    return select(1u, 2u, GATE == INTERLEAVED);
}

/// How many of its columns are there.
fn quad_count(quad: u32) -> u32 {
    let first = select(quad * 4u, quad / 2u * 4u, GATE != GATE_NONE);
    return select(0u, min(4u, params.n_out - first), first < params.n_out);
}

/// Of [E, K, N]: the weights from K-index `k` to a quad of columns.
fn weight_quad_kn(expert: u32, quad: u32, k: u32) -> vec4<f32> {
    let count = quad_count(quad);
    let at = weight_at(expert, quad_column(quad), k);
    if GATE != INTERLEAVED {
        return weight_quad(at, count);
    }
    var values = vec4<f32>();
    for (var i = 0u; i < count; i++) {
        values[i] = weight_element(at + i * 2u);
    }
    return values;
}
