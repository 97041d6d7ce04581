//! cp.async.bulk.tensor: copies of boxes of a tensor that a tensor map describes.

use super::bulk::{self, Reduce, expect_rest, reduction_of};
use super::memory::addresses;
use super::{Form, Op};
use crate::ir::{Addr, Reg};
use crate::lower::Cx;
use crate::machine::{At, Flow, Machine, Segment, Target, lanes, no_poison};
use crate::parse::ast::Operand;
use crate::report::{FaultKind, Raise};
use crate::tensor_map::{ENCODED_BYTES, OobFill, TensorMap, TensorType};
use crate::types::{Space, Ty};

pub(crate) const FORMS: &[&str] = &[
    "cp.async.bulk.tensor.(1d|2d|3d|4d|5d).shared::cluster.global[.tile].mbarrier::complete_tx::bytes\
     [.multicast::cluster]{.L2::cache_hint}",
    "cp.async.bulk.tensor.(1d|2d|3d|4d|5d).shared::cta.global[.tile].mbarrier::complete_tx::bytes{.L2::cache_hint}",
    "cp.async.bulk.tensor.(1d|2d|3d|4d|5d).global.shared::cta[.tile].bulk_group{.L2::cache_hint}",
    "cp.reduce.async.bulk.tensor.(1d|2d|3d|4d|5d).global.shared::cta.(add|min|max|and|or|xor)[.tile].bulk_group\
     {.L2::cache_hint}",
    "cp.async.bulk.prefetch.tensor.(1d|2d|3d|4d|5d).L2.global[.tile]{.L2::cache_hint}",
];

