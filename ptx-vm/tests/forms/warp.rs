//! Exchange between lanes, against the ISA's pseudo-code, with full and partial masks.

use ptx_vm::Launch;

use crate::support::*;

/// Runs a body for every lane whose bit is set in `mask`; each gives `%r9` and the bit `%p9`.
fn lanes(mask: u32, inputs: &[u32; 32], body: &str) -> Vec<(u32, bool)> {
    let text = format!(
        "mov.u32 %r60, %tid.x; mul.wide.u32 %d60, %r60, 16; add.s64 %d0, %d0, %d60;\n\
         ld.global.b32 %r1, [%d0]; mov.b32 %r9, 0; setp.ne.b32 %p9, 0, 0; mov.b64 %d1, {{%r1, %r1}};\n\
         mov.b32 %r61, {mask}; shr.u32 %r61, %r61, %r60; and.b32 %r61, %r61, 1; setp.eq.u32 %p10, %r61, 0;\n\
         setp.ne.u32 %p1, %r1, 0;\n@%p10 bra OUT;\n{body}\n\
         OUT: selp.u32 %r10, 1, 0, %p9; st.global.v2.b32 [%d0+8], {{%r9, %r10}};"
    );
    let data: Vec<u8> = inputs.iter().flat_map(|&v| [v, 0, 0, 0]).flat_map(|v| v.to_le_bytes()).collect();
    let (out, _) = launch(&kernel(&text), Launch::new(1, 32), &data, &[], 1);
    words(&out).chunks(4).map(|c| (c[2], c[3] == 1)).collect()
}

fn members(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| mask >> l & 1 == 1)
}

const MASKS: [u32; 4] = [u32::MAX, 0x0000_ffff, 0x5555_5555, 0x8000_0001];

pub fn run(t: &mut Tested) {
    let mut random = Random(17);
    let mixed: [u32; 32] = std::array::from_fn(|i| if i % 5 == 0 { 7 } else { random.next() as u32 });
    let zeros: [u32; 32] = std::array::from_fn(|i| (i % 3 == 0) as u32);
    for form in forms_of("warp") {
        let parts: Vec<&str> = form.split('.').collect();
        for mask in MASKS {
            match parts[0] {
                "shfl" => shuffle(&form, parts[2], mask, &mixed),
                "vote" => [&zeros, &[0; 32], &[1; 32]].iter().for_each(|v| vote(&form, parts[2], mask, v)),
                "match" => [&mixed, &[9; 32]].iter().for_each(|v| matching(&form, &parts, mask, v)),
                "redux" => redux(&form, &parts, mask, &mixed),
                "activemask" => {
                    let out = lanes(mask, &mixed, &format!("{form} %r9;"));
                    members(mask).for_each(|l| assert_eq!(out[l].0, mask, "{form}"));
                }
                "elect" => {
                    let out = lanes(mask, &mixed, &format!("{form} %r9|%p9, {mask};"));
                    let leader = mask.trailing_zeros();
                    members(mask).for_each(|l| assert_eq!(out[l], (leader, l as u32 == leader), "{form}"));
                }
                _ => meet(&form, mask),
            }
        }
        t.note(&form);
    }
}

