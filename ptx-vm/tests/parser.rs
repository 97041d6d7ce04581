//! The parser must not panic, whatever the text: real PTX, mutilated in many small ways.

mod common;

use ptx_vm::Module;

/// PTX that uses most of the grammar.
const SAMPLE: &str = r#".version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 smem[];
.global .align 4 .b8 table[24] = {65, 144, 67, 60, 153};
.const .align 4 .u32 limits[2] = {1, 2};
.func (.param .b32 result) twice(.param .b32 x) {
	.reg .b32 %r<3>;
	ld.param.b32 %r1, [x];
	add.s32 %r2, %r1, %r1;
	st.param.b32 [result], %r2;
	ret;
}
.visible .entry kernel(.param .u64 .ptr .global .align 16 p, .param .align 128 .b8 map[128])
.maxntid 128, 1, 1
.minnctapersm 1
{
	.reg .pred %p<4>;
	.reg .f32 %f<9>;
	.reg .b32 %r<9>;
	.reg .b64 %rd<9>;
	.loc 1 7 3, function_name $L__info_string0, inlined_at 1 9 3
	ld.param.u64 %rd1, [p];
	cvta.to.global.u64 %rd2, %rd1;
	mov.u32 %r1, %tid.x;
	setp.lt.and.s32 %p1|%p2, %r1, 64, !%p3;
	@!%p1 bra $L__BB0_2;
	{
	.param .b32 param0;
	st.param.b32 [param0], %r1;
	.param .b32 retval0;
	call.uni (retval0), twice, (param0);
	ld.param.b32 %r2, [retval0];
	}
	mov.b64 %rd3, {%r1, %r2};
	fma.rn.f32 %f1, %f2, 0f3F800000, %f3;
$L__BB0_2:
	mad.wide.u32 %rd4, %r1, 4, %rd2;
	st.global.v2.f32 [%rd4+-8], {%f1, %f2};
	mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4};
	cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];
	ret;
}
.file 1 "kernel.cu"
.section .debug_str
{
.b8 95,90
}
"#;

/// A cheap generator: the same mutilations every time.
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 33) as usize
}

#[test]
fn the_sample_is_valid() {
    Module::parse(SAMPLE, "sample.ptx").unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn mutilated_text_never_panics() {
    let mut state = 1;
    let pieces = ["{", "}", "[", "]", ",", ";", "<", "0x", "-", "9999999999999999999999", "%r1", ".b128", "\"", "/*"];
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut text = SAMPLE.as_bytes().to_vec();
        for _ in 0..1 + next(&mut state) % 4 {
            let at = next(&mut state) % text.len().max(1);
            if at >= text.len() {
                break;
            }
            match next(&mut state) % 4 {
                0 => drop(text.remove(at)),
                1 => text.truncate(at.max(1)),
                2 => text[at] = (next(&mut state) % 128) as u8,
                _ => {
                    let piece = pieces[next(&mut state) % pieces.len()];
                    text.splice(at..at, piece.bytes());
                }
            }
        }
        let text = String::from_utf8(text).expect("ASCII stays ASCII");
        refused += Module::parse(&text, "fuzz.ptx").is_err() as u32;
    }
    assert!(refused > 1000, "the mutilations hardly change anything");
}
