// route by token id: from a table, or drawn. One lane per token.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/random.wgsl"

struct Params {
    num_tokens: u32,
    num_choices: u32,
    top_k: u32,
    /// Rows of the table; drawn where `has_table` is 0.
    num_ids: u32,
    has_table: u32,
    has_disabled: u32,
    token_ids_at: u32,
    hash_table_at: u32,
    seed_low: u32,
    seed_high: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> token_ids: array<u32>;
@group(0) @binding(2) var<storage, read> hash_table: array<u32>;
@group(0) @binding(3) var<storage, read> disabled: array<u32>;
/// [T, k].
@group(0) @binding(4) var<storage, read_write> hashed: array<u32>;

const LANES: u32 = 64u;

fn is_usable(expert: u32) -> bool {
    if expert >= params.num_choices {
        return false;
    }
    return params.has_disabled == 0u || disabled[expert] == 0u;
}

fn is_taken(first: u32, i: u32, expert: u32) -> bool {
    for (var earlier = 0u; earlier < i; earlier++) {
        if hashed[first + earlier] == expert {
            return true;
        }
    }
    return false;
}

/// The expert number `place` among the usable ones that the first `i` slots do not have.
fn nth_left(first: u32, i: u32, place: u32) -> u32 {
    var number = 0u;
    for (var e = 0u; e < params.num_choices; e++) {
        if is_usable(e) && !is_taken(first, i, e) {
            if number == place {
                return e;
            }
            number++;
        }
    }
    return MASKED;
}

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let token = number_of(workgroup) * LANES + lane;
    if token >= params.num_tokens {
        return;
    }
    let token_id = token_ids[params.token_ids_at + token];
    let first = token * params.top_k;
    var num_usable = 0u;
    for (var e = 0u; e < params.num_choices; e++) {
        num_usable += u32(is_usable(e));
    }
    for (var i = 0u; i < params.top_k; i++) {
        var expert = MASKED;
        if params.has_table == 0u {
            let seed = vec2<u32>(params.seed_low, params.seed_high);
            expert = nth_left(first, i, random_below(seed, STREAM_HASH, token_id, i, num_usable - i));
        } else if token_id < params.num_ids {
            let wanted = hash_table[params.hash_table_at + token_id * params.top_k + i];
            expert = select(MASKED, wanted, is_usable(wanted));
        }
        hashed[first + i] = expert;
    }
}
