//! Tensors in and out of safetensors files.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use fused_moe::checkpoint::CheckpointError;
use fused_moe::tensor::AsView;
use fused_moe::{DType, Error, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// A matrix in f32.
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub values: Vec<f32>,
}

/// Reads the floating-point matrix `name` of a file.
pub fn read_matrix(path: &Path, name: &str) -> Result<Matrix, Error> {
    let bytes = fs::read(path).map_err(|source| CheckpointError::Io { path: path.into(), source })?;
    let malformed = |reason: String| CheckpointError::Malformed { path: path.into(), reason };
    let file = SafeTensors::deserialize(&bytes).map_err(|error| malformed(error.to_string()))?;
    let tensor =
        file.tensor(name).map_err(|_| CheckpointError::MissingTensor { path: path.into(), name: name.into() })?;
    let wrong = |expected: &str, actual: String| CheckpointError::WrongTensor {
        path: path.into(),
        name: name.into(),
        expected: expected.into(),
        actual,
    };
    let &[rows, columns] = tensor.shape() else {
        return Err(wrong("a matrix [T, H]", format!("shape {:?}", tensor.shape())).into());
    };
    let values = match tensor.dtype() {
        Dtype::F32 => elements(tensor.data(), f32::from_le_bytes),
        Dtype::BF16 => elements(tensor.data(), |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => elements(tensor.data(), |b| f16::from_le_bytes(b).to_f32()),
        other => return Err(wrong("f32, bf16 or f16", format!("{other:?}")).into()),
    };
    Ok(Matrix { rows, columns, values })
}

/// The value of a key of a file's metadata.
pub fn read_metadata(path: &Path, key: &str) -> Result<Option<String>, Error> {
    let bytes = fs::read(path).map_err(|source| CheckpointError::Io { path: path.into(), source })?;
    let (_, header) = SafeTensors::read_metadata(&bytes)
        .map_err(|error| CheckpointError::Malformed { path: path.into(), reason: error.to_string() })?;
    Ok(header.metadata().as_ref().and_then(|metadata| metadata.get(key).cloned()))
}

fn elements<const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&chunk| element(chunk)).collect()
}

/// A tensor on its way into a file.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl safetensors::View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes tensors of f32 or u32 to a file.
pub fn write(path: &Path, tensors: &[(&str, &Tensor)]) -> Result<(), Error> {
    let stored = |tensor: &Tensor| -> Result<Stored, Error> {
        let shape = tensor.as_view().dims().to_vec();
        Ok(match tensor.dtype() {
            DType::U32 => {
                let bytes = tensor.to_vec::<u32>()?.into_iter().flat_map(u32::to_le_bytes).collect();
                Stored { dtype: Dtype::U32, shape, bytes }
            }
            _ => {
                let bytes = tensor.to_vec::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect();
                Stored { dtype: Dtype::F32, shape, bytes }
            }
        })
    };
    let named: Vec<(&str, Stored)> =
        tensors.iter().map(|&(name, tensor)| Ok((name, stored(tensor)?))).collect::<Result<_, Error>>()?;
    safetensors::serialize_to_file(named, None, path)
        .map_err(|error| CheckpointError::Malformed { path: path.into(), reason: error.to_string() }.into())
}
