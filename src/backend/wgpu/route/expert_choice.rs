//! Expert choice: tokens are ranked, experts take theirs, and the slots are put in the order of tokens.

use super::{Call, LANES};
use crate::backend::wgpu::bind::{Binding, count};
use crate::backend::wgpu::device::Scratch;
use crate::backend::wgpu::kernel::{ROUTE_EXPERT_CHOICE, ROUTE_PICK, ROUTE_PICK_SUBGROUP};
use crate::backend::wgpu::params::{ExpertChoiceParams, RouteParams};
use crate::backend::wgpu::queue::{Launch, bytes_of};
use crate::error::{Error, Result};
use crate::routing::CapacityLimit;

impl Call<'_, '_> {
    pub(super) fn choose_by_experts(&mut self, limit: CapacityLimit) -> Result<()> {
        let Some([token_offsets, slot_tokens]) = self.ragged.clone() else {
            return Err(Error::invalid("ragged", "some, as experts choose", "none"));
        };
        let RouteParams { num_tokens, num_choices, top_k, has_disabled, topk_ids_at, .. } = self.params;
        let choice_keys = self.scratch(Scratch::ChoiceKeys, self.num_pairs())?;
        let unused = [Scratch::KeptIds, Scratch::ScoreKeys, Scratch::PickedIds].map(|what| self.scratch(what, 1));
        let [ids, score_keys, picked] = unused;
        // With k = 0 it ranks, and picks nothing.
        let ranking = RouteParams { top_k: 0, topk_ids_at: 0, ..self.params };
        let pick = self.device.with_subgroups(&ROUTE_PICK, &ROUTE_PICK_SUBGROUP);
        self.push_rule(pick, ranking, vec![ids?, score_keys?, choice_keys.clone(), picked?])?;
        let tokens_per_expert = limit.slots(num_tokens as usize, top_k as usize, num_choices as usize);
        let params = ExpertChoiceParams {
            num_tokens,
            num_choices,
            tokens_per_expert: count("tokens per expert", tokens_per_expert)?,
            has_disabled,
            topk_ids_at,
            token_offsets_at: token_offsets.at,
            slot_tokens_at: slot_tokens.at,
        };
        let bindings = vec![
            choice_keys,
            self.disabled.clone(),
            self.scratch(Scratch::Thresholds, 2 * u64::from(num_choices))?,
            token_offsets.binding,
            self.topk_ids.binding.clone(),
            slot_tokens.binding,
        ];
        let by_token = self.grid(self.num_tokens().div_ceil(LANES))?;
        let entries = [
            ("find_threshold", self.grid(num_choices.into())?),
            ("count_slots", by_token),
            ("scan_slots", [1, 1, 1]),
            ("place_slots", by_token),
        ];
        self.launches.extend(entries.map(|(entry, workgroups)| Launch {
            kernel: &ROUTE_EXPERT_CHOICE,
            entry,
            constants: Vec::new(),
            params: bytes_of(&params),
            bindings: bindings.clone(),
            workgroups,
        }));
        self.weigh(Binding::whole(&self.device.unused))
    }
}
