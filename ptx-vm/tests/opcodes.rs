//! Known answers for scalar forms, random inputs against Rust arithmetic, and forms that do not exist, which are
//! refused with their line. Every form that does exist is executed in `tests/forms`.

use proptest::prelude::*;
use ptx_vm::{Config, Gpu, Launch, Module};

/// Runs `op` on one thread: inputs and result are 64-bit registers cut to the types' widths by mov/cvt.
fn eval(op: &str, out: u32, inputs: &[(u32, u64)]) -> u64 {
    let reg = |bits: u32, i: usize| format!("%x{bits}_{i}");
    let mut ptx = String::from(".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 p)\n{\n");
    ptx += ".reg .b64 %p; .reg .b16 %x16_<9>; .reg .b32 %x32_<9>; .reg .b64 %x64_<9>;\nld.param.u64 %p, [p];\n";
    let mut names = vec![reg(out, 8)];
    for (i, (bits, _)) in inputs.iter().enumerate() {
        ptx += &format!("ld.global.b{bits} {}, [%p+{}];\n", reg(*bits, i), 8 * (i + 1));
        names.push(reg(*bits, i));
    }
    ptx += &format!("{op} {};\nst.global.b{out} [%p], {};\nret;\n}}\n", names.join(", "), names[0]);
    let module = Module::parse(&ptx, "k.ptx").unwrap_or_else(|e| panic!("{e}"));
    let mut gpu = Gpu::new(Config::default());
    let data: Vec<u8> = [0].iter().chain(inputs.iter().map(|(_, v)| v)).flat_map(|v| v.to_le_bytes()).collect();
    let p = gpu.upload(&data);
    gpu.launch(&module, "k", Launch::new(1, 1), &[p.into()]).unwrap_or_else(|e| panic!("{op}: {e}"));
    let bytes = gpu.copy_from(p, 8).unwrap();
    u64::from_le_bytes(bytes.try_into().unwrap())
}

fn op32(op: &str, inputs: &[u32]) -> u32 {
    eval(op, 32, &inputs.iter().map(|&v| (32, v as u64)).collect::<Vec<_>>()) as u32
}

fn f(op: &str, inputs: &[f32]) -> f32 {
    f32::from_bits(op32(op, &inputs.iter().map(|v| v.to_bits()).collect::<Vec<_>>()))
}

#[test]
fn integer_edges() {
    assert_eq!(op32("add.sat.s32", &[i32::MAX as u32, 1]), i32::MAX as u32);
    assert_eq!(op32("mul.hi.s32", &[(-2i32) as u32, 3]), u32::MAX);
    assert_eq!(op32("mad.hi.u32", &[u32::MAX, u32::MAX, 5]), 3);
    assert_eq!(op32("div.s32", &[i32::MIN as u32, u32::MAX]), i32::MIN as u32);
    assert_eq!(op32("abs.s32", &[i32::MIN as u32]), i32::MIN as u32);
    assert_eq!(op32("sad.s32", &[(-3i32) as u32, 4, 10]), 17);
    assert_eq!(eval("mul.wide.s32", 64, &[(32, 0xffff_ffff), (32, 2)]), (-2i64) as u64);
    assert_eq!(op32("dp4a.s32.s32", &[0x01ff_0203, 0x0101_0101, 7]), 12);
    assert_eq!(op32("min.relu.s32", &[(-3i32) as u32, 4]), 0);
}

#[test]
fn shifts_clamp_and_fields_extract() {
    assert_eq!(op32("shl.b32", &[1, 32]), 0);
    assert_eq!(op32("shr.u32", &[u32::MAX, 40]), 0);
    assert_eq!(op32("shr.s32", &[0x8000_0000, 99]), u32::MAX);
    assert_eq!(op32("bfe.s32", &[0x0000_00f0, 4, 4]), u32::MAX);
    assert_eq!(op32("bfe.u32", &[0xffff_ffff, 28, 16]), 0xf);
    assert_eq!(op32("bfi.b32", &[0xff, 0, 8, 4]), 0xf00);
    assert_eq!(op32("bfind.s32", &[(-2i32) as u32]), 0);
    assert_eq!(op32("bfind.u32", &[0]), u32::MAX);
    assert_eq!(op32("clz.b32", &[0]), 32);
    assert_eq!(op32("prmt.b32", &[0x8070_6050, 0x4030_2010, 0x7b30]), 0x40ff_8050);
    assert_eq!(op32("shf.l.wrap.b32", &[0x8000_0000, 1, 33]), 3);
    assert_eq!(op32("shf.r.clamp.b32", &[7, 9, 40]), 9);
    assert_eq!(op32("lop3.b32", &[0xf0, 0xcc, 0xaa, 0x80]), 0xf0 & 0xcc & 0xaa);
    assert_eq!(op32("szext.wrap.s32", &[0x8, 4]), 0xffff_fff8);
    assert_eq!(op32("bmsk.clamp.b32", &[4, 8]), 0xff0);
}

