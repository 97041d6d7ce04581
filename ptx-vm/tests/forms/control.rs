//! Branches, calls, ends, hints; fences.

use ptx_vm::{Config, Error, FaultKind, Gpu, Launch};

use crate::support::*;

pub fn run(t: &mut Tested) {
    for form in forms_of("control") {
        match form.split('.').next().unwrap() {
            "bra" => branches(&form),
            "call" => calls(&form, "ret"),
            "ret" => calls("call", &form),
            "exit" => exits(&form),
            "trap" => traps(&form),
            "nanosleep" => goes_on(&format!("{form} 100;")),
            "pmevent" => goes_on(&format!("{form} 3;")),
            "discard" | "applypriority" => goes_on(&format!("{form} [%d0], 128;")),
            _ => goes_on(&format!("{form} [%d0];")),
        }
        t.note(&form);
    }
}

/// A loop and a divergent branch: the sum of 1..=n for odd threads, n for even ones.
fn branches(form: &str) {
    let body = format!(
        "mov.u32 %r1, %tid.x; mul.wide.u32 %d1, %r1, 4; add.s64 %d0, %d0, %d1; and.b32 %r2, %r1, 1;\n\
         setp.eq.u32 %p1, %r2, 0; mov.u32 %r3, 0; mov.u32 %r4, %r1;\n@%p1 bra EVEN;\n\
         LOOP: setp.eq.u32 %p2, %r4, 0; @%p2 bra DONE;\nadd.u32 %r3, %r3, %r4; sub.u32 %r4, %r4, 1;\n{form} LOOP;\n\
         EVEN: mov.u32 %r3, %r1;\n{form} DONE;\nDONE: st.global.u32 [%d0], %r3;"
    );
    let out = run_words(&body, 40, &[0; 40]);
    let wanted: Vec<u32> = (0..40).map(|i| if i & 1 == 1 { i * (i + 1) / 2 } else { i }).collect();
    assert_eq!(out, wanted, "{form}");
}

/// A function with two arguments and a result, called by some threads only and from another function.
fn calls(call: &str, ret: &str) {
    let functions = format!(
        ".func (.param .b32 s) add2(.param .b32 a, .param .b32 b) {{\n{REGISTERS}ld.param.b32 %r1, [a];\n\
         ld.param.b32 %r2, [b]; add.u32 %r3, %r1, %r2; st.param.b32 [s], %r3;\n{ret};\n}}\n\
         .func (.param .b32 s) twice(.param .b32 a) {{\n{REGISTERS}ld.param.b32 %r1, [a];\n{{\n\
         .param .b32 x; .param .b32 y; .param .b32 z;\nst.param.b32 [x], %r1; st.param.b32 [y], %r1;\n\
         {call} (z), add2, (x, y);\nld.param.b32 %r2, [z];\n}}\nst.param.b32 [s], %r2;\n{ret};\n}}\n"
    );
    let body = format!(
        "mov.u32 %r1, %tid.x; mul.wide.u32 %d1, %r1, 4; add.s64 %d0, %d0, %d1; setp.lt.u32 %p1, %r1, 10;\n\
         mov.u32 %r5, 1000;\n@%p1 bra SKIP;\n{{\n.param .b32 x; .param .b32 z;\nst.param.b32 [x], %r1;\n\
         {call} (z), twice, (x);\nld.param.b32 %r5, [z];\n}}\nSKIP: st.global.u32 [%d0], %r5;"
    );
    let (out, _) = launch(&kernel_with(&functions, "", &body), Launch::new(1, 40), &[0; 160], &[], 1);
    let wanted: Vec<u32> = (0..40).map(|i| if i < 10 { 1000 } else { 2 * i }).collect();
    assert_eq!(words(&out), wanted, "{call}, {ret}");
}

/// Threads that exit write nothing; a barrier no longer waits for them.
fn exits(form: &str) {
    let body = format!(
        "mov.u32 %r1, %tid.x; mul.wide.u32 %d1, %r1, 4; add.s64 %d0, %d0, %d1; setp.lt.u32 %p1, %r1, 32;\n\
         @%p1 {form};\nbar.sync 0; st.global.u32 [%d0], 5;"
    );
    let out = run_words(&body, 64, &[1; 64]);
    assert!(out[..32].iter().all(|&v| v == 1) && out[32..].iter().all(|&v| v == 5), "{form}");
}

