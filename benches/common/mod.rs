//! What the benches share: presets, seeded data and routing, weights in rotation, the check before the timing, the
//! floors and the report.
#![allow(dead_code, unused_imports, reason = "every bench is a program of its own and uses a part of this")]

pub mod data;
pub mod device;
pub mod laps;
pub mod machine;
pub mod presets;
pub mod report;
pub mod routing;
pub mod stack;
pub mod timed;
pub mod verify;

use std::sync::OnceLock;

use fused_moe::DType;
use routing::Distribution;

/// Whether everything runs once, small: `cargo bench -- --test`, and criterion under `cargo test`.
pub fn test_mode() -> bool {
    let has = |flag: &str| std::env::args().any(|arg| arg == flag);
    has("--test") || !has("--bench")
}

/// Tokens per call.
pub fn token_counts() -> &'static [usize] {
    if test_mode() { &[1, 8] } else { &[1, 8, 64, 512] }
}

/// Every number of tokens with every distribution; at T = 1 popularity changes nothing that is measured.
pub fn cases() -> impl Iterator<Item = (&'static usize, Distribution)> {
    let distributions = |&num_tokens: &usize| match num_tokens {
        1 => &[Distribution::Uniform][..],
        _ => &[Distribution::Uniform, Distribution::Zipf],
    };
    token_counts().iter().flat_map(move |t| distributions(t).iter().map(move |&d| (t, d)))
}

/// Types of the weights.
pub const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

/// The presets at the size that this mode and this machine's memory allow, and why others are passed over.
pub fn presets(dtype: DType) -> Vec<presets::Preset> {
    if test_mode() {
        return presets::all().into_iter().map(presets::Preset::tiny).collect();
    }
    let fitted = presets::all().into_iter().map(|preset| preset.fitted(dtype, machine::weights_budget()));
    fitted.filter_map(|preset| preset.inspect_err(|why| announce(why)).ok()).collect()
}

/// The presets for ops that touch no expert's weights, which fit everywhere.
pub fn unfitted_presets() -> Vec<presets::Preset> {
    let shrink = if test_mode() { presets::Preset::tiny } else { |preset| preset };
    presets::all().into_iter().map(shrink).collect()
}

/// More tokens, for ops that touch no expert's weights.
pub fn many_tokens() -> &'static [usize] {
    if test_mode() { &[] } else { &[8192] }
}

/// Prints a line once per process.
pub fn announce(line: &str) {
    static SAID: OnceLock<std::sync::Mutex<std::collections::HashSet<String>>> = OnceLock::new();
    let mut said = SAID.get_or_init(Default::default).lock().expect("no one panics while printing");
    if said.insert(line.to_owned()) {
        eprintln!("{line}");
    }
}
