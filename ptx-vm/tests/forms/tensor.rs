//! Tensor copies of 1 to 5 dimensions: strides between elements, boxes that leave the tensor, both fills, every
//! swizzle, reductions, multicast.

use ptx_vm::{Arg, Launch, OobFill, Swizzle, TensorMap, TensorType};

use crate::support::*;

const SETUP: &str = ".shared .align 1024 .b8 v[4096]; .shared .align 8 .b64 bar;\nmov.u32 %r1, v; mov.u32 %r2, bar; mov.b64 %d50, 0;\n\
    mov.b64 %d1, map; cvta.param.u64 %d1, %d1; mov.u32 %r7, %cluster_ctarank;\n\
    mbarrier.init.shared.b64 [%r2], 1; fence.mbarrier_init.release.cluster;\n";
const WAIT: &str = "WAIT: mbarrier.try_wait.parity.shared.b64 %p1, [%r2], 0; @!%p1 bra WAIT;\n";

/// A tensor of rank `n` and a box of it that leaves it on several sides.
#[derive(Clone)]
struct Case {
    dims: Vec<usize>,
    boxes: Vec<usize>,
    steps: Vec<usize>,
    corner: Vec<i32>,
    swizzle: Swizzle,
    fill: OobFill,
}

fn cases(rank: usize) -> Vec<Case> {
    let cut = |v: &[usize]| v[..rank].to_vec();
    let base = Case {
        dims: cut(&[20, 5, 4, 3, 3]),
        boxes: cut(&[8, 2, 2, 2, 2]),
        steps: vec![1; rank],
        corner: [4, 1, 1, 1, 1][..rank].to_vec(),
        swizzle: Swizzle::None,
        fill: OobFill::Zeros,
    };
    let outside = Case { corner: [-3, 4, -1, 2, -1][..rank].to_vec(), ..base.clone() };
    let mut all = vec![
        base.clone(),
        outside.clone(),
        Case { fill: OobFill::Nan, ..outside.clone() },
        Case { corner: [16, -1, 3, -1, 2][..rank].to_vec(), fill: OobFill::Nan, ..base.clone() },
        Case { swizzle: Swizzle::B32, ..outside.clone() },
        Case { swizzle: Swizzle::B64, boxes: cut(&[16, 2, 2, 2, 2]), ..outside.clone() },
        Case { swizzle: Swizzle::B128, boxes: cut(&[32, 2, 2, 2, 2]), ..outside.clone() },
    ];
    // Strides between the elements of the box, in every dimension.
    all.push(Case { steps: cut(&[2, 2, 1, 2, 1]), boxes: cut(&[16, 3, 2, 3, 2]), ..outside.clone() });
    all.push(Case { steps: cut(&[1, 3, 2, 1, 2]), boxes: cut(&[8, 4, 3, 2, 3]), fill: OobFill::Nan, ..outside });
    all
}

impl Case {
    fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Elements of the tile along each dimension.
    fn extents(&self) -> Vec<usize> {
        self.boxes.iter().zip(&self.steps).map(|(b, s)| b.div_ceil(*s)).collect()
    }

    fn tile(&self) -> usize {
        self.extents().iter().product()
    }

    /// Words between neighbours of each dimension: rows are padded by 4 words.
    fn pitch(&self) -> Vec<usize> {
        let mut pitch = vec![1, self.dims[0] + 4];
        for d in 1..self.rank() {
            pitch.push(pitch[d] * self.dims[d]);
        }
        pitch
    }

    fn elements(&self) -> usize {
        self.pitch()[self.rank()]
    }

    fn map(&self, address: u64) -> TensorMap {
        let to64 = |v: &[usize]| v.iter().map(|&x| x as u64).collect::<Vec<_>>();
        let to32 = |v: &[usize]| v.iter().map(|&x| x as u32).collect::<Vec<_>>();
        let pitch: Vec<u64> = self.pitch()[1..self.rank()].iter().map(|&p| 4 * p as u64).collect();
        let (dims, boxes, steps) = (to64(&self.dims), to32(&self.boxes), to32(&self.steps));
        TensorMap::tiled(TensorType::F32, address, &dims, &pitch, &boxes, &steps, self.swizzle, self.fill).unwrap()
    }

