//! Tests, their cases, and what a failure says.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fused_moe::{DType, Device, Error};

/// One test: the same body for every device.
#[derive(Clone, Copy)]
pub struct Test {
    /// The op under test, or `layer`.
    pub op: &'static str,
    /// What about it.
    pub name: &'static str,
    /// Runs every case on a device.
    pub body: fn(&Device, &mut Log) -> Result<(), Failure>,
}

impl Test {
    /// Runs the body on `device`.
    pub fn run(&self, device: &Device) -> Result<Log, Failure> {
        let thinned = is_slow(device).then(BTreeSet::new);
        let mut log =
            Log { op: self.op, test: self.name, cases: 0, unsupported: BTreeMap::new(), left_out: 0, thinned };
        (self.body)(device, &mut log)?;
        // A test without a case would pass whatever a backend does.
        assert!(log.cases + log.unsupported.len() > 0, "{}::{} has no case", self.op, self.name);
        Ok(log)
    }
}

/// What a test did: the cases that ran, and those that the backend declares not to support.
#[derive(Debug)]
pub struct Log {
    op: &'static str,
    test: &'static str,
    /// Cases that ran and held.
    pub cases: usize,
    /// Why cases did not run, and how many.
    pub unsupported: BTreeMap<String, usize>,
    /// Cases that were not asked of a slow device.
    pub left_out: usize,
    /// On a slow device, what cases have had so far.
    thinned: Option<BTreeSet<String>>,
}

/// Whether the device is so slow that it gets a part of the cases: kernels interpreted instruction by instruction.
/// `FUSED_MOE_ALL_CASES` gives it all, `FUSED_MOE_FEW_CASES` gives every device a part: under a sanitizer.
pub fn is_slow(device: &Device) -> bool {
    let is_set = |name| std::env::var_os(name).is_some();
    let interpreted = device.name() == "cuda" && device.backend().is_emulated();
    (interpreted && !is_set("FUSED_MOE_ALL_CASES")) || is_set("FUSED_MOE_FEW_CASES")
}

/// Every value of every parameter of a case, with type and layout of its weights (or whatever types it has), which choose
/// the kernel: on a slow device each of them is in a case that runs, so every kernel sees all boundaries, but not all
/// combinations of them. A case without tokens or slots shows nothing but that.
fn values(case: &str) -> Vec<String> {
    let fields =
        || case.split(", ").map(|field| field.rsplit("{ ").next().unwrap_or(field).trim_end_matches([' ', '}']));
    let is_kind = |field: &&str| ["weight: ", "dtype: ", "weight_layout: "].iter().any(|name| field.starts_with(name));
    let kind = fields().filter(is_kind).collect::<Vec<_>>().join(" ");
    let is_empty = |field: &&str| ["num_tokens: 0", "num_slots: 0"].contains(field);
    if let Some(empty) = fields().find(is_empty) {
        return vec![format!("{kind} {empty}")];
    }
    let counted = fields().filter(|field| !field.starts_with("seed: "));
    counted.map(|field| format!("{kind} {field}")).collect()
}

/// A case that does not hold.
#[derive(Debug)]
pub struct Failure {
    /// Backend and device.
    pub backend: String,
    /// The op under test, or `layer`.
    pub op: &'static str,
    /// The test within the op.
    pub test: &'static str,
    /// Shapes, types, seed.
    pub case: String,
    /// The first wrong element with both values, or the error that came.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "backend: {}\ntest:    {}::{}\ncase:    {}\n{}",
            self.backend, self.op, self.test, self.case, self.what
        )
    }
}

/// What a check of one case can find.
#[derive(Debug)]
pub enum Problem {
    /// The crate returned an error where it should not have.
    Error(Error),
    /// A result is wrong.
    Wrong(String),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Log {
    /// All of `types`, or on a slow device one of them in turn: for cases of many calls each.
    pub fn types<const N: usize>(&self, turn: usize, types: [DType; N]) -> Vec<DType> {
        if self.thinned.is_some() { vec![types[turn % N]] } else { types.to_vec() }
    }

    /// Runs one case. `Unsupported` by the backend is counted, not failed; a panic is a failure of this case.
    pub fn case<C: fmt::Debug>(
        &mut self,
        device: &Device,
        case: &C,
        check: impl FnOnce(&Device, &C) -> Result<(), Problem>,
    ) -> Result<(), Failure> {
        if let Some(seen) = &mut self.thinned {
            let new = values(&format!("{case:?}")).into_iter().filter(|value| seen.insert(value.clone())).count();
            if new == 0 {
                self.left_out += 1;
                return Ok(());
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| check(device, case)));
        let what = match outcome {
            Ok(Ok(())) => {
                self.cases += 1;
                return Ok(());
            }
            Ok(Err(Problem::Error(Error::Unsupported { what, .. }))) => {
                *self.unsupported.entry(what).or_default() += 1;
                return Ok(());
            }
            Ok(Err(Problem::Error(error))) => format!("unexpected error: {error}"),
            Ok(Err(Problem::Wrong(what))) => what,
            Err(panic) => format!("panicked: {}", message(&*panic)),
        };
        Err(Failure { backend: device.to_string(), op: self.op, test: self.test, case: format!("{case:?}"), what })
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
