//! Expert capacity: picks, drops or gives on what is beyond it, and weighs what is left.

use super::{Call, LANES};
use crate::backend::wgpu::bind::{Binding, Bound, count};
use crate::backend::wgpu::device::Scratch;
use crate::backend::wgpu::kernel::{
    ROUTE_CAPACITY, ROUTE_CAPACITY_SUBGROUP, ROUTE_PICK, ROUTE_PICK_SUBGROUP, ROUTE_WEIGH, ROUTE_WEIGH_SUBGROUP,
};
use crate::backend::wgpu::params::{CapacityParams, RouteParams};
use crate::backend::wgpu::queue::{Launch, bytes_of};
use crate::error::Result;
use crate::routing::{Capacity, CapacityOrder, Overflow};

impl Call<'_, '_> {
    pub(super) fn with_capacity(&mut self, capacity: &Capacity) -> Result<()> {
        let picked = self.scratch(Scratch::PickedIds, self.num_slots())?;
        let kept = self.scratch(Scratch::KeptIds, self.num_slots())?;
        let score_keys = self.scratch(Scratch::ScoreKeys, self.num_slots())?;
        let choice_keys = self.scratch(Scratch::ChoiceKeys, self.num_pairs())?;
        let pick = self.device.with_subgroups(&ROUTE_PICK, &ROUTE_PICK_SUBGROUP);
        let outputs = vec![kept.clone(), score_keys.clone(), choice_keys.clone(), picked.clone()];
        self.push_rule(pick, RouteParams { topk_ids_at: 0, ..self.params }, outputs)?;
        self.give_slots(capacity, [kept.clone(), score_keys, choice_keys])?;
        self.before_capacity = Some(Bound { binding: kept, at: 0 });
        self.weigh(picked)
    }

    /// Weighs the slots that tokens have.
    pub(super) fn weigh(&mut self, picked: Binding) -> Result<()> {
        let token_offsets = match &self.ragged {
            Some([token_offsets, _]) => token_offsets.clone(),
            None => self.device.bind_optional("token_offsets", None)?,
        };
        let (ids, weights) = (self.topk_ids.binding.clone(), self.topk_weights.binding.clone());
        let kernel = self.device.with_subgroups(&ROUTE_WEIGH, &ROUTE_WEIGH_SUBGROUP);
        self.push_rule(kernel, self.params, vec![ids, weights, picked, token_offsets.binding])
    }

    fn give_slots(&mut self, capacity: &Capacity, [kept, score_keys, choice_keys]: [Binding; 3]) -> Result<()> {
        let RouteParams { num_tokens, num_choices, top_k, topk_ids_at, .. } = self.params;
        let sequence = self.args.inputs.tokens_per_sequence.filter(|_| capacity.per_sequence);
        let tokens = sequence.unwrap_or(num_tokens as usize);
        let sequences = (num_tokens as usize).div_ceil(tokens.max(1));
        let num_experts = num_choices as usize - self.args.config.num_zero_experts;
        let params = CapacityParams {
            num_tokens,
            num_choices,
            num_experts: num_experts as u32,
            top_k,
            tokens_per_sequence: count("tokens_per_sequence", tokens)?,
            limit: count("capacity", capacity.limit.slots(tokens, self.args.config.top_k, num_experts))?,
            topk_ids_at,
        };
        let bindings = vec![
            kept,
            score_keys,
            choice_keys,
            self.scratch(Scratch::Queue, self.num_slots())?,
            self.scratch(Scratch::Load, sequences as u64 * u64::from(num_choices))?,
            self.topk_ids.binding.clone(),
        ];
        let give = |entry, workgroups| Launch {
            kernel: self.device.with_subgroups(&ROUTE_CAPACITY, &ROUTE_CAPACITY_SUBGROUP),
            entry,
            constants: vec![("ORDER", order_constant(capacity.order))],
            params: bytes_of(&params),
            bindings: bindings.clone(),
            workgroups,
        };
        let entry = if capacity.overflow == Overflow::Drop { "drop_slots" } else { "next_best" };
        let last = give(entry, self.grid(sequences as u64)?);
        if let Some(queued) = queued(capacity.order, self.num_tokens(), u64::from(top_k)) {
            let order = give("order", self.grid(queued.div_ceil(LANES))?);
            self.launches.push(order);
        }
        self.launches.push(last);
        Ok(())
    }
}

/// What stands in a queue that is ordered by score.
fn queued(order: CapacityOrder, num_tokens: u64, top_k: u64) -> Option<u64> {
    match order {
        CapacityOrder::FirstChoices | CapacityOrder::Tokens => None,
        CapacityOrder::BatchPriority => Some(num_tokens),
        CapacityOrder::Scores => Some(num_tokens * top_k),
    }
}

fn order_constant(order: CapacityOrder) -> u32 {
    match order {
        CapacityOrder::FirstChoices => 0,
        CapacityOrder::BatchPriority => 1,
        CapacityOrder::Tokens => 2,
        CapacityOrder::Scores => 3,
    }
}
