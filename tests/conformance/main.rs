//! One body per op and test, run over every backend.
//!
//! `cargo test --test conformance`; `-- remote/permute` runs the tests whose names contain that. A backend that is not
//! there shows as ignored, with its reason; `FUSED_MOE_REQUIRE=cpu,wgpu,...` makes that a failure.

mod combine;
mod errors;
mod faults;
mod grouped_gemm;
mod grouped_gemm_combine;
mod harness;
mod jitter;
mod large;
mod layer;
#[cfg(feature = "cuda")]
mod mutations;
mod permute;
mod route;
mod route_permute;
mod router_logits;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use fused_moe::Device;
use harness::Test;
use harness::devices::{CANDIDATES, Candidate, Found, required};
use libtest_mimic::{Arguments, Completion, Trial};

/// Every test that every device must pass.
const TESTS: &[&[Test]] = &[
    jitter::TESTS,
    router_logits::TESTS,
    route::TESTS,
    route::SELECTIONS,
    permute::TESTS,
    route_permute::TESTS,
    grouped_gemm::TESTS,
    combine::TESTS,
    grouped_gemm_combine::TESTS,
    layer::TESTS,
    errors::TESTS,
];

static CASES: AtomicUsize = AtomicUsize::new(0);
static UNSUPPORTED: AtomicUsize = AtomicUsize::new(0);
static LEFT_OUT: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = faults::trials();
    #[cfg(feature = "cuda")]
    trials.extend(mutations::trials());
    match required() {
        Ok(required) => trials.extend(CANDIDATES.iter().flat_map(|candidate| device_trials(candidate, &required))),
        Err(problem) => trials.push(Trial::test("FUSED_MOE_REQUIRE", move || Err(problem.into()))),
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        let (cases, unsupported) = (CASES.load(Ordering::Relaxed), UNSUPPORTED.load(Ordering::Relaxed));
        println!("{cases} cases held; {unsupported} cases not supported by their backend");
        let left_out = LEFT_OUT.load(Ordering::Relaxed);
        if left_out > 0 {
            println!(
                "{left_out} cases left out on slow devices, whose every value is in one that ran; FUSED_MOE_ALL_CASES=1 runs them"
            );
        }
    }
    conclusion.exit_code()
}

/// One trial for each test on a device that is there, or one that says why it is not, under a name that the device's
/// filter (`-- cuda/`) finds too.
fn device_trials(candidate: &'static Candidate, required: &[String]) -> Vec<Trial> {
    let asked = |test: &&Test| {
        let name = format!("{}::{}", test.op, test.name);
        candidate.ops.is_none_or(|ops| ops.iter().any(|op| *op == test.op || *op == name))
    };
    let tests =
        || TESTS.iter().copied().flatten().chain(if candidate.widens { &[] } else { large::TESTS }).filter(asked);
    let name = candidate.name;
    match candidate.find(required) {
        Found::Present(device) => tests().map(|test| device_trial(candidate, device.clone(), test)).collect(),
        Found::Skipped(reason) => {
            let reason = format!("{} tests skipped: {reason}", tests().count());
            vec![Trial::ignorable_test(format!("{name}/device"), move || Ok(Completion::ignored_with(reason)))]
        }
        Found::Missing(reason) => {
            vec![Trial::test(format!("{name}/device"), move || {
                Err(format!("{name} is required and not there: {reason}").into())
            })]
        }
    }
}

fn device_trial(candidate: &'static Candidate, device: Device, test: &'static Test) -> Trial {
    Trial::ignorable_test(format!("{}/{}::{}", candidate.name, test.op, test.name), move || {
        let device = if candidate.own { (candidate.open)().map_err(|error| error.to_string())? } else { device };
        let log = test.run(&device).map_err(|failure| failure.to_string())?;
        CASES.fetch_add(log.cases, Ordering::Relaxed);
        UNSUPPORTED.fetch_add(log.unsupported.values().sum(), Ordering::Relaxed);
        LEFT_OUT.fetch_add(log.left_out, Ordering::Relaxed);
        if log.cases == 0 {
            return Ok(Completion::ignored_with(format!("not supported: {:?}", log.unsupported)));
        }
        Ok(Completion::Completed)
    })
}
