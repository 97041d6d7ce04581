//! ldmatrix, stmatrix and movmatrix, by the figures of the ISA: lane 4r + c/2 holds elements c and c + 1 of row r.
//! Their bank conflicts, and those of plain shared accesses.

use ptx_vm::{Counters, Launch};

use crate::support::*;

pub fn run(t: &mut Tested) {
    for form in forms_of("matrix") {
        let parts: Vec<&str> = form.split('.').collect();
        let count: usize = parts.iter().find_map(|p| p.strip_prefix('x')?.parse().ok()).unwrap_or(1);
        let trans = parts.contains(&"trans");
        match parts[0] {
            "ldmatrix" => load(&form, count, trans),
            "stmatrix" => store(&form, count, trans),
            _ => transpose(&form),
        }
        t.note(&form);
    }
    ldmatrix_conflicts();
    shared_conflicts();
}

fn list(first: usize, count: usize) -> String {
    format!("{{{}}}", (0..count).map(|i| format!("%r{}", first + i)).collect::<Vec<_>>().join(", "))
}

fn address(form: &str) -> &'static str {
    if form.contains(".shared") { "%r3" } else { "%d3" }
}

/// Element `column` of row `row` of matrix `m`.
fn element(m: usize, row: usize, column: usize) -> u32 {
    (m * 64 + row * 8 + column + 1) as u32 * 7
}

/// What lane `lane` holds of matrix `m`.
fn fragment(m: usize, lane: usize, trans: bool) -> u32 {
    let (row, column) = (lane / 4, lane % 4 * 2);
    let at = |half: usize| if trans { element(m, column + half, row) } else { element(m, row, column + half) };
    at(0) | at(1) << 16
}

/// Threads put 4 matrices with rows of 16 bytes into shared memory; row addresses come from lanes 0 to 8 * count - 1,
/// here in reverse order of the rows in memory.
const SETUP: &str = ".shared .align 16 .b8 v[512];\nmov.u32 %r1, %tid.x; mul.wide.u32 %d1, %r1, 16; add.s64 %d2, %d0, %d1;\n\
    mov.u32 %r2, v; shl.b32 %r4, %r1, 4; add.u32 %r4, %r4, %r2; sub.u32 %r3, 31, %r1; shl.b32 %r3, %r3, 4; \
    add.u32 %r3, %r3, %r2; cvt.u64.u32 %d3, %r3; cvta.shared.u64 %d3, %d3;\n";

fn load(form: &str, count: usize, trans: bool) {
    let mut body = format!(
        "{SETUP}ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%d2]; st.shared.v4.b32 [%r4], {{%r10, %r11, %r12, %r13}};\n\
         bar.warp.sync 0xffffffff;\n{form} {}, [{}];\n",
        list(20, count),
        address(form)
    );
    for i in 0..count {
        body += &format!("st.global.b32 [%d2+{}], %r{};\n", 4 * i, 20 + i);
    }
    // Row r of the matrices together lies at slot 31 - r.
    let data: Vec<u8> =
        (0..32).rev().flat_map(|r| (0..8).flat_map(move |c| (element(r / 8, r % 8, c) as u16).to_le_bytes())).collect();
    let (out, counters) = launch(&kernel(&body), Launch::new(1, 32), &data, &[], 1);
    for (lane, row) in words(&out).chunks(4).enumerate() {
        for (m, &got) in row[..count].iter().enumerate() {
            assert_eq!(got, fragment(m, lane, trans), "{form} lane {lane} matrix {m}");
        }
    }
    assert_eq!(counters.ldmatrix_conflicts, 0, "{form}");
}

