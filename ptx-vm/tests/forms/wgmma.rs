//! wgmma of every type and width: A in shared memory and in registers, every swizzle, K- and MN-major operands, base
//! offsets, scales. Operands are placed by the canonical layouts of the ISA; sums of small numbers are exact.

use ptx_vm::Launch;

use crate::mma::{real, samples};
use crate::support::*;

/// Where the elements of an operand lie in shared memory.
#[derive(Clone, Copy)]
struct Layout {
    /// Along MN instead of along K.
    mn_major: bool,
    /// 16-byte chunks in a row of the swizzle pattern; 1 without one.
    chunks: usize,
    bytes: usize,
    /// 128-byte lines before the pattern starts.
    base: usize,
}

impl Layout {
    /// Byte of element (mn, k), from the start of the memory.
    fn at(&self, mn: usize, k: usize) -> usize {
        let (c, row) = (self.chunks, 16 * self.chunks);
        let offset = if self.mn_major {
            // Atoms of `8 * chunks` elements along MN by 8 along K.
            let atom = 128 * c;
            let (outer, inner) = (mn / (8 * c), mn % (8 * c));
            let (outer_stride, k_stride) = if c == 1 { (256, 128) } else { (2 * atom, atom) };
            outer * outer_stride + k / 8 * k_stride + k % 8 * row + inner * self.bytes
        } else if c == 1 {
            // Core matrices of 8 rows by 16 bytes, two along K.
            let byte = k * self.bytes;
            mn / 8 * 256 + byte / 16 * 128 + mn % 8 * 16 + byte % 16
        } else {
            mn * row + k * self.bytes
        };
        // Chunks of the pattern are exchanged by the number of the 128-byte line.
        let swizzled = if c == 1 { offset } else { offset ^ ((offset / 128 % c) * 16) };
        128 * self.base + swizzled
    }

    fn size(&self, mn: usize) -> usize {
        let per_row = if self.mn_major {
            mn.div_ceil(8 * self.chunks) * 256 * self.chunks
        } else {
            mn * (16 * self.chunks).max(32)
        };
        128 * self.base + per_row
    }

    /// The descriptor without the start address.
    fn descriptor(&self) -> u64 {
        let c = self.chunks as u64;
        let (leading, stride) = match (self.mn_major, c) {
            (_, 1) => (128, 256),
            (true, _) => (256 * c, 128 * c),
            (false, _) => (16, 128 * c),
        };
        let mode = match c {
            1 => 0,
            2 => 3,
            4 => 2,
            _ => 1u64,
        };
        leading >> 4 << 16 | stride >> 4 << 32 | (self.base as u64) << 49 | mode << 62
    }
}

struct Case<'a> {
    form: &'a str,
    n: usize,
    k: usize,
    types: [&'a str; 3],
    /// A in registers, or how it lies.
    a: Option<Layout>,
    b: Layout,
    negative: bool,
}

fn bytes_of(ty: &str) -> usize {
    match ty {
        "tf32" => 4,
        "e4m3" | "e5m2" => 1,
        _ => 2,
    }
}

pub fn run(t: &mut Tested) {
    let mut turn = 0usize;
    for form in forms_of("wgmma") {
        let parts: Vec<&str> = form.split('.').collect();
        let Some((n, k)) = parts[4..].iter().find_map(|p| p.strip_prefix("m64n")?.split_once('k')) else {
            // The fence, commits and waits are part of every multiplication below.
            continue;
        };
        let (n, k): (usize, usize) = (n.parse().unwrap(), k.parse().unwrap());
        let types = [parts[5], parts[6], parts[7]];
        let bytes = bytes_of(types[1]);
        for registers in [false, true] {
            turn += 1;
            let chunks = [1, 2, 4, 8];
            let may_transpose = bytes == 2;
            let layout = |i: usize| Layout {
                mn_major: may_transpose && i / 4 % 2 == 1,
                chunks: chunks[i % 4],
                bytes,
                base: if chunks[i % 4] > 1 && i.is_multiple_of(5) { i / 5 % 8 } else { 0 },
            };
            let a = if registers { None } else { Some(layout(turn)) };
            product(&Case { form: &form, n, k, types, a, b: layout(turn / 3), negative: turn % 2 == 1 });
        }
        t.note(&form);
    }
    ["fence", "commit_group", "wait_group"].iter().for_each(|w| t.note(&format!("wgmma.{w}.sync.aligned")));
    every_layout_pair();
}

