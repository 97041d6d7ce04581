// Expert capacity, after route has picked: slots are given to experts in the rule's order, and an expert that is full
// takes no more.
//
// `order` finds the place of each token or slot in the queue where the queue is by score; the others go through the queue,
// one workgroup per sequence: 64 slots at a time where a slot of a full expert is dropped, one at a time where it goes
// to the next best, for that depends on every slot before it.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/reduce.wgsl"

struct Params {
    num_tokens: u32,
    /// E, zero experts included.
    num_choices: u32,
    num_experts: u32,
    top_k: u32,
    tokens_per_sequence: u32,
    /// Slots that an expert takes.
    limit: u32,
    topk_ids_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
/// [T, k]: the experts picked.
@group(0) @binding(1) var<storage, read> picked_ids: array<u32>;
/// [T, k]: their scores, as integers of the same order.
@group(0) @binding(2) var<storage, read> score_keys: array<u32>;
/// [T, E]: what experts are chosen by, as integers of the same order; 0 where an expert may not be chosen.
@group(0) @binding(3) var<storage, read> choice_keys: array<u32>;
/// [T, k]: the tokens or slots of a sequence, first in the queue first.
@group(0) @binding(4) var<storage, read_write> queue: array<u32>;
/// [sequences, E]: slots given to each expert.
@group(0) @binding(5) var<storage, read_write> load: array<u32>;
@group(0) @binding(6) var<storage, read_write> topk_ids: array<u32>;

const FIRST_CHOICES: u32 = 0u;
const BATCH_PRIORITY: u32 = 1u;
const TOKENS: u32 = 2u;
const SCORES: u32 = 3u;
override ORDER: u32 = FIRST_CHOICES;

const LANES: u32 = 64u;

var<workgroup> experts: array<u32, LANES>;

/// What the queue is ordered by: tokens by their best choice's score, or slots by their own.
fn priority(i: u32) -> u32 {
    return score_keys[select(i, i * params.top_k, ORDER == BATCH_PRIORITY)];
}

/// Places token or slot `i` behind all that come before it.
@compute @workgroup_size(LANES)
fn order(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let i = number_of(workgroup) * LANES + lane;
    let per_token = select(params.top_k, 1u, ORDER == BATCH_PRIORITY);
    let per_sequence = params.tokens_per_sequence * per_token;
    if i >= params.num_tokens * per_token {
        return;
    }
    let first = i / per_sequence * per_sequence;
    let mine = priority(i);
    var place = first;
    for (var other = first; other < first + per_sequence; other++) {
        let theirs = priority(other);
        place += u32(theirs > mine || (theirs == mine && other < i));
    }
    queue[place] = i;
}

/// The slot at a place of a sequence's queue.
fn slot_at(first_token: u32, place: u32) -> u32 {
    let n = params.tokens_per_sequence;
    if ORDER == TOKENS {
        return first_token * params.top_k + place;
    }
    if ORDER == SCORES {
        return queue[first_token * params.top_k + place];
    }
    var token = first_token + place % n;
    if ORDER == BATCH_PRIORITY {
        token = queue[token];
    }
    return token * params.top_k + place / n;
}

fn has_room(loads: u32, expert: u32) -> bool {
    return expert >= params.num_experts || load[loads + expert] < params.limit;
}

fn clear(loads: u32, lane: u32) {
    for (var e = lane; e < params.num_choices; e += LANES) {
        load[loads + e] = 0u;
    }
    storageBarrier();
    workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn drop_slots(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let sequence = number_of(workgroup);
    if sequence * params.tokens_per_sequence >= params.num_tokens {
        return;
    }
    let loads = sequence * params.num_choices;
    let first_token = sequence * params.tokens_per_sequence;
    let num_slots = params.tokens_per_sequence * params.top_k;
    clear(loads, lane);
    for (var start = 0u; start < num_slots; start += LANES) {
        let place = start + lane;
        var slot = 0u;
        var expert = MASKED;
        if place < num_slots {
            slot = slot_at(first_token, place);
            expert = picked_ids[slot];
        }
        experts[lane] = expert;
        workgroupBarrier();
        var rank = 0u;
        var same_after = 0u;
        for (var other = 0u; other < LANES; other++) {
            let same = u32(experts[other] == expert);
            rank += select(0u, same, other < lane);
            same_after += select(0u, same, other > lane);
        }
        var given = 0u;
        if expert != MASKED {
            given = load[loads + expert] + rank;
            let kept = expert >= params.num_experts || given < params.limit;
            topk_ids[params.topk_ids_at + slot] = select(MASKED, expert, kept);
        } else if place < num_slots {
            topk_ids[params.topk_ids_at + slot] = MASKED;
        }
        storageBarrier();
        workgroupBarrier();
        // The last of an expert's slots among these counts for them all, dropped ones too: a full expert stays full.
        if expert != MASKED && same_after == 0u {
            load[loads + expert] = given + 1u;
        }
        storageBarrier();
        workgroupBarrier();
    }
}

/// Whether an earlier slot of the token has the expert.
fn is_taken(slot: u32, expert: u32) -> bool {
    for (var earlier = slot / params.top_k * params.top_k; earlier < slot; earlier++) {
        if topk_ids[params.topk_ids_at + earlier] == expert {
            return true;
        }
    }
    return false;
}

@compute @workgroup_size(LANES)
fn next_best(workgroup: Workgroup, lane: Lane) {
    let sequence = number_of(workgroup);
    if sequence * params.tokens_per_sequence >= params.num_tokens {
        return;
    }
    let loads = sequence * params.num_choices;
    let first_token = sequence * params.tokens_per_sequence;
    clear(loads, lane.index);
    for (var place = 0u; place < params.tokens_per_sequence * params.top_k; place++) {
        let slot = slot_at(first_token, place);
        let keys = slot / params.top_k * params.num_choices;
        var best = vec2<u32>(0u, MASKED);
        for (var e = lane.index; e < params.num_choices; e += LANES) {
            let key = choice_keys[keys + e];
            if key > best.x && has_room(loads, e) && !is_taken(slot, e) {
                best = vec2<u32>(key, e);
            }
        }
        best = reduce_best(lane, best);
        if lane.index == 0u {
            topk_ids[params.topk_ids_at + slot] = best.y;
            if best.y != MASKED {
                load[loads + best.y] += 1u;
            }
        }
        storageBarrier();
        workgroupBarrier();
    }
}
