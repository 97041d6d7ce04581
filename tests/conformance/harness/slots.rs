//! Which experts the slots of a case go to.

use fused_moe::routing::MASKED;
use rand::Rng;
use rand::rngs::StdRng;

/// How slots spread over experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Each expert equally likely.
    Uniform,
    /// Every slot to this expert; all others are empty.
    AllTo(usize),
    /// Even experts only: every second one is empty, the last one perhaps too.
    EvenOnly,
    /// First and last expert only.
    Ends,
    /// So many slots to the first expert, all others to the last.
    Few(usize),
    /// Uniform, with a quarter of the slots masked.
    Masked,
    /// No slot goes anywhere.
    AllMasked,
}

impl Load {
    /// Kinds over `num_experts` experts.
    pub fn all(num_experts: usize) -> [Self; 7] {
        [
            Self::Uniform,
            Self::AllTo(0),
            Self::AllTo(num_experts - 1),
            Self::EvenOnly,
            Self::Ends,
            Self::Masked,
            Self::AllMasked,
        ]
    }

    /// The ids of `num_slots` slots.
    pub fn ids(self, rng: &mut StdRng, num_slots: usize, num_experts: usize) -> Vec<u32> {
        let last = num_experts as u32 - 1;
        let id = |slot| match self {
            Self::Uniform => rng.random_range(0..=last),
            Self::AllTo(expert) => expert as u32,
            Self::EvenOnly => rng.random_range(0..=last) / 2 * 2,
            Self::Ends => [0, last][rng.random_range(0..2)],
            Self::Few(count) => {
                if slot < count {
                    0
                } else {
                    last
                }
            }
            // Any id of no expert masks: the first one beyond, and the two largest.
            Self::Masked if rng.random_ratio(1, 4) => [last + 1, MASKED - 1, MASKED][rng.random_range(0..3)],
            Self::Masked => rng.random_range(0..=last),
            Self::AllMasked => MASKED,
        };
        (0..num_slots).map(id).collect()
    }
}