#[test]
fn float_rounding_saturation_and_nan() {
    let tiny = f32::from_bits(1);
    assert_eq!(f("add.rz.f32", &[1.0, 1e-10]), 1.0);
    assert_eq!(f("add.rp.f32", &[1.0, 1e-10]), 1.0f32.next_up());
    assert_eq!(f("add.rm.f32", &[1.0, -1e-10]), 1.0f32.next_down());
    assert_eq!(f("add.ftz.f32", &[tiny, tiny]), 0.0);
    assert_eq!(f("mul.sat.f32", &[2.0, 3.0]), 1.0);
    assert_eq!(f("add.sat.f32", &[f32::NAN, 0.0]).to_bits(), 0);
    assert_eq!(f("add.f32", &[f32::INFINITY, f32::NEG_INFINITY]).to_bits(), 0x7fff_ffff);
    assert_eq!(f("fma.rn.f32", &[1.0 + f32::EPSILON, 1.0 - f32::EPSILON, -1.0]), -(f32::EPSILON * f32::EPSILON));
    assert_eq!(f("min.f32", &[f32::NAN, 2.0]), 2.0);
    assert!(f("min.NaN.f32", &[f32::NAN, 2.0]).is_nan());
    assert_eq!(f("max.f32", &[-0.0, 0.0]).to_bits(), 0);
    assert_eq!(f("rcp.rz.f32", &[3.0]), (1.0f32 / 3.0).next_down());
    assert_eq!(f("sqrt.rp.f32", &[2.0]), 2f32.sqrt().max(std::f32::consts::SQRT_2.next_up()));
    assert_eq!(f("ex2.approx.ftz.f32", &[3.0]), 8.0);
}

#[test]
fn conversions() {
    let bits = |v: f32| v.to_bits();
    assert_eq!(op32("cvt.rni.s32.f32", &[bits(2.5)]), 2);
    assert_eq!(op32("cvt.rzi.s32.f32", &[bits(-2.9)]), (-2i32) as u32);
    assert_eq!(op32("cvt.rzi.u32.f32", &[bits(-5.0)]), 0);
    assert_eq!(op32("cvt.rzi.s32.f32", &[bits(1e20)]), i32::MAX as u32);
    assert_eq!(op32("cvt.rzi.s32.f32", &[bits(f32::NAN)]), 0);
    assert_eq!(eval("cvt.rzi.s64.f32", 64, &[(32, bits(f32::NAN) as u64)]), 1 << 63);
    assert_eq!(op32("cvt.rn.bf16x2.f32", &[bits(1.0), bits(-2.0)]), 0x3f80_c000);
    assert_eq!(op32("cvt.rn.f16x2.f32", &[bits(65520.0), bits(1.0)]), 0x7c00_3c00);
    assert_eq!(op32("cvt.rna.tf32.f32", &[0x3f80_1000]), 0x3f80_2000);
    assert_eq!(eval("cvt.rn.satfinite.e4m3x2.f32", 16, &[(32, bits(1000.0) as u64), (32, bits(1.0) as u64)]), 0x7e38);
    assert_eq!(op32("cvt.s32.s8", &[0x1ff]), u32::MAX);
    assert_eq!(op32("cvt.sat.u8.s32", &[300]), 255);
    assert_eq!(eval("cvt.s64.s32", 64, &[(32, 0x8000_0000)]), 0xffff_ffff_8000_0000);
    assert_eq!(op32("cvt.rz.f32.s32", &[0x7fff_ffff]), bits(2147483520.0));
}

