//! The suite finds planted faults: each wrong backend must fail the tests of its op, and the layer's.

use fused_moe::Device;
use libtest_mimic::{Failed, Trial};

use crate::TESTS;
use crate::harness::faulty::{Fault, Faulty};
use crate::harness::{Failure, Test, compare};

/// A trial for each fault, and one for the backend without a fault.
pub fn trials() -> Vec<Trial> {
    let faults = Fault::all().into_iter().map(|fault| {
        Trial::test(format!("fault/{fault:?}"), move || {
            let failure = caught(fault, fault.op())?;
            explains_itself(&failure, fault.op())?;
            if !fault.hidden_in_layer() {
                explains_itself(&caught(fault, "layer")?, "layer")?;
            }
            Ok(())
        })
    });
    let sound = Trial::test("fault/None", || {
        let device = Faulty::device(Fault::None);
        all_tests().try_for_each(|test| test.run(&device).map(drop)).map_err(|failure| failure.to_string().into())
    });
    faults.chain([sound]).chain(of_the_metric()).collect()
}

fn all_tests() -> impl Iterator<Item = &'static Test> {
    TESTS.iter().copied().flatten()
}

/// The first failure among the tests of `op` on the faulty backend.
fn caught(fault: Fault, op: &str) -> Result<Failure, Failed> {
    let device: Device = Faulty::device(fault);
    let failures = all_tests().filter(|test| test.op == op).filter_map(|test| test.run(&device).err());
    failures.into_iter().next().ok_or_else(|| format!("no test of {op} finds {fault:?}").into())
}

/// The failure names what one needs to run it again and to see what is wrong.
fn explains_itself(failure: &Failure, op: &str) -> Result<(), Failed> {
    let text = failure.to_string();
    let parts = ["backend: faulty", op, "seed: ", "expected"];
    match parts.iter().find(|part| !text.contains(**part)) {
        None if failure.op == op => Ok(()),
        None => Err(format!("names op {}, not {op}", failure.op).into()),
        Some(part) => Err(format!("does not say {part:?}:\n{text}").into()),
    }
}

/// What the comparison itself must see, and must let pass.
fn of_the_metric() -> Vec<Trial> {
    let million: Vec<f64> = (0..1_000_000).map(|i| f64::from(i % 17) - 8.0).collect();
    let with = |at: usize, value: f64| {
        let mut wrong = million.clone();
        wrong[at] = value;
        wrong
    };
    let rounded: Vec<f64> = million.iter().map(|x| x * (1.0 + 2e-3)).collect();
    let biased: Vec<f64> = million.iter().map(|x| x * (1.0 + 1e-2)).collect();
    let cases = [
        ("one_element_in_a_million", with(777_777, 9.0), million.clone(), true),
        ("nan", with(5, f64::NAN), million.clone(), true),
        ("infinity", with(5, f64::INFINITY), million.clone(), true),
        ("expected_nan", million.clone(), with(5, f64::NAN), true),
        ("every_element_a_little", biased, million.clone(), true),
        ("too_few", million[1..].to_vec(), million.clone(), true),
        ("rounding", rounded, million.clone(), false),
        ("nan_where_expected", with(5, f64::NAN), with(5, f64::NAN), false),
        ("nothing", Vec::new(), Vec::new(), false),
    ];
    let trial = |(name, actual, expected, wrong): (&str, Vec<f64>, Vec<f64>, bool)| {
        Trial::test(format!("metric/{name}"), move || {
            let found = compare::floats("output", &actual, &expected, 100, 5e-3).is_err();
            if found == wrong { Ok(()) } else { Err(format!("found: {found}, wrong: {wrong}").into()) }
        })
    };
    cases.into_iter().map(trial).collect()
}
