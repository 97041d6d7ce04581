//! mma.sync: a warp multiplies a 16xK by a Kx8 matrix held in registers.

use super::{Form, Op, arity};
use crate::fp::{BF16, E4M3, E5M2, F16};
use crate::ir::Reg;
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, whole_warp};
use crate::parse::ast::Operand;
use crate::report::Raise;
use crate::types::{Ty, sign_extend};

pub(crate) const FORMS: &[&str] = &[
    "mma.sync.aligned.(m16n8k8|m16n8k16).row.col.f32.bf16.bf16.f32",
    "mma.sync.aligned.(m16n8k8|m16n8k16).row.col.(f32|f16).f16.f16.(f32|f16)",
    "mma.sync.aligned.(m16n8k4|m16n8k8).row.col.f32.tf32.tf32.f32",
    "mma.sync.aligned.(m16n8k16|m16n8k32).row.col.(f32.(e4m3|e5m2).(e4m3|e5m2).f32|f16.(e4m3|e5m2).(e4m3|e5m2).f16)",
    "mma.sync.aligned.(m16n8k16|m16n8k32).row.col[.satfinite].s32.(s8|u8).(s8|u8).s32",
];

const M: usize = 16;
const N: usize = 8;

#[derive(Debug)]
pub(crate) struct Mma {
    k: usize,
    a_ty: Ty,
    b_ty: Ty,
    /// F32, F16 or S32.
    d_ty: Ty,
    c_ty: Ty,
    saturate: bool,
    d: Box<[Reg]>,
    a: Box<[Reg]>,
    b: Box<[Reg]>,
    c: Box<[Reg]>,
}

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    form.next();
    form.require("sync")?;
    form.require("aligned")?;
    let k = form.next().strip_prefix("m16n8k").and_then(|k| k.parse::<usize>().ok());
    let k = k.ok_or_else(|| form.unknown())?;
    form.require("row")?;
    form.require("col")?;
    let saturate = form.take("satfinite");
    let (d_ty, a_ty, b_ty, c_ty) = (form.ty()?, form.ty()?, form.ty()?, form.ty()?);
    form.end()?;
    if !supported(k, d_ty, a_ty, b_ty, c_ty) || saturate && d_ty != Ty::S32 {
        return Err(format!("unknown form {}", form.full()));
    }
    arity(ops, 4)?;
    let (a, b, c) = (cx.values(&ops[1])?, cx.values(&ops[2])?, cx.values(&ops[3])?);
    let d = cx.dsts(&ops[0])?;
    let per_reg = 4 / a_ty.bytes();
    let accumulators = |ty: Ty| if ty == Ty::F16 { 2 } else { 4 };
    let expected = [M * k / 32 / per_reg, N * k / 32 / per_reg, accumulators(c_ty), accumulators(d_ty)];
    if [a.len(), b.len(), c.len(), d.len()] != expected {
        return Err("wrong number of registers in a fragment".into());
    }
    let (d, a, b, c) = (d.into(), a.into(), b.into(), c.into());
    Ok(Op::Mma(Mma { k, a_ty, b_ty, d_ty, c_ty, saturate, d, a, b, c }))
}

fn supported(k: usize, d: Ty, a: Ty, b: Ty, c: Ty) -> bool {
    let fp8 = |t| matches!(t, Ty::E4M3 | Ty::E5M2);
    let byte = |t| matches!(t, Ty::S8 | Ty::U8);
    match a {
        Ty::BF16 => b == a && d == Ty::F32 && c == d && matches!(k, 8 | 16),
        Ty::F16 => b == a && matches!(d, Ty::F32 | Ty::F16) && matches!(c, Ty::F32 | Ty::F16) && matches!(k, 8 | 16),
        Ty::TF32 => b == a && d == Ty::F32 && c == d && matches!(k, 4 | 8),
        _ if fp8(a) => fp8(b) && matches!(d, Ty::F32 | Ty::F16) && c == d && matches!(k, 16 | 32),
        _ if byte(a) => byte(b) && d == Ty::S32 && c == d && matches!(k, 16 | 32),
        _ => false,
    }
}

