// combine: a token's weighted sum of expert outputs, and what is added to it. One lane per word of the output.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"

struct Params {
    num_tokens: u32,
    hidden_size: u32,
    top_k: u32,
    shared_scale: f32,
    expert_out_at: u32,
    inv_permuted_idx_at: u32,
    topk_weights_at: u32,
    token_offsets_at: u32,
    hidden_states_at: u32,
    shared_out_at: u32,
    gate_logits_at: u32,
    output_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> expert_out: array<u32>;
@group(0) @binding(2) var<storage, read> inv_permuted_idx: array<u32>;
@group(0) @binding(3) var<storage, read> topk_weights: array<f32>;
@group(0) @binding(4) var<storage, read> token_offsets: array<u32>;
@group(0) @binding(5) var<storage, read> hidden_states: array<u32>;
@group(0) @binding(6) var<storage, read> shared_out: array<u32>;
@group(0) @binding(7) var<storage, read> gate_logits: array<f32>;
@group(0) @binding(8) var<storage, read_write> output: array<u32>;

override EXPERT_OUT_DTYPE: u32 = F32;
override HIDDEN_STATES_DTYPE: u32 = F32;
override SHARED_OUT_DTYPE: u32 = F32;
override OUTPUT_DTYPE: u32 = F32;
override HAS_ROWS: bool = true;
override HAS_WEIGHTS: bool = true;
/// Whether rows may be ZERO_EXPERT (see combine_slots).
override HAS_ZERO_EXPERTS: bool = false;
override RAGGED: bool = false;
override HAS_SHARED: bool = false;
override HAS_GATE: bool = false;

const LANES: u32 = 256u;

fn expert_out_at(i: u32) -> f32 {
    let at = params.expert_out_at + i;
    return widen(expert_out[word_of(at, EXPERT_OUT_DTYPE)], at, EXPERT_OUT_DTYPE);
}

fn hidden_state(i: u32) -> f32 {
    let at = params.hidden_states_at + i;
    return widen(hidden_states[word_of(at, HIDDEN_STATES_DTYPE)], at, HIDDEN_STATES_DTYPE);
}

fn shared_at(i: u32) -> f32 {
    let at = params.shared_out_at + i;
    return widen(shared_out[word_of(at, SHARED_OUT_DTYPE)], at, SHARED_OUT_DTYPE);
}

/// `sum` and what a slot adds to column `h`.
fn add_slot(sum: f32, slot: u32, token: u32, h: u32) -> f32 {
    var weight = 1.0;
    if HAS_WEIGHTS {
        weight = topk_weights[params.topk_weights_at + slot];
    }
    var row = slot;
    if HAS_ROWS {
        row = inv_permuted_idx[params.inv_permuted_idx_at + slot];
    }
    if row == MASKED {
        return sum;
    }
    if HAS_ZERO_EXPERTS && row == ZERO_EXPERT {
        return fma(weight, hidden_state(token * params.hidden_size + h), sum);
    }
    return fma(weight, expert_out_at(row * params.hidden_size + h), sum);
}

/// Element `i` of the output.
fn combined(i: u32) -> f32 {
    let token = i / params.hidden_size;
    let h = i % params.hidden_size;
    var slot = token * params.top_k;
    var end = slot + params.top_k;
    if RAGGED {
        slot = token_offsets[params.token_offsets_at + token];
        end = token_offsets[params.token_offsets_at + token + 1u];
    }
    var sum = 0.0;
    for (; slot < end; slot++) {
        sum = add_slot(sum, slot, token, h);
    }
    if HAS_SHARED {
        var scale = params.shared_scale;
        if HAS_GATE {
            scale *= sigmoid(gate_logits[params.gate_logits_at + token]);
        }
        sum = fma(scale, shared_at(i), sum);
    }
    return sum;
}

/// The half of a word with element `at` of the output's memory; what was there where that is no element of it.
fn half_word(at: u32, end: u32, before: u32) -> u32 {
    if at < params.output_at || at >= end {
        return before & 0xffffu;
    }
    return narrow(combined(at - params.output_at), OUTPUT_DTYPE);
}

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let word = word_of(params.output_at, OUTPUT_DTYPE) + number_of(workgroup) * LANES + lane;
    let end = params.output_at + params.num_tokens * params.hidden_size;
    if OUTPUT_DTYPE == F32 {
        if word < end {
            output[word] = bitcast<u32>(combined(word - params.output_at));
        }
        return;
    }
    let at = word * 2u;
    if at < end {
        // No other lane has this word, so that reading it first is safe.
        let before = output[word];
        output[word] = half_word(at, end, before) | (half_word(at + 1u, end, before >> 16u) << 16u);
    }
}
