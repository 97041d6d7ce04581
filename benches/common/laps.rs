//! Timing outside criterion, the same in every program of the comparison (also part of peers/candle; `torch_layer.py`
//! does alike): a program sets up once, then times what it is asked to when it is asked to, so that neighbours in a
//! table were neighbours in time. A lap is one call of each input of the rotation: every lap is the same work.

use std::io::{self, BufRead, Write};
use std::time::Instant;

use serde_json::{Value, json};

/// Seconds per call of each lap, until `seconds` are over; at least one. A call before them wakes what has gone to sleep.
pub fn laps(calls: usize, seconds: f64, mut call: impl FnMut(usize)) -> Vec<f64> {
    call(calls - 1);
    let start = Instant::now();
    let mut laps = Vec::new();
    while laps.is_empty() || start.elapsed().as_secs_f64() < seconds {
        let lap = Instant::now();
        (0..calls).for_each(&mut call);
        laps.push(lap.elapsed().as_secs_f64() / calls as f64);
    }
    laps
}

/// Prints `about`, then answers each line `TOKENS SECONDS IMPLEMENTATION` of the standard input by one JSON object, until
/// the input ends.
pub fn serve(about: Value, mut answer: impl FnMut(usize, f64, &str) -> Result<Value, String>) -> Result<(), String> {
    say(&about)?;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let request = parse(&line).ok_or_else(|| format!("TOKENS SECONDS IMPLEMENTATION, not {line:?}"))?;
        say(&answer(request.0, request.1, request.2)?)?;
    }
    Ok(())
}

fn parse(line: &str) -> Option<(usize, f64, &str)> {
    let mut words = line.splitn(3, ' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?))
}

fn say(value: &Value) -> Result<(), String> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}").and_then(|()| out.flush()).map_err(|error| error.to_string())
}

/// An answer: the laps of so many calls.
pub fn answer(calls: usize, laps: &[f64]) -> Value {
    json!({ "calls": calls * laps.len(), "laps": laps })
}
