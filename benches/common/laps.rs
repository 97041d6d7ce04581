//! Timing outside criterion, the same in every program of the comparison (also part of peers/candle; `torch_layer.py`
//! does alike): whole laps of the rotation, so that every lap is the same work.

use std::time::Instant;

/// Seconds per call.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Of the median lap.
    pub median: f64,
    /// Of the fastest lap.
    pub min: f64,
    /// Calls timed.
    pub calls: usize,
}

/// Warms up for a lap or a second, then runs laps of `calls` calls until `seconds` are over.
pub fn time(calls: usize, seconds: f64, mut call: impl FnMut(usize)) -> Times {
    let start = Instant::now();
    for i in 0..calls {
        call(i);
        if start.elapsed().as_secs_f64() > 1.0 {
            break;
        }
    }
    let start = Instant::now();
    let mut laps = Vec::new();
    while laps.is_empty() || start.elapsed().as_secs_f64() < seconds {
        let lap = Instant::now();
        (0..calls).for_each(&mut call);
        laps.push(lap.elapsed().as_secs_f64() / calls as f64);
    }
    laps.sort_by(f64::total_cmp);
    Times { median: laps[laps.len() / 2], min: laps[0], calls: laps.len() * calls }
}
