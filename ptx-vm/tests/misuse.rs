//! Wrong programs, one mistake each: every report names kernel, block, thread and source line, and the other party
//! where there is one.
//!
//! In the programs `// HERE` marks the line that is reported, `// HERE 5` and `// HERE 5 2` also its thread and
//! block; `// OTHER` marks the other party. Of two racing lines either may come first.

use ptx_vm::{Config, Error, Fault, FaultKind, Gpu, Launch, Module, Party};

/// What is launched and what must be found on each of five seeds.
struct Case {
    name: &'static str,
    shape: Launch,
    /// Part of the report.
    text: &'static str,
    program: &'static str,
}

/// The marks of a program: its line, and what is behind `word`.
fn mark(program: &str, word: &str) -> Option<(u32, Vec<u32>)> {
    program.lines().enumerate().find_map(|(i, line)| {
        let rest = line.split_once(&format!("// {word}"))?.1;
        Some((i as u32 + 1, rest.split_whitespace().map(|n| n.parse().unwrap()).collect()))
    })
}

/// What programs abbreviate: each of 128 threads clears its 64 bytes of `v`, a descriptor of `v` without swizzle, a
/// multiplication, a bulk load.
const SHORT: [(&str, &str); 4] = [
    (
        "ZEROS",
        "mul.lo.u32 %r5, %r0, 64; add.u32 %r5, %r5, %r1; st.shared.v4.b32 [%r5], {0, 0, 0, 0}; \
         st.shared.v4.b32 [%r5+16], {0, 0, 0, 0}; st.shared.v4.b32 [%r5+32], {0, 0, 0, 0}; \
         st.shared.v4.b32 [%r5+48], {0, 0, 0, 0};",
    ),
    ("DESCRIPTOR", "shr.u32 %r6, %r1, 4; cvt.u64.u32 %d5, %r6; add.u64 %d5, %d5, 0x0000001000080000;"),
    ("WGMMA", "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4},"),
    ("BULK", "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"),
];

/// Every line of the program becomes the source line of that number.
fn module(program: &str) -> Module {
    let lines: String = program.lines().enumerate().map(|(i, line)| format!(".loc 1 {} 1\n{line}\n", i + 1)).collect();
    let lines = SHORT.iter().fold(lines, |text, (short, long)| text.replace(short, long));
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.const .align 4 .u32 limit = 5;\n\
         .visible .entry wrong(.param .u64 p)\n.maxntid 256, 1, 1\n.minnctapersm 1\n{{\n\
         .reg .pred %p<9>; .reg .b32 %r<40>; .reg .f32 %f<9>; .reg .b64 %d<20>;\n\
         .shared .align 1024 .b8 v[8192]; .shared .align 8 .b64 bar; .local .align 4 .b32 spill;\n\
         ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, v; mov.u32 %r2, bar; mov.u32 %r3, %ctaid.x;\n\
         {lines}ret;\n}}\n.file 1 \"dir/wrong.cu\"\n"
    );
    Module::parse(&text, "wrong.ptx").unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn fault(case: &Case, module: &Module, seed: u64) -> Option<Box<Fault>> {
    let mut config = Config::with_seed(seed);
    config.max_instructions = 200_000;
    let mut gpu = Gpu::new(config);
    let p = gpu.upload(&[0; 4096]);
    match gpu.launch(module, "wrong", case.shape, &[p.into()]) {
        Ok(_) => None,
        Err(Error::Fault(fault)) => Some(fault),
        Err(other) => panic!("{}: {other}", case.name),
    }
}

fn is_at(party: &Party, (line, numbers): &(u32, Vec<u32>)) -> bool {
    let file = party.place.file.as_deref().is_some_and(|f| f.ends_with("wrong.cu"));
    let thread = numbers.first().is_none_or(|&t| party.thread == [t, 0, 0]);
    let block = numbers.get(1).is_none_or(|&b| party.block == [b, 0, 0]);
    file && party.place.line == *line && party.place.ptx_line > 0 && !party.place.opcode.is_empty() && thread && block
}

