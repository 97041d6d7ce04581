//! The safetensors files of a checkpoint: where each tensor lies, without reading any.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use super::error::{CheckpointError, Result};

/// All tensors of a checkpoint, in one file or several.
#[derive(Debug)]
pub(super) struct Files {
    /// The one file, or the index of the shards.
    path: PathBuf,
    shards: Vec<Shard>,
    /// Tensor to shard, from the index; `None` where there is one file.
    weight_map: Option<BTreeMap<String, usize>>,
}

/// One safetensors file, mapped when a tensor in it is first looked up.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    name: String,
    mapped: OnceLock<MappedFile>,
}

#[derive(Debug)]
struct MappedFile {
    bytes: Arc<Mmap>,
    metadata: Metadata,
    /// Where the tensors' bytes start.
    data_start: usize,
}

/// Where a tensor lies. The range is within the file, and as long as type and shape say.
#[derive(Clone, Debug)]
pub(super) struct TensorRef {
    pub path: PathBuf,
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub file: Arc<Mmap>,
    pub range: Range<usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Files {
    /// Finds the files of a directory; opens none but the index.
    pub fn open(directory: &Path) -> Result<Self> {
        let single = directory.join("model.safetensors");
        let index = directory.join("model.safetensors.index.json");
        if single.is_file() {
            let shard = Shard { path: single.clone(), name: "model.safetensors".into(), mapped: OnceLock::new() };
            Ok(Self { path: single, shards: vec![shard], weight_map: None })
        } else if index.is_file() {
            Self::from_index(directory, index)
        } else {
            Err(CheckpointError::NoWeights { path: directory.to_owned() })
        }
    }

    fn from_index(directory: &Path, path: PathBuf) -> Result<Self> {
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(source) => return Err(CheckpointError::Io { path, source }),
        };
        let index: Index = match serde_json::from_slice(&text) {
            Ok(index) => index,
            Err(error) => {
                return Err(CheckpointError::Malformed { path, reason: format!("not an index of shards: {error}") });
            }
        };
        let mut numbers = BTreeMap::new();
        let mut shards: Vec<Shard> = Vec::new();
        let mut weight_map = BTreeMap::new();
        for (tensor, name) in index.weight_map {
            let number = *numbers.entry(name.clone()).or_insert_with(|| {
                shards.push(Shard { path: directory.join(&name), name, mapped: OnceLock::new() });
                shards.len() - 1
            });
            weight_map.insert(tensor, number);
        }
        Ok(Self { path, shards, weight_map: Some(weight_map) })
    }

    /// Where a tensor lies; `None` where no file has it.
    pub fn find(&self, name: &str) -> Result<Option<TensorRef>> {
        let number = match &self.weight_map {
            None => 0,
            Some(weight_map) => match weight_map.get(name) {
                None => return Ok(None),
                Some(&number) => number,
            },
        };
        let shard = &self.shards[number];
        let file = self.mapped(shard, name)?;
        let Some(info) = file.metadata.info(name) else { return Ok(None) };
        let (start, end) = info.data_offsets;
        Ok(Some(TensorRef {
            path: shard.path.clone(),
            name: name.to_owned(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            file: file.bytes.clone(),
            range: file.data_start + start..file.data_start + end,
        }))
    }

    /// Where a tensor lies that has to be there.
    pub fn get(&self, name: &str) -> Result<TensorRef> {
        self.find(name)?.ok_or_else(|| self.missing(name))
    }

    /// The first of several names that a file has.
    pub fn find_any(&self, names: &[String]) -> Result<Option<TensorRef>> {
        for name in names {
            if let Some(tensor) = self.find(name)? {
                return Ok(Some(tensor));
            }
        }
        Ok(None)
    }

    /// The first of several names that a file has; one has to be there.
    pub fn get_any(&self, names: &[String]) -> Result<TensorRef> {
        self.find_any(names)?.ok_or_else(|| self.missing(names.first().map_or("", String::as_str)))
    }

    /// The error for a tensor that no file has.
    fn missing(&self, name: &str) -> CheckpointError {
        CheckpointError::MissingTensor { path: self.path.clone(), name: name.to_owned() }
    }

    fn mapped<'s>(&self, shard: &'s Shard, tensor: &str) -> Result<&'s MappedFile> {
        if let Some(file) = shard.mapped.get() {
            return Ok(file);
        }
        // A name with a path in it would reach out of the directory.
        let inside = Path::new(&shard.name).file_name().is_some_and(|name| name == shard.name.as_str());
        let file = if inside { map(&shard.path) } else { Err(io::ErrorKind::NotFound.into()) };
        let bytes = match file {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CheckpointError::MissingShard {
                    path: self.path.clone(),
                    tensor: tensor.to_owned(),
                    shard: shard.name.clone(),
                });
            }
            Err(source) => return Err(CheckpointError::Io { path: shard.path.clone(), source }),
        };
        let (metadata, data_start) = read_header(&bytes).map_err(|reason| CheckpointError::Malformed {
            path: shard.path.clone(),
            reason: reason.replace(char::is_control, " "),
        })?;
        Ok(shard.mapped.get_or_init(|| MappedFile { bytes: Arc::new(bytes), metadata, data_start }))
    }
}

/// The header of a safetensors file, and where it ends. That tensors do not overlap, leave no gap and are as long as
/// their shapes say is checked by `Metadata`; that they end with the file, here.
fn read_header(bytes: &[u8]) -> std::result::Result<(Metadata, usize), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("expected a safetensors file, got {} bytes", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(header) = header else {
        return Err(format!("expected a header of {length} bytes, got a file of {} bytes", bytes.len()));
    };
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|error| format!("not a safetensors header: {error}"))?;
    let (expected, actual) = (metadata.data_len(), rest.len() - header.len());
    if expected != actual {
        return Err(format!("expected {expected} bytes of tensors behind the header, got {actual}"));
    }
    Ok((metadata, 8 + header.len()))
}

fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: nothing here writes to the file, and it is only ever read as bytes, for which every value is valid. That
    // nobody truncates or rewrites it while it is mapped is asked of the caller by `Checkpoint::open`.
    unsafe { Mmap::map(&file) }
}

impl TensorRef {
    /// The tensor's bytes, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.file[self.range.clone()]
    }

    /// The error for a tensor of another shape or type.
    pub fn wrong(&self, expected: impl Into<String>, actual: impl Into<String>) -> CheckpointError {
        CheckpointError::WrongTensor {
            path: self.path.clone(),
            name: self.name.clone(),
            expected: expected.into(),
            actual: actual.into(),
        }
    }

    /// Checks the shape.
    pub fn expect_shape(&self, shape: &[usize]) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        Err(self.wrong(format!("shape {shape:?}"), format!("shape {:?}", self.shape)))
    }
}
