//! The oracle of expert capacity.

use super::route::{Route, Token, descending};
use crate::routing::{Capacity, CapacityOrder, Overflow};

/// A slot that waits for its expert: which choice of which token.
#[derive(Clone, Copy)]
struct Waiting {
    token: usize,
    choice: usize,
}

/// Step 6: for each token, the expert of each of its `top_k` slots, or none.
pub(super) fn give_slots(args: &Route<'_>, capacity: &Capacity, tokens: &[Token]) -> Vec<Vec<Option<usize>>> {
    let per_sequence = args.tokens_per_sequence.filter(|_| capacity.per_sequence);
    let sequences = tokens.chunks(per_sequence.unwrap_or(tokens.len()).max(1));
    sequences.flat_map(|sequence| give_slots_of(args, capacity, sequence)).collect()
}

fn give_slots_of(args: &Route<'_>, capacity: &Capacity, tokens: &[Token]) -> Vec<Vec<Option<usize>>> {
    let top_k = args.config.top_k;
    let num_experts = args.num_choices - args.config.num_zero_experts;
    let limit = capacity.limit.slots(tokens.len(), top_k, num_experts);
    let mut load = vec![0; args.num_choices];
    let mut given = vec![vec![None; top_k]; tokens.len()];
    for Waiting { token, choice } in queue(capacity.order, top_k, tokens) {
        let ranked = &tokens[token].ranked;
        let has_room = |&&e: &&usize| e >= num_experts || load[e] < limit;
        let expert = match capacity.overflow {
            Overflow::Drop => Some(&ranked[choice]).filter(has_room),
            Overflow::NextBest => ranked.iter().filter(|&&e| !given[token].contains(&Some(e))).find(has_room),
        };
        if let Some(&expert) = expert {
            load[expert] += 1;
            given[token][choice] = Some(expert);
        }
    }
    given
}

/// All slots, those to be given first at the front.
fn queue(order: CapacityOrder, top_k: usize, tokens: &[Token]) -> Vec<Waiting> {
    let mut by_priority: Vec<usize> = (0..tokens.len()).collect();
    if order == CapacityOrder::BatchPriority {
        by_priority.sort_by(|&a, &b| descending(tokens[a].best_score, tokens[b].best_score));
    }
    let token_major = by_priority.iter().flat_map(|&token| (0..top_k).map(move |choice| Waiting { token, choice }));
    let mut queue: Vec<Waiting> = token_major.collect();
    match order {
        CapacityOrder::Tokens => {}
        CapacityOrder::FirstChoices | CapacityOrder::BatchPriority => queue.sort_by_key(|slot| slot.choice),
        CapacityOrder::Scores => {
            let score = |slot: &Waiting| tokens[slot.token].score(tokens[slot.token].ranked[slot.choice]);
            queue.sort_by(|a, b| descending(score(a), score(b)));
        }
    }
    queue
}
