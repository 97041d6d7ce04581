//! What the README's table of limits says is refused is refused at parse, with file, line and text.

use ptx_vm::Module;

/// A row's instruction, as it stands in a program.
const REFUSED: &[(&str, &str)] = &[
    ("add.rz.f64", "add.rz.f64 %d1, %d1, %d1;"),
    ("min.xorsign.abs", "min.xorsign.abs.f32 %r1, %r1, %r1;"),
    ("f64 `mma`", "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d1, %d2}, {%d1}, {%d1}, {%d1, %d2};"),
    ("mma.sp", "mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1}, {%r1}, {%r1}, {%r1}, %r1, 0;"),
    ("int4", "mma.sync.aligned.m16n8k32.row.col.s32.s4.s4.s32 {%r1}, {%r1}, {%r1}, {%r1};"),
    ("1-bit", "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.xor.popc {%r1}, {%r1}, {%r1}, {%r1};"),
    ("wmma", "wmma.load.a.sync.aligned.m16n16k16.row.f16 {%r1}, [%d1];"),
    ("int8 `wgmma`", "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {%r1, %r2, %r3, %r4}, %d1, %d1, 1;"),
    (
        "im2col",
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r1], [%d1, {%r1, %r1, %r1}], [%r2], {%r3};",
    ),
    ("tensormap.replace", "tensormap.replace.tile.global_address.global.b1024.b64 [%d1], %d2;"),
    ("multimem", "multimem.ld_reduce.global.add.f32 %r1, [%d1];"),
    ("st.async", "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r1], %r2, [%r3];"),
    ("red.async", "red.async.relaxed.cluster.global.add.u32 [%r1], %r2, [%r3];"),
    (
        "cp.reduce",
        "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32 [%r1], [%r2], 16, [%r3];",
    ),
    ("mbarrier.arrive.noComplete", "mbarrier.arrive.noComplete.shared.b64 %d1, [%r1], 1;"),
    ("mbarrier.arrive_drop.expect_tx", "mbarrier.arrive_drop.expect_tx.shared.b64 %d1, [%r1], 16;"),
    ("tex", "tex.2d.v4.f32.f32 {%r1, %r2, %r3, %r4}, [%d1, {%r1, %r2}];"),
    ("suld", "suld.b.1d.b32.trap %r1, [%d1, {%r1}];"),
    ("vadd", "vadd.s32.s32.s32 %r1, %r1, %r1;"),
    ("mov.b128", "mov.b128 %d1, {%d1, %d2};"),
    ("128-bit atomics", "atom.global.exch.b128 %d1, [%d1], %d2;"),
    ("indirect calls", "call (%r1), %d1, (%r2), proto;"),
    ("vprintf", "call.uni vprintf, (%d1, %d2);"),
    ("tcgen05", "tcgen05.alloc.cta_group::1.sync.aligned.b32 [%d1], 32;"),
];

fn program(line: &str) -> String {
    format!(".version 9.0\n.target sm_90a\n.entry k() {{\n.reg .b32 %r<9>; .reg .b64 %d<9>;\n{line}\nret;\n}}\n")
}

#[test]
fn refused_forms_fail_at_parse() {
    let readme = include_str!("../README.md");
    for (word, line) in REFUSED {
        assert!(readme.contains(word), "the table does not speak of {word}");
        let error = Module::parse(&program(line), "limit.ptx").expect_err(line);
        assert_eq!((error.file.as_str(), error.line), ("limit.ptx", 5), "{error}");
        assert!(error.text.contains(line.trim_end_matches(';')), "{error}");
        let shown = error.to_string();
        assert!(shown.contains("limit.ptx:5") && shown.contains(line.split('.').next().unwrap()), "{shown}");
    }
}

#[test]
fn recursion_is_refused() {
    let text = ".version 9.0\n.target sm_90a\n.func f() {\ncall f;\nret;\n}\n.entry k() {\ncall f;\nret;\n}\n";
    let error = Module::parse(text, "limit.ptx").expect_err("recursion");
    assert!(error.to_string().contains("recursion is not supported"), "{error}");
}
