// grouped_gemm: tiles of one expert's rows by columns, for many rows per expert.
//
// The host does not know how many rows an expert has. It launches as many row tiles as there can be, and a workgroup
// finds its own: the tiles of expert e are numbered from ⌊expert_offsets[e] / TILE_M⌋ + e on, which leaves each expert
// at least the tiles it needs; a tile beyond its expert's rows ends at once.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/expert_linear.wgsl"
// #include "shared/epilogue.wgsl"
// #include "shared/find_tile.wgsl"
// #include "shared/store.wgsl"

/// Rows and columns of a workgroup's tile, multiples of MICRO_M and MICRO_N.
override TILE_M: u32 = 64u;
override TILE_N: u32 = 64u;
const TILE_K: u32 = 16u;

/// Rows and columns of a lane's part of the tile.
const MICRO_M: u32 = 4u;
const MICRO_N: u32 = 8u;
override LANES: u32 = 128u;

/// [TILE_K, TILE / 4]: quads along rows and columns.
var<workgroup> input_tile: array<vec4<f32>, TILE_K * TILE_M / 4u>;
var<workgroup> weight_tile: array<vec4<f32>, TILE_K * TILE_N / 4u>;
var<workgroup> tile_rows: array<InputRow, TILE_M>;

fn load_rows(lane: u32, first: u32, end: u32) {
    for (var i = lane; i < TILE_M; i += LANES) {
        tile_rows[i] = input_row(min(first + i, end - 1u));
    }
}

/// Columns `k0..k0 + TILE_K` of the tile's rows, transposed.
fn load_input(lane: u32, k0: u32) {
    for (var i = lane; i < TILE_M * TILE_K / 4u; i += LANES) {
        let row = i / (TILE_K / 4u);
        let k = i % (TILE_K / 4u) * 4u;
        let quad = input_quad(tile_rows[row].start, k0 + k) * tile_rows[row].scale;
        for (var j = 0u; j < 4u; j++) {
            input_tile[(k + j) * (TILE_M / 4u) + row / 4u][row % 4u] = quad[j];
        }
    }
}

fn load_weight(lane: u32, expert: u32, first_quad: u32, k0: u32) {
    if KN {
        load_weight_kn(lane, expert, first_quad, k0);
        return;
    }
    for (var i = lane; i < TILE_N * TILE_K / 4u; i += LANES) {
        let column = i / (TILE_K / 4u);
        let k = i % (TILE_K / 4u) * 4u;
        let quad = first_quad + column / 4u;
        var values = vec4<f32>();
        if column % 4u < quad_count(quad) && k0 + k < params.k {
            let n = quad_column(quad) + column % 4u * quad_stride();
            values = weight_quad(weight_at(expert, n, k0 + k), params.k - k0 - k);
        }
        for (var j = 0u; j < 4u; j++) {
            weight_tile[(k + j) * (TILE_N / 4u) + column / 4u][column % 4u] = values[j];
        }
    }
}

fn load_weight_kn(lane: u32, expert: u32, first_quad: u32, k0: u32) {
    for (var i = lane; i < TILE_N * TILE_K / 4u; i += LANES) {
        let k = i / (TILE_N / 4u);
        let quad = first_quad + i % (TILE_N / 4u);
        var values = vec4<f32>();
        if k0 + k < params.k {
            values = weight_quad_kn(expert, quad, k0 + k);
        }
        weight_tile[i] = values;
    }
}

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let first_quad = workgroup.id.x * (TILE_N / 4u);
    let lane_m = lane / (TILE_N / MICRO_N);
    let lane_n = lane % (TILE_N / MICRO_N);
    let num_tiles = params.num_rows / TILE_M + params.num_experts;
    for (var number = workgroup.id.y; number < num_tiles; number += workgroup.count.y) {
        find_tile(number, lane);
        let found = workgroupUniformLoad(&tile);
        if found.y >= found.z {
            continue;
        }
        load_rows(lane, found.y, found.z);
        workgroupBarrier();
        var sums = array<array<vec4<f32>, 2>, MICRO_M>();
        for (var k0 = 0u; k0 < params.k; k0 += TILE_K) {
            load_input(lane, k0);
            load_weight(lane, found.x, first_quad, k0);
            workgroupBarrier();
            for (var k = 0u; k < TILE_K; k++) {
                let x = input_tile[k * (TILE_M / 4u) + lane_m];
                let w0 = weight_tile[k * (TILE_N / 4u) + lane_n * 2u];
                let w1 = weight_tile[k * (TILE_N / 4u) + lane_n * 2u + 1u];
                for (var i = 0u; i < MICRO_M; i++) {
                    sums[i][0] = fma(vec4<f32>(x[i]), w0, sums[i][0]);
                    sums[i][1] = fma(vec4<f32>(x[i]), w1, sums[i][1]);
                }
            }
            workgroupBarrier();
        }
        for (var i = 0u; i < MICRO_M; i++) {
            let row = found.y + lane_m * MICRO_M + i;
            if row < found.z {
                finish(row, found.x, first_quad + lane_n * 2u, sums[i]);
            }
        }
    }
}
