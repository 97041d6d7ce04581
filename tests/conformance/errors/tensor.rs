//! Wrong uses of tensors, and backends that are not there.

use std::sync::Arc;

use fused_moe::tensor::TensorView;
use fused_moe::{DType, Device, Error, Tensor};

use super::names;
use crate::harness::{Failure, Log, Problem, compare};

pub fn tensor(device: &Device, log: &mut Log) -> Result<(), Failure> {
    let three = [1.0f32, 2.0, 3.0];
    log.case(device, &"length", |device, _| names(Tensor::from_slice(device, &three, [4]), "data"))?;
    log.case(device, &"size", |device, _| {
        names(Tensor::zeros(device, DType::F32, [usize::MAX, 2]), "shape")?;
        names(Tensor::zeros(device, DType::F32, [usize::MAX / 4 + 1]), "shape")
    })?;
    log.case(device, &"slice", |device, _| {
        let tensor = Tensor::from_slice(device, &three, [3])?;
        #[allow(clippy::reversed_empty_ranges, reason = "that is the mistake")]
        names(tensor.view().slice(2..1), "range")?;
        names(tensor.view().slice(1..4), "range")
    })?;
    log.case(device, &"reshape", |device, _| {
        let tensor = Tensor::from_slice(device, &three, [3])?;
        names(tensor.view().reshape([2, 2]), "shape")?;
        names(tensor.view().reshape([usize::MAX, 2]), "shape")
    })?;
    log.case(device, &"element type", |device, _| {
        names(Tensor::from_slice(device, &three, [3])?.to_vec::<u32>(), "element type")
    })?;
    log.case(device, &"unaligned", |_, _| {
        let bytes: &[u8] = bytemuck::cast_slice(&three);
        names(TensorView::from_bytes(&bytes[1..9], DType::F32, [2]), "data")
    })?;
    log.case(device, &"shared memory", |device, _| {
        let owner = Arc::new(vec![0u8; 64]);
        if !device.backend().is_host() {
            return names(Tensor::from_shared(device, owner, 0..64, DType::F32, [16]), "device");
        }
        names(Tensor::from_shared(device, owner.clone(), 0..65, DType::F32, [16]), "range")?;
        names(Tensor::from_shared(device, owner.clone(), 0..64, DType::F32, [15]), "data")?;
        names(Tensor::from_shared(device, owner, 0..64, DType::U32, [16])?.view_mut(), "tensor")
    })
}

/// A backend that does not exist is a mistake, one that is not there is not.
pub fn backends(device: &Device, log: &mut Log) -> Result<(), Failure> {
    log.case(device, &"no such backend", |_, _| names(Device::by_name("tpu"), "backend"))?;
    log.case(device, &"absent", |_, _| {
        for name in ["wgpu", "cuda"] {
            match Device::by_name(name) {
                Ok(found) => compare::ensure(found.name() == name, || format!("{name} is {found}"))?,
                Err(Error::Unavailable { backend, reason }) => {
                    compare::ensure(backend == name && !reason.is_empty(), || format!("{name}: {backend}: {reason}"))?;
                }
                Err(error) => return Err(Problem::Error(error)),
            }
        }
        Ok(())
    })?;
    log.case(device, &"auto", |_, _| {
        let skipped = Device::discover().skipped;
        let honest = skipped.iter().all(|error| matches!(error, Error::Unavailable { .. }));
        compare::ensure(honest, || format!("{skipped:?}"))
    })
}
