//! The errors of the crate: who has to act on each is the variant's name.

use crate::checkpoint::CheckpointError;

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Nothing in this crate panics on what a caller, a file or a driver says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller's mistake: an argument does not fit its contract.
    #[error("{argument}: expected {expected}, got {actual}")]
    InvalidArgument {
        /// The argument, by its name in the public API.
        argument: String,
        /// What the contract asks for.
        expected: String,
        /// What came.
        actual: String,
    },
    /// The backend is not there: hardware, driver or compiler is missing.
    #[error("{backend} is unavailable: {reason}")]
    Unavailable {
        /// The backend's name.
        backend: &'static str,
        /// Why.
        reason: String,
    },
    /// A valid request that this backend does not implement.
    #[error("{backend} does not support {what}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// The missing combination.
        what: String,
    },
    /// The device or its driver failed.
    #[error("{backend} device error: {message}")]
    Device {
        /// The backend's name.
        backend: &'static str,
        /// The driver's own words.
        message: String,
    },
    /// A checkpoint on disk is not what it should be.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl Error {
    /// [`Error::InvalidArgument`] from anything printable.
    pub(crate) fn invalid(argument: impl Into<String>, expected: impl ToString, actual: impl ToString) -> Self {
        Self::InvalidArgument { argument: argument.into(), expected: expected.to_string(), actual: actual.to_string() }
    }
}
