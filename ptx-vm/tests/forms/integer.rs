//! Integer arithmetic against 128-bit arithmetic, and the carry chain.

use ptx_vm::Launch;

use crate::support::*;

/// Result of a form for operands of type `ty`.
fn result(parts: &[&str], ty: (u32, bool), v: &[u64]) -> Option<u64> {
    let x: Vec<i128> = v.iter().map(|&v| value(v, ty)).collect();
    let width = ty.0;
    let (min, max) =
        if ty.1 { (-(1i128 << (width - 1)), (1i128 << (width - 1)) - 1) } else { (0, (1i128 << width) - 1) };
    let sat = parts.contains(&"sat");
    let clamp = |r: i128| if sat { r.clamp(min, max) } else { r };
    let relu = |r: i128| if parts.contains(&"relu") { r.max(0) } else { r };
    let product = || x[0].wrapping_mul(x[1]);
    let r = match (parts[0], parts[1]) {
        ("add", _) => clamp(x[0] + x[1]),
        ("sub", _) => clamp(x[0] - x[1]),
        ("mul", "lo") => product(),
        ("mul", "hi") => product() >> width,
        ("mul", "wide") => return Some(low(product(), 2 * width)),
        ("mad", "lo") => product() + x[2],
        ("mad", "hi") => clamp((product() >> width) + x[2]),
        ("mad", "wide") => return Some(low(product() + value(v[2], (2 * width, ty.1)), 2 * width)),
        // Division by zero is machine-specific.
        ("div" | "rem", _) if x[1] == 0 => return None,
        ("div", _) => x[0] / x[1],
        ("rem", _) => x[0] % x[1],
        ("min", _) => relu(x[0].min(x[1])),
        ("max", _) => relu(x[0].max(x[1])),
        ("sad", _) => x[2] + (x[0] - x[1]).abs(),
        ("abs", _) => x[0].abs(),
        ("neg", _) => -x[0],
        ("mul24" | "mad24", half) => {
            let narrow = (24, ty.1);
            let product = value(v[0], narrow) * value(v[1], narrow);
            let part = if half == "hi" { product >> 16 } else { product };
            let part = value(low(part, 32), ty);
            if parts[0] == "mad24" { clamp(part + x[2]) } else { part }
        }
        _ => panic!("no oracle for {parts:?}"),
    };
    Some(low(r, width))
}

fn dot(parts: &[&str], v: &[u64]) -> u64 {
    let signed = |at: usize| parts[parts.len() - 2 + at] == "s32";
    let byte = |i: u32| value(v[1] >> (8 * i), (8, signed(1)));
    let sum: i128 = match parts {
        ["dp4a", ..] => (0..4).map(|i| value(v[0] >> (8 * i), (8, signed(0))) * byte(i)).sum(),
        [_, half, ..] => {
            let first = if *half == "hi" { 2 } else { 0 };
            (0..2).map(|i| value(v[0] >> (16 * i), (16, signed(0))) * byte(first + i)).sum()
        }
        _ => unreachable!(),
    };
    low(v[2] as i128 + sum, 32)
}

pub fn run(t: &mut Tested) {
    for form in forms_of("integer") {
        let parts: Vec<&str> = form.split('.').collect();
        let sources = match parts[0] {
            "abs" | "neg" => 1,
            "mad" | "mad24" | "sad" | "dp4a" | "dp2a" => 3,
            _ => 2,
        };
        let last = parts[parts.len() - 1];
        if parts[0].starts_with("dp") {
            t.check(&form, 32, &[32; 3], &rows(3, INTEGERS, 3), |v| Some(dot(&parts, v)));
        } else if let Some(half) = last.strip_suffix("x2") {
            let ty = integer_type(half);
            let lane = |v: &[u64], at: u32| {
                result(&parts, ty, &v.iter().map(|x| x >> at & 0xffff).collect::<Vec<_>>()).unwrap()
            };
            t.check(&form, 32, &vec![32; sources], &rows(sources, INTEGERS, 4), |v| {
                Some(lane(v, 0) | lane(v, 16) << 16)
            });
        } else {
            let ty = integer_type(last);
            let wide = parts.contains(&"wide");
            let mut inputs = vec![ty.0; sources];
            if wide && sources == 3 {
                inputs[2] = 2 * ty.0;
            }
            let out = if wide { 2 * ty.0 } else { ty.0 };
            t.check(&form, out, &inputs, &rows(sources, INTEGERS, 5), |v| result(&parts, ty, v));
        }
    }
}

/// Sets the carry flag as wanted, executes the form, and reads the flag back.
pub fn run_carry(t: &mut Tested) {
    for form in forms_of("carry") {
        let parts: Vec<&str> = form.split('.').collect();
        let ty = integer_type(parts[parts.len() - 1]);
        let (bits, r) = (ty.0, if ty.0 == 32 { "r" } else { "d" });
        let mad = parts[0].starts_with("mad");
        let third = if mad { format!(", %{r}3") } else { String::new() };
        // add.cc of all ones and the wanted carry sets the flag; addc of two zeros reads it.
        let body = format!(
            "mov.u32 %r60, %tid.x; mul.wide.u32 %d60, %r60, 48; add.s64 %d0, %d0, %d60;\n\
             ld.global.b{bits} %{r}1, [%d0+8]; ld.global.b{bits} %{r}2, [%d0+16]; ld.global.b{bits} %{r}3, [%d0+24];\n\
             ld.global.b32 %r50, [%d0+32]; add.cc.u32 %r51, %r50, 0xffffffff;\n\
             {form} %{r}9, %{r}1, %{r}2{third};\naddc.u32 %r52, 0, 0;\n\
             st.global.b{bits} [%d0], %{r}9; st.global.b32 [%d0+40], %r52;"
        );
        let module = kernel(&body);
        let inputs = rows(3, INTEGERS, 6);
        for (chunk, carry) in inputs.chunks(128).flat_map(|c| [(c, 0u64), (c, 1)]) {
            let data: Vec<u8> =
                chunk.iter().flat_map(|v| [0, v[0], v[1], v[2], carry, 0]).flat_map(|v: u64| v.to_le_bytes()).collect();
            let (out, _) = launch(&module, Launch::new(1, chunk.len() as u32), &data, &[], 1);
            let word = |at: usize| u64::from_le_bytes(out[at..at + 8].try_into().unwrap());
            for (i, v) in chunk.iter().enumerate() {
                let x: Vec<i128> = v.iter().map(|&v| value(v, (bits, false))).collect();
                let into = if parts[0].ends_with('c') { carry as i128 } else { 0 };
                let product = value(v[0], ty).wrapping_mul(value(v[1], ty));
                let half = if parts[1] == "hi" { product >> bits } else { product };
                let full = match parts[0] {
                    "add" | "addc" => x[0] + x[1] + into,
                    "sub" | "subc" => x[0] - x[1] - into,
                    _ => low(half, bits) as i128 + x[2] + into,
                };
                // Without .cc the flag stays; a borrow is a carry here.
                let flag = if parts.contains(&"cc") { (full >> bits != 0) as u64 } else { carry };
                assert_eq!(word(48 * i), low(full, bits), "{form} of {v:x?} with carry {carry}");
                assert_eq!(word(48 * i + 40) as u32 as u64, flag, "flag of {form} of {v:x?} with carry {carry}");
            }
        }
        t.note(&form);
    }
}