#[derive(Debug)]
pub(crate) enum Tensor {
    Load { dst: Addr, map: Addr, coords: Box<[Reg]>, bar: Addr, multicast: Option<Reg> },
    Store { map: Addr, coords: Box<[Reg]>, src: Addr, reduce: Option<&'static str> },
    Prefetch,
}

const REDUCTIONS: [&str; 6] = ["add", "min", "max", "and", "or", "xor"];

pub(crate) fn decode(cx: &mut Cx, form: &mut Form, ops: &[Operand]) -> Result<Op, String> {
    form.require("cp")?;
    let reduces = form.take("reduce");
    form.require("async")?;
    form.require("bulk")?;
    if form.take("prefetch") {
        return Ok(Op::Tensor(Tensor::Prefetch));
    }
    form.require("tensor")?;
    let rank = form.take_with(|w| {
        Some(match w {
            "1d" => 1,
            "2d" => 2,
            "3d" => 3,
            "4d" => 4,
            "5d" => 5,
            _ => return None,
        })
    });
    let rank = rank.ok_or_else(|| form.unknown())?;
    let tensor = if form.take("global") {
        form.require("shared::cta")?;
        let reduce = match reduces {
            true => {
                Some(form.take_with(|w| REDUCTIONS.iter().find(|r| **r == w).copied()).ok_or_else(|| form.unknown())?)
            }
            false => None,
        };
        form.take("tile");
        form.require("bulk_group")?;
        let hint = form.take("L2::cache_hint");
        let [map, src, rest @ ..] = ops else { return Err("wrong number of operands".into()) };
        expect_rest(rest, hint as usize)?;
        let (map, coords) = map_operand(cx, map, rank)?;
        Tensor::Store { map, coords, src: cx.addr(src)?, reduce }
    } else {
        if reduces || !(form.take("shared::cluster") || form.take("shared::cta")) {
            return Err(form.unknown());
        }
        form.require("global")?;
        form.take("tile");
        form.require("mbarrier::complete_tx::bytes")?;
        let multicast = form.take("multicast::cluster");
        let hint = form.take("L2::cache_hint");
        let [dst, map, bar, rest @ ..] = ops else { return Err("wrong number of operands".into()) };
        expect_rest(rest, multicast as usize + hint as usize)?;
        let multicast = if multicast { Some(cx.value(&rest[0])?) } else { None };
        let (map, coords) = map_operand(cx, map, rank)?;
        Tensor::Load { dst: cx.addr(dst)?, map, coords, bar: cx.addr(bar)?, multicast }
    };
    form.end()?;
    Ok(Op::Tensor(tensor))
}

/// `[map, {c0, c1, ...}]`
fn map_operand(cx: &mut Cx, operand: &Operand, rank: usize) -> Result<(Addr, Box<[Reg]>), String> {
    let Operand::Memory { base, offset, extra } = operand else {
        return Err("expected a tensor map and coordinates".into());
    };
    let [coords] = extra.as_slice() else {
        return Err("expected the coordinates of a tile".into());
    };
    let coords = cx.values(coords)?;
    if coords.len() != rank {
        return Err(format!("expected {rank} coordinates, found {}", coords.len()));
    }
    Ok((cx.base(*base, *offset)?, coords.into()))
}

pub(crate) fn execute(m: &mut Machine, at: At, op: &Tensor) -> Result<Flow, Raise> {
    match op {
        Tensor::Load { dst, map, coords, bar, multicast } => {
            let (dst, maps, bar) = (addresses(m, at, *dst)?, addresses(m, at, *map)?, addresses(m, at, *bar)?);
            for lane in lanes(at.lanes) {
                let (map, corner) = read_map(m, at, lane, maps[lane], coords)?;
                let bytes = box_bytes(&map);
                let mut op = m.new_async(at, lane);
                for cta in bulk::destinations(m, at, lane, *multicast)? {
                    let to = shared_tile(m, at, lane, dst[lane], bytes)?;
                    let tile = segments(m, &map, corner, bulk::moved(to, cta)).map_err(|r| r.lane(lane))?;
                    op.segments.extend(tile.into_iter().map(|(shared, global, n, fill)| Segment {
                        dst: shared,
                        src: global,
                        bytes: n,
                        fill,
                    }));
                    let signal = bulk::signal(m, at, lane, bar[lane], cta, bytes)?;
                    op.signals.push(signal);
                }
                bulk::launch(m, op, lane)?;
            }
        }
        Tensor::Store { map, coords, src, reduce } => {
            let (maps, src) = (addresses(m, at, *map)?, addresses(m, at, *src)?);
            for lane in lanes(at.lanes) {
                let (map, corner) = read_map(m, at, lane, maps[lane], coords)?;
                let from = shared_tile(m, at, lane, src[lane], box_bytes(&map))?;
                let mut op = m.new_async(at, lane);
                let tile = segments(m, &map, corner, from).map_err(|r| r.lane(lane))?;
                // Elements outside of the tensor are not written.
                op.segments = tile
                    .into_iter()
                    .filter_map(|(shared, global, n, fill)| {
                        global.map(|dst| Segment { dst, src: Some(shared), bytes: n, fill })
                    })
                    .collect();
                op.reduce = reduce.map(|word| element_reduction(word, map.ty)).transpose().map_err(|r| r.lane(lane))?;
                bulk::store(m, op, lane)?;
            }
        }
        Tensor::Prefetch => {}
    }
    Ok(Flow::Next)
}

fn fault(text: impl Into<String>) -> Raise {
    FaultKind::Copy(text.into()).into()
}

fn element_reduction(word: &str, ty: TensorType) -> Result<Reduce, Raise> {
    let ty = match ty {
        TensorType::U8 | TensorType::U16 => return Err(fault("reduction of 8- or 16-bit integers")),
        TensorType::U32 => Ty::U32,
        TensorType::I32 => Ty::S32,
        TensorType::U64 => Ty::U64,
        TensorType::I64 => Ty::S64,
        TensorType::F16 => Ty::F16,
        TensorType::BF16 => Ty::BF16,
        TensorType::F32 | TensorType::TF32 => Ty::F32,
        TensorType::F64 => Ty::F64,
    };
    let ty = match (word, ty) {
        ("and" | "or" | "xor", Ty::U32 | Ty::S32) => Ty::B32,
        ("and" | "or" | "xor", Ty::U64 | Ty::S64) => Ty::B64,
        _ => ty,
    };
    reduction_of(word, ty).ok_or_else(|| fault(format!("no reduction {word} of {ty:?}")))
}

/// The tensor map at an address, and the corner of the box.
fn read_map(
    m: &mut Machine,
    at: At,
    lane: usize,
    address: u64,
    coords: &[Reg],
) -> Result<(TensorMap, [i64; 5]), Raise> {
    let target = m.resolve(at, lane, Space::Generic, address, ENCODED_BYTES, 64)?;
    let mut bytes = [0; ENCODED_BYTES];
    for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(&m.read_bytes(at, target.plus(8 * i), 8).0.to_le_bytes());
    }
    let map = TensorMap::decode(&bytes).ok_or_else(|| fault("no tensor map at the address").lane(lane))?;
    if map.rank != coords.len() {
        let text = format!("{} coordinates for a tensor map of rank {}", coords.len(), map.rank);
        return Err(fault(text).lane(lane));
    }
    let mut corner = [0; 5];
    for (c, &reg) in corner.iter_mut().zip(coords) {
        no_poison(m, m.taint(at, reg) & 1 << lane, "is a tensor coordinate")?;
        *c = m.read(at, reg)[lane] as i32 as i64;
    }
    Ok((map, corner))
}

