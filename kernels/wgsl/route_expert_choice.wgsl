// route by expert choice, after route_pick has said what tokens are taken by: each expert takes its best tokens, ties to
// the lowest; then the slots are put in the order of tokens, a token's in that of experts.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"

struct Params {
    num_tokens: u32,
    num_choices: u32,
    /// Tokens that an expert takes.
    tokens_per_expert: u32,
    has_disabled: u32,
    topk_ids_at: u32,
    token_offsets_at: u32,
    slot_tokens_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
/// [T, E].
@group(0) @binding(1) var<storage, read> choice_keys: array<u32>;
@group(0) @binding(2) var<storage, read> disabled: array<u32>;
/// [E]: the lowest key taken, and the end of the tokens taken with that very key.
@group(0) @binding(3) var<storage, read_write> thresholds: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> token_offsets: array<u32>;
@group(0) @binding(5) var<storage, read_write> topk_ids: array<u32>;
@group(0) @binding(6) var<storage, read_write> slot_tokens: array<u32>;

const LANES: u32 = 64u;

var<workgroup> counts: array<u32, LANES>;

/// The sum over the lanes before this one, and over all.
fn count_before(lane: u32, count: u32) -> vec2<u32> {
    counts[lane] = count;
    workgroupBarrier();
    var sums = vec2<u32>(0u, 0u);
    for (var other = 0u; other < LANES; other++) {
        sums += vec2<u32>(select(0u, counts[other], other < lane), counts[other]);
    }
    workgroupBarrier();
    return sums;
}

/// The tokens whose key for an expert is at least this.
fn count_from(lane: u32, expert: u32, key: u32) -> u32 {
    var count = 0u;
    for (var token = lane; token < params.num_tokens; token += LANES) {
        count += u32(choice_keys[token * params.num_choices + expert] >= key);
    }
    return count_before(lane, count).y;
}

/// Finds what an expert takes, one workgroup each.
@compute @workgroup_size(LANES)
fn find_threshold(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let expert = number_of(workgroup);
    if expert >= params.num_choices {
        return;
    }
    // The largest key that enough tokens reach, bit by bit.
    var key = 0u;
    for (var i = 0u; i < 32u; i++) {
        let tried = key | (0x80000000u >> i);
        key = select(key, tried, count_from(lane, expert, tried) >= params.tokens_per_expert);
    }
    // No key is the largest number.
    var left = params.tokens_per_expert - min(count_from(lane, expert, key + 1u), params.tokens_per_expert);
    var end = 0u;
    for (var start = 0u; start < params.num_tokens; start += LANES) {
        let token = start + lane;
        var same = 0u;
        if token < params.num_tokens {
            same = u32(choice_keys[token * params.num_choices + expert] == key);
        }
        let before = count_before(lane, same);
        if same == 1u && before.x + 1u == left {
            end = token + 1u;
        }
        left -= min(left, before.y);
    }
    // One lane at most has found the end.
    end = count_before(lane, end).y;
    if lane == 0u {
        let takes = params.tokens_per_expert > 0u && !(params.has_disabled != 0u && disabled[expert] != 0u);
        thresholds[expert] = select(vec2<u32>(0xffffffffu, 0u), vec2<u32>(key, end), takes);
    }
}

fn is_taken(token: u32, expert: u32) -> bool {
    let key = choice_keys[token * params.num_choices + expert];
    let threshold = thresholds[expert];
    return key > threshold.x || (key == threshold.x && token < threshold.y);
}

/// Leaves the number of a token's slots where its offset will be, one lane each.
@compute @workgroup_size(LANES)
fn count_slots(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let token = number_of(workgroup) * LANES + lane;
    if token >= params.num_tokens {
        return;
    }
    var count = 0u;
    for (var e = 0u; e < params.num_choices; e++) {
        count += u32(is_taken(token, e));
    }
    token_offsets[params.token_offsets_at + token] = count;
}

/// Turns numbers of slots into offsets, in one workgroup.
@compute @workgroup_size(LANES)
fn scan_slots(@builtin(local_invocation_index) lane: u32) {
    var slots = 0u;
    for (var start = 0u; start < params.num_tokens; start += LANES) {
        let at = params.token_offsets_at + start + lane;
        var count = 0u;
        if start + lane < params.num_tokens {
            count = token_offsets[at];
        }
        let before = count_before(lane, count);
        if start + lane < params.num_tokens {
            token_offsets[at] = slots + before.x;
        }
        slots += before.y;
    }
    if lane == 0u {
        token_offsets[params.token_offsets_at + params.num_tokens] = slots;
    }
}

/// Writes a token's slots, one lane each.
@compute @workgroup_size(LANES)
fn place_slots(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let token = number_of(workgroup) * LANES + lane;
    if token >= params.num_tokens {
        return;
    }
    var slot = token_offsets[params.token_offsets_at + token];
    for (var e = 0u; e < params.num_choices; e++) {
        if is_taken(token, e) {
            topk_ids[params.topk_ids_at + slot] = e;
            slot_tokens[params.slot_tokens_at + slot] = token;
            slot++;
        }
    }
}
