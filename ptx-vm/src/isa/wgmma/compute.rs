//! Operands of wgmma in shared memory, and the multiplication itself.

use super::{OperandA, Pending};
use crate::fp::F16;
use crate::isa::mma::decode_element;
use crate::machine::{At, Machine, Target, conflict};
use crate::mem::clock::{ASYNC_LANE, Who};
use crate::mem::shadow::Actor;
use crate::report::Raise;
use crate::types::{Space, Ty};

/// Rows of a warp.
const M: usize = 16;

/// A matrix descriptor.
#[derive(Clone, Copy)]
struct Descriptor {
    start: usize,
    leading: usize,
    stride: usize,
    /// 16-byte chunks per row of the swizzle pattern; 1 without one.
    chunks: usize,
    /// Number of the 128-byte line, modulo 8, in which the pattern starts.
    base: usize,
}

impl Descriptor {
    fn new(bits: u64) -> Descriptor {
        let field = |at: u32| (bits >> at & 0x3fff) as usize * 16;
        let chunks = match bits >> 62 {
            0 => 1,
            1 => 8,
            2 => 4,
            _ => 2,
        };
        let base = (bits >> 49 & 7) as usize;
        Descriptor { start: field(0), leading: field(16), stride: field(32), chunks, base }
    }

    /// Shared address of 16 bytes: along K at byte `k` of row `mn`, or along MN from element `mn` at
    /// `k`, by the canonical layouts of the ISA.
    fn address(&self, mn: usize, k: usize, element: usize, trans: bool) -> usize {
        let row_bytes = self.chunks * 16;
        let at = if trans {
            let per_chunk = 16 / element;
            let (chunk, within) = (mn / per_chunk, mn % per_chunk * element);
            let (outer, group) = (chunk / self.chunks, k / 8);
            let (outer_stride, group_stride) =
                if self.chunks == 1 { (self.stride, self.leading) } else { (self.leading, self.stride) };
            let inside = k % 8 * row_bytes + chunk % self.chunks * 16 + within;
            self.start + outer * outer_stride + group * group_stride + inside
        } else {
            let k_bytes = k * element;
            let (chunk, within) = (k_bytes / 16, k_bytes % 16);
            let along_k = if self.chunks == 1 { chunk * self.leading } else { chunk * 16 };
            self.start + mn / 8 * self.stride + mn % 8 * row_bytes + along_k + within
        };
        at ^ (((at >> 7).wrapping_sub(self.base) & (self.chunks - 1)) << 4)
    }
}

/// Notes the reads of shared memory: every 16-byte chunk of both operands.
pub(super) fn touch(m: &mut Machine, p: &Pending) -> Result<(), Raise> {
    let (element, depth) = (p.op.ty_a.bytes(), 32 / p.op.ty_a.bytes());
    if let OperandA::Descriptor(_) = p.op.a {
        let first = p.at.warp % 4 * M;
        touch_operand(m, p, p.a_descriptor, first..first + M, (element, depth, p.op.trans_a))?;
    }
    touch_operand(m, p, p.b_descriptor, 0..p.op.n, (element, depth, p.op.trans_b))
}

fn touch_operand(
    m: &mut Machine,
    p: &Pending,
    descriptor: u64,
    mn: std::ops::Range<usize>,
    (element, depth, trans): (usize, usize, bool),
) -> Result<(), Raise> {
    let descriptor = Descriptor::new(descriptor);
    let per_chunk = 16 / element;
    let (mn_step, k_step) = if trans { (per_chunk, 1) } else { (1, per_chunk) };
    let issuer = m.who(p.at, 0);
    let clock = m.warp(p.at).clocks[0].clone();
    let who = Who { lane: ASYNC_LANE, ..issuer };
    let (epoch, pc) = (p.epoch, p.at.pc);
    let actor = Actor { who, epoch, pc, strong: false, proxy: true, clock: &clock, issuer };
    for row in mn.step_by(mn_step) {
        for k in (0..depth).step_by(k_step) {
            let address = descriptor.address(row, k, element, trans) as u64;
            let target = m.resolve(p.at, 0, Space::Shared, address, 16, 16)?;
            m.with_actor(target, &actor, |s, o, a| s.read(o, 16, a)).map_err(|c| conflict("read", target, c))?;
        }
    }
    Ok(())
}

/// Computes everything under way, in order.
pub(super) fn compute_all(m: &mut Machine, at: At) -> Result<(), Raise> {
    let state = &mut m.warp_mut(at).wgmma;
    let mut groups = std::mem::take(&mut state.groups);
    let mut open = std::mem::take(&mut state.open);
    let result = groups.iter_mut().flatten().chain(&mut open).try_for_each(|p| {
        if !p.computed {
            p.computed = true;
            compute(m, p)?;
        }
        Ok(())
    });
    let state = &mut m.warp_mut(at).wgmma;
    state.groups = groups;
    state.open = open;
    result
}

/// An operand as f32 with a poison flag per row, row after row of `depth` elements.
struct Operand2d {
    values: Vec<f32>,
    poison: Vec<bool>,
}

