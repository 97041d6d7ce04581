//! The largest of a row of integers, in vectors and almost without branches: the k-th largest of 16 maxima bounds what
//! the k largest can be, few are at or above it, and each of those is placed by counting the ones before it.
//!
//! Rows are in blocks of `LANES`; 0 is what may not be chosen, and fills the last block up.

use super::math::LANES;
use crate::backend::cpu::isa::Lanes;

pub(super) type Block = [u32; LANES];

/// Candidates that are counted against each other; more are sorted.
const FEW: usize = 4 * LANES;

/// Writes where the largest are, one after another, equal ones by position: as many as `places` has room for, and no
/// more than there are other than 0. `candidates` is at least as long as the row.
#[inline(always)]
pub(super) fn largest(lanes: impl Lanes, row: &[Block], candidates: &mut [u32], places: &mut [u32]) {
    let bound = lower_bound(lanes, row, places.len());
    let count = at_least(lanes, row, bound, candidates);
    let candidates = &mut candidates[..count];
    let row = row.as_flattened();
    if count > FEW {
        let first = |&place: &u32| (!row[place as usize], place);
        candidates.select_nth_unstable_by_key(places.len() - 1, first);
        candidates[..places.len()].sort_unstable_by_key(first);
        return places.copy_from_slice(&candidates[..places.len()]);
    }
    let mut values = [[0; LANES]; FEW / LANES];
    for (value, &place) in values.as_flattened_mut().iter_mut().zip(&*candidates) {
        *value = row[place as usize];
    }
    let values = &values[..count.div_ceil(LANES)];
    let mut sorted = [0; FEW];
    for (i, &place) in candidates.iter().enumerate() {
        sorted[before(lanes, values, i)] = place;
    }
    places.copy_from_slice(&sorted[..places.len()]);
}

/// How many of the row are larger than the one at `place`, or as large and at a lower place.
#[inline(always)]
pub(super) fn before(lanes: impl Lanes, row: &[Block], place: usize) -> usize {
    let value = row.as_flattened()[place];
    let count = |(b, block): (usize, &Block)| {
        let lower = (1u32 << place.saturating_sub(b * LANES).min(LANES)) - 1;
        let larger = lanes.at_least(block, value + 1);
        (u32::from(larger) | u32::from(lanes.at_least(block, value)) & lower).count_ones() as usize
    };
    row.iter().enumerate().map(count).sum()
}

/// What at least `k` of the row are no smaller than, and not many more, if `k` are other than 0.
#[inline(always)]
fn lower_bound(lanes: impl Lanes, row: &[Block], k: usize) -> u32 {
    // Of so many maxima of different elements the k-th largest; where there are fewer, all elements are candidates.
    let maxima = lanes.max(row);
    let is_among = |&max: &u32| (lanes.at_least(&maxima, max + 1).count_ones() as usize) < k;
    let kth = if k > LANES { 0 } else { maxima.into_iter().filter(is_among).fold(u32::MAX, u32::min) };
    kth.max(1)
}

/// Writes the places of all that are at least `bound`; returns how many.
#[inline(always)]
fn at_least(lanes: impl Lanes, row: &[Block], bound: u32, places: &mut [u32]) -> usize {
    let mut count = 0;
    for (w, blocks) in row.chunks(u64::BITS as usize / LANES).enumerate() {
        let parts = blocks.iter().enumerate();
        let mut word = parts.fold(0, |word, (b, block)| word | u64::from(lanes.at_least(block, bound)) << (b * LANES));
        while word != 0 {
            places[count] = w as u32 * u64::BITS + word.trailing_zeros();
            count += 1;
            word &= word - 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::InstructionSet;
    use crate::backend::cpu::isa::{Isa, LanesTask};

    struct Largest<'l> {
        row: &'l [Block],
        places: &'l mut [u32],
    }

    impl LanesTask for Largest<'_> {
        #[inline(always)]
        fn run(self, lanes: impl Lanes) {
            largest(lanes, self.row, &mut vec![0; self.row.len() * LANES], self.places);
        }
    }

    /// Rows of few and of many different values, of which few and many are taken.
    #[test]
    fn the_largest_are_those_of_a_sort() {
        let mut random = 1u64;
        for blocks in [1, 2, 5, 16, 33] {
            for values in [1, 2, 40, u64::from(u32::MAX)] {
                let mut row = vec![[0; LANES]; blocks];
                for x in row.as_flattened_mut() {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *x = ((random >> 32) % values) as u32;
                }
                let mut sorted: Vec<u32> = (0..(blocks * LANES) as u32).collect();
                sorted.sort_by_key(|&place| !row.as_flattened()[place as usize]);
                sorted.retain(|&place| row.as_flattened()[place as usize] != 0);
                for isa in InstructionSet::ALL.into_iter().filter_map(Isa::detect) {
                    for k in [1, 8, 16, 17, 64, 65, 500].into_iter().filter(|&k| k <= sorted.len()) {
                        let mut places = vec![0; k];
                        isa.vectorize(Largest { row: &row, places: &mut places });
                        assert_eq!(places, sorted[..k], "{isa:?}: {k} of {blocks} blocks of {values} values");
                    }
                }
            }
        }
    }
}
