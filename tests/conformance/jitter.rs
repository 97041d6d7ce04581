//! `jitter` against the oracle: noise on the router's input, keyed on (seed, token, feature).

use fused_moe::ops::{self, JitterArgs};
use fused_moe::{DType, Device, Tensor, reference};

use crate::errors::names;
use crate::harness::values::{FLOATS, Floats, garbage, rng};
use crate::harness::{Failure, Log, Problem, Test, compare};

pub const TESTS: &[Test] = &[
    Test { op: "jitter", name: "shapes", body: shapes },
    Test { op: "jitter", name: "keys", body: keys },
    Test { op: "jitter", name: "refused", body: refused },
];

#[derive(Clone, Debug)]
struct Case {
    num_tokens: usize,
    hidden_size: usize,
    dtype: DType,
    epsilon: f32,
    seed: u64,
}

impl Case {
    fn hidden_states(&self) -> Floats {
        Floats::random(&mut rng(self.seed), self.dtype, self.num_tokens * self.hidden_size, 2.0)
    }

    fn run(&self, device: &Device, hidden_states: &Floats) -> Result<Vec<f64>, Problem> {
        let shape = [hidden_states.values.len() / self.hidden_size, self.hidden_size];
        let input = hidden_states.upload(device, shape)?;
        let mut output = garbage(device, DType::F32, shape)?;
        let (seed, epsilon) = (self.seed, self.epsilon);
        let args = JitterArgs { hidden_states: input.view(), seed, epsilon, output: output.view_mut()? };
        ops::jitter(device, args)?;
        Ok(output.to_vec::<f32>()?.into_iter().map(f64::from).collect())
    }
}

fn shapes(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for (num_tokens, hidden_size) in [(0, 5), (1, 1), (1, 33), (7, 24), (65, 130)] {
        for dtype in FLOATS {
            for epsilon in [0.0, 0.01, 1.0] {
                let case = Case { num_tokens, hidden_size, dtype, epsilon, seed: (7 << 32) + 3 };
                log.case(device, &case, |device, case| {
                    let x = case.hidden_states();
                    let output = case.run(device, &x)?;
                    let expected = reference::jitter(&x.wide(), case.hidden_size, case.seed, case.epsilon);
                    compare::floats("output", &output, &expected, case.hidden_size, 1e-6)?;
                    for (x, y) in x.wide().iter().zip(&output) {
                        let bound = x.abs() * f64::from(case.epsilon) * (1.0 + 1e-6) + 1e-6 * x.abs();
                        compare::ensure((y - x).abs() <= bound, || format!("{x} became {y} with {}", case.epsilon))?;
                    }
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// The same noise for the same seed, another for another, and the first tokens' whatever comes after them.
fn keys(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let case = Case { num_tokens: 40, hidden_size: 24, dtype: DType::F32, epsilon: 0.1, seed: 9 };
    log.case(device, &case, |device, case| {
        let x = case.hidden_states();
        let output = case.run(device, &x)?;
        compare::bits("the same seed", &case.run(device, &x)?, &output)?;
        let few = Floats::new(case.dtype, x.values[..3 * case.hidden_size].iter().copied());
        compare::bits("the first tokens", &case.run(device, &few)?, &output[..3 * case.hidden_size])?;
        let other = Case { seed: 10, ..case.clone() }.run(device, &x)?;
        let same = other.iter().zip(&output).filter(|(a, b)| a == b).count();
        compare::ensure(same * 100 < output.len(), || format!("{same} elements are the same under another seed"))?;
        let mean = x.wide().iter().zip(&output).map(|(x, y)| y / x).sum::<f64>() / output.len() as f64;
        // Four standard errors of a uniform number's mean.
        let bound = 4.0 * 0.1 / (3.0 * output.len() as f64).sqrt();
        compare::ensure((mean - 1.0).abs() < bound, || format!("the mean factor is {mean}"))
    })
}

fn refused(device: &Device, log: &mut Log) -> Result<(), Failure> {
    for epsilon in [-0.1, 1.5, f32::NAN] {
        log.case(device, &epsilon, |device, &epsilon| {
            let input = Tensor::zeros(device, DType::F32, [2, 3])?;
            let mut output = Tensor::zeros(device, DType::F32, [2, 3])?;
            let args = JitterArgs { hidden_states: input.view(), seed: 0, epsilon, output: output.view_mut()? };
            names(ops::jitter(device, args), "epsilon")
        })?;
    }
    for (shape, dtype) in [([3, 2], DType::F32), ([2, 3], DType::BF16)] {
        log.case(device, &(shape, dtype), |device, &(shape, dtype)| {
            let input = Tensor::zeros(device, DType::F32, [2, 3])?;
            let mut output = Tensor::zeros(device, dtype, shape)?;
            let args = JitterArgs { hidden_states: input.view(), seed: 0, epsilon: 0.1, output: output.view_mut()? };
            names(ops::jitter(device, args), "output")
        })?;
    }
    Ok(())
}