    /// Index in the tensor's memory of element `i` of the tile, if it lies inside.
    fn source(&self, mut i: usize) -> Option<usize> {
        let (extents, pitch) = (self.extents(), self.pitch());
        let mut at = 0;
        for d in 0..self.rank() {
            let x = self.corner[d] as i64 + (i % extents[d] * self.steps[d]) as i64;
            i /= extents[d];
            if !(0..self.dims[d] as i64).contains(&x) {
                return None;
            }
            at += x as usize * pitch[d];
        }
        Some(at)
    }

    /// Word of shared memory that holds element `i` of the tile: 16-byte chunks of a row of the pattern are
    /// exchanged by the number of its 128-byte line.
    fn shared_word(&self, i: usize) -> usize {
        let chunks = match self.swizzle {
            Swizzle::None => return i,
            Swizzle::B32 => 2,
            Swizzle::B64 => 4,
            Swizzle::B128 => 8,
        };
        let (chunk, within) = (i / 4, i % 4);
        (chunk ^ (chunk / 8 % chunks)) * 4 + within
    }

    fn coordinates(&self) -> String {
        self.corner.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
    }
}

fn module(body: &str) -> ptx_vm::Module {
    kernel_with("", ", .param .align 64 .b8 map[128]", &format!("{SETUP}{body}"))
}