#[test]
fn half_precision() {
    let h = |v: f32| half::f16::from_f32(v).to_bits() as u64;
    assert_eq!(eval("add.f16", 16, &[(16, h(1.0)), (16, h(2.0))]), h(3.0));
    assert_eq!(eval("fma.rn.relu.f16", 16, &[(16, h(1.0)), (16, h(-2.0)), (16, h(1.0))]), 0);
    let two = |v: u64| v | v << 16;
    assert_eq!(eval("mul.f16x2", 32, &[(32, two(h(3.0))), (32, two(h(0.5)))]), two(h(1.5)));
    assert_eq!(eval("max.bf16", 16, &[(16, 0x7fff), (16, 0x3f80)]), 0x3f80);
}

#[test]
fn carries_chain_through_64_bits() {
    let ptx = ".version 9.0\n.target sm_80\n.entry k(.param .u64 p) {\n.reg .b64 %p; .reg .b32 %r<7>;\n\
        ld.param.u64 %p, [p];\nld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%p];\nadd.cc.u32 %r5, %r1, %r3;\n\
        addc.u32 %r6, %r2, %r4;\nst.global.v2.u32 [%p], {%r5, %r6};\nret;\n}\n";
    let module = Module::parse(ptx, "k").unwrap();
    let mut gpu = Gpu::new(Config::default());
    let (a, b) = (0x1234_5678_ffff_ffffu64, 0x0000_0001_0000_0001u64);
    let p = gpu.upload(&[a.to_le_bytes(), b.to_le_bytes()].concat());
    gpu.launch(&module, "k", Launch::new(1, 1), &[p.into()]).unwrap();
    assert_eq!(gpu.copy_from(p, 8).unwrap(), (a + b).to_le_bytes());
}

#[test]
fn unknown_forms_are_refused_with_their_line() {
    for op in ["frobnicate.u32 %r1, %r1", "add.u7 %r1, %r1, %r1", "add.sat.u32 %r1, %r1, %r1", "mov.u32 %r1, %nope"] {
        let text = format!(".version 9.0\n.target sm_80\n.entry k() {{\n.reg .b32 %r<2>;\n{op};\n}}\n");
        let error = Module::parse(&text, "bad.ptx").expect_err(op);
        assert_eq!((error.file.as_str(), error.line), ("bad.ptx", 5), "{error}");
        assert!(error.text.contains(op), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn integers_match_rust(a: u32, b: u32, c: u32) {
        prop_assert_eq!(op32("add.s32", &[a, b]), a.wrapping_add(b));
        prop_assert_eq!(op32("mad.lo.s32", &[a, b, c]), a.wrapping_mul(b).wrapping_add(c));
        prop_assert_eq!(op32("mul.hi.u32", &[a, b]), ((a as u64 * b as u64) >> 32) as u32);
        prop_assert_eq!(op32("shr.s32", &[a, b & 31]), (a as i32 >> (b & 31)) as u32);
        prop_assert_eq!(op32("min.s32", &[a, b]), (a as i32).min(b as i32) as u32);
        prop_assert_eq!(op32("popc.b32", &[a]), a.count_ones());
        prop_assert_eq!(op32("rem.u32", &[a, b | 1]), a % (b | 1));
    }

    #[test]
    fn floats_match_rust(a: f32, b: f32, c: f32) {
        // Whatever the operation, a NaN comes out as the canonical one.
        let bits = |v: f32| if v.is_nan() { 0x7fff_ffff } else { v.to_bits() };
        prop_assert_eq!(f("add.rn.f32", &[a, b]).to_bits(), bits(a + b));
        prop_assert_eq!(f("mul.rn.f32", &[a, b]).to_bits(), bits(a * b));
        prop_assert_eq!(f("fma.rn.f32", &[a, b, c]).to_bits(), bits(a.mul_add(b, c)));
        prop_assert_eq!(f("div.rn.f32", &[a, b]).to_bits(), bits(a / b));
        let (down, up) = (f("add.rm.f32", &[a, b]), f("add.rp.f32", &[a, b]));
        prop_assert!(down as f64 <= a as f64 + b as f64 && a as f64 + b as f64 <= up as f64);
        prop_assert!(up == down || up == down.next_up());
    }
}
