//! Executes PTX on the CPU as a strict machine; see the README for what it finds and what it does not know.
//!
//! The way of a kernel through the modules: `parse` (text to syntax tree) → `lower` (names to register
//! slots, addresses and instruction indices; every opcode decoded by its family in `isa`) → `machine`
//! (resident blocks, warps in structure-of-arrays form, random schedule, asynchronous copies) over `mem`
//! (bytes with poison, shadow of past accesses, vector clocks) → `report` (faults with both parties).
#![deny(missing_docs)]
#![forbid(unsafe_code)]

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
mod tensor_map;
mod types;

pub use counters::Counters;
pub use gpu::{Arg, Checks, Config, Dim3, Error, Gpu, Launch, Module};
pub use parse::ParseError;
pub use report::{Fault, FaultKind, Party, Place};
pub use tensor_map::{OobFill, Swizzle, TensorMap, TensorType};
pub use types::{Space, Ty};

/// Every opcode form that is accepted, with the family it belongs to; cache hints one at a time.
pub fn forms() -> Vec<(&'static str, String)> {
    isa::forms()
}
