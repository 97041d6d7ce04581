// combine, before, where there are zero experts: what each slot takes from where, so that combine itself binds no more
// buffers than every adapter has. One lane per slot.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"

struct Params {
    num_slots: u32,
    first_zero_expert: u32,
    num_zero_experts: u32,
    has_rows: u32,
    has_weights: u32,
    inv_permuted_idx_at: u32,
    topk_weights_at: u32,
    topk_ids_at: u32,
    zero_weights_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> inv_permuted_idx: array<u32>;
@group(0) @binding(2) var<storage, read> topk_weights: array<f32>;
@group(0) @binding(3) var<storage, read> topk_ids: array<u32>;
@group(0) @binding(4) var<storage, read> zero_weights: array<f32>;
/// As combine reads them: inv_permuted_idx with ZERO_EXPERT, and weights.
@group(0) @binding(5) var<storage, read_write> rows: array<u32>;
@group(0) @binding(6) var<storage, read_write> weights: array<f32>;

const LANES: u32 = 256u;

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let slot = number_of(workgroup) * LANES + lane;
    if slot >= params.num_slots {
        return;
    }
    let id = topk_ids[params.topk_ids_at + slot];
    if id >= params.first_zero_expert && id - params.first_zero_expert < params.num_zero_experts {
        rows[slot] = ZERO_EXPERT;
        weights[slot] = zero_weights[params.zero_weights_at + slot];
        return;
    }
    var row = slot;
    if params.has_rows != 0u {
        row = inv_permuted_idx[params.inv_permuted_idx_at + slot];
    }
    var weight = 1.0;
    if params.has_weights != 0u {
        weight = topk_weights[params.topk_weights_at + slot];
    }
    rows[slot] = row;
    weights[slot] = weight;
}
