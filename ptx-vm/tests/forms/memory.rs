//! Loads and stores of every type, space, order and vector length; hints change nothing.

use ptx_vm::{Arg, Launch};

use crate::support::*;

/// What a form says about an access.
struct Access<'a> {
    form: &'a str,
    load: bool,
    space: &'a str,
    count: usize,
    bits: u32,
    signed: bool,
    policy: &'a str,
}

const SPACES: &[&str] =
    &["global", "shared", "shared::cta", "shared::cluster", "local", "const", "param", "param::entry", "param::func"];

fn parse(form: &str) -> Access<'_> {
    let parts: Vec<&str> = form.split('.').collect();
    let ty = parts[parts.len() - 1];
    let space = parts.iter().find(|p| SPACES.contains(p)).copied();
    // ldu and mmio without a space are generic, like the others.
    Access {
        form,
        load: parts[0] != "st",
        space: space.unwrap_or("generic"),
        count: if parts.contains(&"v2") {
            2
        } else if parts.contains(&"v4") {
            4
        } else {
            1
        },
        bits: ty[1..].parse().unwrap(),
        signed: ty.starts_with('s'),
        policy: if form.contains("L2::cache_hint") { ", %d50" } else { "" },
    }
}

const PATTERN: [u8; 16] =
    [0x81, 0x92, 0x03, 0x94, 0xf5, 0x86, 0x77, 0x98, 0x19, 0x8a, 0x9b, 0xac, 0x8d, 0x1e, 0xff, 0xf0];

/// A register list: 64-bit values in `%d`, all others in 32-bit registers, which are wider than 8 and 16 bits.
fn registers(a: &Access, first: usize) -> String {
    let name = |i: usize| if a.bits == 64 { format!("%d{}", first + i) } else { format!("%r{}", first + i) };
    let all: Vec<String> = (0..a.count).map(name).collect();
    if a.count == 1 { all[0].clone() } else { format!("{{{}}}", all.join(", ")) }
}

/// The statements that put the pattern, or room, into a space and leave its address in an operand.
fn place(a: &Access) -> (String, String, String) {
    let words = PATTERN.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap()));
    let fill = |space: &str| {
        let stores = words.clone().enumerate().map(|(i, w)| format!("st.{space}.b32 [v+{}], {w};\n", 4 * i));
        format!(".{space} .align 16 .b8 v[16];\n{}", stores.collect::<String>())
    };
    match a.space {
        "shared" | "shared::cta" | "shared::cluster" => (String::new(), fill("shared"), "v".into()),
        "local" => (String::new(), fill("local"), "v".into()),
        "const" => {
            let bytes = PATTERN.map(|b| b.to_string()).join(", ");
            (format!(".const .align 16 .b8 v[16] = {{{bytes}}};"), String::new(), "v".into())
        }
        "param" | "param::entry" if a.load => (String::new(), String::new(), "v".into()),
        _ => (String::new(), String::new(), "%d0".into()),
    }
}

/// Loads the pattern and writes what the registers hold behind it.
fn load(a: &Access) {
    let (module, before, address) = place(a);
    let mut body = format!("mov.b64 %d50, 0;\n{before}{} {}, [{address}]{};\n", a.form, registers(a, 10), a.policy);
    let (r, width) = if a.bits == 64 { ("d", 64) } else { ("r", 32) };
    for i in 0..a.count {
        body += &format!("st.global.b{width} [%d0+{}], %{r}{};\n", 16 + 8 * i, 10 + i);
    }
    let parameters =
        if a.space.starts_with("param") && a.space != "param::func" { ", .param .align 16 .b8 v[16]" } else { "" };
    let kernel = kernel_with(&module, parameters, &body);
    let mut data = PATTERN.to_vec();
    data.extend([0; 32]);
    let more: &[Arg] = if parameters.is_empty() { &[] } else { &[Arg::bytes(&PATTERN)] };
    let (out, _) = launch(&kernel, Launch::new(1, 1), &data, more, 1);
    check_loaded(a, &out[16..]);
}

fn check_loaded(a: &Access, out: &[u8]) {
    let bytes = a.bits as usize / 8;
    for i in 0..a.count {
        let mut raw = [0; 8];
        raw[..bytes].copy_from_slice(&PATTERN[i * bytes..][..bytes]);
        let wanted = low(value(u64::from_le_bytes(raw), (a.bits, a.signed)), a.bits.max(32));
        let got = u64::from_le_bytes(out[8 * i..8 * i + 8].try_into().unwrap());
        assert_eq!(got, wanted, "{} element {i}", a.form);
    }
}

