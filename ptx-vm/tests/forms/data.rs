//! Moves, packing, address conversion.

use ptx_vm::{Arg, Launch};

use crate::support::*;

pub fn run(t: &mut Tested) {
    for form in forms_of("data") {
        let parts: Vec<&str> = form.split('.').collect();
        match parts[0] {
            "mov" => moves(&form, parts[1]),
            "cvta" if parts[1] == "to" => to_space(&form, parts[2]),
            "cvta" => to_generic(&form, parts[1]),
            "isspacep" => is_space(&form, parts[1]),
            // A policy is opaque: loads take it, and it changes nothing.
            _ => {
                let out = run_words(
                    &format!(
                        "{form} %d5, 1.0; {form} %d6;\nld.global.L2::cache_hint.b32 %r1, [%d0], %d5;\n\
                         st.global.L2::cache_hint.b32 [%d0+4], %r1, %d6;"
                    ),
                    1,
                    &[77, 0],
                );
                assert_eq!(out, [77, 77], "{form}");
            }
        }
        t.note(&form);
    }
    special_registers();
}

fn moves(form: &str, ty: &str) {
    let bits: u32 = ty[1..].parse().unwrap();
    let r = match bits {
        16 => "h",
        32 => "r",
        _ => "d",
    };
    t_identity(form, bits);
    // Packing and unpacking, lowest part first, where parts of at least 16 bits exist.
    if bits > 16 && ty.starts_with('b') {
        let half = bits / 2;
        let part = if half == 16 { "h" } else { "r" };
        let (a, b) = if half == 16 { (0x1234, 0xabcd) } else { (0x1234_5678, 0x9abc_def0u32) };
        let out = run_words(
            &format!(
                "mov.b{half} %{part}1, {a}; mov.b{half} %{part}2, {b};\n{form} %{r}5, {{%{part}1, %{part}2}};\n\
                 st.global.b{bits} [%d0], %{r}5;\n{form} {{%{part}3, _}}, %{r}5;\n{form} {{_, %{part}4}}, %{r}5;\n\
                 st.global.b{half} [%d0+8], %{part}3; st.global.b{half} [%d0+12], %{part}4;"
            ),
            1,
            &[0; 4],
        );
        let packed = if half == 16 { [0xabcd_1234, 0] } else { [0x1234_5678, 0x9abc_def0] };
        assert_eq!(out, [packed[0], packed[1], a, b], "{form}");
    }
    if ty == "b64" {
        let out = run_words(
            "mov.b16 %h1, 1; mov.b16 %h2, 2; mov.b16 %h3, 3; mov.b16 %h4, 4;\nmov.b64 %d5, {%h1, %h2, %h3, %h4};\n\
             st.global.b64 [%d0], %d5; mov.b64 {%h5, %h6, %h7, %h8}, %d5; st.global.v4.b16 [%d0+8], {%h8, %h7, %h6, %h5};",
            1,
            &[0; 4],
        );
        assert_eq!(out, [0x2_0001, 0x4_0003, 0x3_0004, 0x1_0002]);
    }
}

fn t_identity(form: &str, bits: u32) {
    let rows = rows(1, INTEGERS, 16);
    for (row, got) in rows.iter().zip(eval(form, bits, &[bits], &rows)) {
        assert_eq!(got, low(row[0] as i128, bits), "{form}");
    }
}

/// A variable of a space that holds 77: declarations, parameters, statements, its name.
fn variable(space: &str) -> (&'static str, &'static str, &'static str, &'static str) {
    match space {
        "const" => (".const .align 4 .u32 v = 77;", "", "", "v"),
        "global" => (".global .align 4 .u32 v = 77;", "", "", "v"),
        "local" => ("", "", ".local .align 4 .u32 v; st.local.u32 [v], 77;", "v"),
        "param" | "param::entry" => ("", ", .param .u32 v", "", "v"),
        _ => ("", "", ".shared .align 4 .u32 v; st.shared.u32 [v], 77;", "v"),
    }
}

