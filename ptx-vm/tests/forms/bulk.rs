//! Bulk copies: global to shared and back, between blocks, with reductions.

use ptx_vm::Launch;

use crate::judge;
use crate::support::*;

/// Two pieces of 64 bytes of shared memory, an mbarrier whose phase waits for one arrival, and its wait.
const SETUP: &str = ".shared .align 128 .b8 v[128]; .shared .align 8 .b64 bar;\nmov.u32 %r1, v; mov.u32 %r2, bar; mov.b64 %d50, 0;\n\
    mov.u32 %r7, %cluster_ctarank; mov.u32 %r8, %ctaid.x;\nmbarrier.init.shared.b64 [%r2], 1; fence.mbarrier_init.release.cluster;\n";
const WAIT: &str = "WAIT: mbarrier.try_wait.parity.shared.b64 %p1, [%r2], 0; @!%p1 bra WAIT;\n";

pub fn run(t: &mut Tested) {
    for form in forms_of("bulk") {
        let parts: Vec<&str> = form.split('.').collect();
        let policy = if form.contains("cache_hint") { ", %d50" } else { "" };
        for seed in 1..=3 {
            if form.contains("prefetch") {
                let out = run_words(
                    &format!("mov.b64 %d50, 0;\n{form} [%d0], 64{policy};\nst.global.b32 [%d0], 3;"),
                    1,
                    &[0; 16],
                );
                assert_eq!(out[0], 3, "{form}");
            } else if parts[0] == "cp" && parts[1] == "reduce" {
                reduce(&form, &parts, policy, seed);
            } else if form.contains("bulk_group") || form.contains("_group") {
                store(&form, policy, seed);
            } else if form.contains("multicast") {
                multicast(&form, policy, seed);
            } else if form.contains(".shared::cluster.shared::cta.") {
                between_blocks(&form, seed);
            } else {
                load(&form, policy, seed);
            }
        }
        t.note(&form);
    }
}

fn data(n: u32) -> Vec<u8> {
    (1..=n).flat_map(|v| (v * 1001).to_le_bytes()).collect()
}

/// Copies 48 of 64 bytes, then the words back by plain instructions.
fn load(form: &str, policy: &str, seed: u64) {
    let body = format!(
        "{SETUP}mov.b32 %r5, 7; st.shared.b32 [v+48], %r5;\nmbarrier.arrive.expect_tx.shared.b64 _, [%r2], 48;\n\
         {form} [%r1], [%d0], 48, [%r2]{policy};\n{WAIT}\
         ld.shared.v4.b32 {{%r10, %r11, %r12, %r13}}, [v+32]; st.global.v4.b32 [%d0+64], {{%r10, %r11, %r12, %r13}};\n\
         ld.shared.b32 %r14, [v+48]; st.global.b32 [%d0+80], %r14;"
    );
    let (out, counters) = launch(&kernel(&body), Launch::new(1, 1), &data(24), &[], seed);
    assert_eq!(words(&out)[16..21], [9009, 10010, 11011, 12012, 7], "{form}");
    assert_eq!(counters.copied, 48);
}

/// Stores of the two halves in two groups; of the waits one is for reading only.
fn store(form: &str, policy: &str, seed: u64) {
    let copy = if form.contains("bulk_group") { form } else { "cp.async.bulk.global.shared::cta.bulk_group" };
    let wait = if form.contains("wait_group") { form } else { "cp.async.bulk.wait_group" };
    let body = format!(
        "{SETUP}st.shared.v4.b32 [v], {{1, 2, 3, 4}}; st.shared.v4.b32 [v+16], {{5, 6, 7, 8}}; fence.proxy.async;\n\
         {copy} [%d0], [%r1], 16{policy}; cp.async.bulk.commit_group;\n{copy} [%d0+16], [%r1+16], 16{policy};\n\
         cp.async.bulk.commit_group;\n{wait} 1; st.shared.b32 [v], 99;\n{wait} 0; st.shared.b32 [v+16], 99;"
    );
    let (out, _) = launch(&kernel(&body), Launch::new(1, 1), &[0; 32], &[], seed);
    assert_eq!(words(&out), [1, 2, 3, 4, 5, 6, 7, 8], "{form}");
}

