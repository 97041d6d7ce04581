//! Clusters: their barrier, the shared memory of other blocks, ranks; dependent grids; setmaxnreg.

use ptx_vm::{Config, Error, Gpu, Launch};

use crate::support::*;

pub fn run(t: &mut Tested) {
    for form in forms_of("cluster") {
        for seed in 1..=4 {
            match form.split('.').next().unwrap() {
                "barrier" if form.contains("arrive") => exchange(&form, "barrier.cluster.wait", seed),
                "barrier" => exchange("barrier.cluster.arrive", &form, seed),
                "mapa" | "getctarank" => maps(&form, seed),
                _ => {
                    let out = run_words(&format!("{form};\nst.global.b32 [%d0], 4;"), 1, &[0]);
                    assert_eq!(out, [4], "{form}");
                }
            }
        }
        t.note(&form);
    }
    geometry();
}

/// Every thread of a cluster of four reads what the next block wrote. A relaxed arrival orders nothing.
fn exchange(arrive: &str, wait: &str, seed: u64) {
    let sync = format!("{arrive}; {wait};\n");
    let body = format!(
        ".shared .align 4 .b8 v[256];\nmov.u32 %r1, %tid.x; mov.u32 %r2, %cluster_ctarank; mov.u32 %r3, %ctaid.x;\n\
         shl.b32 %r4, %r1, 2; mov.u32 %r5, v; add.u32 %r4, %r4, %r5; mad.lo.u32 %r6, %r3, 64, %r1; st.shared.b32 [%r4], %r6;\n\
         {sync}add.u32 %r7, %r2, 1; and.b32 %r7, %r7, 3; mapa.shared::cluster.u32 %r8, %r4, %r7;\n\
         ld.shared::cluster.b32 %r9, [%r8]; mul.wide.u32 %d1, %r6, 4; add.s64 %d1, %d1, %d0; st.global.b32 [%d1], %r9;\n\
         barrier.cluster.arrive; barrier.cluster.wait;"
    );
    let mut gpu = Gpu::new(Config::with_seed(seed));
    let p = gpu.alloc(8 * 64 * 4);
    let result = gpu.launch(&kernel(&body), "k", Launch::new(8, 64).cluster(4), &[p.into()]);
    if arrive.contains("relaxed") {
        assert!(matches!(result, Err(Error::Fault(_))), "{arrive}");
        return;
    }
    result.unwrap_or_else(|e| panic!("{arrive}, {wait}: {e}"));
    let out = words(&gpu.copy_from(p, 8 * 64 * 4).unwrap());
    for (i, v) in out.iter().enumerate() {
        let (block, thread) = (i as u32 / 64, i as u32 % 64);
        assert_eq!(*v, (block / 4 * 4 + (block + 1) % 4) * 64 + thread, "{arrive}, {wait}");
    }
}

