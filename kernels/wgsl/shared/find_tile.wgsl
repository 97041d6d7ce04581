// Which rows a workgroup of a tiled grouped GEMM has. The kernel has TILE_M rows in a tile, and LANES lanes.

/// Expert, first row, end of the expert's rows.
var<workgroup> tile: vec3<u32>;

/// Finds the tile of this number; no rows where there is none.
fn find_tile(number: u32, lane: u32) {
    if lane == 0u {
        tile = vec3<u32>(0u, 0u, 0u);
    }
    workgroupBarrier();
    let base = expert_offset(0u);
    for (var e = lane; e < params.num_experts; e += LANES) {
        let start = expert_offset(e);
        let end = max(start, expert_offset(e + 1u));
        let first_tile = (start - base) / TILE_M + e;
        if number >= first_tile && number <= (end - base) / TILE_M + e {
            tile = vec3<u32>(e, start + (number - first_tile) * TILE_M, end);
        }
    }
}