fn reduce(form: &str, parts: &[&str], policy: &str, seed: u64) {
    let ty = parts[parts.len() - 1];
    let op = parts.iter().find(|p| matches!(**p, "and" | "or" | "xor" | "add" | "min" | "max")).unwrap();
    let (width, int) = match ty {
        "f16" | "bf16" => (16, None),
        "f32" | "f64" => (ty[1..].parse().unwrap(), None),
        _ => {
            let width: u32 = ty[1..].parse().unwrap();
            (width, Some((width, ty.starts_with('s'))))
        }
    };
    let mut random = Random(31 + seed);
    let mut value_of = || match (int, ty) {
        (Some(_), _) => random.next(),
        (None, "f64") => ((random.next() % 99) as f64 / 3.0 - 16.0).to_bits(),
        (None, "f32") => ((random.next() % 99) as f32 / 3.0 - 16.0).to_bits() as u64,
        (None, "f16") => half::f16::from_f32((random.next() % 99) as f32 / 3.0 - 16.0).to_bits() as u64,
        _ => half::bf16::from_f32((random.next() % 99) as f32 / 3.0 - 16.0).to_bits() as u64,
    };
    let bytes = width as usize / 8;
    let mask = u64::MAX >> (64 - width);
    let values: Vec<u64> = (0..2 * 32 / bytes).map(|_| value_of() & mask).collect();
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()[..bytes].to_vec()).collect();
    let mut body = String::from(SETUP);
    for i in 0..8 {
        body += &format!("ld.global.b32 %r5, [%d0+{}]; st.shared.b32 [v+{}], %r5;\n", 32 + 4 * i, 4 * i);
    }
    body += &format!(
        "fence.proxy.async;\n{form} [%d0], [%r1], 32{policy}; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"
    );
    let (out, _) = launch(&kernel(&body), Launch::new(1, 1), &data, &[], seed);
    for i in 0..32 / bytes {
        let (a, b) = (values[i], values[32 / bytes + i]);
        let wanted = match (int, *op) {
            (Some(int), op) => {
                let (x, y) = (value(a, int), value(b, int));
                let r = match op {
                    "and" => x & y,
                    "or" => x | y,
                    "xor" => x ^ y,
                    "add" => x + y,
                    "min" => x.min(y),
                    _ => x.max(y),
                };
                low(r, width)
            }
            (None, "add") => judge::arithmetic(ty, "add", &[a, b], rustc_apfloat::Round::NearestTiesToEven),
            (None, op) => judge::extreme(ty, a, b, op == "max", false),
        };
        let mut raw = [0; 8];
        raw[..bytes].copy_from_slice(&out[i * bytes..][..bytes]);
        assert_eq!(u64::from_le_bytes(raw), wanted, "{form} of {a:x} and {b:x}");
    }
}

const CLUSTER_SYNC: &str = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n";

/// Rank 2 of a cluster of four copies to ranks 0, 2 and 3; each signals its own mbarrier.
fn multicast(form: &str, policy: &str, seed: u64) {
    let body = format!(
        "{SETUP}mov.u32 %r9, 0; st.shared.b32 [v], %r9; fence.proxy.async;\n\
         setp.eq.u32 %p5, %r7, 1; @%p5 bra READY; mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 32;\nREADY:\n{CLUSTER_SYNC}\
         setp.ne.u32 %p2, %r7, 2; @%p2 bra GO; mov.b16 %h1, 13; {form} [%r1], [%d0], 32, [%r2], %h1{policy};\nGO:\n\
         @%p5 bra TAKE;\n{WAIT}TAKE: ld.shared.b32 %r10, [v]; mul.wide.u32 %d5, %r8, 4; add.s64 %d5, %d5, %d0;\n\
         st.global.b32 [%d5+32], %r10;\n{CLUSTER_SYNC}"
    );
    let (out, _) = launch(&kernel(&body), Launch::new(4, 1).cluster(4), &data(12), &[], seed);
    assert_eq!(words(&out)[8..12], [1001, 0, 1001, 1001], "{form}");
}

/// Each block of a pair sends a piece of its shared memory to the other, whose mbarrier learns of it.
fn between_blocks(form: &str, seed: u64) {
    let body = format!(
        "{SETUP}add.u32 %r9, %r8, 50; mov.b32 %r5, 0; st.shared.v4.b32 [v], {{%r9, %r9, %r9, %r9}}; fence.proxy.async;\n\
         mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 16;\n{CLUSTER_SYNC}xor.b32 %r10, %r7, 1;\n\
         mapa.shared::cluster.u32 %r11, %r1, %r10; mapa.shared::cluster.u32 %r12, %r2, %r10;\n\
         {form} [%r11+64], [%r1], 16, [%r12];\n{WAIT}ld.shared.b32 %r5, [v+64]; mul.wide.u32 %d5, %r8, 4; add.s64 %d5, %d5, %d0;\n\
         st.global.b32 [%d5], %r5;\n{CLUSTER_SYNC}"
    );
    let (out, _) = launch(&kernel(&body), Launch::new(4, 1).cluster(2), &[0; 16], &[], seed);
    assert_eq!(words(&out), [51, 50, 53, 52], "{form}");
}