/// Shared and generic addresses of a variable in another block: reads, the rank back, atomics from afar.
fn maps(form: &str, seed: u64) {
    let bits = if form.ends_with("u64") { 64 } else { 32 };
    let shared = form.contains("shared::cluster");
    let r = if bits == 64 { "d" } else { "r" };
    // The address of v in the form that the instruction takes: shared or generic.
    let own = match (shared, bits) {
        (true, 32) => "mov.u32 %r10, v;",
        (true, _) => "mov.u64 %d10, v;",
        // Generic addresses are 64 bits wide; the low half alone stands for shared memory in no window.
        (false, _) => "mov.u64 %d11, v; cvta.shared.u64 %d10, %d11; cvt.u32.u64 %r10, %d10;",
    };
    if !shared && bits == 32 {
        return;
    }
    let (map, rank) = match form.starts_with("mapa") {
        true => (form.to_string(), format!("getctarank{}.u{bits}", if shared { ".shared::cluster" } else { "" })),
        false => (format!("mapa{}.u{bits}", if shared { ".shared::cluster" } else { "" }), form.to_string()),
    };
    let access = if shared { ".shared::cluster" } else { "" };
    let body = format!(
        ".shared .align 4 .b32 v;\nmov.u32 %r1, %cluster_ctarank; mov.u32 %r2, %ctaid.x; add.u32 %r3, %r2, 70; st.shared.b32 [v], %r3;\n{own}\n\
         barrier.cluster.arrive; barrier.cluster.wait;\nxor.b32 %r4, %r1, 1; {map} %{r}12, %{r}10, %r4;\n\
         ld{access}.b32 %r5, [%{r}12]; {rank} %r6, %{r}12; {rank} %r7, %{r}10;\nbarrier.cluster.arrive; barrier.cluster.wait;\n\
         red{access}.add.u32 [%{r}12], 1000;\nbarrier.cluster.arrive; barrier.cluster.wait;\nld.shared.b32 %r8, [v];\n\
         mul.wide.u32 %d1, %r2, 16; add.s64 %d1, %d1, %d0; st.global.v4.b32 [%d1], {{%r5, %r6, %r7, %r8}};"
    );
    let (out, _) = launch(&kernel(&body), Launch::new(4, 1).cluster(2), &[0; 64], &[], seed);
    for (block, row) in words(&out).chunks(4).enumerate() {
        let (block, rank) = (block as u32, block as u32 % 2);
        assert_eq!(row, [(block ^ 1) + 70, rank ^ 1, rank, block + 1070], "{form}");
    }
}

/// Special registers of clusters of 2 x 2 in a grid of 4 x 6.
fn geometry() {
    let names = [
        "%clusterid.x",
        "%clusterid.y",
        "%nclusterid.x",
        "%nclusterid.y",
        "%cluster_ctaid.x",
        "%cluster_ctaid.y",
        "%cluster_nctaid.x",
        "%cluster_nctaid.y",
        "%cluster_ctarank",
        "%cluster_nctarank",
    ];
    let n = names.len();
    let mut body = format!(
        "mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ctaid.y; mad.lo.u32 %r1, %r2, 4, %r1; mul.wide.u32 %d1, %r1, {}; add.s64 %d0, %d0, %d1;\n",
        4 * n
    );
    for (i, name) in names.iter().enumerate() {
        body += &format!("mov.u32 %r3, {name}; st.global.b32 [%d0+{}], %r3;\n", 4 * i);
    }
    let (out, _) = launch(&kernel(&body), Launch::new((4, 6), 1).cluster((2, 2)), &vec![0; 24 * n * 4], &[], 1);
    for (i, row) in words(&out).chunks(n).enumerate() {
        let (x, y) = (i as u32 % 4, i as u32 / 4);
        assert_eq!(row, [x / 2, y / 2, 2, 3, x % 2, y % 2, 2, 2, x % 2 + 2 * (y % 2), 4], "block {x} {y}");
    }
}

/// A warpgroup gives registers away and another takes them; it waits until they are there.
pub fn run_setmaxnreg(t: &mut Tested) {
    let body = "mov.u32 %r1, %tid.x; setp.ge.u32 %p1, %r1, 128; @%p1 bra TAKE;\nsetmaxnreg.dec.sync.aligned.u32 40;\nbra DONE;\n\
        TAKE: setmaxnreg.inc.sync.aligned.u32 232;\nDONE: mul.wide.u32 %d1, %r1, 4; add.s64 %d0, %d0, %d1; st.global.b32 [%d0], %r1;";
    let text = format!(
        "{HEADER}.visible .entry k(.param .u64 p)\n.maxntid 256, 1, 1\n.minnctapersm 1\n{{\n{REGISTERS}ld.param.u64 %d0, [p];\n{body}\nret;\n}}\n"
    );
    let module = ptx_vm::Module::parse(&text, "k.ptx").unwrap();
    for seed in 1..=5 {
        let (out, _) = launch(&module, Launch::new(1, 256), &[0; 1024], &[], seed);
        assert_eq!(words(&out), (0..256).collect::<Vec<_>>());
    }
    t.note("setmaxnreg.dec.sync.aligned.u32");
    t.note("setmaxnreg.inc.sync.aligned.u32");
}
