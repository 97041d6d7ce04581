//! The oracle of routing, step 6: expert capacity.

use super::route::{Route, Slots};
use super::route_rank::{Token, descending};
use crate::routing::{Capacity, CapacityOrder, Overflow};

/// A slot that waits for its expert: which choice of which token.
#[derive(Clone, Copy)]
struct Waiting {
    token: usize,
    choice: usize,
}

/// Takes slots away from experts that are full, or gives them to others.
pub(super) fn give_slots(args: &Route<'_>, capacity: &Capacity, tokens: &[Token], slots: &mut [Slots]) {
    let per_sequence = args.tokens_per_sequence.filter(|_| capacity.per_sequence);
    let sequence = per_sequence.unwrap_or(tokens.len()).max(1);
    for (tokens, slots) in tokens.chunks(sequence).zip(slots.chunks_mut(sequence)) {
        give_slots_of(args, capacity, tokens, slots);
    }
}

fn give_slots_of(args: &Route<'_>, capacity: &Capacity, tokens: &[Token], slots: &mut [Slots]) {
    let top_k = args.config.top_k;
    let num_experts = args.num_choices - args.config.num_zero_experts;
    let limit = capacity.limit.slots(tokens.len(), top_k, num_experts);
    let mut load = vec![0; args.num_choices];
    for Waiting { token, choice } in queue(capacity.order, top_k, tokens, slots) {
        let kept = &mut slots[token].kept;
        let has_room = |&e: &usize| e >= num_experts || load[e] < limit;
        let expert = match capacity.overflow {
            Overflow::Drop => kept[choice].filter(has_room),
            Overflow::NextBest => {
                let ranked = tokens[token].ranked.iter().copied();
                ranked.filter(|&e| !kept[..choice].contains(&Some(e))).find(has_room)
            }
        };
        if let Some(expert) = expert {
            load[expert] += 1;
        }
        kept[choice] = expert;
    }
}

/// All slots, those to be given first at the front.
fn queue(order: CapacityOrder, top_k: usize, tokens: &[Token], slots: &[Slots]) -> Vec<Waiting> {
    let mut by_priority: Vec<usize> = (0..tokens.len()).collect();
    let score = |token: usize, choice: usize| slots[token].kept[choice].map_or(f64::NAN, |e| tokens[token].scores[e]);
    if order == CapacityOrder::BatchPriority {
        by_priority.sort_by(|&a, &b| descending(score(a, 0), score(b, 0)));
    }
    let token_major = by_priority.iter().flat_map(|&token| (0..top_k).map(move |choice| Waiting { token, choice }));
    let mut queue: Vec<Waiting> = token_major.collect();
    match order {
        CapacityOrder::Tokens => {}
        CapacityOrder::FirstChoices | CapacityOrder::BatchPriority => queue.sort_by_key(|slot| slot.choice),
        CapacityOrder::Scores => {
            queue.sort_by(|a, b| descending(score(a.token, a.choice), score(b.token, b.choice)));
        }
    }
    queue
}