/// Value of the element at `index` of a register.
#[inline]
pub(crate) fn decode_element(ty: Ty, bits: u32, index: usize) -> f32 {
    match ty {
        Ty::BF16 => f32::from_bits(bits >> (16 * index) << 16),
        Ty::F16 => half::f16::from_bits((bits >> (16 * index)) as u16).to_f32(),
        // Tensor cores read the upper 19 bits of a tf32 operand.
        Ty::TF32 => f32::from_bits(bits & 0xffff_e000),
        Ty::E4M3 => E4M3.decode(bits >> (8 * index) & 0xff) as f32,
        Ty::E5M2 => E5M2.decode(bits >> (8 * index) & 0xff) as f32,
        _ => BF16.decode(bits & 0xffff) as f32,
    }
}

/// Where the elements of fragments lie: lane = 4 * group + quad.
struct Place {
    group: usize,
    quad: usize,
}

fn place(lane: usize) -> Place {
    Place { group: lane / 4, quad: lane % 4 }
}

impl Mma {
    fn per_reg(&self) -> usize {
        4 / self.a_ty.bytes()
    }

    /// Row and first column of register `r` of A.
    fn a_element(&self, lane: usize, r: usize) -> (usize, usize) {
        let (p, per) = (place(lane), self.per_reg());
        (p.group + 8 * (r & 1), p.quad * per + (r >> 1) * 4 * per)
    }

    /// First row and column of register `r` of B.
    fn b_element(&self, lane: usize, r: usize) -> (usize, usize) {
        let (p, per) = (place(lane), self.per_reg());
        (p.quad * per + r * 4 * per, p.group)
    }
}

/// Row and column of accumulator `i` of 4.
fn c_element(lane: usize, i: usize) -> (usize, usize) {
    let p = place(lane);
    (p.group + 8 * (i >> 1), p.quad * 2 + (i & 1))
}

/// Rows of A, columns of B and elements of C that hold poison, spread over D by lane.
fn poison(m: &Machine, at: At, op: &Mma) -> [u32; 4] {
    let any = |regs: &[Reg]| regs.iter().fold(0, |t, &r| t | m.taint(at, r));
    let mut out = [0; 4];
    if any(&op.a) | any(&op.b) | any(&op.c) == 0 {
        return out;
    }
    let (mut rows, mut columns) = ([false; M], [false; N]);
    for lane in 0..32 {
        for (r, &reg) in op.a.iter().enumerate() {
            rows[op.a_element(lane, r).0] |= m.taint(at, reg) >> lane & 1 == 1;
        }
        for (r, &reg) in op.b.iter().enumerate() {
            columns[op.b_element(lane, r).1] |= m.taint(at, reg) >> lane & 1 == 1;
        }
    }
    for (i, mask) in out.iter_mut().enumerate() {
        let c = m.taint(at, op.c[i * op.c.len() / 4]);
        for lane in 0..32 {
            let (row, column) = c_element(lane, i);
            *mask |= ((rows[row] || columns[column]) as u32 | c >> lane & 1) << lane;
        }
    }
    out
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Mma) -> Result<Flow, Raise> {
    if let Some(park) = whole_warp(m, at, "mma")? {
        return Ok(park);
    }
    m.counters.mma += 1;
    let taint = poison(m, at, op);
    let out = if op.d_ty == Ty::S32 { multiply_int(m, at, op) } else { multiply(m, at, op) };
    let warp = m.warp_mut(at);
    if op.d_ty == Ty::F16 {
        for (i, &reg) in op.d.iter().enumerate() {
            let half = |v: u64| F16.encode(f32::from_bits(v as u32) as f64, 0.0, Default::default(), false) as u64;
            let packed = std::array::from_fn(|l| half(out[2 * i][l]) | half(out[2 * i + 1][l]) << 16);
            warp.write(reg, at.lanes, &packed, taint[2 * i] | taint[2 * i + 1]);
        }
    } else {
        for (i, &reg) in op.d.iter().enumerate() {
            warp.write(reg, at.lanes, &out[i], taint[i]);
        }
    }
    Ok(Flow::Next)
}

