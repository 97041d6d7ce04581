//! The oracle of `permute`.

use crate::routing::MASKED;

/// A permutation of slots into rows sorted by expert; see [`PermutePlan`](crate::plan::PermutePlan).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// `[E + 1]`, exclusive.
    pub expert_offsets: Vec<u32>,
    /// `[S]`, row → slot.
    pub permuted_idx: Vec<u32>,
    /// `[S]`, slot → row.
    pub inv_permuted_idx: Vec<u32>,
}

/// Sorts slots by expert: for each expert in turn, its slots in their order.
pub fn permute(topk_ids: &[u32], num_experts: usize) -> Plan {
    let mut plan =
        Plan { expert_offsets: vec![0], permuted_idx: Vec::new(), inv_permuted_idx: vec![MASKED; topk_ids.len()] };
    for expert in 0..num_experts {
        for (slot, &id) in topk_ids.iter().enumerate() {
            if id as usize == expert {
                plan.inv_permuted_idx[slot] = plan.permuted_idx.len() as u32;
                plan.permuted_idx.push(slot as u32);
            }
        }
        plan.expert_offsets.push(plan.permuted_idx.len() as u32);
    }
    plan.permuted_idx.resize(topk_ids.len(), MASKED);
    plan
}