fn run_with(space: &str, body: &str) -> Vec<u32> {
    let (module, parameters, before, _) = variable(space);
    let more: &[Arg] = if parameters.is_empty() { &[] } else { &[77u32.into()] };
    words(
        &launch(&kernel_with(module, parameters, &format!("{before}\n{body}")), Launch::new(1, 1), &[0; 8], more, 1).0,
    )
}

/// The generic address reaches the variable.
fn to_generic(form: &str, space: &str) {
    let out =
        run_with(space, &format!("mov.b64 %d1, v; {form} %d2, %d1; ld.u32 %r1, [%d2]; st.global.u32 [%d0], %r1;"));
    assert_eq!(out[0], 77, "{form}");
}

/// And back: the address in the space is the one before.
fn to_space(form: &str, space: &str) {
    let there = form.replace(".to", "");
    let out = run_with(
        space,
        &format!(
            "mov.b64 %d1, v; {there} %d2, %d1; {form} %d3, %d2; setp.eq.u64 %p1, %d1, %d3; selp.u32 %r1, 1, 0, %p1;\n\
             st.global.u32 [%d0], %r1;"
        ),
    );
    assert_eq!(out[0], 1, "{form}");
}

fn is_space(form: &str, space: &str) {
    let class = |s: &str| match s.split("::").next().unwrap() {
        "const" | "global" => 0,
        "local" => 1,
        "param" => 2,
        _ => 3,
    };
    for of in ["const", "global", "local", "shared", "param"] {
        // Whether constant memory counts as global is left open.
        if of == space || class(of) != class(space) {
            let body = format!(
                "mov.b64 %d1, v; cvta.{of}.u64 %d2, %d1; {form} %p1, %d2; selp.u32 %r1, 1, 0, %p1; st.global.u32 [%d0], %r1;"
            );
            assert_eq!(run_with(of, &body)[0], (class(of) == class(space)) as u32, "{form} of {of}");
        }
    }
}

/// The special registers that kernels use, for every thread of a small grid.
fn special_registers() {
    let names = [
        "%tid.x",
        "%tid.y",
        "%tid.z",
        "%ntid.x",
        "%ntid.y",
        "%ntid.z",
        "%ctaid.x",
        "%ctaid.y",
        "%nctaid.x",
        "%nctaid.y",
        "%laneid",
        "%warpid",
        "%nwarpid",
        "%lanemask_eq",
        "%lanemask_lt",
        "%lanemask_le",
        "%lanemask_gt",
        "%lanemask_ge",
        "WARP_SZ",
    ];
    let n = names.len();
    let mut body = String::from(
        "mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z; mov.u32 %r4, %ctaid.x; mov.u32 %r5, %ctaid.y;\n\
         mad.lo.u32 %r5, %r5, 2, %r4; mad.lo.u32 %r5, %r5, 2, %r3; mad.lo.u32 %r5, %r5, 3, %r2; mad.lo.u32 %r5, %r5, 12, %r1;\n",
    );
    body += &format!("mul.wide.u32 %d1, %r5, {}; add.s64 %d0, %d0, %d1;\n", 4 * n);
    for (i, name) in names.iter().enumerate() {
        body += &format!("mov.u32 %r6, {name}; st.global.u32 [%d0+{}], %r6;\n", 4 * i);
    }
    let (grid, block) = ([2u32, 3, 1], [12u32, 3, 2]);
    let threads = 72;
    let data = vec![0; 6 * threads * n * 4];
    let (out, _) = launch(&kernel(&body), Launch::new(grid, block), &data, &[], 1);
    for (i, row) in words(&out).chunks(n).enumerate() {
        let (cta, thread) = ((i / threads) as u32, (i % threads) as u32);
        let (lane, warp) = (thread % 32, thread / 32);
        let eq = 1u32 << lane;
        let wanted = [
            thread % 12,
            thread / 12 % 3,
            thread / 36,
            12,
            3,
            2,
            cta % 2,
            cta / 2,
            2,
            3,
            lane,
            warp,
            3,
            eq,
            eq - 1,
            eq | (eq - 1),
            !(eq | (eq - 1)),
            !(eq - 1),
            32,
        ];
        assert_eq!(row, wanted, "thread {thread} of block {cta}");
    }
}
