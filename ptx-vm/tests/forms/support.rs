//! Runs single forms: a kernel of a few lines around the instruction, inputs and results in one buffer.

use std::collections::BTreeSet;

use ptx_vm::{Arg, Config, Counters, Gpu, Launch, Module};

/// The forms executed so far.
#[derive(Default)]
pub struct Tested {
    pub forms: BTreeSet<String>,
}

impl Tested {
    pub fn note(&mut self, form: &str) {
        self.forms.insert(form.to_string());
    }
}

/// A register of an instruction, by its width: 8-bit values live in 32-bit registers.
pub fn register_bits(bits: u32) -> u32 {
    if bits == 8 { 32 } else { bits }
}

pub const HEADER: &str = ".version 9.0\n.target sm_90a\n.address_size 64\n";

/// Registers that the bodies below may use.
pub const REGISTERS: &str =
    ".reg .pred %p<20>; .reg .b16 %h<70>; .reg .b32 %r<300>; .reg .b64 %d<70>; .reg .f32 %f<300>;\n";

/// A module of one kernel `k` whose only parameter is the address of a buffer, in `%d0`.
pub fn kernel(body: &str) -> Module {
    kernel_with("", "", body)
}

/// The same with declarations at module scope and more parameters.
pub fn kernel_with(module: &str, parameters: &str, body: &str) -> Module {
    let text = format!(
        "{HEADER}{module}\n.visible .entry k(.param .u64 p{parameters}) {{\n{REGISTERS}ld.param.u64 %d0, [p];\n{body}\nret;\n}}\n"
    );
    Module::parse(&text, "k.ptx").unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Launches `k` with a buffer that holds `data`; the buffer afterwards and the counters.
pub fn launch(module: &Module, launch: Launch, data: &[u8], more: &[Arg], seed: u64) -> (Vec<u8>, Counters) {
    let mut gpu = Gpu::new(Config::with_seed(seed));
    let p = gpu.upload(data);
    let args: Vec<Arg> = std::iter::once(p.into()).chain(more.iter().cloned()).collect();
    let counters = gpu.launch(module, "k", launch, &args).unwrap_or_else(|e| panic!("{e}"));
    (gpu.copy_from(p, data.len()).unwrap(), counters)
}

/// Runs a body on `threads` threads with a buffer of words.
pub fn run_words(body: &str, threads: u32, data: &[u32]) -> Vec<u32> {
    let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    words(&launch(&kernel(body), Launch::new(1, threads), &bytes, &[], 1).0)
}

pub fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

/// Executes `form` on many rows of inputs, one per thread: the results.
pub fn eval(form: &str, out: u32, inputs: &[u32], rows: &[Vec<u64>]) -> Vec<u64> {
    let n = inputs.len() + 1;
    let name = |bits: u32, i: usize| match register_bits(bits) {
        16 => format!("%h{i}"),
        32 => format!("%r{i}"),
        _ => format!("%d{i}"),
    };
    let mut body = String::from("mov.u32 %r60, %ctaid.x; mov.u32 %r61, %tid.x; mad.lo.s32 %r60, %r60, 128, %r61;\n");
    body += &format!("mul.wide.u32 %d60, %r60, {}; add.s64 %d0, %d0, %d60;\n", 8 * n);
    let mut names = vec![name(out, 9)];
    for (i, &bits) in inputs.iter().enumerate() {
        names.push(name(bits, i + 1));
        body += &format!("ld.global.b{} {}, [%d0+{}];\n", register_bits(bits), names[i + 1], 8 * (i + 1));
    }
    body += &format!("{form} {};\nst.global.b{} [%d0], {};", names.join(", "), register_bits(out), names[0]);
    let module = kernel(&body);
    let mut data = vec![];
    let padded = rows.len().next_multiple_of(128);
    for row in rows.iter().chain(std::iter::repeat_n(&rows[0], padded - rows.len())) {
        assert_eq!(row.len() + 1, n, "{form}");
        data.extend(0u64.to_le_bytes());
        data.extend(row.iter().flat_map(|v| v.to_le_bytes()));
    }
    let (bytes, _) = launch(&module, Launch::new(padded as u32 / 128, 128), &data, &[], 1);
    let first = bytes.chunks_exact(8 * n).map(|row| u64::from_le_bytes(row[..8].try_into().unwrap()));
    first.take(rows.len()).collect()
}

impl Tested {
    /// Executes a form on rows of inputs and compares with `expected`; `None` leaves a row to the machine.
    pub fn check(
        &mut self,
        form: &str,
        out: u32,
        inputs: &[u32],
        rows: &[Vec<u64>],
        expected: impl Fn(&[u64]) -> Option<u64>,
    ) {
        let results = eval(form, out, inputs, rows);
        for (row, got) in rows.iter().zip(results) {
            if let Some(wanted) = expected(row) {
                assert_eq!(got, wanted, "{form} of {row:x?}: {got:x} instead of {wanted:x}");
            }
        }
        self.note(form);
    }
}

/// A generator of test data, the same every time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// Rows of `n` values: all pairs (or values) of `edges`, then random ones of many magnitudes.
pub fn rows(n: usize, edges: &[u64], seed: u64) -> Vec<Vec<u64>> {
    let mut random = Random(seed);
    let mut out = vec![];
    for &a in edges {
        if n == 1 {
            out.push(vec![a]);
            continue;
        }
        for &b in edges {
            let mut row = vec![a, b];
            row.extend((2..n).map(|_| edges[random.next() as usize % edges.len()]));
            out.push(row);
        }
    }
    for _ in 0..64 {
        out.push((0..n).map(|_| random.next() >> (random.next() % 60)).collect());
    }
    out
}

/// Numbers at the ends of the ranges of all widths.
pub const INTEGERS: &[u64] = &[
    0,
    1,
    2,
    31,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Bits and signedness of an integer type.
pub fn integer_type(name: &str) -> (u32, bool) {
    (name[1..].parse().unwrap(), name.starts_with('s'))
}

/// The value of the low bits.
pub fn value(bits: u64, (width, signed): (u32, bool)) -> i128 {
    let v = bits as i128 & ((1i128 << width) - 1);
    if signed && v >> (width - 1) & 1 == 1 { v - (1i128 << width) } else { v }
}

/// The low `width` bits.
pub fn low(v: i128, width: u32) -> u64 {
    (v & ((1i128 << width) - 1)) as u64
}

/// The listed forms of a family.
pub fn forms_of(family: &str) -> Vec<String> {
    ptx_vm::forms().into_iter().filter(|(f, _)| *f == family).map(|(_, form)| form).collect()
}
