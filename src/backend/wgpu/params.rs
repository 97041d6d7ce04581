//! The parameters of each kernel, as the kernel's `Params` lays them out. A test compares the two field by field.

/// Declares a struct that the shader and the host share. All fields are 4 bytes, so that both lay them out alike.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        pub(super) struct $name { $(pub(super) $field: $ty),* }

        #[cfg(test)]
        impl $name {
            /// Each field's name and offset.
            pub(super) const FIELDS: &'static [(&'static str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field))),*];
        }

        const _: () = assert!(size_of::<$name>() <= super::kernel::MAX_PARAMS);
    };
}

params! {
    /// Of `router_logits.wgsl`.
    RouterLogitsParams {
        num_tokens: u32,
        num_experts: u32,
        hidden_size: u32,
        hidden_states_at: u32,
        weight_at: u32,
        bias_at: u32,
        output_at: u32,
    }
}

params! {
    /// Of the kernels of `route` that know the rule (`shared/route_rule.wgsl`).
    RouteParams {
        num_tokens: u32,
        num_choices: u32,
        num_group_logits: u32,
        top_k: u32,
        num_groups: u32,
        topk_groups: u32,
        router_logits_at: u32,
        selection_bias_at: u32,
        topk_ids_at: u32,
        topk_weights_at: u32,
        token_offsets_at: u32,
        selection: u32,
        groups: u32,
        score: u32,
        weight: u32,
        by_score: u32,
        has_bias: u32,
        has_disabled: u32,
        renormalize: u32,
        before_dropping: u32,
        ragged: u32,
        renormalize_levels: u32,
        logit_clip: f32,
        logit_softcap: f32,
        renormalize_add: f32,
        renormalize_min: f32,
        renormalize_p: f32,
        scaling_factor: f32,
        jitter: f32,
        keeps_at_random: u32,
        keep_scale: f32,
        seed_low: u32,
        seed_high: u32,
    }
}

params! {
    /// Of `route_prepare.wgsl`.
    PrepareParams {
        num_tokens: u32,
        num_choices: u32,
        num_group_logits: u32,
        router_logits_at: u32,
        noise_logits_at: u32,
        noise: u32,
        has_disabled: u32,
        logit_clip: f32,
        logit_softcap: f32,
        noise_std: f32,
    }
}

params! {
    /// Of `route_hash.wgsl`.
    HashParams {
        num_tokens: u32,
        num_choices: u32,
        top_k: u32,
        num_ids: u32,
        has_table: u32,
        has_disabled: u32,
        token_ids_at: u32,
        hash_table_at: u32,
        seed_low: u32,
        seed_high: u32,
    }
}

params! {
    /// Of `route_sinkhorn.wgsl`.
    SinkhornParams {
        num_tokens: u32,
        num_experts: u32,
        router_logits_at: u32,
        max_iterations: u32,
        tolerance: f32,
        logit_clip: f32,
        logit_softcap: f32,
    }
}

params! {
    /// Of `route_expert_choice.wgsl`.
    ExpertChoiceParams {
        num_tokens: u32,
        num_choices: u32,
        tokens_per_expert: u32,
        has_disabled: u32,
        topk_ids_at: u32,
        token_offsets_at: u32,
        slot_tokens_at: u32,
    }
}

params! {
    /// Of `route_figures.wgsl`.
    FiguresParams {
        num_tokens: u32,
        num_choices: u32,
        top_k: u32,
        num_slots: u32,
        picked_ids_at: u32,
        topk_ids_at: u32,
        topk_weights_at: u32,
        token_offsets_at: u32,
        tokens_per_expert_at: u32,
        importance_at: u32,
        scalars_at: u32,
    }
}

params! {
    /// Of `route_map.wgsl`.
    MapParams {
        num_slots: u32,
        num_choices: u32,
        topk_ids_at: u32,
        topk_weights_at: u32,
    }
}

params! {
    /// Of `route_capacity.wgsl`.
    CapacityParams {
        num_tokens: u32,
        num_choices: u32,
        num_experts: u32,
        top_k: u32,
        tokens_per_sequence: u32,
        limit: u32,
        topk_ids_at: u32,
    }
}

params! {
    /// Of `permute.wgsl`.
    PermuteParams {
        num_slots: u32,
        num_experts: u32,
        num_blocks: u32,
        slots_per_block: u32,
        topk_ids_at: u32,
        expert_offsets_at: u32,
        permuted_idx_at: u32,
        inv_permuted_idx_at: u32,
    }
}

params! {
    /// Of the kernels of `grouped_gemm` (`shared/expert_linear.wgsl`).
    GroupedGemmParams {
        num_rows: u32,
        n: u32,
        k: u32,
        n_out: u32,
        first_expert: u32,
        num_experts: u32,
        top_k: u32,
        activation_alpha: f32,
        activation_limit: f32,
        input_at: u32,
        permuted_idx_at: u32,
        slot_tokens_at: u32,
        slot_scale_at: u32,
        expert_offsets_at: u32,
        weight_at: u32,
        bias_at: u32,
        output_at: u32,
        rows: u32,
        activation: u32,
        has_slot_scale: u32,
        has_expert_offsets: u32,
        has_bias: u32,
    }
}

params! {
    /// Of `combine.wgsl`.
    CombineParams {
        num_tokens: u32,
        hidden_size: u32,
        top_k: u32,
        shared_scale: f32,
        expert_out_at: u32,
        inv_permuted_idx_at: u32,
        topk_weights_at: u32,
        token_offsets_at: u32,
        hidden_states_at: u32,
        shared_out_at: u32,
        gate_logits_at: u32,
        output_at: u32,
    }
}