/// Elements of the box along each dimension.
fn extents(map: &TensorMap) -> [u64; 5] {
    std::array::from_fn(|i| map.boxes[i].div_ceil(map.element_strides[i]) as u64)
}

fn box_bytes(map: &TensorMap) -> usize {
    extents(map).iter().product::<u64>() as usize * map.ty.bytes()
}

/// The tile in shared memory, aligned as tensor copies need it.
fn shared_tile(m: &mut Machine, at: At, lane: usize, address: u64, bytes: usize) -> Result<Target, Raise> {
    m.resolve(at, lane, Space::SharedCluster, address, bytes, 128)
}

/// Shared place, global place (none outside of the tensor), bytes and fill of a part of a tile.
type Part = (Target, Option<Target>, usize, u8);

/// The parts of a tile: runs that are contiguous in both memories.
fn segments(m: &mut Machine, map: &TensorMap, corner: [i64; 5], tile: Target) -> Result<Vec<Part>, Raise> {
    let Target::Shared(cta, base) = tile else { return Err(fault("tile not in shared memory")) };
    let size = map.ty.bytes();
    let extent = extents(map);
    let rows: u64 = extent[1..].iter().product();
    // A swizzle moves chunks of 16 bytes; an element stride separates elements.
    let run = if map.element_strides[0] > 1 { 1 } else { (16 / size) as u64 };
    let mut out = vec![];
    for row in 0..rows {
        let (mut left, mut inside, mut address) = (row, true, map.address);
        for d in 1..5 {
            let index = corner[d] + (left % extent[d] * map.element_strides[d] as u64) as i64;
            left /= extent[d];
            inside &= (0..map.dims[d] as i64).contains(&index);
            address = address.wrapping_add((index as u64).wrapping_mul(map.strides[d]));
        }
        for first in (0..extent[0]).step_by(run as usize) {
            let count = run.min(extent[0] - first);
            let at = base + (row * extent[0] + first) as usize * size;
            split_run(m, map, &mut out, Run { inside, address, corner: corner[0], first, count, cta, at })?;
        }
    }
    Ok(out)
}

/// Elements next to each other in a row of a tile.
struct Run {
    inside: bool,
    /// Of the row in global memory, at element 0 of the tensor.
    address: u64,
    corner: i64,
    first: u64,
    count: u64,
    cta: usize,
    /// Offset in shared memory before swizzling.
    at: usize,
}

/// Splits a run where it leaves the tensor.
fn split_run(m: &mut Machine, map: &TensorMap, out: &mut Vec<Part>, run: Run) -> Result<(), Raise> {
    let size = map.ty.bytes();
    let position = |i: u64| run.corner + ((run.first + i) * map.element_strides[0] as u64) as i64;
    let valid = |i: u64| run.inside && (0..map.dims[0] as i64).contains(&position(i));
    let fill = if map.fill == OobFill::Nan { 0xff } else { 0 };
    let mut from = 0;
    while from < run.count {
        let ok = valid(from);
        let to = (from..run.count).find(|&i| valid(i) != ok).unwrap_or(run.count);
        let bytes = (to - from) as usize * size;
        let shared = Target::Shared(run.cta, map.swizzle.apply(run.at + from as usize * size));
        let global = if ok {
            let address = run.address.wrapping_add(position(from) as u64 * size as u64);
            let found = m.global.locate(address, bytes);
            let (buffer, offset) = found.ok_or_else(|| {
                let space = Space::Global;
                Raise::from(FaultKind::OutOfBounds { space, address, bytes, limit: None })
            })?;
            Some(Target::Global(buffer, offset))
        } else {
            None
        };
        out.push((shared, global, bytes, fill));
        from = to;
    }
    Ok(())
}
