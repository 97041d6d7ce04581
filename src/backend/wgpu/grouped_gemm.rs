//! `grouped_gemm` on wgpu.

use super::bind::{Bound, BoundExperts, check_disjoint, count};
use super::device::WgpuDevice;
use super::kernel::{
    BROADCAST, BROADCAST_HALF, COOPERATIVE, COOPERATIVE_HALF, Constants, GROUPED_GEMM, GROUPED_GEMM_HALF, Kernel,
    MATVEC, MATVEC_HALF, MATVEC_HALF_SUBGROUP, MATVEC_SUBGROUP,
};
use super::params::GroupedGemmParams;
use super::queue::{Launch, bytes_of};
use super::tile::{Adapter, GemmPath, GemmShape, choose};
use crate::backend::kernel_args::{EpilogueCodes, Gather, dtype_code};
use crate::config::WeightLayout;
use crate::error::Result;
use crate::ops::{Epilogue, GroupedGemmArgs, InputRows};
use crate::tensor::DType;

/// The tensors of a call as bindings, but for the weights.
struct Bindings {
    input: Bound,
    permuted_idx: Bound,
    slot_tokens: Bound,
    slot_scale: Bound,
    expert_offsets: Bound,
    bias: Bound,
    output: Bound,
}

pub(super) fn grouped_gemm(device: &WgpuDevice, args: GroupedGemmArgs<'_>) -> Result<()> {
    let [rows, n_out] = [args.output.dims()[0], args.output.dims()[1]];
    let [num_experts, k] = [args.weight.dims()[0], args.input.dims()[1]];
    let n = args.weight.dims()[if args.weight_layout == WeightLayout::Nk { 1 } else { 2 }];
    let gather = Gather::of(args.rows);
    let bindings = Bindings {
        input: device.bind_tensor("input", args.input)?,
        permuted_idx: device.bind_optional("permuted_idx", gather.permuted_idx)?,
        slot_tokens: device.bind_optional("slot_tokens", gather.slot_tokens)?,
        slot_scale: device.bind_optional("slot_scale", gather.slot_scale)?,
        expert_offsets: device.bind_optional("expert_offsets", args.expert_offsets)?,
        bias: device.bind_optional("bias", args.bias)?,
        output: device.bind_tensor("output", args.output.as_view())?,
    };
    let epilogue = EpilogueCodes::of(args.epilogue);
    let params = GroupedGemmParams {
        num_rows: count("rows", rows)?,
        n: count("N", n)?,
        k: count("K", k)?,
        n_out: count("N", n_out)?,
        top_k: count("top_k", gather.top_k)?,
        activation_alpha: epilogue.alpha,
        activation_limit: epilogue.limit,
        input_at: bindings.input.at,
        permuted_idx_at: bindings.permuted_idx.at,
        slot_tokens_at: bindings.slot_tokens.at,
        slot_scale_at: bindings.slot_scale.at,
        expert_offsets_at: bindings.expert_offsets.at,
        bias_at: bindings.bias.at,
        output_at: bindings.output.at,
        rows: rows_mode(&gather),
        activation: epilogue.activation,
        has_slot_scale: gather.slot_scale.is_some().into(),
        has_expert_offsets: args.expert_offsets.is_some().into(),
        has_bias: args.bias.is_some().into(),
        ..Default::default()
    };
    let path = choose(&shape(&args, num_experts), adapter(device));
    for part in device.bind_experts("weight", args.weight)? {
        let inputs = [
            &bindings.input,
            &bindings.permuted_idx,
            &bindings.slot_tokens,
            &bindings.slot_scale,
            &bindings.expert_offsets,
            &bindings.bias,
            &part.weight,
        ];
        check_disjoint(&bindings.output, &inputs)?;
        launch(device, &args, &bindings, params, part, path)?;
    }
    Ok(())
}

/// `ROWS_…` of `shared/expert_linear.wgsl`: where rows come from.
fn rows_mode(gather: &Gather<'_>) -> u32 {
    match (gather.permuted_idx, gather.slot_tokens) {
        (None, _) => 0,
        (Some(_), None) => 1,
        (Some(_), Some(_)) => 2,
    }
}

fn shape(args: &GroupedGemmArgs<'_>, num_experts: usize) -> GemmShape {
    let rows = args.output.dims()[0];
    let max_rows_per_expert = match args.rows {
        // A token goes to an expert at most once.
        InputRows::Gathered { .. } => rows.min(args.input.dims()[0]),
        InputRows::Same => rows,
    };
    let f16 = args.weight.dtype() == DType::F16;
    GemmShape { rows, max_rows_per_expert, num_experts, batch_invariant: args.batch_invariant, f16 }
}