/// All combinations of layouts, for one shape.
fn every_layout_pair() {
    let all: Vec<Layout> = [1, 2, 4, 8]
        .into_iter()
        .flat_map(|chunks| [false, true].map(|mn_major| Layout { mn_major, chunks, bytes: 2, base: 0 }))
        .flat_map(|l| [0, 3].map(|base| Layout { base: if l.chunks == 1 { 0 } else { base }, ..l }))
        .collect();
    for a in &all {
        for b in &all {
            let form = "wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16";
            let types = ["f32", "bf16", "bf16"];
            product(&Case { form, n: 40, k: 16, types, a: Some(*a), b: *b, negative: false });
        }
    }
}

fn place(memory: &mut [u8], layout: &Layout, values: &[u32], k: usize) {
    for (i, v) in values.iter().enumerate() {
        let at = layout.at(i / k, i % k);
        memory[at..at + layout.bytes].copy_from_slice(&v.to_le_bytes()[..layout.bytes]);
    }
}

/// Two multiplications: the first overwrites the accumulators, the second adds to them; their signs come from the
/// scales of A and B.
fn product(c: &Case) {
    let [d, ta, tb] = c.types;
    let (va, vb) = (samples(ta, 64 * c.k, 41), samples(tb, c.n * c.k, 42));
    let size_a = c.a.map_or(0, |l| l.size(64)).next_multiple_of(1024);
    let total = (size_a + c.b.size(c.n)).next_multiple_of(2048);
    let mut memory = vec![0u8; total];
    if let Some(layout) = &c.a {
        place(&mut memory, layout, &va, c.k);
    }
    place(&mut memory[size_a..], &c.b, &vb, c.k);
    // Behind the image of shared memory: fragments of A, four registers per thread.
    let per = 4 / bytes_of(ta);
    let width = 8 * bytes_of(ta);
    let mut data = memory;
    for thread in 0..128 {
        let (warp, lane) = (thread / 32, thread % 32);
        for r in 0..4 {
            let (row, column) = (16 * warp + lane / 4 + 8 * (r % 2), lane % 4 * per + r / 2 * 4 * per);
            let bits = (0..per).fold(0u32, |v, h| v | va[row * c.k + column + h] << (h * width % 32));
            data.extend(bits.to_le_bytes());
        }
    }
    let results = if d == "f16" { c.n / 4 } else { c.n / 2 };
    let out_at = data.len();
    data.resize(out_at + 128 * results * 4, 0);
    let (out, counters) = launch(&kernel(&body(c, total, size_a, results)), Launch::new(1, 128), &data, &[], 1);
    assert_eq!(counters.mma, 8, "{}", c.form);
    check(c, &va, &vb, &words(&out[out_at..]), results);
}

