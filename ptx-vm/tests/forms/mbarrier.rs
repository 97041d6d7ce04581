//! mbarrier: phases by arrivals and bytes, with parity and with states; every order, scope and space.

use ptx_vm::Launch;

use crate::support::*;

pub fn run(t: &mut Tested) {
    for form in forms_of("mbarrier") {
        let parts: Vec<&str> = form.split('.').collect();
        // Forms without a space take generic addresses.
        let shared = parts.iter().any(|p| p.starts_with("shared"));
        let at = if shared { "[%r2]" } else { "[%d2]" };
        let check = |body: &str, wanted: &[u32]| {
            assert_eq!(run_one(body)[..wanted.len()], *wanted, "{form}");
        };
        match parts[1] {
            "init" => check(&format!("{form} {at}, 2; {} {}", ARRIVE.repeat(2), done(0, 0)), &[1]),
            // The memory is free again afterwards, and the mbarrier can be made anew.
            "inval" => check(
                &format!(
                    "{INIT1} {form} {at}; st.shared.b64 [bar], 5; ld.shared.b32 %r5, [bar]; st.global.b32 [%d0], %r5;"
                ),
                &[5],
            ),
            "expect_tx" => check(
                &format!(
                    "{INIT1} {form} {at}, 16; {ARRIVE} {} mbarrier.complete_tx.shared.b64 [%r2], 16; {}",
                    done(0, 0),
                    done(0, 1)
                ),
                &[0, 1],
            ),
            "complete_tx" => check(
                &format!(
                    "{INIT1} mbarrier.expect_tx.shared.b64 [%r2], 48; {ARRIVE} {form} {at}, 16; {} {form} {at}, 32; {}",
                    done(0, 0),
                    done(0, 1)
                ),
                &[0, 1],
            ),
            "arrive" if parts[2] == "expect_tx" => check(
                &format!(
                    "{INIT1} {form} {}, {at}, 32; {} mbarrier.complete_tx.shared.b64 [%r2], 32; {}",
                    state(&parts),
                    done(0, 0),
                    done(0, 1)
                ),
                &[0, 1],
            ),
            "arrive" => check(
                &format!(
                    "mbarrier.init.shared.b64 [%r2], 3; {form} {s}, {at}; {} {form} {s}, {at}, 2; {} {} {form} {s}, {at}, 3; {}",
                    done(0, 0),
                    done(0, 1),
                    done(1, 2),
                    done(1, 3),
                    s = state(&parts)
                ),
                &[0, 1, 0, 1],
            ),
            // The next phase waits for one thread less.
            "arrive_drop" => check(
                &format!(
                    "mbarrier.init.shared.b64 [%r2], 2; {form} {}, {at}; {ARRIVE} {} {ARRIVE} {}",
                    state(&parts),
                    done(0, 0),
                    done(1, 1)
                ),
                &[1, 1],
            ),
            "pending_count" => check(
                &format!(
                    "mbarrier.init.shared.b64 [%r2], 5; mbarrier.arrive.shared.b64 %d5, [%r2], 2; mbarrier.arrive.shared.b64 %d6, [%r2];\n\
                     {form} %r5, %d5; {form} %r6, %d6; st.global.v2.b32 [%d0], {{%r5, %r6}};"
                ),
                &[5, 3],
            ),
            _ => waits(&form, &parts, at),
        }
        t.note(&form);
    }
}

const INIT1: &str = "mbarrier.init.shared.b64 [%r2], 1;";
const ARRIVE: &str = "mbarrier.arrive.shared.b64 %d9, [%r2]; ";

/// Remote arrivals give no state.
fn state(parts: &[&str]) -> &'static str {
    if parts.contains(&"shared::cluster") { "_" } else { "%d9" }
}

/// Notes in word `slot` whether the phase of a parity is over.
fn done(parity: u32, slot: usize) -> String {
    format!(
        "mbarrier.test_wait.parity.shared.b64 %p1, [%r2], {parity}; selp.u32 %r5, 1, 0, %p1; st.global.b32 [%d0+{}], %r5;\n",
        4 * slot
    )
}

fn run_one(body: &str) -> Vec<u32> {
    let text =
        format!(".shared .align 8 .b64 bar;\nmov.u32 %r2, bar; mov.b64 %d3, bar; cvta.shared.u64 %d2, %d3;\n{body}");
    words(&launch(&kernel(&text), Launch::new(1, 1), &[0xee; 16], &[], 1).0)
}

/// Before and after the phase is over; and between threads: what was written before arriving is seen after waiting.
fn waits(form: &str, parts: &[&str], at: &str) {
    let parity = parts.contains(&"parity");
    let what = if parity { "0" } else { "%d9" };
    let hint = if parts[1] == "try_wait" { ", 1000" } else { "" };
    let out = run_one(&format!(
        "mbarrier.init.shared.b64 [%r2], 2; {ARRIVE} {form} %p2, {at}, {what}{hint}; selp.u32 %r5, 1, 0, %p2; st.global.b32 [%d0], %r5;\n\
         mbarrier.arrive.shared.b64 %d8, [%r2]; {form} %p2, {at}, {what}; selp.u32 %r5, 1, 0, %p2; st.global.b32 [%d0+4], %r5;"
    ));
    assert_eq!(out[..2], [0, 1], "{form}");
    if !parity {
        return;
    }
    let text = format!(
        ".shared .align 8 .b64 bar; .shared .align 4 .b32 v;\nmov.u32 %r2, bar; mov.b64 %d3, bar; cvta.shared.u64 %d2, %d3;\n\
         mov.u32 %r1, %tid.x; setp.ne.u32 %p1, %r1, 0; @%p1 bra GO; mbarrier.init.shared.b64 [%r2], 1;\nGO: bar.sync 0;\n\
         setp.ne.u32 %p1, %r1, 32; @%p1 bra READ; st.shared.b32 [v], 42; {ARRIVE}\n\
         READ: setp.ne.u32 %p1, %r1, 0; @%p1 bra END;\nAGAIN: {form} %p3, {at}, 0; @!%p3 bra AGAIN;\n\
         ld.shared.b32 %r5, [v]; st.global.b32 [%d0], %r5;\nEND:"
    );
    for seed in 1..=3 {
        let module = kernel(&text);
        let mut gpu = ptx_vm::Gpu::new(ptx_vm::Config::with_seed(seed));
        let p = gpu.alloc(4);
        let result = gpu.launch(&module, "k", Launch::new(1, 64), &[p.into()]);
        // A relaxed wait orders nothing: the read is reported.
        match parts.contains(&"relaxed") {
            true => assert!(matches!(result, Err(ptx_vm::Error::Fault(_))), "{form}"),
            false => {
                result.unwrap_or_else(|e| panic!("{form}: {e}"));
                assert_eq!(words(&gpu.copy_from(p, 4).unwrap()), [42], "{form}");
            }
        }
    }
}
