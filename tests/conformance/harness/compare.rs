//! When a result is right.

use std::fmt::Debug;

use fused_moe::DType;

use super::Problem;

/// The bound on ‖out − ref‖ / ‖ref‖ for a computation that touches these types.
pub fn tolerance(dtypes: &[DType]) -> f64 {
    if dtypes.iter().all(|dtype| matches!(dtype, DType::F32 | DType::U32)) { 1e-5 } else { 5e-3 }
}

/// One element may be off by this many times the bound on the norm, relative to the typical element: a single wrong
/// element among a million moves the norm by less than its bound.
const ELEMENT_SLACK: f64 = 12.0;

/// `actual` is `expected` within `tolerance`, by the norm and element by element; NaN and ±inf exactly.
pub fn floats(name: &str, actual: &[f64], expected: &[f64], row_len: usize, tolerance: f64) -> Result<(), Problem> {
    if actual.len() != expected.len() {
        return Err(Problem::Wrong(format!("{name}: {} elements, expected {}", actual.len(), expected.len())));
    }
    let finite = |x: &&f64| x.is_finite();
    let norm = expected.iter().filter(finite).map(|x| x * x).sum::<f64>().sqrt();
    let typical = norm / (expected.len().max(1) as f64).sqrt();
    let error = |(a, e): (&f64, &f64)| if a == e || (a.is_nan() && e.is_nan()) { 0.0 } else { (a - e).abs() };
    let rows = actual.chunks(row_len.max(1)).zip(expected.chunks(row_len.max(1)));
    for (r, (actual, expected)) in rows.enumerate() {
        let row_norm = expected.iter().filter(finite).map(|x| x * x).sum::<f64>().sqrt();
        let row_typical = (row_norm / (row_len.max(1) as f64).sqrt()).max(typical);
        for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
            let difference = error((a, e));
            if difference.is_nan() || difference > ELEMENT_SLACK * tolerance * row_typical.max(e.abs()) {
                return Err(Problem::Wrong(format!("{name}: first wrong element [{r}, {i}]: {a}, expected {e}")));
            }
        }
    }
    let difference = actual.iter().zip(expected).map(|pair| error(pair).powi(2)).sum::<f64>().sqrt();
    if difference > tolerance * norm {
        let worst = (0..actual.len())
            .max_by(|&a, &b| error((&actual[a], &expected[a])).total_cmp(&error((&actual[b], &expected[b]))));
        let i = worst.unwrap_or(0);
        return Err(Problem::Wrong(format!(
            "{name}: ‖out−ref‖/‖ref‖ = {:.3e} > {tolerance:.0e}; worst element [{}, {}]: {}, expected {}",
            difference / norm,
            i / row_len.max(1),
            i % row_len.max(1),
            actual[i],
            expected[i]
        )));
    }
    Ok(())
}

/// `actual` is `expected`, every element.
pub fn exact<T: PartialEq + Debug>(name: &str, actual: &[T], expected: &[T]) -> Result<(), Problem> {
    if actual.len() != expected.len() {
        return Err(Problem::Wrong(format!("{name}: {} elements, expected {}", actual.len(), expected.len())));
    }
    match actual.iter().zip(expected).position(|(a, e)| a != e) {
        None => Ok(()),
        Some(i) => Err(Problem::Wrong(format!(
            "{name}: first wrong element [{i}]: {:?}, expected {:?}",
            actual[i], expected[i]
        ))),
    }
}

/// `actual` is `expected`, every bit.
pub fn bits(name: &str, actual: &[f64], expected: &[f64]) -> Result<(), Problem> {
    match actual.iter().zip(expected).position(|(a, e)| a.to_bits() != e.to_bits()) {
        None if actual.len() == expected.len() => Ok(()),
        None => Err(Problem::Wrong(format!("{name}: {} elements, expected {}", actual.len(), expected.len()))),
        Some(i) => Err(Problem::Wrong(format!(
            "{name}: first different element [{i}]: {:e}, expected the very bits of {:e}",
            actual[i], expected[i]
        ))),
    }
}

/// Fails with `what` unless `condition` holds.
pub fn ensure(condition: bool, what: impl FnOnce() -> String) -> Result<(), Problem> {
    if condition { Ok(()) } else { Err(Problem::Wrong(what())) }
}
