//! What can be wrong with a checkpoint.

use std::path::PathBuf;

/// What is wrong with a checkpoint: which file or key, what was expected, what came. Its text is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A file is not of its format: truncated, say.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `model_type` names no architecture that this crate knows.
    #[error("{}: model_type: expected one of {known}, got {model_type:?}", path.display())]
    UnknownArchitecture {
        /// The `config.json`.
        path: PathBuf,
        /// What it says.
        model_type: String,
        /// The known ones.
        known: String,
    },
    /// A key of `config.json` is missing, or has a value that cannot be honoured.
    #[error("{}: {key}: expected {expected}, got {actual}", path.display())]
    ConfigValue {
        /// The `config.json`.
        path: PathBuf,
        /// The key.
        key: String,
        /// What was expected.
        expected: String,
        /// What came.
        actual: String,
    },
    /// The layer asked for has no experts, or does not exist.
    #[error("{}: layer {layer}: expected one of the layers with experts ({with_experts})", path.display())]
    NoExperts {
        /// The `config.json`.
        path: PathBuf,
        /// The layer asked for.
        layer: String,
        /// The layers that have experts.
        with_experts: String,
    },
    /// The directory holds no weights.
    #[error("{}: expected model.safetensors or model.safetensors.index.json, got neither", path.display())]
    NoWeights {
        /// The directory.
        path: PathBuf,
    },
    /// The index names a shard that is not there.
    #[error("{}: {tensor}: expected the shard {shard} beside the index, got none", path.display())]
    MissingShard {
        /// The index.
        path: PathBuf,
        /// A tensor that the index puts there.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A tensor that the architecture has is not in the checkpoint.
    #[error("{}: {name}: expected a tensor of this name, got none", path.display())]
    MissingTensor {
        /// The file or index that should name it.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape or type than `config.json` implies.
    #[error("{}: {name}: expected {expected}, got {actual}", path.display())]
    WrongTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What was expected.
        expected: String,
        /// What came.
        actual: String,
    },
}

/// Shorthand inside the loader.
pub(super) type Result<T> = std::result::Result<T, CheckpointError>;
