//! Executes PTX on the CPU.
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
