// Reductions over a workgroup of LANES lanes, a power of two up to 256; each returns the same to all lanes, and is
// called in uniform control flow only. The order of a sum is fixed.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

var<workgroup> reduce_values: array<f32, LANES>;
var<workgroup> reduce_quads: array<vec4<f32>, LANES>;
var<workgroup> reduce_keys: array<vec2<u32>, LANES>;

fn reduce_sum(lane: Lane, value: f32) -> f32 {
    reduce_values[lane.index] = value;
    workgroupBarrier();
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        if lane.index < width {
            reduce_values[lane.index] += reduce_values[lane.index + width];
        }
        workgroupBarrier();
    }
    let sum = reduce_values[0];
    workgroupBarrier();
    return sum;
}

fn reduce_quad(lane: Lane, value: vec4<f32>) -> vec4<f32> {
    reduce_quads[lane.index] = value;
    workgroupBarrier();
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        if lane.index < width {
            reduce_quads[lane.index] += reduce_quads[lane.index + width];
        }
        workgroupBarrier();
    }
    let sum = reduce_quads[0];
    workgroupBarrier();
    return sum;
}

fn reduce_max(lane: Lane, value: f32) -> f32 {
    reduce_values[lane.index] = value;
    workgroupBarrier();
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        if lane.index < width {
            reduce_values[lane.index] = max(reduce_values[lane.index], reduce_values[lane.index + width]);
        }
        workgroupBarrier();
    }
    let largest = reduce_values[0];
    workgroupBarrier();
    return largest;
}

/// The (key, id) with the largest key; of equal keys the lowest id.
fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let b_wins = b.x > a.x || (b.x == a.x && b.y < a.y);
    return select(a, b, b_wins);
}

fn reduce_best(lane: Lane, key: vec2<u32>) -> vec2<u32> {
    reduce_keys[lane.index] = key;
    workgroupBarrier();
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        if lane.index < width {
            reduce_keys[lane.index] = better(reduce_keys[lane.index], reduce_keys[lane.index + width]);
        }
        workgroupBarrier();
    }
    let best = reduce_keys[0];
    workgroupBarrier();
    return best;
}
