//! cp.async: sizes, zero fill, groups, arrival at mbarriers.

use ptx_vm::Launch;

use crate::support::*;

pub fn run(t: &mut Tested) {
    for form in forms_of("cp_async") {
        for seed in 1..=4 {
            match form.as_str() {
                "cp.async.commit_group" | "cp.async.wait_group" => groups(seed),
                "cp.async.wait_all" => wait_all(seed),
                f if f.contains("mbarrier") => arrives(f, seed),
                f => copies(f, seed),
            }
        }
        t.note(&form);
    }
}

fn run_one(body: &str, words_in: usize, seed: u64) -> Vec<u32> {
    let data: Vec<u8> = (1..=words_in as u32).flat_map(|v| (v * 0x0101_0101).to_le_bytes()).collect();
    let text = format!(".shared .align 16 .b8 v[256];\nmov.u32 %r1, v;\n{body}");
    words(&launch(&kernel(&text), Launch::new(1, 1), &data, &[], seed).0)
}

/// All sizes, with the whole source, a part of it, none of it by a count, and none by a predicate.
fn copies(form: &str, seed: u64) {
    let policy = if form.contains("cache_hint") { ", %d50" } else { "" };
    let sizes: &[usize] = if form.contains(".cg.") { &[16] } else { &[4, 8, 16] };
    for &size in sizes {
        for (limit, from_source) in [("", size), (", 2", 2), (", 0", 0), (", %p1", 0), (", !%p1", size)] {
            // A negated predicate is made before.
            let (limit, not) = if limit == ", !%p1" { (", %p2", "not.pred %p2, %p1;") } else { (limit, "") };
            let out = run_one(
                &format!(
                    "mov.b64 %d50, 0; setp.eq.u32 %p1, 0, 0; {not}\n{form} [%r1], [%d0], {size}{limit}{policy};\n\
                     cp.async.wait_all;\nld.shared.b{0} %{1}5, [v]; st.global.b{0} [%d0+16], %{1}5;",
                    8 * size.min(8),
                    if size == 4 { "r" } else { "d" }
                ),
                8,
                seed,
            );
            let bytes: Vec<u8> = out.iter().flat_map(|w| w.to_le_bytes()).collect();
            let shown = size.min(8);
            let wanted: Vec<u8> = (0..shown).map(|i| if i < from_source { 1 + i as u8 / 4 } else { 0 }).collect();
            assert_eq!(bytes[16..16 + shown], wanted, "{form} of {size} bytes{limit}");
        }
    }
}

/// Two groups: with one left, the first is there; with none, both.
fn groups(seed: u64) {
    let out = run_one(
        "cp.async.ca.shared.global [%r1], [%d0], 4; cp.async.commit_group;\n\
         cp.async.ca.shared.global [%r1+4], [%d0+4], 4; cp.async.commit_group;\ncp.async.wait_group 1;\n\
         ld.shared.b32 %r5, [v]; st.global.b32 [%d0+8], %r5;\ncp.async.wait_group 0;\n\
         ld.shared.b32 %r5, [v+4]; st.global.b32 [%d0+12], %r5;",
        4,
        seed,
    );
    assert_eq!(out[2..], [0x0101_0101, 0x0202_0202]);
}

fn wait_all(seed: u64) {
    let out = run_one(
        "cp.async.ca.shared.global [%r1], [%d0], 4; cp.async.commit_group;\n\
         cp.async.ca.shared.global [%r1+4], [%d0+4], 4; cp.async.wait_all;\n\
         ld.shared.v2.b32 {%r5, %r6}, [v]; st.global.v2.b32 [%d0+8], {%r5, %r6};",
        4,
        seed,
    );
    assert_eq!(out[2..], [0x0101_0101, 0x0202_0202]);
}

/// With .noinc the arrival is one of those counted; without, the count grows by it.
fn arrives(form: &str, seed: u64) {
    let address = if form.contains("shared") { "%r2" } else { "%d2" };
    let own = if form.contains("noinc") { "" } else { "mbarrier.arrive.shared.b64 %d9, [%r2];" };
    let out = run_one(
        &format!(
            ".shared .align 8 .b64 bar; mov.u32 %r2, bar; mov.b64 %d3, bar; cvta.shared.u64 %d2, %d3;\n\
             mbarrier.init.shared.b64 [%r2], 1;\ncp.async.ca.shared.global [%r1], [%d0], 4;\n{form} [{address}];\n{own}\n\
             WAIT: mbarrier.try_wait.parity.shared.b64 %p1, [%r2], 0; @!%p1 bra WAIT;\n\
             ld.shared.b32 %r5, [v]; st.global.b32 [%d0+4], %r5;"
        ),
        2,
        seed,
    );
    assert_eq!(out[1], 0x0101_0101, "{form}");
}
