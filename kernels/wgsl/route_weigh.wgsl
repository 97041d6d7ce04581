// route, where what becomes of a token depends on others: weighs the slots that it has.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/reduce.wgsl"
// #include "shared/random.wgsl"
// #include "shared/scores.wgsl"
// #include "shared/route_rule.wgsl"
// #include "shared/weigh.wgsl"

@group(0) @binding(6) var<storage, read_write> topk_weights: array<f32>;
/// [T, k]: the experts that were picked before slots were dropped.
@group(0) @binding(7) var<storage, read> picked_ids: array<u32>;
/// [T + 1]: where a token's slots start, where tokens have different numbers of them.
@group(0) @binding(8) var<storage, read> token_offsets: array<u32>;

fn slots_of(token: u32) -> Slots {
    if params.ragged == 0u {
        return Slots(token * params.top_k, params.top_k);
    }
    let first = token_offsets[params.token_offsets_at + token];
    return Slots(first, token_offsets[params.token_offsets_at + token + 1u] - first);
}

fn basis_id(token: u32, i: u32) -> u32 {
    if params.before_dropping != 0u {
        return picked_ids[token * params.top_k + i];
    }
    return kept_id(token, i);
}

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, lane: Lane) {
    let token = number_of(workgroup);
    if token >= params.num_tokens {
        return;
    }
    weigh(token, lane, softmax_of_scores(token, lane));
}
