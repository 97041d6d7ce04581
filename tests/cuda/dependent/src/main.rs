//! Says which device this machine has, and why better ones were passed over.

fn main() {
    let found = fused_moe::backend::Device::discover();
    for reason in found.skipped {
        println!("{reason}");
    }
    println!("{}", found.device);
}