/// D in four registers per lane as f32 bits. Products are exact; sums are f32, in order of k.
fn multiply(m: &Machine, at: At, op: &Mma) -> [[u64; 32]; 4] {
    let (mut a, mut b, mut d) = ([[0f32; 32]; M], [[0f32; N]; 32], [[0f32; N]; M]);
    let per = op.per_reg();
    for (r, &reg) in op.a.iter().enumerate() {
        for (lane, &bits) in m.read(at, reg).iter().enumerate() {
            let (row, column) = op.a_element(lane, r);
            for h in 0..per {
                a[row][column + h] = decode_element(op.a_ty, bits as u32, h);
            }
        }
    }
    for (r, &reg) in op.b.iter().enumerate() {
        for (lane, &bits) in m.read(at, reg).iter().enumerate() {
            let (row, column) = op.b_element(lane, r);
            for h in 0..per {
                b[row + h][column] = decode_element(op.b_ty, bits as u32, h);
            }
        }
    }
    for i in 0..4 {
        let packed = op.c_ty == Ty::F16;
        let values = m.read(at, op.c[if packed { i / 2 } else { i }]);
        for (lane, &bits) in values.iter().enumerate() {
            let (row, column) = c_element(lane, i);
            d[row][column] = match packed {
                true => decode_element(Ty::F16, bits as u32, i & 1),
                false => f32::from_bits(bits as u32),
            };
        }
    }
    for (row, sums) in a.iter().zip(&mut d) {
        for (x, column) in row[..op.k].iter().zip(&b) {
            for (sum, y) in sums.iter_mut().zip(column) {
                *sum += x * y;
            }
        }
    }
    std::array::from_fn(|i| {
        std::array::from_fn(|lane| {
            let (row, column) = c_element(lane, i);
            d[row][column].to_bits() as u64
        })
    })
}

fn multiply_int(m: &Machine, at: At, op: &Mma) -> [[u64; 32]; 4] {
    let (mut a, mut b, mut d) = ([[0i64; 32]; M], [[0i64; N]; 32], [[0i64; N]; M]);
    let byte = |ty: Ty, bits: u64, h: usize| {
        let v = bits >> (8 * h) & 0xff;
        if ty == Ty::S8 { sign_extend(v, 1) } else { v as i64 }
    };
    for lane in 0..32 {
        for h in 0..4 {
            for (r, &reg) in op.a.iter().enumerate() {
                let (row, column) = op.a_element(lane, r);
                a[row][column + h] = byte(op.a_ty, m.read(at, reg)[lane], h);
            }
            for (r, &reg) in op.b.iter().enumerate() {
                let (row, column) = op.b_element(lane, r);
                b[row + h][column] = byte(op.b_ty, m.read(at, reg)[lane], h);
            }
        }
        for i in 0..4 {
            let (row, column) = c_element(lane, i);
            d[row][column] = sign_extend(m.read(at, op.c[i])[lane], 4);
        }
    }
    for (row, sums) in a.iter().zip(&mut d) {
        for (x, column) in row[..op.k].iter().zip(&b) {
            for (sum, y) in sums.iter_mut().zip(column) {
                *sum += x * y;
            }
        }
    }
    let finish = |v: i64| match op.saturate {
        true => v.clamp(i32::MIN as i64, i32::MAX as i64) as u32 as u64,
        false => v as u32 as u64,
    };
    std::array::from_fn(|i| {
        std::array::from_fn(|lane| {
            let (row, column) = c_element(lane, i);
            finish(d[row][column])
        })
    })
}
