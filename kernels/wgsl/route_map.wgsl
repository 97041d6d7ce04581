// route, last: ids to those of this rank. One lane per slot.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"

struct Params {
    num_slots: u32,
    num_choices: u32,
    topk_ids_at: u32,
    topk_weights_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
/// [E]: ids of this rank; MASKED where an expert is on another.
@group(0) @binding(1) var<storage, read> expert_map: array<u32>;
@group(0) @binding(2) var<storage, read_write> topk_ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> topk_weights: array<f32>;

const LANES: u32 = 256u;

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let slot = number_of(workgroup) * LANES + lane;
    if slot >= params.num_slots {
        return;
    }
    let id = topk_ids[params.topk_ids_at + slot];
    var mapped = MASKED;
    if id < params.num_choices {
        mapped = expert_map[id];
    }
    topk_ids[params.topk_ids_at + slot] = mapped;
    if mapped == MASKED {
        topk_weights[params.topk_weights_at + slot] = 0.0;
    }
}
