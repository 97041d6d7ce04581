//! `include/fused_moe.h` is what cbindgen makes of `src/capi/`. `FUSED_MOE_BLESS=1` writes it anew.

use std::path::Path;

#[test]
fn header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let sources = ["error", "tensor", "layer", "mod"].map(|name| root.join(format!("src/capi/{name}.rs")));
    let builder = sources.iter().fold(cbindgen::Builder::new().with_config(config), cbindgen::Builder::with_src);
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    let (header, path) = (String::from_utf8(header).unwrap(), root.join("include/fused_moe.h"));
    if std::env::var_os("FUSED_MOE_BLESS").is_some() {
        std::fs::write(&path, &header).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    let difference = committed.lines().zip(header.lines()).position(|(a, b)| a != b);
    assert!(committed == header, "stale from line {difference:?} on: FUSED_MOE_BLESS=1 cargo test --features capi");
}
