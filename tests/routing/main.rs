//! Routing: every rule on the CPU against the oracle, and the oracle against definitions and outside programs.

mod against_oracle;
mod capacity;
mod config;
mod golden;
mod properties;
mod readme;
mod selections;
mod support;
