//! Named barriers: ordering, counts, arrivals without waiting, reductions.

use ptx_vm::Launch;

use crate::support::*;

pub fn run(t: &mut Tested) {
    for form in forms_of("barrier") {
        let parts: Vec<&str> = form.split('.').collect();
        for seed in 1..=3 {
            if parts.contains(&"sync") {
                sync(&form, seed);
            } else if parts.contains(&"arrive") {
                arrive(&form, &form.replace("arrive", "sync"), seed);
            } else {
                reduce(&form, &parts, seed);
            }
        }
        t.note(&form);
    }
}

fn run_block(body: &str, threads: u32, seed: u64) -> Vec<u32> {
    let text = format!(
        ".shared .align 4 .b8 v[1024];\nmov.u32 %r1, %tid.x; mul.wide.u32 %d1, %r1, 4; add.s64 %d0, %d0, %d1;\n\
         shl.b32 %r2, %r1, 2; mov.u32 %r3, v; add.u32 %r2, %r2, %r3;\n{body}"
    );
    words(&launch(&kernel(&text), Launch::new(1, threads), &vec![0; threads as usize * 4], &[], seed).0)
}

/// Each thread reads what the one opposite wrote: in the whole block, and among the first two warps with a count.
fn sync(form: &str, seed: u64) {
    let out = run_block(
        &format!(
            "st.shared.u32 [%r2], %r1;\n{form} 0;\nsub.u32 %r4, 95, %r1; shl.b32 %r4, %r4, 2; add.u32 %r4, %r4, %r3;\n\
             ld.shared.u32 %r5, [%r4]; st.global.u32 [%d0], %r5;"
        ),
        96,
        seed,
    );
    assert_eq!(out, (0..96).rev().collect::<Vec<_>>(), "{form}");
    let out = run_block(
        &format!(
            "st.shared.u32 [%r2], %r1; setp.ge.u32 %p1, %r1, 64; @%p1 bra END;\n{form} 3, 64;\n\
             sub.u32 %r4, 63, %r1; shl.b32 %r4, %r4, 2; add.u32 %r4, %r4, %r3; ld.shared.u32 %r5, [%r4];\n\
             st.global.u32 [%d0], %r5;\nEND:"
        ),
        96,
        seed,
    );
    assert_eq!(out[..64], (0..64).rev().collect::<Vec<_>>(), "{form} with a count");
}

/// The first warp hands over and goes on; the second waits for it.
fn arrive(form: &str, sync: &str, seed: u64) {
    let out = run_block(
        &format!(
            "setp.ge.u32 %p1, %r1, 32; @%p1 bra SECOND;\nst.shared.u32 [%r2], %r1;\n{form} 1, 64;\nbra END;\n\
             SECOND:\n{sync} 1, 64;\nld.shared.u32 %r5, [%r2+-128]; st.global.u32 [%d0], %r5;\nEND:"
        ),
        64,
        seed,
    );
    assert_eq!(out[32..], (0..32).collect::<Vec<_>>(), "{form}");
}

fn reduce(form: &str, parts: &[&str], seed: u64) {
    // Votes of 96 threads: all, some or none.
    for limit in [0, 40, 96] {
        let (to, take) = match parts.contains(&"popc") {
            true => ("%r5", ""),
            false => ("%p2", "selp.u32 %r5, 1, 0, %p2;"),
        };
        for (count, negate) in [("", ""), (", 96", ""), ("", "!")] {
            let out = run_block(
                &format!(
                    "setp.lt.u32 %p1, %r1, {limit};\n{form} {to}, 2{count}, {negate}%p1;\n{take}\nst.global.u32 [%d0], %r5;"
                ),
                96,
                seed,
            );
            let votes = if negate.is_empty() { limit } else { 96 - limit };
            let wanted = match parts {
                p if p.contains(&"popc") => votes,
                p if p.contains(&"and") => (votes == 96) as u32,
                _ => (votes > 0) as u32,
            };
            assert!(out.iter().all(|&v| v == wanted), "{form} with {votes} votes: {}", out[0]);
        }
    }
}
