//! The four kernels give right results and raise no fault, whatever the schedule.

mod common;

use common::cases::CASES;
use ptx_vm::{Config, Module};

#[test]
fn kernels_run_clean_on_every_seed() {
    let Some(nvcc) = common::nvcc() else { return };
    for case in CASES {
        let dir = common::kernels_dir();
        let source = std::fs::read_to_string(dir.join(case.file)).unwrap();
        let ptx = common::compile(&nvcc, case.file, &source, &dir, case.arch).unwrap();
        let module = Module::parse(&ptx, case.file).unwrap_or_else(|e| panic!("{e}"));
        for seed in 1..=8 {
            let start = std::time::Instant::now();
            (case.run)(&module, Config::with_seed(seed)).unwrap_or_else(|e| panic!("{} seed {seed}: {e}", case.file));
            eprintln!("{} seed {seed}: {:?}", case.file, start.elapsed());
        }
    }
}
