//! Atomic operations: what is left in memory and what comes back.

use rustc_apfloat::Round;

use crate::judge;
use crate::support::*;

const SPACES: &[&str] = &["global", "shared", "shared::cta", "shared::cluster"];

/// The operation of one element: what memory holds afterwards.
fn combine(op: &str, ty: &str, old: u64, b: u64, c: u64) -> u64 {
    let nearest = Round::NearestTiesToEven;
    if let Some(half) = ty.strip_suffix("x2") {
        let lane = |at: u32| combine(op, half, old >> at & 0xffff, b >> at & 0xffff, 0) << at;
        return lane(0) | lane(16);
    }
    if ty.starts_with('f') || ty == "bf16" {
        return match op {
            "add" => judge::arithmetic(ty, "add", &[old, b], nearest),
            _ => judge::extreme(ty, old, b, op == "max", false),
        };
    }
    let width: u32 = ty[1..].parse().unwrap();
    let int = (width, ty.starts_with('s'));
    let (x, y) = (value(old, int), value(b, int));
    let r = match op {
        "and" => x & y,
        "or" => x | y,
        "xor" => x ^ y,
        "exch" => y,
        "cas" => {
            if x == y {
                value(c, int)
            } else {
                x
            }
        }
        "add" => x + y,
        "min" => x.min(y),
        "max" => x.max(y),
        "inc" => {
            if x >= y {
                0
            } else {
                x + 1
            }
        }
        "dec" => {
            if x == 0 || x > y {
                y
            } else {
                x - 1
            }
        }
        _ => panic!("no oracle for {op}"),
    };
    low(r, width)
}

/// Values of a type to start from and to combine.
fn samples(ty: &str, width: u32) -> Vec<[u64; 3]> {
    let mut random = Random(width as u64);
    let mask = u64::MAX >> (64 - width);
    let float = ty.strip_suffix("x2").unwrap_or(ty);
    let pick = |random: &mut Random| match float {
        "f16" | "bf16" => {
            let one = |r: &mut Random| (half::f16::from_f32((r.next() % 800) as f32 / 8.0 - 50.0).to_bits()) as u64;
            one(random) | one(random) << 16
        }
        "f32" => ((random.next() % 1000) as f32 / 7.0 - 70.0).to_bits() as u64,
        "f64" => ((random.next() % 1000) as f64 / 7.0 - 70.0).to_bits(),
        _ => INTEGERS[random.next() as usize % INTEGERS.len()],
    };
    (0..4)
        .map(|i| {
            let (a, b, c) = (pick(&mut random) & mask, pick(&mut random) & mask, random.next() & mask);
            // Every other compare-and-swap succeeds.
            [a, if i & 1 == 0 { a } else { b }, c]
        })
        .collect()
}

pub fn run(t: &mut Tested) {
    for form in forms_of("atomic") {
        let parts: Vec<&str> = form.split('.').collect();
        let ty = parts[parts.len() - 1];
        let op = parts
            .iter()
            .find(|p| matches!(**p, "and" | "or" | "xor" | "exch" | "cas" | "add" | "min" | "max" | "inc" | "dec"));
        let (op, atom) = (*op.unwrap(), parts[0] == "atom");
        let count = if parts.contains(&"v2") {
            2
        } else if parts.contains(&"v4") {
            4
        } else {
            1
        };
        let width = match ty {
            "f16x2" | "bf16x2" => 32,
            _ => ty.trim_start_matches(|c: char| c.is_alphabetic()).parse().unwrap(),
        };
        let space = parts.iter().find(|p| SPACES.contains(p)).copied();
        one_form(&form, Shape { op, ty, atom, count, width, shared: space.is_some_and(|s| s.starts_with("shared")) });
        t.note(&form);
    }
}

struct Shape<'a> {
    op: &'a str,
    ty: &'a str,
    atom: bool,
    count: usize,
    width: u32,
    shared: bool,
}

/// Four rows of [memory, b, c, old], one after another by one thread.
fn one_form(form: &str, s: Shape) {
    let r = match s.width {
        16 => "h",
        32 => "r",
        _ => "d",
    };
    let list = |first: usize| {
        let all: Vec<String> = (0..s.count).map(|i| format!("%{r}{}", first + i)).collect();
        if s.count == 1 { all[0].clone() } else { format!("{{{}}}", all.join(", ")) }
    };
    let samples = samples(s.ty, s.width);
    let bytes = s.width as usize / 8;
    let row = bytes * s.count;
    let mut body = String::from(".shared .align 16 .b8 v[64];\n");
    let mut data = vec![];
    for (n, sample) in samples.iter().enumerate() {
        for i in 0..s.count {
            data.extend(&element(sample, 0, i, s.width).to_le_bytes()[..bytes]);
        }
        for (operand, first) in [(1, 20), (2, 30)] {
            for i in 0..s.count {
                let v = element(sample, operand, i, s.width);
                body += &format!(
                    "mov.b{} %{r}{}, {};\n",
                    s.width,
                    first + i,
                    low(value(v, (s.width, true)), s.width) as i64
                );
            }
        }
        let at = if s.shared {
            for i in 0..s.count {
                body += &format!(
                    "ld.global.b{0} %{r}40, [%d0+{1}]; st.shared.b{0} [v+{2}], %{r}40;\n",
                    s.width,
                    n * row + i * bytes,
                    i * bytes
                );
            }
            "v".to_string()
        } else {
            format!("%d0+{}", n * row)
        };
        let third = if s.op == "cas" { format!(", {}", list(30)) } else { String::new() };
        let old = if s.atom { format!("{}, ", list(10)) } else { String::new() };
        body += &format!("{form} {old}[{at}], {}{third};\n", list(20));
        for i in 0..s.count {
            if s.shared {
                body += &format!(
                    "ld.shared.b{0} %{r}40, [v+{1}]; st.global.b{0} [%d0+{2}], %{r}40;\n",
                    s.width,
                    i * bytes,
                    n * row + i * bytes
                );
            }
            if s.atom {
                body += &format!(
                    "st.global.b{} [%d0+{}], %{r}{};\n",
                    s.width,
                    (samples.len() + n) * row + i * bytes,
                    10 + i
                );
            }
        }
    }
    data.resize(2 * samples.len() * row, 0);
    let (out, _) = launch(&kernel(&body), ptx_vm::Launch::new(1, 1), &data, &[], 1);
    let read = |at: usize| {
        let mut raw = [0; 8];
        raw[..bytes].copy_from_slice(&out[at..at + bytes]);
        u64::from_le_bytes(raw)
    };
    for (n, sample) in samples.iter().enumerate() {
        for i in 0..s.count {
            let [old, b, c] = [0, 1, 2].map(|operand| element(sample, operand, i, s.width));
            let wanted = combine(s.op, s.ty, old, b, c);
            assert_eq!(read(n * row + i * bytes), wanted, "{form} of {old:x}, {b:x}, {c:x}");
            if s.atom {
                assert_eq!(read((samples.len() + n) * row + i * bytes), old, "old value of {form}");
            }
        }
    }
}

/// Element `i` of an operand: the vector forms get different ones, all of the type.
fn element(sample: &[u64; 3], operand: usize, i: usize, width: u32) -> u64 {
    let bits = sample[(operand + i) % 2 + if operand == 2 { 1 } else { 0 }];
    let bits = if operand == 2 {
        sample[2]
    } else if i == 0 {
        sample[operand]
    } else {
        bits
    };
    bits & (u64::MAX >> (64 - width))
}
