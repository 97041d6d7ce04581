// As reduce.wgsl: within subgroups by shuffles in a fixed order, then over the subgroups in theirs. Subgroups are full:
// the host takes these kernels where LANES is a multiple of the largest subgroup.

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) num_subgroups: u32,
}

/// One per subgroup.
var<workgroup> reduce_values: array<f32, LANES>;
var<workgroup> reduce_quads: array<vec4<f32>, LANES>;
var<workgroup> reduce_keys: array<vec2<u32>, LANES>;

fn reduce_sum(lane: Lane, value: f32) -> f32 {
    var sum = value;
    for (var width = 1u; width < lane.subgroup_size; width *= 2u) {
        sum += subgroupShuffleXor(sum, width);
    }
    reduce_values[lane.subgroup] = sum;
    workgroupBarrier();
    sum = 0.0;
    for (var i = 0u; i < lane.num_subgroups; i++) {
        sum += reduce_values[i];
    }
    workgroupBarrier();
    return sum;
}

fn reduce_quad(lane: Lane, value: vec4<f32>) -> vec4<f32> {
    var sum = value;
    for (var width = 1u; width < lane.subgroup_size; width *= 2u) {
        sum += subgroupShuffleXor(sum, width);
    }
    reduce_quads[lane.subgroup] = sum;
    workgroupBarrier();
    sum = vec4<f32>();
    for (var i = 0u; i < lane.num_subgroups; i++) {
        sum += reduce_quads[i];
    }
    workgroupBarrier();
    return sum;
}

fn reduce_max(lane: Lane, value: f32) -> f32 {
    reduce_values[lane.subgroup] = subgroupMax(value);
    workgroupBarrier();
    var largest = reduce_values[0];
    for (var i = 1u; i < lane.num_subgroups; i++) {
        largest = max(largest, reduce_values[i]);
    }
    workgroupBarrier();
    return largest;
}

/// The (key, id) with the largest key; of equal keys the lowest id.
fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let b_wins = b.x > a.x || (b.x == a.x && b.y < a.y);
    return select(a, b, b_wins);
}

fn reduce_best(lane: Lane, key: vec2<u32>) -> vec2<u32> {
    let largest = subgroupMax(key.x);
    let lowest_id = subgroupMin(select(0xffffffffu, key.y, key.x == largest));
    reduce_keys[lane.subgroup] = vec2<u32>(largest, lowest_id);
    workgroupBarrier();
    var best = reduce_keys[0];
    for (var i = 1u; i < lane.num_subgroups; i++) {
        best = better(best, reduce_keys[i]);
    }
    workgroupBarrier();
    return best;
}
