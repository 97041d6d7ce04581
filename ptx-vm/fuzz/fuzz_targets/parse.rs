#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = ptx_vm::Module::parse(text, "fuzz.ptx");
});