fn adapter(device: &WgpuDevice) -> Adapter {
    Adapter {
        lanes: device.limits.max_compute_invocations_per_workgroup,
        memory: device.limits.max_compute_workgroup_storage_size,
        matrix_units: device.matrix_units,
        emulated_subgroup: device.emulated_subgroup(),
    }
}

/// One launch: the experts whose weights are in one binding.
fn launch(
    device: &WgpuDevice,
    args: &GroupedGemmArgs<'_>,
    bindings: &Bindings,
    params: GroupedGemmParams,
    part: BoundExperts,
    path: GemmPath,
) -> Result<()> {
    let mut constants = constants(args, &params, &part);
    let params = GroupedGemmParams {
        first_expert: part.experts.start,
        num_experts: part.experts.len() as u32,
        weight_at: part.weight.at,
        ..params
    };
    let kn = args.weight_layout == WeightLayout::Kn;
    let columns = |columns: u32| {
        // With a gate, two columns of the product make one of the output.
        let gated = matches!(args.epilogue, Epilogue::Gated { .. });
        params.n_out.div_ceil(if gated { columns / 2 } else { columns })
    };
    // Where a grid has not enough of them, workgroups take every so many-th piece of work.
    let max = device.limits.max_compute_workgroups_per_dimension;
    // As many as there can be, however the rows are spread over the experts.
    let row_tiles = |tile_m: u32| match params.num_rows {
        0 => 0,
        num_rows => (num_rows / tile_m + params.num_experts).min(max),
    };
    let (entry, workgroups) = match path {
        GemmPath::Matvec { rows } => {
            constants.push(("ROWS_AT_ONCE", rows));
            (if kn { "main_kn" } else { "main" }, [columns(if kn { 64 } else { 8 }), params.num_rows.min(max)])
        }
        GemmPath::Tiled(tile) => {
            constants.extend([("TILE_M", tile.m), ("TILE_N", tile.n), ("LANES", tile.lanes)]);
            ("main", [columns(tile.n), row_tiles(tile.m)])
        }
        GemmPath::Broadcast { m, lanes } => {
            constants.extend([("TILE_M", m), ("LANES", lanes)]);
            ("main", [row_tiles(m), columns(8 * lanes)])
        }
        GemmPath::Cooperative => ("main", [columns(64), row_tiles(64)]),
    };
    device.launch(Launch {
        kernel: kernel(device, path, args.output.dtype()),
        entry,
        constants,
        params: bytes_of(&params),
        bindings: vec![
            bindings.input.binding.clone(),
            bindings.permuted_idx.binding.clone(),
            bindings.slot_tokens.binding.clone(),
            bindings.slot_scale.binding.clone(),
            bindings.expert_offsets.binding.clone(),
            part.weight.binding,
            bindings.bias.binding.clone(),
            bindings.output.binding.clone(),
        ],
        workgroups: [workgroups[0], workgroups[1], 1],
    })
}

fn kernel(device: &WgpuDevice, path: GemmPath, output: DType) -> &'static Kernel {
    match (path, output) {
        (GemmPath::Tiled(_), DType::F32) => &GROUPED_GEMM,
        (GemmPath::Tiled(_), _) => &GROUPED_GEMM_HALF,
        (GemmPath::Broadcast { .. }, DType::F32) => &BROADCAST,
        (GemmPath::Broadcast { .. }, _) => &BROADCAST_HALF,
        (GemmPath::Cooperative, DType::F32) => &COOPERATIVE,
        (GemmPath::Cooperative, _) => &COOPERATIVE_HALF,
        (GemmPath::Matvec { .. }, DType::F32) => device.with_subgroups(&MATVEC, &MATVEC_SUBGROUP),
        (GemmPath::Matvec { .. }, _) => device.with_subgroups(&MATVEC_HALF, &MATVEC_HALF_SUBGROUP),
    }
}

fn constants(args: &GroupedGemmArgs<'_>, params: &GroupedGemmParams, part: &BoundExperts) -> Constants {
    let kn = args.weight_layout == WeightLayout::Kn;
    let quads = |sizes: &[u32]| u32::from(sizes.iter().all(|size| size.is_multiple_of(4)));
    let gate = EpilogueCodes::of(args.epilogue).gate;
    // Matrices are whole quads where their rows are; a gate's half of a row has to be, too.
    let row = if kn { if gate == 0 { params.n } else { params.n_out } } else { params.k };
    vec![
        ("INPUT_DTYPE", dtype_code(args.input.dtype())),
        ("WEIGHT_DTYPE", dtype_code(args.weight.dtype())),
        ("OUTPUT_DTYPE", dtype_code(args.output.dtype())),
        ("KN", kn.into()),
        ("INPUT_QUADS", quads(&[params.k, params.input_at])),
        ("WEIGHT_QUADS", quads(&[row, part.weight.at])),
        ("GATE", gate),
    ]
}
