//! Kernels for Mixture-of-Experts inference.
