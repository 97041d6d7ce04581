//! Every opcode form that the table accepts, executed and compared with what the ISA says, computed here by other
//! means than the machine's. Each family's test fails if a form of its rows has not been executed.

mod atomic;
mod barrier;
mod bulk;
mod cluster;
mod compare;
mod control;
mod convert;
mod cp_async;
mod data;
mod float;
mod half_float;
mod integer;
mod judge;
mod logic;
mod matrix;
mod mbarrier;
mod memory;
mod mma;
mod support;
mod tensor;
mod warp;
mod wgmma;

use std::collections::BTreeSet;

use support::Tested;

/// Runs the tests of a family and compares what they executed with what the table lists.
fn check(family: &str, run: fn(&mut Tested)) {
    let mut tested = Tested::default();
    run(&mut tested);
    let listed: BTreeSet<String> =
        ptx_vm::forms().into_iter().filter(|(f, _)| *f == family).map(|(_, form)| form).collect();
    assert!(!listed.is_empty(), "no family {family}");
    let missing: Vec<&String> = listed.difference(&tested.forms).collect();
    let shown = &missing[..missing.len().min(20)];
    assert!(missing.is_empty(), "{} of {} forms of {family} have no test: {shown:?}", missing.len(), listed.len());
    println!("{family}: {} forms", listed.len());
}

macro_rules! families {
    ($($family:ident: $run:path;)*) => {
        $(#[test]
        fn $family() {
            check(stringify!($family), $run);
        })*

        #[test]
        fn every_family_has_a_test() {
            let listed: BTreeSet<&str> = ptx_vm::forms().iter().map(|(family, _)| *family).collect();
            assert_eq!(listed, BTreeSet::from([$(stringify!($family)),*]));
        }
    };
}

families! {
    integer: integer::run;
    carry: integer::run_carry;
    logic: logic::run;
    float: float::run;
    approx: float::run_approx;
    half: half_float::run;
    convert: convert::run;
    compare: compare::run;
    data: data::run;
    control: control::run;
    memory: memory::run;
    atomic: atomic::run;
    warp: warp::run;
    barrier: barrier::run;
    cp_async: cp_async::run;
    matrix: matrix::run;
    mma: mma::run;
    fence: control::run_fences;
    mbarrier: mbarrier::run;
    bulk: bulk::run;
    tensor: tensor::run;
    wgmma: wgmma::run;
    cluster: cluster::run;
    setmaxnreg: cluster::run_setmaxnreg;
}