/// Runs with a tensor of `words` as the second buffer; both buffers afterwards.
fn run_case(
    case: &Case,
    body: &str,
    tensor: &[u32],
    out_words: usize,
    shape: Launch,
    seed: u64,
) -> (Vec<u32>, Vec<u32>) {
    let bytes = |v: &[u32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut gpu = ptx_vm::Gpu::new(ptx_vm::Config::with_seed(seed));
    let (p, q) = (gpu.upload(&bytes(&vec![0; out_words])), gpu.upload(&bytes(tensor)));
    let args: [Arg; 2] = [p.into(), (&case.map(q)).into()];
    gpu.launch(&module(body), "k", shape, &args).unwrap_or_else(|e| panic!("{e}\n{body}"));
    (words(&gpu.copy_from(p, out_words * 4).unwrap()), words(&gpu.copy_from(q, tensor.len() * 4).unwrap()))
}

/// Copies the tile of `n` words to the buffer, word by word.
fn tile_out(n: usize, at: usize) -> String {
    format!(
        "mov.u32 %r20, 0;\nCOPY: shl.b32 %r21, %r20, 2; add.u32 %r22, %r21, %r1; ld.shared.b32 %r23, [%r22];\n\
         cvt.u64.u32 %d21, %r21; add.s64 %d21, %d21, %d0; st.global.b32 [%d21+{at}], %r23;\n\
         add.u32 %r20, %r20, 1; setp.lt.u32 %p7, %r20, {n}; @%p7 bra COPY;\n"
    )
}

pub fn run(t: &mut Tested) {
    for form in forms_of("tensor") {
        let rank: usize = form.split('.').find_map(|p| p.strip_suffix('d')?.parse().ok()).unwrap();
        let policy = if form.contains("cache_hint") { ", %d50" } else { "" };
        for (i, case) in cases(rank).iter().enumerate() {
            let seed = i as u64 + 1;
            if form.contains("prefetch") {
                let body = format!("{form} [%d1, {{{}}}]{policy};\nst.global.b32 [%d0], 3;", case.coordinates());
                assert_eq!(
                    run_case(case, &body, &vec![0; case.elements()], 1, Launch::new(1, 1), seed).0,
                    [3],
                    "{form}"
                );
            } else if form.contains("mbarrier") {
                load(&form, policy, case, seed);
            } else {
                store(&form, policy, case, seed);
            }
        }
        t.note(&form);
    }
}

fn load(form: &str, policy: &str, case: &Case, seed: u64) {
    let tensor: Vec<u32> = (0..case.elements() as u32).map(|i| ((i + 1) as f32).to_bits()).collect();
    let n = case.tile();
    let multicast = form.contains("multicast");
    let (mask, go, shape) = match multicast {
        // Rank 1 of a cluster of two loads for both.
        true => (", %h1", "setp.ne.u32 %p2, %r7, 1; @%p2 bra GO; mov.b16 %h1, 3;", Launch::new(2, 1).cluster(2)),
        false => ("", "", Launch::new(1, 1)),
    };
    let sync = if multicast { "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" } else { "" };
    // The second block's tile goes behind the first one's.
    let body = format!(
        "mbarrier.arrive.expect_tx.shared.b64 _, [%r2], {};\n{sync}\n{go}\n\
         {form} [%r1], [%d1, {{{}}}], [%r2]{mask}{policy};\nGO:\n{WAIT}mul.wide.u32 %d30, %r7, {}; add.s64 %d0, %d0, %d30;\n{}{sync}",
        4 * n,
        case.coordinates(),
        4 * n,
        tile_out(n, 0)
    );
    let blocks = if multicast { 2 } else { 1 };
    let (out, _) = run_case(case, &body, &tensor, blocks * n, shape, seed);
    let fill = if case.fill == OobFill::Nan { u32::MAX } else { 0 };
    for block in 0..blocks {
        for i in 0..n {
            let wanted = case.source(i).map_or(fill, |at| tensor[at]);
            assert_eq!(out[block * n + case.shared_word(i)], wanted, "{form} element {i} of {:?}", case.corner);
        }
    }
}

/// Stores or reduces a tile; what lies outside of the tensor stays as it is.
fn store(form: &str, policy: &str, case: &Case, seed: u64) {
    let reduce = ["add", "min", "max", "and", "or", "xor"].into_iter().find(|op| form.contains(&format!(".{op}.")));
    let integer = reduce.is_some_and(|op| matches!(op, "and" | "or" | "xor"));
    // The element type of a map decides how elements combine: integers for bit operations.
    let number = |i: usize, salt: usize| {
        let v = (i * 37 + salt) % 201;
        if integer { (v as u32).wrapping_mul(0x01f3_0071) } else { (v as f32 - 100.0).to_bits() }
    };
    let tensor: Vec<u32> = (0..case.elements()).map(|i| number(i, 11)).collect();
    let n = case.tile();
    let mut body = String::new();
    for i in 0..n {
        body += &format!("mov.b32 %r5, {}; st.shared.b32 [v+{}], %r5;\n", number(i, 77), 4 * case.shared_word(i));
    }
    body += &format!(
        "fence.proxy.async;\n{form} [%d1, {{{}}}], [%r1]{policy};\ncp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
        case.coordinates()
    );
    let fill = if integer { OobFill::Zeros } else { case.fill };
    let case = Case { fill, ..case.clone() };
    let bytes = |v: &[u32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut gpu = ptx_vm::Gpu::new(ptx_vm::Config::with_seed(seed));
    let (p, q) = (gpu.alloc(4), gpu.upload(&bytes(&tensor)));
    let map = if integer { integer_map(&case, q) } else { case.map(q) };
    gpu.launch(&module(&body), "k", Launch::new(1, 1), &[p.into(), (&map).into()]).unwrap_or_else(|e| panic!("{e}"));
    let after = words(&gpu.copy_from(q, tensor.len() * 4).unwrap());
    let mut wanted = tensor.clone();
    for i in 0..n {
        let Some(at) = case.source(i) else { continue };
        let (old, new) = (tensor[at], number(i, 77));
        let (x, y) = (f32::from_bits(old), f32::from_bits(new));
        wanted[at] = match reduce {
            None => new,
            Some("add") => (x + y).to_bits(),
            Some("min") => x.min(y).to_bits(),
            Some("max") => x.max(y).to_bits(),
            Some("and") => old & new,
            Some("or") => old | new,
            _ => old ^ new,
        };
    }
    assert_eq!(after, wanted, "{form} at {:?}", case.corner);
}

fn integer_map(case: &Case, address: u64) -> TensorMap {
    let to64 = |v: &[usize]| v.iter().map(|&x| x as u64).collect::<Vec<_>>();
    let to32 = |v: &[usize]| v.iter().map(|&x| x as u32).collect::<Vec<_>>();
    let pitch: Vec<u64> = case.pitch()[1..case.rank()].iter().map(|&p| 4 * p as u64).collect();
    let (dims, boxes, steps) = (to64(&case.dims), to32(&case.boxes), to32(&case.steps));
    TensorMap::tiled(TensorType::U32, address, &dims, &pitch, &boxes, &steps, case.swizzle, case.fill).unwrap()
}
