// The output of a grouped GEMM as f32.

@group(0) @binding(8) var<storage, read_write> output: array<f32>;

fn store(at: u32, value: f32) {
    output[at] = value;
}
