//! Figures of a routing: how balanced it is, how sure, what was dropped.

/// Scalars among the figures: the length of [`FiguresMut::scalars`](crate::ops::FiguresMut::scalars).
pub const NUM_SCALARS: usize = 8;

/// Figures of a routing over its E experts, zero experts included, before an expert map is applied.
///
/// The *probability* of an expert is the softmax of its logit; where scores are sigmoids or the like, its score over
/// the sum of the token's scores (DeepSeek-V3); where the selection is hierarchical, its score.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// `[E]`: slots that each expert has taken.
    pub tokens_per_expert: Vec<u32>,
    /// `[E]`: the sum of the weights that each expert has got (Shazeer et al. 2017, importance).
    pub importance: Vec<f64>,
    /// CV² of the importance: variance over squared mean.
    pub importance_cv2: f64,
    /// CV² of `tokens_per_expert`.
    pub load_cv2: f64,
    /// `E · Σ f·P`: f an expert's share of the slots before capacity drops any, P its mean probability (Switch eq. 4).
    pub switch_loss: f64,
    /// `(1/E) · Σ (c/T)·m`: c the tokens whose first choice an expert is, m its mean probability (GShard, algorithm 1).
    pub gshard_loss: f64,
    /// The mean of `(ln Σ e^logit)²` (ST-MoE).
    pub z_loss: f64,
    /// Slots without an expert over all slots; for expert choice, tokens without an expert over all tokens.
    pub fraction_dropped: f64,
    /// The mean entropy of a token's probabilities, in nats.
    pub entropy: f64,
    /// The fullest expert's slots over the mean.
    pub max_over_mean: f64,
}

impl Figures {
    /// From what a backend wrote.
    pub fn from_parts(tokens_per_expert: Vec<u32>, importance: &[f32], scalars: [f32; NUM_SCALARS]) -> Self {
        let importance = importance.iter().map(|&x| f64::from(x)).collect();
        let [importance_cv2, load_cv2, switch_loss, gshard_loss, z_loss, fraction_dropped, entropy, max_over_mean] =
            scalars.map(f64::from);
        Self {
            tokens_per_expert,
            importance,
            importance_cv2,
            load_cv2,
            switch_loss,
            gshard_loss,
            z_loss,
            fraction_dropped,
            entropy,
            max_over_mean,
        }
    }

    /// The scalars in the order in which a backend writes them: that of the fields.
    pub fn scalars(&self) -> [f64; NUM_SCALARS] {
        [
            self.importance_cv2,
            self.load_cv2,
            self.switch_loss,
            self.gshard_loss,
            self.z_loss,
            self.fraction_dropped,
            self.entropy,
            self.max_over_mean,
        ]
    }
}
