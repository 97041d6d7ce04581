// permute: a stable counting sort of slots by expert, without atomics.
//
// Slots are cut into blocks of consecutive slots, one workgroup each. `count` ranks every slot among its block's slots
// of the same expert; `scan` turns each block's counts into the rows where they start; `place` adds the two. Few slots
// are one block, and all three steps one launch (`small`).

// #include "shared/numbers.wgsl"

struct Params {
    num_slots: u32,
    num_experts: u32,
    num_blocks: u32,
    /// A multiple of LANES.
    slots_per_block: u32,
    topk_ids_at: u32,
    expert_offsets_at: u32,
    permuted_idx_at: u32,
    inv_permuted_idx_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> topk_ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> expert_offsets: array<u32>;
@group(0) @binding(3) var<storage, read_write> permuted_idx: array<u32>;
@group(0) @binding(4) var<storage, read_write> inv_permuted_idx: array<u32>;
/// [blocks, E]: the slots of a block per expert, then the row of the first of them.
@group(0) @binding(5) var<storage, read_write> block_rows: array<u32>;

const LANES: u32 = 256u;

var<workgroup> ids: array<u32, LANES>;
var<workgroup> sums: array<u32, LANES>;

/// The expert of a slot; MASKED for an id of none.
fn expert_of(slot: u32) -> u32 {
    if slot >= params.num_slots {
        return MASKED;
    }
    let id = topk_ids[params.topk_ids_at + slot];
    return select(MASKED, id, id < params.num_experts);
}

fn count_block(block: u32, lane: u32) {
    let counts = block * params.num_experts;
    for (var e = lane; e < params.num_experts; e += LANES) {
        block_rows[counts + e] = 0u;
    }
    let first = block * params.slots_per_block;
    for (var start = first; start < first + params.slots_per_block; start += LANES) {
        let slot = start + lane;
        let id = expert_of(slot);
        ids[lane] = id;
        storageBarrier();
        workgroupBarrier();
        var rank = 0u;
        var same_after = 0u;
        for (var other = 0u; other < LANES; other++) {
            let same = u32(ids[other] == id);
            rank += select(0u, same, other < lane);
            same_after += select(0u, same, other > lane);
        }
        var before = 0u;
        if id != MASKED {
            before = block_rows[counts + id];
            inv_permuted_idx[params.inv_permuted_idx_at + slot] = before + rank;
        }
        storageBarrier();
        workgroupBarrier();
        // The last of an expert's slots among these writes for them all.
        if id != MASKED && same_after == 0u {
            block_rows[counts + id] = before + rank + 1u;
        }
    }
    storageBarrier();
    workgroupBarrier();
}

/// The sum of `value` over the lanes up to and including this one.
fn inclusive_scan(lane: u32, value: u32) -> u32 {
    sums[lane] = value;
    workgroupBarrier();
    for (var distance = 1u; distance < LANES; distance *= 2u) {
        var before = 0u;
        if lane >= distance {
            before = sums[lane - distance];
        }
        workgroupBarrier();
        sums[lane] += before;
        workgroupBarrier();
    }
    return sums[lane];
}

/// Counts to rows, expert after expert and block after block.
fn scan_blocks(lane: u32) {
    var rows_before = 0u;
    for (var start = 0u; start < params.num_experts; start += LANES) {
        let e = start + lane;
        var rows = 0u;
        if e < params.num_experts {
            for (var block = 0u; block < params.num_blocks; block++) {
                rows += block_rows[block * params.num_experts + e];
            }
        }
        let scanned = inclusive_scan(lane, rows);
        var row = rows_before + scanned - rows;
        if e < params.num_experts {
            expert_offsets[params.expert_offsets_at + e] = row;
            for (var block = 0u; block < params.num_blocks; block++) {
                let at = block * params.num_experts + e;
                let count = block_rows[at];
                block_rows[at] = row;
                row += count;
            }
        }
        rows_before += sums[LANES - 1u];
        workgroupBarrier();
    }
    if lane == 0u {
        expert_offsets[params.expert_offsets_at + params.num_experts] = rows_before;
    }
    storageBarrier();
    workgroupBarrier();
}

fn place_block(block: u32, lane: u32) {
    let rows = expert_offsets[params.expert_offsets_at + params.num_experts];
    let first = block * params.slots_per_block;
    for (var start = first; start < first + params.slots_per_block; start += LANES) {
        let slot = start + lane;
        if slot >= params.num_slots {
            continue;
        }
        let id = expert_of(slot);
        var row = MASKED;
        if id != MASKED {
            row = block_rows[block * params.num_experts + id] + inv_permuted_idx[params.inv_permuted_idx_at + slot];
            permuted_idx[params.permuted_idx_at + row] = slot;
        }
        inv_permuted_idx[params.inv_permuted_idx_at + slot] = row;
        if slot >= rows {
            permuted_idx[params.permuted_idx_at + slot] = MASKED;
        }
    }
}

@compute @workgroup_size(LANES)
fn small(@builtin(local_invocation_index) lane: u32) {
    count_block(0u, lane);
    scan_blocks(lane);
    place_block(0u, lane);
}

@compute @workgroup_size(LANES)
fn count(@builtin(workgroup_id) block: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    count_block(block.x, lane);
}

@compute @workgroup_size(LANES)
fn scan(@builtin(local_invocation_index) lane: u32) {
    scan_blocks(lane);
}

@compute @workgroup_size(LANES)
fn place(@builtin(workgroup_id) block: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    place_block(block.x, lane);
}