fn load(
    m: &Machine,
    p: &Pending,
    descriptor: u64,
    mn: std::ops::Range<usize>,
    ty: Ty,
    trans: bool,
) -> Result<Operand2d, Raise> {
    let descriptor = Descriptor::new(descriptor);
    let (element, depth) = (ty.bytes(), 32 / ty.bytes());
    let mut out = Operand2d { values: vec![0.0; mn.len() * depth], poison: vec![false; mn.len()] };
    for (r, row) in mn.enumerate() {
        for k in 0..depth {
            let offset = descriptor.address(row, k, element, trans);
            let (bits, poison) = m.read_bytes(p.at, Target::Shared(p.at.cta, offset), element);
            out.values[r * depth + k] = decode_element(ty, bits as u32, 0);
            out.poison[r] |= poison;
        }
    }
    Ok(out)
}

/// A from registers: the fragment of mma.m16n8k16 (or its 8- and 32-bit relatives).
fn fragments(p: &Pending) -> Operand2d {
    let per = 4 / p.op.ty_a.bytes();
    let depth = 32 / p.op.ty_a.bytes();
    let mut out = Operand2d { values: vec![0.0; M * depth], poison: vec![false; M] };
    for (r, (values, taint)) in p.a_registers.iter().enumerate() {
        for (lane, &bits) in values.iter().enumerate() {
            let (row, column) = (lane / 4 + 8 * (r & 1), lane % 4 * per + (r >> 1) * 4 * per);
            for h in 0..per {
                out.values[row * depth + column + h] = decode_element(p.op.ty_a, bits as u32, h);
            }
            out.poison[row] |= taint >> lane & 1 == 1;
        }
    }
    out
}

/// Row and column of accumulator element `i` of a lane.
fn accumulator(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + 8 * (i >> 1 & 1), i / 4 * 8 + lane % 4 * 2 + (i & 1))
}

fn compute(m: &mut Machine, p: &Pending) -> Result<(), Raise> {
    let (n, depth) = (p.op.n, 32 / p.op.ty_a.bytes());
    let a = match p.op.a {
        OperandA::Registers(_) => fragments(p),
        OperandA::Descriptor(_) => {
            let first = p.at.warp % 4 * M;
            load(m, p, p.a_descriptor, first..first + M, p.op.ty_a, p.op.trans_a)?
        }
    };
    let b = load(m, p, p.b_descriptor, 0..n, p.op.ty_b, p.op.trans_b)?;
    let mut by_k = vec![0f32; n * depth];
    let sign = if p.op.negate_a != p.op.negate_b { -1.0 } else { 1.0 };
    for x in 0..n {
        for k in 0..depth {
            by_k[k * n + x] = b.values[x * depth + k] * sign;
        }
    }
    let (mut d, mut taint) = read_accumulators(m, p);
    for row in 0..M {
        let sums = &mut d[row * n..][..n];
        for k in 0..depth {
            let x = a.values[row * depth + k];
            for (sum, y) in sums.iter_mut().zip(&by_k[k * n..][..n]) {
                *sum += x * y;
            }
        }
        for (column, t) in taint[row * n..][..n].iter_mut().enumerate() {
            *t |= a.poison[row] | b.poison[column];
        }
    }
    write_accumulators(m, p, &d, &taint);
    Ok(())
}

/// The accumulators of the warp as rows of `n`, zero where scale-d says so, and their poison.
fn read_accumulators(m: &Machine, p: &Pending) -> (Vec<f32>, Vec<bool>) {
    let n = p.op.n;
    let (mut d, mut taint) = (vec![0f32; M * n], vec![false; M * n]);
    if !p.accumulate {
        return (d, taint);
    }
    let per = if p.op.half_result { 2 } else { 1 };
    for (i, &reg) in p.op.d.iter().enumerate() {
        let (values, poison) = (m.read(p.at, reg), m.taint(p.at, reg));
        for (lane, &bits) in values.iter().enumerate() {
            for h in 0..per {
                let (row, column) = accumulator(lane, i * per + h);
                d[row * n + column] = match p.op.half_result {
                    true => decode_element(Ty::F16, bits as u32, h),
                    false => f32::from_bits(bits as u32),
                };
                taint[row * n + column] = poison >> lane & 1 == 1;
            }
        }
    }
    (d, taint)
}

fn write_accumulators(m: &mut Machine, p: &Pending, d: &[f32], taint: &[bool]) {
    let n = p.op.n;
    let per = if p.op.half_result { 2 } else { 1 };
    for (i, &reg) in p.op.d.iter().enumerate() {
        let (mut out, mut poison) = ([0; 32], 0);
        for (lane, slot) in out.iter_mut().enumerate() {
            for h in 0..per {
                let (row, column) = accumulator(lane, i * per + h);
                let value = d[row * n + column];
                *slot |= match p.op.half_result {
                    true => (F16.encode(value as f64, 0.0, Default::default(), false) as u64) << (16 * h),
                    false => value.to_bits() as u64,
                };
                poison |= (taint[row * n + column] as u32) << lane;
            }
        }
        m.warp_mut(p.at).write(reg, u32::MAX, &out, poison);
    }
}