fn shuffle(form: &str, mode: &str, mask: u32, inputs: &[u32; 32]) {
    // Lane or offset, and the third operand: segment mask in bits 8 to 12, clamp in bits 0 to 4.
    for (b, c) in
        [(0i64, 0x1fi64), (1, 0x1f), (1, 0), (5, 0x1f), (17, 0x1f), (31, 0x1f), (3, 0x1807), (2, 0x1c03), (1, 0x1800)]
    {
        let source = |lane: usize| {
            let (bval, cval, segment) = (b & 31, c & 31, c >> 8 & 31);
            let l = lane as i64;
            let (min, max) = (l & segment, (l & segment) | (cval & !segment));
            let (j, valid) = match mode {
                "up" => (l - bval, l - bval >= max),
                "down" => (l + bval, l + bval <= max),
                "bfly" => (l ^ bval, (l ^ bval) <= max),
                _ => (min | (bval & !segment), (min | (bval & !segment)) <= max),
            };
            (if valid { j as usize } else { lane }, valid)
        };
        // What a lane that does not take part would give is undefined.
        if members(mask).any(|lane| mask >> source(lane).0 & 1 == 0) {
            continue;
        }
        let out = lanes(mask, inputs, &format!("{form} %r9|%p9, %r1, {b}, {c}, {mask};"));
        for lane in members(mask) {
            let (from, valid) = source(lane);
            assert_eq!(out[lane], (inputs[from], valid), "{form} lane {lane} by {b}, {c:#x}, mask {mask:#x}");
        }
    }
}

fn vote(form: &str, kind: &str, mask: u32, inputs: &[u32; 32]) {
    let to = if kind == "ballot" { "%r9" } else { "%p9" };
    let out = lanes(mask, inputs, &format!("{form} {to}, %p1, {mask};"));
    let ballot = members(mask).filter(|&l| inputs[l] != 0).fold(0u32, |b, l| b | 1 << l);
    let wanted = match kind {
        "all" => (0, ballot == mask),
        "any" => (0, ballot != 0),
        "uni" => (0, ballot == 0 || ballot == mask),
        _ => (ballot, false),
    };
    members(mask).for_each(|l| assert_eq!(out[l], wanted, "{form} lane {l}"));
}

fn matching(form: &str, parts: &[&str], mask: u32, inputs: &[u32; 32]) {
    let value = if parts[3] == "b64" { "%d1" } else { "%r1" };
    let to = if parts[1] == "all" { "%r9|%p9" } else { "%r9" };
    let out = lanes(mask, inputs, &format!("{form} {to}, {value}, {mask};"));
    for lane in members(mask) {
        let same = members(mask).filter(|&l| inputs[l] == inputs[lane]).fold(0u32, |m, l| m | 1 << l);
        let all = same == mask;
        let wanted = if parts[1] == "any" { (same, false) } else { (if all { mask } else { 0 }, all) };
        assert_eq!(out[lane], wanted, "{form} lane {lane}");
    }
}

fn redux(form: &str, parts: &[&str], mask: u32, inputs: &[u32; 32]) {
    let out = lanes(mask, inputs, &format!("{form} %r9, %r1, {mask};"));
    let ty = (32, parts[3] == "s32");
    let all = members(mask).map(|l| value(inputs[l] as u64, ty));
    let wanted = match parts[2] {
        "add" => all.sum(),
        "min" => all.min().unwrap(),
        "max" => all.max().unwrap(),
        "and" => all.fold(-1, |a, b| a & b),
        "or" => all.fold(0, |a, b| a | b),
        _ => all.fold(0, |a, b| a ^ b),
    };
    members(mask).for_each(|l| assert_eq!(out[l].0 as u64, low(wanted, 32), "{form} lane {l}"));
}

/// What one lane wrote before it, another reads after it.
fn meet(form: &str, mask: u32) {
    let body = format!(
        ".shared .align 4 .b8 v[128];\nmov.u32 %r2, %laneid; shl.b32 %r3, %r2, 2; mov.u32 %r4, v; add.u32 %r3, %r3, %r4;\n\
         st.shared.u32 [%r3], %r1;\n{form} {mask};\nmov.b32 %r5, {}; shl.b32 %r5, %r5, 2; add.u32 %r5, %r5, %r4;\n\
         ld.shared.u32 %r9, [%r5];",
        mask.trailing_zeros()
    );
    let inputs: [u32; 32] = std::array::from_fn(|i| 100 + i as u32);
    let out = lanes(mask, &inputs, &body);
    members(mask).for_each(|l| assert_eq!(out[l].0, 100 + mask.trailing_zeros(), "{form}"));
}
