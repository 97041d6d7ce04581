//! The parameter struct of each kernel, as kernels/cuda/common/params.cuh declares it. A test compares the two field by
//! field. Addresses are those of the device; 0 where an optional tensor is not there.

use super::queue::unsupported;
use crate::error::Result;
use crate::tensor::DType;

/// Declares a struct that kernels take by value.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident, $bytes:literal { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        pub(super) struct $name { $(pub(super) $field: $ty),* }

        // As the kernels assert of theirs.
        const _: () = assert!(size_of::<$name>() == $bytes);

        #[cfg(test)]
        impl $name {
            /// Each field's name, C type and offset.
            const FIELDS: &'static [(&'static str, &'static str, usize)] =
                &[$((stringify!($field), stringify!($ty), std::mem::offset_of!($name, $field))),*];
        }
    };
}

params! {
    /// Of `router_logits.cu`.
    RouterLogitsParams, 56 {
        hidden_states: u64,
        weight: u64,
        bias: u64,
        output: u64,
        num_tokens: u32,
        num_experts: u32,
        hidden_size: u32,
        hidden_states_dtype: u32,
        weight_dtype: u32,
        tanh: u32,
    }
}

params! {
    /// Of the kernels that know the rule: `route.cu` but for `route_map`, `sinkhorn_cost`, `route_probabilities`.
    RouteParams, 360 {
        router_logits: u64,
        selection_bias: u64,
        token_ids: u64,
        hash_table: u64,
        noise_logits: u64,
        topk_ids: u64,
        topk_weights: u64,
        score_keys: u64,
        choice_keys: u64,
        picked_ids: u64,
        basis_ids: u64,
        token_offsets: u64,
        cost: u64,
        probabilities: u64,
        hash_seed: u64,
        noise_seed: u64,
        num_tokens: u32,
        num_choices: u32,
        top_k: u32,
        max_slots: u32,
        num_groups: u32,
        topk_groups: u32,
        hash_rows: u32,
        score: u32,
        weight: u32,
        selection: u32,
        by_score: u32,
        group_score: u32,
        noise: u32,
        renormalize: u32,
        logit_clip: f32,
        logit_softcap: f32,
        renormalize_add: f32,
        renormalize_min: f32,
        renormalize_p: f32,
        scaling_factor: f32,
        jitter: f32,
        noise_scale: f32,
        renormalize_levels: u32,
        has_disabled: u32,
        in_lanes: u32,
        lanes_per_group: u32,
        disabled: [u32; 32],
    }
}

params! {
    /// Of `route_capacity.cu`.
    CapacityParams, 72 {
        picked_ids: u64,
        score_keys: u64,
        choice_keys: u64,
        queue: u64,
        topk_ids: u64,
        num_tokens: u32,
        num_choices: u32,
        num_experts: u32,
        top_k: u32,
        tokens_per_sequence: u32,
        limit: u32,
        order: u32,
        next_best: u32,
    }
}

params! {
    /// Of `route_expert_choice.cu`.
    ExpertChoiceParams, 56 {
        choice_keys: u64,
        thresholds: u64,
        token_offsets: u64,
        topk_ids: u64,
        slot_tokens: u64,
        num_tokens: u32,
        num_choices: u32,
        tokens_per_expert: u32,
        tokens_per_thread: u32,
    }
}

params! {
    /// Of `sinkhorn_balance` in `route_sinkhorn.cu`.
    SinkhornParams, 32 {
        cost: u64,
        offsets: u64,
        num_tokens: u32,
        num_experts: u32,
        max_iterations: u32,
        tolerance: f32,
    }
}

params! {
    /// Of `route_figures.cu`, but for `route_probabilities`.
    FiguresParams, 96 {
        probabilities: u64,
        partials: u64,
        picked_ids: u64,
        topk_ids: u64,
        topk_weights: u64,
        token_offsets: u64,
        tokens_per_expert: u64,
        importance: u64,
        scalars: u64,
        num_tokens: u32,
        num_choices: u32,
        top_k: u32,
        num_slots: u32,
        num_chunks: u32,
        tokens_per_chunk: u32,
    }
}

params! {
    /// Of `route_map` in `route.cu`.
    ExpertMapParams, 2072 {
        topk_ids: u64,
        topk_weights: u64,
        num_slots: u32,
        num_choices: u32,
        ids: [u16; 1024],
    }
}

params! {
    /// Of `permute.cu`.
    PermuteParams, 56 {
        topk_ids: u64,
        expert_offsets: u64,
        permuted_idx: u64,
        inv_permuted_idx: u64,
        chunk_slots: u64,
        num_slots: u32,
        num_experts: u32,
        slots_per_chunk: u32,
        slots_per_warp: u32,
    }
}

params! {
    /// Of the kernels of `grouped_gemm`: `grouped_gemm_simt.cu`, `grouped_gemm_sm80.cu`, `decode.cu`.
    GroupedGemmParams, 128 {
        input: u64,
        weight: u64,
        bias: u64,
        output: u64,
        expert_offsets: u64,
        permuted_idx: u64,
        slot_tokens: u64,
        slot_scale: u64,
        num_rows: u32,
        num_experts: u32,
        n: u32,
        k: u32,
        n_out: u32,
        top_k: u32,
        input_dtype: u32,
        weight_dtype: u32,
        output_dtype: u32,
        kn: u32,
        gate: u32,
        activation: u32,
        alpha: f32,
        limit: f32,
        input_aligned: u32,
        weight_aligned: u32,
    }
}