fn check(case: &Case) {
    let module = module(case.program);
    let (here, other) = (mark(case.program, "HERE").unwrap(), mark(case.program, "OTHER"));
    let mut others = 0;
    for seed in 1..=5 {
        let fault = fault(case, &module, seed).unwrap_or_else(|| panic!("{}: seed {seed} finds nothing", case.name));
        let report = format!("{}: seed {seed} reports: {fault}", case.name);
        assert!(fault.to_string().contains(case.text), "{report}");
        assert_eq!(fault.kernel, "wrong", "{report}");
        let party = fault.party.as_ref().unwrap_or_else(|| panic!("{report}"));
        let swaps = matches!(
            fault.kind,
            FaultKind::Race { .. } | FaultKind::Divergent(_) | FaultKind::Deadlock(_) | FaultKind::Barrier(_)
        );
        match (&other, &fault.other) {
            (Some(other), Some(found)) => {
                let straight = is_at(party, &here) && is_at(found, other);
                assert!(straight || swaps && is_at(party, other) && is_at(found, &here), "{report}");
                others += 1;
            }
            _ => assert!(is_at(party, &here), "{report}"),
        }
        // The text of the report says it all too.
        assert!(fault.to_string().contains("wrong.cu:") && fault.to_string().contains("block ["), "{report}");
    }
    assert!(other.is_none() || others > 0, "{}: the other party is never named", case.name);
}

fn one(threads: u32) -> Launch {
    Launch::new(1, threads)
}

macro_rules! cases {
    ($($test:ident: [$($name:literal, $shape:expr, $text:literal, $program:literal;)*])*) => {
        $(#[test]
        fn $test() {
            for case in [$(Case { name: $name, shape: $shape, text: $text, program: $program }),*] {
                check(&case);
            }
        })*
    };
}

