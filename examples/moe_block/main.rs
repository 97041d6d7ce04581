//! Runs one MoE block of a Hugging Face checkpoint, on any backend, and says how right and how fast it is.
//!
//! ```text
//! cargo run --release --example moe_block                    # the bundled checkpoints, on every backend
//! cargo run --release --example moe_block -- --model DIR     # a checkpoint as downloaded
//! ```
//!
//! Exit status: 0, 1 if the output is further from `--expect` than the tolerance, 2 if something cannot be run.

mod block;
mod bundled;
mod cli;
mod files;
mod report;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::Cli;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return refuse(&first_line(&error.to_string())),
    };
    let run = if cli.model.is_some() { block::run(&cli) } else { bundled::run(&cli) };
    match run {
        Ok(within_tolerance) => ExitCode::from(u8::from(!within_tolerance)),
        Err(error) => refuse(&error.to_string()),
    }
}

fn refuse(message: &str) -> ExitCode {
    eprintln!("moe_block: {message}");
    ExitCode::from(2)
}

/// clap's message without its usage block, on one line.
fn first_line(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let lines = message.split("\n\n").next().unwrap_or(message).lines();
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}
