//! Expert capacity on the CPU: one sequential pass over the slots, in the order in which they are given away.

use super::Rule;
use super::pick::order_key;
use super::weigh::{Softmax, score, transform};
use crate::routing::{Capacity, CapacityOrder, MASKED, Overflow};

/// What is known of the tokens of one sequence.
pub(super) struct Batch<'b> {
    /// `[n, E]`.
    pub(super) router_logits: &'b [f32],
    /// `[n]`.
    pub(super) softmax: &'b [Softmax],
    /// `[n, E]`, or empty; see [`Record::choice`](super::Record::choice).
    pub(super) choice: &'b [u32],
}

#[derive(Default)]
pub(super) struct Scratch {
    /// Slots given to each expert.
    load: Vec<usize>,
    /// Slots or tokens to be sorted: a key that orders them, and who they are.
    queue: Vec<(u32, u32)>,
}

/// Masks the ids (or gives other ones) of slots whose experts are full; `ids` is `[n, k]`.
pub(super) fn give_slots(
    rule: &Rule<'_>,
    capacity: &Capacity,
    batch: &Batch<'_>,
    ids: &mut [u32],
    scratch: &mut Scratch,
) {
    let top_k = rule.config.top_k;
    let num_tokens = ids.len() / top_k;
    let num_experts = rule.num_choices - rule.config.num_zero_experts;
    scratch.load.clear();
    scratch.load.resize(rule.num_choices, 0);
    let mut giver = Giver {
        limit: capacity.limit.slots(num_tokens, top_k, num_experts),
        overflow: capacity.overflow,
        num_experts,
        load: &mut scratch.load,
        ids,
        top_k,
        choice: batch.choice,
    };
    // Descending, with what has no expert last.
    let by_score = |id: u32, token: usize| {
        if id == MASKED {
            return u32::MAX;
        }
        let logit = batch.router_logits[token * rule.num_choices + id as usize];
        !order_key(score(rule, transform(rule, logit), &batch.softmax[token]))
    };
    let queue = &mut scratch.queue;
    queue.clear();
    match capacity.order {
        CapacityOrder::Tokens => (0..num_tokens * top_k).for_each(|slot| giver.give(slot)),
        CapacityOrder::FirstChoices => {
            for choice in 0..top_k {
                (0..num_tokens).for_each(|token| giver.give(token * top_k + choice));
            }
        }
        CapacityOrder::BatchPriority => {
            queue.extend((0..num_tokens).map(|token| (by_score(giver.ids[token * top_k], token), token as u32)));
            queue.sort_unstable();
            for choice in 0..top_k {
                queue.iter().for_each(|&(_, token)| giver.give(token as usize * top_k + choice));
            }
        }
        CapacityOrder::Scores => {
            queue.extend(giver.ids.iter().enumerate().map(|(slot, &id)| (by_score(id, slot / top_k), slot as u32)));
            queue.sort_unstable();
            queue.iter().for_each(|&(_, slot)| giver.give(slot as usize));
        }
    }
}

struct Giver<'g> {
    limit: usize,
    overflow: Overflow,
    num_experts: usize,
    load: &'g mut [usize],
    ids: &'g mut [u32],
    top_k: usize,
    choice: &'g [u32],
}

impl Giver<'_> {
    /// Gives the slot to its expert, to another, or to none.
    fn give(&mut self, slot: usize) {
        let expert = match self.overflow {
            Overflow::Drop => Some(self.ids[slot]).filter(|&id| id != MASKED && self.has_room(id as usize)),
            Overflow::NextBest => self.next_best(slot),
        };
        self.ids[slot] = expert.unwrap_or(MASKED);
        if let Some(expert) = expert {
            self.load[expert as usize] += 1;
        }
    }

    fn has_room(&self, expert: usize) -> bool {
        expert >= self.num_experts || self.load[expert] < self.limit
    }

    /// The best expert with room that no earlier slot of the token has.
    fn next_best(&self, slot: usize) -> Option<u32> {
        let token = slot / self.top_k;
        let earlier = &self.ids[token * self.top_k..slot];
        let choices = &self.choice[token * self.load.len()..][..self.load.len()];
        let mut best = (0, None);
        for (e, &key) in choices.iter().enumerate() {
            // The comparison first: it rules nearly all experts out.
            if key > best.0 && self.has_room(e) && !earlier.contains(&(e as u32)) {
                best = (key, Some(e as u32));
            }
        }
        best.1
    }
}
