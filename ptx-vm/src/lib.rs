//! Executes PTX on the CPU.
#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![allow(dead_code)] // What the sm_90 families will use is there before they are.

mod counters;
mod fp;
mod gpu;
mod ir;
mod isa;
mod lower;
mod machine;
mod mem;
mod parse;
mod report;
mod rng;
mod types;

pub use counters::Counters;
pub use gpu::{Arg, Checks, Config, Dim3, Error, Gpu, Launch, Module};
pub use parse::ParseError;
pub use report::{Fault, FaultKind, Party, Place};
pub use types::{Space, Ty};
