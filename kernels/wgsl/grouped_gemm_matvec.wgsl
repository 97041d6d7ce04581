// grouped_gemm for few rows per expert, where reading the weights is the work: a workgroup takes up to ROWS_AT_ONCE
// rows of one expert, and so reads the expert's weights once for all of them.
//
// One workgroup per row of the output is launched along y; the first row of each ROWS_AT_ONCE of an expert does the
// work, and the others end at once.

// #include "shared/grid.wgsl"
// #include "shared/numbers.wgsl"
// #include "shared/math.wgsl"
// #include "shared/reduce.wgsl"
// #include "shared/expert_linear.wgsl"
// #include "shared/epilogue.wgsl"
// #include "shared/store.wgsl"

const LANES: u32 = 64u;
const MAX_ROWS: u32 = 8u;
override ROWS_AT_ONCE: u32 = MAX_ROWS;

/// [E, K, N]: lanes along the columns, two quads each; the others along K.
const LANES_N: u32 = 8u;
const LANES_K: u32 = LANES / LANES_N;

var<workgroup> rows: array<InputRow, MAX_ROWS>;
/// Expert, end of the expert's rows; the end is 0 where this workgroup has nothing to do.
var<workgroup> found: vec2<u32>;
var<workgroup> partial_quads: array<array<vec4<f32>, 2>, LANES>;

/// Finds the expert of `row`, and the rows from there on. The end of the rows to take; 0 for none.
fn find_rows(row: u32, lane: u32) -> vec2<u32> {
    if lane == 0u {
        found = vec2<u32>(0u, 0u);
    }
    workgroupBarrier();
    for (var e = lane; e < params.num_experts; e += LANES) {
        let start = expert_offset(e);
        let end = expert_offset(e + 1u);
        if start <= row && row < end && (row - start) % ROWS_AT_ONCE == 0u {
            found = vec2<u32>(e, min(end, row + ROWS_AT_ONCE));
        }
    }
    workgroupBarrier();
    if lane < ROWS_AT_ONCE && row + lane < found.y {
        rows[lane] = input_row(row + lane);
    }
    return workgroupUniformLoad(&found);
}

/// Four weights along K to each of a quad's columns, times the same four of an input row.
fn quad_dot(x: vec4<f32>, w: array<vec4<f32>, 4>) -> vec4<f32> {
    return vec4<f32>(dot(x, w[0]), dot(x, w[1]), dot(x, w[2]), dot(x, w[3]));
}

fn weight_quads(expert: u32, quad: u32, k: u32) -> array<vec4<f32>, 4> {
    var quads = array<vec4<f32>, 4>();
    for (var i = 0u; i < 4u; i++) {
        if i < quad_count(quad) {
            quads[i] = weight_quad(weight_at(expert, quad_column(quad) + i * quad_stride(), k), params.k - k);
        }
    }
    return quads;
}

/// [E, N, K]: all lanes along K, for two quads of columns.
@compute @workgroup_size(LANES)
fn main(workgroup: Workgroup, lane: Lane) {
    let quad = workgroup.id.x * 2u;
    for (var row = workgroup.id.y; row < params.num_rows; row += workgroup.count.y) {
        let expert_end = find_rows(row, lane.index);
        if expert_end.y == 0u {
            continue;
        }
        var sums = array<array<vec4<f32>, 2>, MAX_ROWS>();
        for (var k = lane.index * 4u; k < params.k; k += LANES * 4u) {
            let w0 = weight_quads(expert_end.x, quad, k);
            let w1 = weight_quads(expert_end.x, quad + 1u, k);
            for (var i = 0u; i < ROWS_AT_ONCE; i++) {
                if row + i < expert_end.y {
                    let x = input_quad(rows[i].start, k) * rows[i].scale;
                    sums[i][0] += quad_dot(x, w0);
                    sums[i][1] += quad_dot(x, w1);
                }
            }
        }
        for (var i = 0u; i < ROWS_AT_ONCE; i++) {
            if row + i < expert_end.y {
                let sum0 = reduce_quad(lane, sums[i][0]);
                let sum1 = reduce_quad(lane, sums[i][1]);
                if lane.index == 0u {
                    finish(row + i, expert_end.x, quad, array<vec4<f32>, 2>(sum0, sum1));
                }
            }
        }
    }
}

/// [E, K, N]: some lanes along the columns, so that they read next to each other.
@compute @workgroup_size(LANES)
fn main_kn(workgroup: Workgroup, lane: Lane) {
    let quad = (workgroup.id.x * LANES_N + lane.index % LANES_N) * 2u;
    for (var row = workgroup.id.y; row < params.num_rows; row += workgroup.count.y) {
        let expert_end = find_rows(row, lane.index);
        if expert_end.y == 0u {
            continue;
        }
        var sums = array<array<vec4<f32>, 2>, MAX_ROWS>();
        for (var k = lane.index / LANES_N; k < params.k; k += LANES_K) {
            let w0 = weight_quad_kn(expert_end.x, quad, k);
            let w1 = weight_quad_kn(expert_end.x, quad + 1u, k);
            for (var i = 0u; i < ROWS_AT_ONCE; i++) {
                if row + i < expert_end.y {
                    let x = vec4<f32>(input_element(rows[i].start + k) * rows[i].scale);
                    sums[i][0] = fma(x, w0, sums[i][0]);
                    sums[i][1] = fma(x, w1, sums[i][1]);
                }
            }
        }
        for (var i = 0u; i < ROWS_AT_ONCE; i++) {
            if row + i < expert_end.y {
                partial_quads[lane.index] = sums[i];
                workgroupBarrier();
                if lane.index < LANES_N {
                    var sum = partial_quads[lane.index];
                    for (var j = lane.index + LANES_N; j < LANES; j += LANES_N) {
                        sum[0] += partial_quads[j][0];
                        sum[1] += partial_quads[j][1];
                    }
                    finish(row + i, expert_end.x, quad, sum);
                }
                workgroupBarrier();
            }
        }
    }
}
