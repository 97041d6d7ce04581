// The output of a grouped GEMM in a 16-bit type. Two lanes may own the halves of a word: each clears and sets its own,
// and the order does not matter.

@group(0) @binding(8) var<storage, read_write> output: array<atomic<u32>>;

fn store(at: u32, value: f32) {
    let shift = (at & 1u) * 16u;
    atomicAnd(&output[at >> 1u], ~(0xffffu << shift));
    atomicOr(&output[at >> 1u], narrow(value, OUTPUT_DTYPE) << shift);
}
