enable f16;
enable wgpu_cooperative_matrix;
// grouped_gemm on matrix units: 16×16 cooperative matrices of f16, summed in f32. For f16 weights only: they are exact
// in it. A row of the input is brought into f16's range by a power of two of its own, and its sums back out of it.
//
// Tiles are found as in grouped_gemm.wgsl.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/expert_linear.wgsl"
// #include "shared/epilogue.wgsl"
// #include "shared/find_tile.wgsl"
// #include "shared/store.wgsl"

const TILE_M: u32 = 64u;
const TILE_N: u32 = 64u;
const TILE_K: u32 = 32u;
/// The side of a matrix unit's operands.
const SIDE: u32 = 16u;
/// Four subgroups of 32 lanes, each with a 32×32 quarter of the tile.
const LANES: u32 = 128u;
const QUARTER: u32 = 32u;

/// [TILE_M, TILE_K] and [TILE_N, TILE_K].
var<workgroup> input_tile: array<f16, TILE_M * TILE_K>;
var<workgroup> weight_tile: array<f16, TILE_N * TILE_K>;
/// [TILE_M, TILE_N].
var<workgroup> product: array<f32, TILE_M * TILE_N>;
var<workgroup> tile_rows: array<InputRow, TILE_M>;
/// What a row's sums are multiplied by.
var<workgroup> row_units: array<f32, TILE_M>;

/// Each row with the power of two at or below its largest element as its unit.
fn load_rows(lane: u32, first: u32, end: u32) {
    for (var i = lane; i < TILE_M; i += LANES) {
        let row = input_row(min(first + i, end - 1u));
        var largest = 0.0;
        for (var k = 0u; k < params.k; k += 4u) {
            let quad = abs(input_quad(row.start, k) * row.scale);
            largest = max(max(max(largest, quad.x), max(quad.y, quad.z)), quad.w);
        }
        let exponent = clamp(bitcast<u32>(largest) >> 23u, 1u, 253u);
        row_units[i] = bitcast<f32>(exponent << 23u);
        tile_rows[i] = InputRow(row.start, row.scale * bitcast<f32>((254u - exponent) << 23u));
    }
}

fn load_input(lane: u32, k0: u32) {
    for (var i = lane; i < TILE_M * TILE_K / 4u; i += LANES) {
        let row = i / (TILE_K / 4u);
        let k = i % (TILE_K / 4u) * 4u;
        let quad = input_quad(tile_rows[row].start, k0 + k) * tile_rows[row].scale;
        for (var j = 0u; j < 4u; j++) {
            input_tile[row * TILE_K + k + j] = f16(quad[j]);
        }
    }
}

fn load_weight(lane: u32, expert: u32, first_quad: u32, k0: u32) {
    for (var i = lane; i < TILE_N * TILE_K / 4u; i += LANES) {
        var values = vec4<f32>();
        if KN {
            let k = i / (TILE_N / 4u);
            let quad = i % (TILE_N / 4u);
            if k0 + k < params.k {
                values = weight_quad_kn(expert, first_quad + quad, k0 + k);
            }
            for (var j = 0u; j < 4u; j++) {
                weight_tile[(quad * 4u + j) * TILE_K + k] = f16(values[j]);
            }
        } else {
            let column = i / (TILE_K / 4u);
            let k = i % (TILE_K / 4u) * 4u;
            let quad = first_quad + column / 4u;
            if column % 4u < quad_count(quad) && k0 + k < params.k {
                let n = quad_column(quad) + column % 4u * quad_stride();
                values = weight_quad(weight_at(expert, n, k0 + k), params.k - k0 - k);
            }
            for (var j = 0u; j < 4u; j++) {
                weight_tile[column * TILE_K + k + j] = f16(values[j]);
            }
        }
    }
}

fn product_quad(row: u32, quad: u32) -> vec4<f32> {
    let at = row * TILE_N + quad * 4u;
    return vec4<f32>(product[at], product[at + 1u], product[at + 2u], product[at + 3u]) * row_units[row];
}

fn store_tile(lane: u32, expert: u32, first_row: u32, end: u32, first_quad: u32) {
    for (var i = lane; i < TILE_M * TILE_N / 8u; i += LANES) {
        let row = i / (TILE_N / 8u);
        let quad = i % (TILE_N / 8u) * 2u;
        if first_row + row < end {
            let sums = array<vec4<f32>, 2>(product_quad(row, quad), product_quad(row, quad + 1u));
            finish(first_row + row, expert, first_quad + quad, sums);
        }
    }
}

@compute @workgroup_size(LANES)
fn main(
    workgroup: Workgroup,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let first_quad = workgroup.id.x * (TILE_N / 4u);
    let m = subgroup / 2u * QUARTER;
    let n = subgroup % 2u * QUARTER;
    let num_tiles = params.num_rows / TILE_M + params.num_experts;
    for (var number = workgroup.id.y; number < num_tiles; number += workgroup.count.y) {
        find_tile(number, lane);
        let found = workgroupUniformLoad(&tile);
        if found.y >= found.z {
            continue;
        }
        load_rows(lane, found.y, found.z);
        workgroupBarrier();
        var c00 = coop_mat16x16<f32, C>();
        var c01 = coop_mat16x16<f32, C>();
        var c10 = coop_mat16x16<f32, C>();
        var c11 = coop_mat16x16<f32, C>();
        for (var k0 = 0u; k0 < params.k; k0 += TILE_K) {
            load_input(lane, k0);
            load_weight(lane, found.x, first_quad, k0);
            workgroupBarrier();
            for (var k = 0u; k < TILE_K; k += SIDE) {
                let a0 = coopLoadT<coop_mat16x16<f16, A>>(&input_tile[m * TILE_K + k], TILE_K);
                let a1 = coopLoadT<coop_mat16x16<f16, A>>(&input_tile[(m + SIDE) * TILE_K + k], TILE_K);
                // Columns of the product are rows of the tile: B is column-major in it.
                let b0 = coopLoad<coop_mat16x16<f16, B>>(&weight_tile[n * TILE_K + k], TILE_K);
                let b1 = coopLoad<coop_mat16x16<f16, B>>(&weight_tile[(n + SIDE) * TILE_K + k], TILE_K);
                c00 = coopMultiplyAdd(a0, b0, c00);
                c01 = coopMultiplyAdd(a0, b1, c01);
                c10 = coopMultiplyAdd(a1, b0, c10);
                c11 = coopMultiplyAdd(a1, b1, c11);
            }
            workgroupBarrier();
        }
        coopStoreT(c00, &product[m * TILE_N + n], TILE_N);
        coopStoreT(c01, &product[m * TILE_N + n + SIDE], TILE_N);
        coopStoreT(c10, &product[(m + SIDE) * TILE_N + n], TILE_N);
        coopStoreT(c11, &product[(m + SIDE) * TILE_N + n + SIDE], TILE_N);
        workgroupBarrier();
        store_tile(lane, found.x, found.y, found.z, first_quad);
        workgroupBarrier();
    }
}