fn body(c: &Case, total: usize, size_a: usize, results: usize) -> String {
    let register = if c.types[0] == "f16" { "r" } else { "f" };
    let d: Vec<String> = (0..results).map(|i| format!("%{register}{}", 40 + i)).collect();
    let d = format!("{{{}}}", d.join(", "));
    let mut body = format!(
        ".shared .align 1024 .b8 v[{total}];\nmov.u32 %r1, %tid.x; mov.u32 %r2, v; mul.lo.u32 %r3, %r1, 16;\n\
         COPY: cvt.u64.u32 %d1, %r3; add.s64 %d1, %d1, %d0; ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%d1];\n\
         add.u32 %r4, %r2, %r3; st.shared.v4.b32 [%r4], {{%r10, %r11, %r12, %r13}}; add.u32 %r3, %r3, 2048;\n\
         setp.lt.u32 %p1, %r3, {total}; @%p1 bra COPY;\nfence.proxy.async; bar.sync 0;\n\
         mul.wide.u32 %d2, %r1, 16; add.s64 %d2, %d2, %d0; ld.global.v4.b32 {{%r14, %r15, %r16, %r17}}, [%d2+{total}];\n\
         shr.u32 %r5, %r2, 4; cvt.u64.u32 %d5, %r5;\n"
    );
    let start = |layout: &Layout, at: usize| layout.descriptor() + ((at + 128 * layout.base) >> 4) as u64;
    let a = match &c.a {
        Some(layout) => {
            body += &format!("add.u64 %d6, %d5, {};\n", start(layout, 0) as i64);
            "%d6"
        }
        None => "{%r14, %r15, %r16, %r17}",
    };
    body +=
        &format!("add.u64 %d7, %d5, {};\nsetp.ne.b32 %p2, 0, 0; setp.eq.b32 %p3, 0, 0;\n", start(&c.b, size_a) as i64);
    let transposed = |l: Option<&Layout>| l.map_or(String::new(), |l| format!(", {}", l.mn_major as u32));
    let major = match bytes_of(c.types[1]) {
        2 => format!("{}{}", transposed(c.a.as_ref()), transposed(Some(&c.b))),
        _ => String::new(),
    };
    let scales = if c.negative { ["-1, 1", "1, -1"] } else { ["1, 1", "-1, -1"] };
    body += &format!(
        "wgmma.fence.sync.aligned;\n{0} {d}, {a}, %d7, %p2, {1}{major};\nwgmma.commit_group.sync.aligned;\n\
         {0} {d}, {a}, %d7, %p3, {2}{major};\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;\n\
         wgmma.wait_group.sync.aligned 0;\n",
        c.form, scales[0], scales[1]
    );
    body += &format!("mul.wide.u32 %d3, %r1, {}; add.s64 %d3, %d3, %d0;\n", 4 * results);
    for i in 0..results {
        body += &format!("st.global.b32 [%d3+{}], %{register}{};\n", total + 2048 + 4 * i, 40 + i);
    }
    body
}

fn check(c: &Case, va: &[u32], vb: &[u32], out: &[u32], results: usize) {
    let [d, ta, tb] = c.types;
    let (a, b): (Vec<f64>, Vec<f64>) =
        (va.iter().map(|&v| real(ta, v)).collect(), vb.iter().map(|&v| real(tb, v)).collect());
    for thread in 0..128 {
        let (warp, lane) = (thread / 32, thread % 32);
        for i in 0..c.n / 2 {
            let (row, column) = (16 * warp + lane / 4 + 8 * (i / 2 % 2), i / 4 * 8 + lane % 4 * 2 + i % 2);
            let dot: f64 = (0..c.k).map(|x| a[row * c.k + x] * b[column * c.k + x]).sum();
            let dot = if c.negative { -dot } else { dot };
            let (got, wanted) = if d == "f16" {
                let once = half::f16::from_f64(dot).to_f64();
                let bits = out[thread * results + i / 2] >> (16 * (i % 2));
                (half::f16::from_bits(bits as u16).to_f64(), half::f16::from_f64(once + dot).to_f64())
            } else {
                (f32::from_bits(out[thread * results + i]) as f64, 2.0 * dot)
            };
            let how =
                c.a.map_or("registers".into(), |l| format!("{} chunks, mn {}, base {}", l.chunks, l.mn_major, l.base));
            let b = format!("{} chunks, mn {}, base {}", c.b.chunks, c.b.mn_major, c.b.base);
            assert_eq!(got, wanted, "{} row {row} column {column}; A: {how}; B: {b}", c.form);
        }
    }
}