/// Stores registers whose upper bits must not matter, and reads the bytes back.
fn store(a: &Access) {
    let (_, before, address) = place(a);
    let mut body = format!("mov.b64 %d50, 0;\n{before}");
    for i in 0..a.count {
        let first = 0xa1b2_c3d4_e5f6_0718u64.wrapping_mul(2 * i as u64 + 1);
        body += &match a.bits {
            64 => format!("mov.b64 %d{}, {};\n", 10 + i, first as i64),
            _ => format!("mov.b32 %r{}, {};\n", 10 + i, first as u32),
        };
    }
    body += &format!("{} [{address}], {}{};\n", a.form, registers(a, 10), a.policy);
    if address != "%d0" {
        let space = if a.space == "local" { "local" } else { "shared" };
        for i in 0..4 {
            body += &format!("ld.{space}.b32 %r30, [v+{}]; st.global.b32 [%d0+{}], %r30;\n", 4 * i, 4 * i);
        }
    }
    let (out, _) = launch(&kernel_with("", "", &body), Launch::new(1, 1), &PATTERN, &[], 1);
    check_stored(a, &out);
}

fn check_stored(a: &Access, out: &[u8]) {
    let mut wanted = PATTERN.to_vec();
    let bytes = a.bits as usize / 8;
    for i in 0..a.count {
        let v = 0xa1b2_c3d4_e5f6_0718u64.wrapping_mul(2 * i as u64 + 1);
        wanted[i * bytes..][..bytes].copy_from_slice(&v.to_le_bytes()[..bytes]);
    }
    assert_eq!(out, wanted, "{}", a.form);
}

/// Parameters of functions: the caller stores one, the callee loads it, and the same for the result.
fn call(a: &Access) {
    let (r, width) = if a.bits == 64 { ("d", 64) } else { ("r", 32) };
    let copies: String =
        (0..4).map(|i| format!("ld.param.b32 %r30, [x+{0}]; st.param.b32 [y+{0}], %r30;\n", 4 * i)).collect();
    let function = format!(
        ".func (.param .align 16 .b8 y[16]) f(.param .align 16 .b8 x[16]) {{\n{REGISTERS}mov.b64 %d50, 0;\n{}ret;\n}}",
        if a.load {
            let stores: String = (0..a.count)
                .map(|i| format!("st.param.b{} [y+{}], %{r}{};\n", a.bits.min(32), 4 * i, 10 + i))
                .collect();
            if a.bits == 64 || a.count == 1 && a.bits == 32 {
                format!("{copies}{} {}, [x]{};\nst.param.b{width} [y], %{r}10;\n", a.form, registers(a, 10), a.policy)
            } else {
                format!(
                    "{} {}, [x]{};\n{copies}{}",
                    a.form,
                    registers(a, 10),
                    a.policy,
                    stores.replace(&format!(".b{} ", a.bits.min(32)), ".b32 ")
                )
            }
        } else {
            copies
        }
    );
    let mut body = String::from("mov.b64 %d50, 0;\n{\n.param .align 16 .b8 a[16]; .param .align 16 .b8 b[16];\n");
    for (i, c) in PATTERN.chunks(4).enumerate() {
        body += &format!("st.param.b32 [a+{}], {};\n", 4 * i, u32::from_le_bytes(c.try_into().unwrap()));
    }
    if !a.load {
        for i in 0..a.count {
            let v = 0xa1b2_c3d4_e5f6_0718u64.wrapping_mul(2 * i as u64 + 1);
            body += &if a.bits == 64 {
                format!("mov.b64 %d{}, {};\n", 10 + i, v as i64)
            } else {
                format!("mov.b32 %r{}, {};\n", 10 + i, v as u32)
            };
        }
        body += &format!("{} [a], {}{};\n", a.form, registers(a, 10), a.policy);
    }
    body += "call.uni (b), f, (a);\n";
    for i in 0..4 {
        body += &format!("ld.param.b32 %r30, [b+{0}]; st.global.b32 [%d0+{0}], %r30;\n", 4 * i);
    }
    body += "}";
    let (out, _) = launch(&kernel_with(&function, "", &body), Launch::new(1, 1), &[0; 16], &[], 1);
    if !a.load {
        return check_stored(a, &out);
    }
    // One 64-bit value or up to four 32-bit ones, at the start of the result.
    for i in 0..a.count.min(if a.bits == 64 { 1 } else { 4 }) {
        let bytes = a.bits as usize / 8;
        let mut raw = [0; 8];
        raw[..bytes].copy_from_slice(&PATTERN[i * bytes..][..bytes]);
        let wanted = low(value(u64::from_le_bytes(raw), (a.bits, a.signed)), width);
        let mut got = [0; 8];
        got[..width as usize / 8].copy_from_slice(&out[i * 4..][..width as usize / 8]);
        assert_eq!(u64::from_le_bytes(got), wanted, "{} element {i}", a.form);
    }
}

pub fn run(t: &mut Tested) {
    for form in forms_of("memory") {
        let a = parse(&form);
        match (a.space, a.load) {
            ("param::func", _) | ("param", false) => call(&a),
            (_, true) => load(&a),
            _ => store(&a),
        }
        t.note(&form);
    }
}