params! {
    /// Of `combine_slots.wgsl`.
    CombineSlotsParams {
        num_slots: u32,
        first_zero_expert: u32,
        num_zero_experts: u32,
        has_rows: u32,
        has_weights: u32,
        inv_permuted_idx_at: u32,
        topk_weights_at: u32,
        topk_ids_at: u32,
        zero_weights_at: u32,
    }
}

params! {
    /// Of `jitter.wgsl`.
    JitterParams {
        num_tokens: u32,
        hidden_size: u32,
        hidden_states_at: u32,
        output_at: u32,
        hidden_states_dtype: u32,
        seed_low: u32,
        seed_high: u32,
        epsilon: f32,
    }
}

#[cfg(test)]
mod tests {
    use naga::front::wgsl;
    use naga::{AddressSpace, Module, StorageAccess, TypeInner};

    use super::super::kernel::{self, Access, Kernel};
    use super::*;

    /// Each field's name and offset.
    type Fields = &'static [(&'static str, usize)];

    /// Every kernel with the fields and size of the struct that the host fills its `Params` from.
    fn kernels() -> Vec<(&'static Kernel, Fields, usize)> {
        macro_rules! row {
            ($kernel:ident, $params:ident) => {
                (&kernel::$kernel, $params::FIELDS, size_of::<$params>())
            };
        }
        vec![
            row!(ROUTER_LOGITS, RouterLogitsParams),
            row!(ROUTER_LOGITS_SUBGROUP, RouterLogitsParams),
            row!(ROUTE, RouteParams),
            row!(ROUTE_SUBGROUP, RouteParams),
            row!(ROUTE_PICK, RouteParams),
            row!(ROUTE_PICK_SUBGROUP, RouteParams),
            row!(ROUTE_WEIGH, RouteParams),
            row!(ROUTE_WEIGH_SUBGROUP, RouteParams),
            row!(ROUTE_LEVELS, RouteParams),
            row!(ROUTE_LEVELS_SUBGROUP, RouteParams),
            row!(ROUTE_PROBABILITIES, RouteParams),
            row!(ROUTE_PROBABILITIES_SUBGROUP, RouteParams),
            row!(ROUTE_PREPARE, PrepareParams),
            row!(ROUTE_HASH, HashParams),
            row!(ROUTE_SINKHORN, SinkhornParams),
            row!(ROUTE_SINKHORN_SUBGROUP, SinkhornParams),
            row!(ROUTE_EXPERT_CHOICE, ExpertChoiceParams),
            row!(ROUTE_FIGURES, FiguresParams),
            row!(ROUTE_FIGURES_SUBGROUP, FiguresParams),
            row!(ROUTE_MAP, MapParams),
            row!(COMBINE_SLOTS, CombineSlotsParams),
            row!(JITTER, JitterParams),
            row!(ROUTE_CAPACITY, CapacityParams),
            row!(ROUTE_CAPACITY_SUBGROUP, CapacityParams),
            row!(PERMUTE, PermuteParams),
            row!(GROUPED_GEMM, GroupedGemmParams),
            row!(GROUPED_GEMM_HALF, GroupedGemmParams),
            row!(MATVEC, GroupedGemmParams),
            row!(MATVEC_HALF, GroupedGemmParams),
            row!(MATVEC_SUBGROUP, GroupedGemmParams),
            row!(MATVEC_HALF_SUBGROUP, GroupedGemmParams),
            row!(BROADCAST, GroupedGemmParams),
            row!(BROADCAST_HALF, GroupedGemmParams),
            row!(COOPERATIVE, GroupedGemmParams),
            row!(COOPERATIVE_HALF, GroupedGemmParams),
            row!(COMBINE, CombineParams),
        ]
    }

    fn parse(kernel: &Kernel) -> Module {
        wgsl::parse_str(kernel.source).unwrap_or_else(|error| panic!("{}: {error}", kernel.name))
    }

    #[test]
    fn params_lie_as_the_shader_reads_them() {
        for (kernel, fields, size) in kernels() {
            let module = parse(kernel);
            let params = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params"));
            let Some(TypeInner::Struct { members, span }) = params.map(|(_, ty)| &ty.inner) else {
                panic!("{}: no struct Params", kernel.name)
            };
            let of_shader: Vec<_> =
                members.iter().map(|m| (m.name.clone().unwrap_or_default(), m.offset as usize)).collect();
            let of_host: Vec<_> = fields.iter().map(|&(name, offset)| (name.to_owned(), offset)).collect();
            assert_eq!(of_shader, of_host, "{}", kernel.name);
            assert_eq!(*span as usize, size, "{}", kernel.name);
        }
    }

    #[test]
    fn bindings_are_what_the_shader_declares() {
        for (kernel, ..) in kernels() {
            let mut declared: Vec<_> = parse(kernel)
                .global_variables
                .iter()
                .filter_map(|(_, variable)| {
                    let access = match variable.space {
                        AddressSpace::Uniform => None,
                        AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => {
                            Some(Access::Write)
                        }
                        AddressSpace::Storage { .. } => Some(Access::Read),
                        _ => return None,
                    };
                    Some((variable.binding.as_ref()?.binding, access))
                })
                .collect();
            declared.sort_by_key(|&(binding, _)| binding);
            let expected: Vec<_> = std::iter::once(None)
                .chain(kernel.bindings.iter().map(|&access| Some(access)))
                .zip(0..)
                .map(|(access, binding)| (binding, access))
                .collect();
            assert_eq!(declared, expected, "{}", kernel.name);
        }
    }
}
