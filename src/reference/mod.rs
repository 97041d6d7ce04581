//! The oracle: every op and the layer once more, naive, scalar, in f64, from the definitions. Every backend is held to it.
//!
//! Nothing here is fast and nothing here is shared with a backend but the configuration types.

mod combine;
mod grouped_gemm;
mod layer;
mod permute;
mod route;
mod route_capacity;
mod router_logits;

pub use combine::{Combine, Shared, Zero, combine};
pub use grouped_gemm::{GroupedGemm, activate, grouped_gemm};
pub use layer::{Experts, Layer, LayerOutput, Linear, SharedExpert, moe_layer};
pub use permute::{Plan, permute};
pub use route::{Route, Routing, route};
pub use router_logits::router_logits;
