// grouped_gemm for adapters that are emulated on the CPU, which run the lanes of a subgroup in one SIMD register: there a
// load is a loop over the lanes, a barrier parks each of them, and an array that a loop walks lies in memory; arithmetic
// and a broadcast within the subgroup cost next to nothing.
//
// So a workgroup is one subgroup and has no tile in memory. A lane owns eight columns for all rows of the tile, and loads
// its columns' weights itself. Of the input, each of the first eight lanes loads one row of eight, and broadcasts it. The
// sums are in registers, written out row by row.
//
// Tiles are numbered as in grouped_gemm.wgsl, along x: such an adapter gives each of its threads a run of workgroups, and
// so all threads get their part of every tile.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/expert_linear.wgsl"
// #include "shared/epilogue.wgsl"
// #include "shared/find_tile.wgsl"
// #include "shared/store.wgsl"

/// The subgroup's size, at least 8.
override LANES: u32 = 8u;

/// Rows of a tile: 8, 16 or 32.
override TILE_M: u32 = 32u;

/// The sums of eight rows: of the first four (a) and the others (b), each for the lane's two quads of columns. A column
/// of a matrix is a row's quad.
struct EightRows {
    a0: mat4x4<f32>,
    a1: mat4x4<f32>,
    b0: mat4x4<f32>,
    b1: mat4x4<f32>,
}

/// The sums of a tile when it is done, by four rows and quads, for a loop to walk.
var<private> tile_sums: array<array<mat4x4<f32>, 2>, 8>;

/// Where the columns of a quad start in [E, N, K]. Columns that are not there are the last one, and nothing stores them.
fn column_starts(expert: u32, quad: u32) -> vec4<u32> {
    let columns = quad_column(quad) + vec4<u32>(0u, 1u, 2u, 3u) * quad_stride();
    return weight_at(expert, 0u, 0u) + min(columns, vec4<u32>(params.n - 1u)) * params.k;
}

fn weight_row_kn(expert: u32, quad: u32, k: u32) -> vec4<f32> {
    if k < params.k {
        return weight_quad_kn(expert, quad, k);
    }
    return vec4<f32>();
}

/// The weights from K-indices `k..k + 4` to a quad; a matrix's column has those of one K-index.
fn weights(expert: u32, quad: u32, starts: vec4<u32>, k: u32) -> mat4x4<f32> {
    if KN {
        return mat4x4<f32>(
            weight_row_kn(expert, quad, k),
            weight_row_kn(expert, quad, k + 1u),
            weight_row_kn(expert, quad, k + 2u),
            weight_row_kn(expert, quad, k + 3u),
        );
    }
    let count = params.k - k;
    return transpose(mat4x4<f32>(
        weight_quad(starts.x + k, count),
        weight_quad(starts.y + k, count),
        weight_quad(starts.z + k, count),
        weight_quad(starts.w + k, count),
    ));
}

/// Adds the products of four K-indices; the first eight lanes hold a row's `x` each.
fn add_product(sums: EightRows, x: vec4<f32>, w0: mat4x4<f32>, w1: mat4x4<f32>) -> EightRows {
    let a = mat4x4<f32>(
        subgroupBroadcast(x, 0u),
        subgroupBroadcast(x, 1u),
        subgroupBroadcast(x, 2u),
        subgroupBroadcast(x, 3u),
    );
    let b = mat4x4<f32>(
        subgroupBroadcast(x, 4u),
        subgroupBroadcast(x, 5u),
        subgroupBroadcast(x, 6u),
        subgroupBroadcast(x, 7u),
    );
    return EightRows(sums.a0 + w0 * a, sums.a1 + w1 * a, sums.b0 + w0 * b, sums.b1 + w1 * b);
}

/// The row of the input that a lane loads of eight from `first` on; rows from `end` on are the last one.
fn lane_row(first: u32, end: u32, lane: u32) -> InputRow {
    return input_row(min(first + lane % 8u, end - 1u));
}

fn scaled_quad(row: InputRow, k: u32) -> vec4<f32> {
    return input_quad(row.start, k) * row.scale;
}

fn keep(eight: u32, sums: EightRows) {
    tile_sums[eight * 2u] = array<mat4x4<f32>, 2>(sums.a0, sums.a1);
    tile_sums[eight * 2u + 1u] = array<mat4x4<f32>, 2>(sums.b0, sums.b1);
}

/// The products of a tile's rows with the lane's two quads of columns, into `tile_sums`.
fn multiply(expert: u32, first: u32, end: u32, quad: u32, lane: u32) {
    let row0 = lane_row(first, end, lane);
    let row1 = lane_row(first + 8u, end, lane);
    let row2 = lane_row(first + 16u, end, lane);
    let row3 = lane_row(first + 24u, end, lane);
    let starts0 = column_starts(expert, quad);
    let starts1 = column_starts(expert, quad + 1u);
    var sums0 = EightRows();
    var sums1 = EightRows();
    var sums2 = EightRows();
    var sums3 = EightRows();
    for (var k = 0u; k < params.k; k += 4u) {
        let w0 = weights(expert, quad, starts0, k);
        let w1 = weights(expert, quad + 1u, starts1, k);
        sums0 = add_product(sums0, scaled_quad(row0, k), w0, w1);
        if TILE_M > 8u {
            sums1 = add_product(sums1, scaled_quad(row1, k), w0, w1);
        }
        if TILE_M > 16u {
            sums2 = add_product(sums2, scaled_quad(row2, k), w0, w1);
            sums3 = add_product(sums3, scaled_quad(row3, k), w0, w1);
        }
    }
    keep(0u, sums0);
    if TILE_M > 8u {
        keep(1u, sums1);
    }
    if TILE_M > 16u {
        keep(2u, sums2);
        keep(3u, sums3);
    }
}

@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, @builtin(subgroup_invocation_id) lane: u32) {
    let quad = (workgroup.id.y * LANES + lane) * 2u;
    let num_tiles = params.num_rows / TILE_M + params.num_experts;
    for (var number = workgroup.id.x; number < num_tiles; number += workgroup.count.x) {
        find_tile(number, lane);
        let found = workgroupUniformLoad(&tile);
        if found.y >= found.z {
            continue;
        }
        multiply(found.x, found.y, found.z, quad, lane);
        for (var i = 0u; i < TILE_M && found.y + i < found.z; i++) {
            let sums = array<vec4<f32>, 2>(tile_sums[i / 4u][0][i % 4u], tile_sums[i / 4u][1][i % 4u]);
            finish(found.y + i, found.x, quad, sums);
        }
    }
}