params! {
    /// Of `grouped_gemm_sm90.cu`.
    GroupedGemmSm90Params, 384 {
        weight_map: [u64; 16],
        input_map: [u64; 16],
        gemm: GroupedGemmParams,
    }
}

params! {
    /// Of `combine.cu`.
    CombineParams, 120 {
        expert_out: u64,
        inv_permuted_idx: u64,
        topk_weights: u64,
        token_offsets: u64,
        zero_ids: u64,
        zero_weights: u64,
        hidden_states: u64,
        shared: u64,
        gate_logits: u64,
        output: u64,
        num_tokens: u32,
        hidden_size: u32,
        top_k: u32,
        first_zero_expert: u32,
        num_zero_experts: u32,
        expert_out_dtype: u32,
        hidden_states_dtype: u32,
        shared_dtype: u32,
        output_dtype: u32,
        shared_scale: f32,
    }
}

params! {
    /// Of `decode_combine.cu`.
    DecodeCombineParams, 256 {
        gemm: GroupedGemmParams,
        combine: CombineParams,
        columns: u32,
        k_step: u32,
    }
}

params! {
    /// Of `route_permute.cu`.
    RoutePermuteParams, 432 {
        route: RouteParams,
        permute: PermuteParams,
        ticket: u64,
        tokens_per_block: u32,
        routing_warps: u32,
    }
}

/// A size as the kernels count it.
pub(super) fn count(what: &str, n: usize) -> Result<u32> {
    // One value is left to mark what is masked, and the top bit to sums of two counts.
    u32::try_from(n).ok().filter(|&n| n <= 1 << 31).ok_or_else(|| unsupported(format!("{what} of {n}")))
}

/// Whether rows of `row` elements from `address` on start on 16 bytes each.
pub(super) fn is_aligned(address: u64, dtype: DType, row: usize) -> bool {
    address.is_multiple_of(16) && (row * dtype.size()).is_multiple_of(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = include_str!("../../../kernels/cuda/common/params.cuh");

    /// The fields of a struct in the header: name, Rust type.
    fn declared(name: &str) -> Vec<(String, String)> {
        let body = HEADER.split(&format!("struct {name} {{")).nth(1).unwrap_or_else(|| panic!("no struct {name}"));
        let body = body.split("};").next().unwrap();
        let lines = body.lines().map(|line| line.split("//").next().unwrap().trim()).filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let line = line.trim_start_matches("alignas(64) ").trim_end_matches(';');
                let (ty, field) = line.split_once(' ').unwrap();
                let ty = match ty {
                    "uint64_t" => "u64",
                    "uint32_t" => "u32",
                    "uint16_t" => "u16",
                    "float" => "f32",
                    // A struct in a struct.
                    other => other,
                };
                match field.trim_end_matches(']').split_once('[') {
                    Some((field, len)) => (field.into(), format!("[{ty}; {len}]")),
                    None => (field.into(), ty.into()),
                }
            })
            .collect()
    }

    #[test]
    fn structs_are_those_of_the_kernels() {
        let structs = [
            ("RouterLogitsParams", RouterLogitsParams::FIELDS),
            ("RouteParams", RouteParams::FIELDS),
            ("CapacityParams", CapacityParams::FIELDS),
            ("ExpertChoiceParams", ExpertChoiceParams::FIELDS),
            ("SinkhornParams", SinkhornParams::FIELDS),
            ("FiguresParams", FiguresParams::FIELDS),
            ("ExpertMapParams", ExpertMapParams::FIELDS),
            ("PermuteParams", PermuteParams::FIELDS),
            ("GroupedGemmParams", GroupedGemmParams::FIELDS),
            ("GroupedGemmSm90Params", GroupedGemmSm90Params::FIELDS),
            ("CombineParams", CombineParams::FIELDS),
            ("DecodeCombineParams", DecodeCombineParams::FIELDS),
            ("RoutePermuteParams", RoutePermuteParams::FIELDS),
        ];
        assert_eq!(HEADER.matches("struct ").count(), structs.len());
        for (name, fields) in structs {
            let ours: Vec<_> = fields.iter().map(|&(field, ty, _)| (field.to_owned(), ty.to_owned())).collect();
            assert_eq!(declared(name), ours, "{name}");
            // Fields of falling size leave no gaps, so that C lays them out alike.
            assert!(fields.windows(2).all(|pair| pair[0].2 < pair[1].2), "{name}");
        }
    }

    #[test]
    fn counts_keep_clear_of_the_mask() {
        assert_eq!(count("slots", 1 << 31).unwrap(), 1 << 31);
        assert!(count("slots", (1 << 31) + 1).is_err());
    }

    #[test]
    fn alignment_is_of_every_row() {
        assert!(is_aligned(256, DType::BF16, 8) && is_aligned(256, DType::F32, 4));
        assert!(
            !is_aligned(256, DType::BF16, 12) && !is_aligned(264, DType::BF16, 8) && !is_aligned(256, DType::F32, 7)
        );
    }
}