fn traps(form: &str) {
    let module = kernel(&format!("{form};"));
    let mut gpu = Gpu::new(Config::default());
    let p = gpu.alloc(4);
    match gpu.launch(&module, "k", Launch::new(1, 1), &[p.into()]) {
        Err(Error::Fault(fault)) => assert_eq!(fault.kind, FaultKind::Trap),
        other => panic!("{form}: {other:?}"),
    }
}

/// Something without effect on results.
fn goes_on(statement: &str) {
    let out = run_words(&format!("{statement}\nst.global.u32 [%d0], 9;"), 1, &[0; 32]);
    assert_eq!(out[0], 9, "{statement}");
}

/// A fence of a scope between data and flag, on both sides, hands data over within that scope; without it the same
/// kernel is reported. Proxy fences are tested where the async proxy is.
pub fn run_fences(t: &mut Tested) {
    for form in forms_of("fence") {
        let parts: Vec<&str> = form.split('.').collect();
        if parts[1].starts_with("proxy") || parts[1] == "mbarrier_init" {
            proxies(&form, &parts);
        } else {
            let scope = parts[parts.len() - 1];
            for seed in 1..=3 {
                // Within a block any scope does; between blocks that of the block does not.
                assert_eq!(message(&format!("{form};"), 1, seed), Ok(42), "{form}");
                let between = message(&format!("{form};"), 2, seed);
                match scope {
                    "cta" => assert!(between.is_err(), "{form} between blocks"),
                    _ => assert_eq!(between, Ok(42), "{form} between blocks"),
                }
                assert!(message("", 1, seed).is_err(), "no fence");
            }
        }
        t.note(&form);
    }
}

/// Thread 0 writes data and then a flag, the other waits for the flag and reads the data.
fn message(fence: &str, blocks: u32, seed: u64) -> Result<u32, String> {
    let who = if blocks == 1 { "mov.u32 %r1, %tid.x; shr.u32 %r1, %r1, 5;" } else { "mov.u32 %r1, %ctaid.x;" };
    let body = format!(
        "{who}\nmov.u32 %r9, %tid.x; and.b32 %r9, %r9, 31; setp.ne.u32 %p9, %r9, 0; @%p9 bra END;\n\
         setp.ne.u32 %p1, %r1, 0; @%p1 bra READER;\nst.global.u32 [%d0], 42;\n{fence}\n\
         st.relaxed.sys.global.u32 [%d0+4], 1;\nbra END;\nREADER: ld.relaxed.sys.global.u32 %r2, [%d0+4];\n\
         setp.eq.u32 %p2, %r2, 0; @%p2 bra READER;\n{fence}\nld.global.u32 %r3, [%d0];\n\
         st.global.u32 [%d0+8], %r3;\nEND:"
    );
    let module = kernel(&body);
    let mut gpu = Gpu::new(Config::with_seed(seed));
    let p = gpu.upload(&[0; 12]);
    let threads = if blocks == 1 { 64 } else { 32 };
    gpu.launch(&module, "k", Launch::new(blocks, threads), &[p.into()]).map_err(|e| e.to_string())?;
    Ok(words(&gpu.copy_from(p, 12).unwrap())[2])
}

/// A bulk store reads what threads wrote to shared memory: only behind a fence of the async proxy.
fn proxies(form: &str, parts: &[&str]) {
    let operand = if form.contains("tensormap::generic.acquire") { " [%d0], 128" } else { "" };
    let body = |fence: &str| {
        format!(
            ".shared .align 16 .b8 v[16];\nst.shared.v4.b32 [v], {{1, 2, 3, 4}};\n{fence}\nmov.u32 %r1, v;\n\
             cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 16;\ncp.async.bulk.commit_group;\n\
             cp.async.bulk.wait_group 0;"
        )
    };
    let run = |fence: &str| {
        let mut gpu = Gpu::new(Config::default());
        let p = gpu.upload(&[0; 128]);
        let result = gpu.launch(&kernel(&body(fence)), "k", Launch::new(1, 1), &[p.into()]).map(|_| ());
        result.map(|()| words(&gpu.copy_from(p, 16).unwrap()))
    };
    let orders = !matches!(parts[2], "alias" | "tensormap::generic");
    match run(&format!("{form}{operand};")) {
        Ok(out) => assert!(orders && out == [1, 2, 3, 4], "{form}"),
        Err(Error::Fault(fault)) => {
            assert!(!orders && matches!(fault.kind, FaultKind::MissingProxyFence { .. }), "{form}: {fault}")
        }
        Err(other) => panic!("{form}: {other}"),
    }
}