cases! {
    registers_between_warps: [
        "dec to more", one(256), "setmaxnreg: decrease to 48 from 40",
        "setmaxnreg.dec.sync.aligned.u32 40;
         setmaxnreg.dec.sync.aligned.u32 48; // HERE";
        "inc to less", one(256), "setmaxnreg: increase to 32 from 40",
        "setmaxnreg.dec.sync.aligned.u32 40;
         setmaxnreg.inc.sync.aligned.u32 32; // HERE";
        "half a warp", one(32), "setmaxnreg needs all 32 lanes",
        "setp.ge.u32 %p1, %r0, 16;
         @%p1 exit;
         setmaxnreg.dec.sync.aligned.u32 40; // HERE 0";
        "no one gives", one(256), "deadlock",
        "setmaxnreg.dec.sync.aligned.u32 200;
         bar.sync 0;
         setmaxnreg.inc.sync.aligned.u32 256; // HERE";
    ]
    mbarriers: [
        "used before init", one(1), "no mbarrier was initialised",
        "mbarrier.arrive.shared.b64 _, [%r2]; // HERE 0 0";
        "init not ordered", one(64), "mbarrier",
        "setp.ne.u32 %p1, %r0, 0;
         @!%p1 mbarrier.init.shared.b64 [%r2], 1; // OTHER 0
         setp.ne.u32 %p1, %r0, 32;
         @!%p1 mbarrier.arrive.shared.b64 _, [%r2]; // HERE 32";
        "init twice", one(1), "initialised twice",
        "mbarrier.init.shared.b64 [%r2], 1; // OTHER 0
         mbarrier.init.shared.b64 [%r2], 1; // HERE 0";
        "count of zero", one(1), "mbarrier: count 0",
        "mbarrier.init.shared.b64 [%r2], 0; // HERE";
        "too many arrivals", one(1), "2 arrivals, but only 1 are missing",
        "mbarrier.init.shared.b64 [%r2], 3;
         mbarrier.arrive.shared.b64 _, [%r2], 2; // OTHER
         mbarrier.arrive.shared.b64 _, [%r2], 2; // HERE";
        "invalidated and used", one(1), "no mbarrier was initialised",
        "mbarrier.init.shared.b64 [%r2], 1;
         mbarrier.inval.shared.b64 [%r2];
         mbarrier.arrive.shared.b64 _, [%r2]; // HERE";
        "wrong phase", one(1), "read of Shared",
        "mbarrier.init.shared.b64 [%r2], 1;
         fence.mbarrier_init.release.cluster;
         mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 64;
         BULK [%r1], [%d0], 64, [%r2]; // OTHER
         mbarrier.try_wait.parity.shared.b64 %p1, [%r2], 1;
         ld.shared.b32 %r5, [v+32]; // HERE";
        "fewer bytes expected than copied", one(1), "copy",
        "mbarrier.init.shared.b64 [%r2], 1;
         fence.mbarrier_init.release.cluster;
         mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 16; // OTHER
         BULK [%r1], [%d0], 16, [%r2]; BULK [%r1+16], [%d0], 16, [%r2]; // HERE
         L: mbarrier.try_wait.parity.shared.b64 %p1, [%r2], 1;
         @%p1 bra L;";
        "more bytes expected than copied", one(1), "deadlock",
        "mbarrier.init.shared.b64 [%r2], 1;
         fence.mbarrier_init.release.cluster;
         mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 64;
         BULK [%r1], [%d0], 32, [%r2];
         L: mbarrier.try_wait.parity.shared.b64 %p1, [%r2], 0; // HERE 0 0
         @!%p1 bra L;";
        "overwritten by a copy", one(1), "overwrites the mbarrier",
        "mbarrier.init.shared.b64 [%r1+64], 1;
         mbarrier.init.shared.b64 [%r2], 1;
         fence.mbarrier_init.release.cluster;
         BULK [%r1+64], [%d0], 16, [%r2]; // HERE";
        "init not made visible", one(1), "initialised without fence",
        "mbarrier.init.shared.b64 [%r2], 1; // OTHER
         mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 16;
         BULK [%r1], [%d0], 16, [%r2]; // HERE";
    ]
    copies: [
        "cp.async never waited for", one(32), "never waited for",
        "shl.b32 %r5, %r0, 4;
         add.u32 %r5, %r5, %r1;
         cp.async.cg.shared.global [%r5], [%d0], 16; // OTHER 0
         cp.async.commit_group;
         exit; // HERE 0";
        "cp.async read before the wait", one(1), "asynchronous copy not yet waited for",
        "cp.async.cg.shared.global [%r1], [%d0], 16; // OTHER
         cp.async.commit_group;
         ld.shared.b32 %r5, [v+4]; // HERE";
        "cp.async seen by others without a barrier", one(64), "Shared",
        "setp.ne.u32 %p1, %r0, 0;
         @!%p1 cp.async.cg.shared.global [%r1], [%d0], 16; // OTHER 0
         cp.async.wait_all;
         setp.ne.u32 %p1, %r0, 40;
         @!%p1 st.shared.b32 [v+8], 7; // HERE 40";
        "cp.async of a bad size", one(1), "source size 20 is above the copy size 16",
        "mov.b32 %r5, 20;
         cp.async.cg.shared.global [%r1], [%d0], 16, %r5; // HERE";
        "bulk store never waited for", one(1), "bulk stores never waited for",
        "st.shared.v4.b32 [v], {1, 2, 3, 4};
         fence.proxy.async;
         cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 16; // OTHER
         cp.async.bulk.commit_group;
         exit; // HERE";
        "bulk copy of 20 bytes", one(1), "not a multiple of 16",
        "cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 20; // HERE";
        "bulk prefetch of what is not there", one(1), "out of bounds",
        "cp.async.bulk.prefetch.L2.global [%d0], 65536; // HERE";
        "source of a bulk store overwritten", one(1), "race: write",
        "st.shared.v4.b32 [v], {1, 2, 3, 4};
         fence.proxy.async;
         cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 16; // OTHER
         st.shared.b32 [v], 9; // HERE";
        "no fence.proxy.async", one(1), "no fence.proxy.async between",
        "st.shared.v4.b32 [v], {1, 2, 3, 4}; // OTHER
         cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 16; // HERE";
        "written by another thread, no fence.proxy.async", one(64), "no fence.proxy.async between",
        "setp.ne.u32 %p1, %r0, 40;
         @!%p1 st.shared.v4.b32 [v], {1, 2, 3, 4}; // OTHER 40
         bar.sync 0;
         setp.ne.u32 %p1, %r0, 0;
         @%p1 exit;
         cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 16; // HERE 0";
        "no tensor map", one(1), "no tensor map at the address",
        "mbarrier.init.shared.b64 [%r2], 1;
         fence.mbarrier_init.release.cluster;
         cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%d0, {0}], [%r2]; // HERE";
    ]
    matrices: [
        "accumulator read before the wait", one(128), "reads an accumulator before wgmma.wait_group",
        "ZEROS fence.proxy.async; bar.sync 0;
         DESCRIPTOR wgmma.fence.sync.aligned; setp.ne.b32 %p1, 0, 0;
         WGMMA %d5, %d5, %p1, 1, 1, 0, 0; // OTHER
         wgmma.commit_group.sync.aligned;
         add.f32 %f5, %f1, %f2; // HERE";
        "no fence behind a write", one(128), "no wgmma.fence between",
        "shr.u32 %r6, %r1, 4; cvt.u64.u32 %d5, %r6; setp.eq.b32 %p1, 0, 0; mov.f32 %f1, 0f00000000; mov.f32 %f2, %f1; mov.f32 %f3, %f1; mov.f32 %f4, %f1; wgmma.fence.sync.aligned;
         add.f32 %f3, %f1, %f2; // OTHER
         WGMMA %d5, %d5, %p1, 1, 1, 0, 0; // HERE";
        "no fence at all", one(128), "no wgmma.fence between",
        "cvt.u64.u32 %d5, %r1; setp.ne.b32 %p1, 0, 0;
         WGMMA %d5, %d5, %p1, 1, 1, 0, 0; // HERE";
        "fragment overwritten under way", one(128), "writes a register that a wgmma under way uses",
        "ZEROS fence.proxy.async; bar.sync 0;
         DESCRIPTOR mov.b32 %r10, 0; mov.b32 %r11, 0; mov.b32 %r12, 0; mov.b32 %r13, 0; wgmma.fence.sync.aligned; setp.ne.b32 %p1, 0, 0;
         WGMMA {%r10, %r11, %r12, %r13}, %d5, %p1, 1, 1, 0; // OTHER
         mov.b32 %r11, 5; // HERE";
        "wgmma never waited for", one(128), "never waited for",
        "ZEROS fence.proxy.async; bar.sync 0;
         DESCRIPTOR wgmma.fence.sync.aligned; setp.ne.b32 %p1, 0, 0;
         WGMMA %d5, %d5, %p1, 1, 1, 0, 0; // OTHER
         wgmma.commit_group.sync.aligned;
         exit; // HERE";
        "operand without fence.proxy.async", one(128), "no fence.proxy.async between",
        "ZEROS // OTHER
         bar.sync 0; DESCRIPTOR wgmma.fence.sync.aligned; setp.ne.b32 %p1, 0, 0;
         WGMMA %d5, %d5, %p1, 1, 1, 0, 0; // HERE";
        "mma in half a warp", one(16), "mma needs all 32 lanes",
        "mov.b32 %r5, 0; mov.f32 %f1, 0f00000000;
         mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r5, %r5}, {%r5}, {%f1, %f1, %f1, %f1}; // HERE 0";
    ]
    warps_and_barriers: [
        "mask without the lane", one(32), "lane 1 is not in its own member mask",
        "shfl.sync.idx.b32 %r5, %r0, 0, 31, 1; // HERE 1";
        "mask with a lane elsewhere", one(32), "lanes wait for each other",
        "setp.ge.u32 %p1, %r0, 16; setp.eq.b32 %p2, 0, 0;
         @%p1 bra ELSE;
         vote.sync.ballot.b32 %r5, %p2, 0xffffffff; // HERE 0
         ELSE: redux.sync.add.u32 %r6, %r0, 0xffffffff; // OTHER 16";
        "divergent barrier", one(64), "lanes wait for each other",
        "setp.ge.u32 %p1, %r0, 16;
         @%p1 bra ELSE;
         bar.sync 0; // HERE
         ELSE: bar.sync 1; // OTHER";
        "counts differ", one(96), "barrier 1 waits for",
        "setp.ge.u32 %p1, %r0, 32;
         @!%p1 bar.sync 1, 64; // HERE
         @%p1 bar.sync 1, 96; // OTHER";
        "count not of whole warps", one(32), "thread count 20",
        "bar.sync 1, 20; // HERE";
        "no such barrier", one(32), "barrier 16 does not exist",
        "mov.b32 %r5, 16;
         bar.sync %r5; // HERE";
        "deadlock", one(64), "deadlock",
        "setp.ge.u32 %p1, %r0, 32;
         @!%p1 bar.sync 1, 64; // HERE
         @%p1 bar.sync 2, 64; // OTHER";
        "livelock", one(32), "livelock: more than 200000",
        "L: add.u32 %r0, %r0, 1; bra L; // HERE";
        "polls what no one writes", one(1), "deadlock",
        "L: ld.volatile.global.u32 %r5, [%d0]; // HERE
         setp.eq.u32 %p1, %r5, 0;
         @%p1 bra L;";
        "trap", one(32), "trap",
        "setp.ne.u32 %p1, %r0, 7;
         @!%p1 trap; // HERE 7";
    ]
    values_and_addresses: [
        "poison stored", one(4), "uninitialised value is stored",
        "setp.ge.u32 %p1, %r0, 3;
         @!%p1 mov.b32 %r5, 1;
         st.global.b32 [%d0], %r5; // HERE 3";
        "poison in shared memory", one(1), "uninitialised value is stored",
        "add.u32 %r6, %r5, 1;
         st.shared.b32 [v], %r6; // HERE";
        "poison decides", one(1), "uninitialised value decides control flow",
        "setp.eq.u32 %p1, %r5, 0;
         @%p1 exit; // HERE 0 0";
        "poison as an address", one(1), "uninitialised value is used as an address",
        "ld.global.b32 %r5, [%d9]; // HERE";
        "unwritten shared memory used", one(1), "uninitialised value is stored",
        "ld.shared.b32 %r5, [v+128];
         st.global.b32 [%d0], %r5; // HERE";
        "misaligned global", one(1), "misaligned Global access",
        "ld.global.b32 %r5, [%d0+2]; // HERE";
        "misaligned shared vector", one(1), "must be a multiple of 16",
        "st.shared.v4.b32 [v+8], {1, 1, 1, 1}; // HERE";
        "misaligned bulk copy", one(1), "must be a multiple of 16",
        "cp.async.bulk.global.shared::cta.bulk_group [%d0+8], [%r1], 16; // HERE";
        "past a buffer, in the last block", Launch::new(3, 1), "Global access out of bounds",
        "setp.ne.u32 %p1, %r3, 2;
         @!%p1 ld.global.b32 %r5, [%d0+4096]; // HERE 0 2";
        "past shared memory", one(1), "Shared access out of bounds",
        "ld.shared.b32 %r5, [v+100000]; // HERE";
        "past local memory", one(1), "Local access out of bounds",
        "ld.local.b32 %r5, [spill+4096]; // HERE";
        "null pointer", one(1), "out of bounds: 4 bytes at 0x0",
        "mov.b64 %d5, 0;
         st.b32 [%d5], 1; // HERE";
        "constant written", one(1), "write to constant memory",
        "mov.b64 %d5, limit;
         st.global.b32 [%d5], 1; // HERE";
        "atomic on local memory", one(1), "atomic operation on local",
        "mov.b64 %d5, spill; cvta.local.u64 %d5, %d5;
         atom.add.u32 %r5, [%d5], 1; // HERE";
        "wrong window", one(1), "cvta.to",
        "cvta.to.shared.u64 %d5, %d0; // HERE";
    ]
    races: [
        "between warps", one(64), "race",
        "setp.ne.u32 %p1, %r0, 3;
         @!%p1 st.shared.b32 [v+16], 1; // HERE 3
         setp.ne.u32 %p1, %r0, 50;
         @!%p1 ld.shared.b32 %r5, [v+16]; // OTHER 50";
        "between lanes", one(32), "race",
        "setp.ne.u32 %p1, %r0, 3;
         @!%p1 st.shared.b32 [v+16], 1; // OTHER 3
         setp.ne.u32 %p1, %r0, 5;
         @!%p1 ld.shared.b32 %r5, [v+16]; // HERE 5";
        "between blocks", Launch::new(2, 32), "race",
        "setp.ne.u32 %p1, %r3, 0; setp.ne.u32 %p2, %r0, 0; or.pred %p3, %p1, %p2;
         @!%p3 st.global.b32 [%d0], 1; // HERE 0 0
         xor.b32 %r5, %r3, 1; setp.ne.u32 %p1, %r5, 0; setp.ne.u32 %p2, %r0, 7; or.pred %p3, %p1, %p2;
         @!%p3 st.global.b32 [%d0], 2; // OTHER 7 1";
        "one store to one place", one(2), "different values to one place",
        "st.shared.b32 [v], %r0; // HERE";
        "read-only path", one(64), "non-coherent load",
        "setp.ne.u32 %p1, %r0, 0;
         @!%p1 st.global.b32 [%d0], 1; // OTHER 0
         bar.sync 0;
         setp.ne.u32 %p1, %r0, 33;
         @!%p1 ld.global.nc.b32 %r5, [%d0]; // HERE 33";
        "atomic and plain", one(64), "race",
        "setp.ne.u32 %p1, %r0, 0; @!%p1 st.shared.b32 [bar], 0; bar.sync 0;
         @!%p1 red.shared.add.u32 [bar], 1; // HERE 0
         setp.ne.u32 %p1, %r0, 32;
         @!%p1 st.shared.b32 [bar], 1; // OTHER 32";
    ]
    clusters: [
        "rank outside", Launch::new(2, 1).cluster(2), "rank 2 in a cluster of 2",
        "mapa.shared::cluster.u32 %r5, %r1, 2; // HERE 0";
        "arrives twice", Launch::new(2, 32).cluster(2), "arrive twice",
        "barrier.cluster.arrive;
         barrier.cluster.arrive; // HERE 0";
        "waits without arriving", Launch::new(2, 32).cluster(2), "wait without an arrive",
        "barrier.cluster.wait; // HERE 0";
        "multicast to no one", Launch::new(2, 1).cluster(2), "names no block of the cluster",
        "mbarrier.init.shared.b64 [%r2], 1; fence.mbarrier_init.release.cluster; .reg .b16 %h; mov.b16 %h, 8;
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r1], [%d0], 16, [%r2], %h; // HERE 0";
        "races in a peer's shared memory", Launch::new(2, 1).cluster(2), "race",
        "setp.ne.u32 %p1, %r3, 0; mapa.shared::cluster.u32 %r5, %r1, 1; barrier.cluster.arrive; barrier.cluster.wait;
         @!%p1 st.shared::cluster.b32 [%r5], 1; // HERE 0 0
         @%p1 st.shared.b32 [v], 2; // OTHER 0 1
         barrier.cluster.arrive; barrier.cluster.wait;";
    ]
}
