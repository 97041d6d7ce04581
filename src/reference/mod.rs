//! The oracle: every op and the layer once more, naive, scalar, in f64, from the definitions. Every backend is held to it.
//!
//! Nothing here is fast and nothing here is shared with a backend but the configuration types.

mod combine;
mod grouped_gemm;
mod jitter;
mod layer;
mod permute;
mod route;
mod route_capacity;
mod route_figures;
mod route_rank;
mod route_select;
mod route_weigh;
mod router_logits;

pub use combine::{Combine, Shared, Zero, combine};
pub use grouped_gemm::{GroupedGemm, activate, grouped_gemm};
pub use jitter::jitter;
pub use layer::{Experts, Layer, LayerOutput, Linear, SharedExpert, moe_layer};
pub use permute::{Plan, permute};
pub use route::{Route, Routing, route, route_with_figures};
pub use router_logits::router_logits;