fn store(form: &str, count: usize, trans: bool) {
    let mut body = format!("{SETUP}ld.global.v4.b32 {{%r20, %r21, %r22, %r23}}, [%d2];\n");
    body += &format!(
        "mov.b32 %r10, 0; st.shared.v4.b32 [%r4], {{%r10, %r10, %r10, %r10}}; bar.warp.sync 0xffffffff;\n\
         {form} [{}], {};\nbar.warp.sync 0xffffffff;\nld.shared.v4.b32 {{%r10, %r11, %r12, %r13}}, [%r4];\n\
         st.global.v4.b32 [%d2], {{%r10, %r11, %r12, %r13}};",
        address(form),
        list(20, count)
    );
    let data: Vec<u8> =
        (0..32).flat_map(|lane| (0..4).flat_map(move |m| fragment(m, lane, trans).to_le_bytes())).collect();
    let (out, _) = launch(&kernel(&body), Launch::new(1, 32), &data, &[], 1);
    for (slot, row) in out.chunks(16).enumerate() {
        let r = 31 - slot;
        for (c, got) in row.chunks(2).enumerate() {
            let wanted = if r / 8 < count { element(r / 8, r % 8, c) as u16 } else { 0 };
            assert_eq!(u16::from_le_bytes([got[0], got[1]]), wanted, "{form} row {r} column {c}");
        }
    }
}

fn transpose(form: &str) {
    let body = format!("{SETUP}ld.global.b32 %r5, [%d2]; {form} %r6, %r5; st.global.b32 [%d2], %r6;");
    let data: Vec<u8> =
        (0..32).flat_map(|lane| [fragment(0, lane, false), 0, 0, 0]).flat_map(|v| v.to_le_bytes()).collect();
    let (out, _) = launch(&kernel(&body), Launch::new(1, 32), &data, &[], 1);
    for (lane, row) in words(&out).chunks(4).enumerate() {
        assert_eq!(row[0], fragment(0, lane, true), "{form} lane {lane}");
    }
}

/// Runs accesses of a warp to 32 KiB of shared memory whose address is `lane * stride`.
fn count(stride: usize, access: &str) -> Counters {
    let body = format!(
        ".shared .align 16 .b8 v[32768];\nmov.u32 %r1, %laneid; mul.lo.u32 %r2, %r1, {stride}; mov.u32 %r3, v;\n\
         add.u32 %r3, %r3, %r2; mov.b32 %r5, 1; mov.b64 %d5, 1;\n{access}"
    );
    launch(&kernel(&body), Launch::new(1, 32), &[0; 4], &[], 1).1
}

/// Eight rows of 16 bytes go in one pass if they lie in different groups of four banks.
fn ldmatrix_conflicts() {
    for (stride, passes) in [(16, 1), (32, 2), (64, 4), (128, 8), (144, 1), (80, 1), (48, 1), (160, 2)] {
        let c = count(
            stride,
            "st.shared.v4.b32 [%r3], {%r5, %r5, %r5, %r5}; bar.warp.sync 0xffffffff;\n\
             ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r3];",
        );
        assert_eq!(c.ldmatrix_conflicts, 4 * (passes - 1), "rows {stride} bytes apart");
    }
}

/// 32 banks of 4 bytes: the extra passes are the most words in one bank, less one; a broadcast is none.
fn shared_conflicts() {
    for (stride, extra) in [(0, 0), (4, 0), (8, 1), (12, 0), (16, 3), (128, 31), (132, 0), (256, 31)] {
        let c = count(stride, "ld.shared.b32 %r5, [%r3];");
        assert_eq!(c.shared_conflicts, extra, "words {stride} bytes apart");
    }
    // Eight-byte accesses are served in halves of the warp, sixteen-byte ones in quarters.
    assert_eq!(count(8, "st.shared.b64 [%r3], %d5;").shared_conflicts, 0);
    assert_eq!(count(16, "st.shared.v4.b32 [%r3], {%r5, %r5, %r5, %r5};").shared_conflicts, 0);
    assert_eq!(count(32, "st.shared.v4.b32 [%r3], {%r5, %r5, %r5, %r5};").shared_conflicts, 4);
}
