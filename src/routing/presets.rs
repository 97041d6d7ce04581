//! The routers of the literature by name.

use super::{
    Capacity, CapacityLimit, CapacityOrder, ExpertState, GroupLimit, GroupScore, Renormalize, RouterConfig,
    ScoreFunction, Selection, WeightFunction,
};

/// A published router, with the number of experts that it was published with.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// The preset's name: that of its constructor on [`RouterConfig`].
    pub name: &'static str,
    /// E.
    pub num_experts: usize,
    /// The rule.
    pub config: RouterConfig,
}

/// Every preset, at the size of a published model.
pub fn published() -> Vec<Published> {
    type R = RouterConfig;
    let rows: [(&'static str, usize, RouterConfig); 18] = [
        ("shazeer2017", 256, R::shazeer2017(4)),
        ("gshard", 128, R::gshard()),
        ("switch", 128, R::switch(1.25)),
        ("vmoe", 32, R::vmoe(2, 1.05)),
        ("glam", 64, R::glam(2.0)),
        ("expert_choice", 64, R::expert_choice(2.0)),
        ("brainformer", 64, R::brainformer()),
        ("lifelong", 7, R::lifelong(4, 3)),
        ("mixtral", 8, R::mixtral()),
        ("llama_moe", 16, R::llama_moe(4, 4.0)),
        ("deepseek_moe", 64, R::deepseek_moe(6)),
        ("deepseek_v2", 160, R::deepseek_v2()),
        ("deepseek_v3", 256, R::deepseek_v3()),
        ("qwen15_moe", 60, R::qwen15_moe()),
        ("mm1", 64, R::mm1()),
        ("soft", 8, R::soft(8)),
        ("hard", 8, R::hard()),
        ("hierarchical", 16, R::hierarchical(4, 2, 4)),
    ];
    rows.into_iter().map(|(name, num_experts, config)| Published { name, num_experts, config }).collect()
}

/// GShard's and NLLB's sum of two weights is kept from 0 by the machine epsilon.
const RENORMALIZE: Renormalize = Renormalize { add: 0.0, min: f32::EPSILON, p: 1.0 };

impl RouterConfig {
    /// Top-k of the logits, softmax over them (Shazeer et al. 2017, eq. 3 to 5). In training, set
    /// [`noise`](Self::noise) to [`NoiseKind::NormalSoftplus`](super::NoiseKind::NormalSoftplus).
    pub fn shazeer2017(top_k: usize) -> Self {
        let score = ScoreFunction::Logit;
        Self { score, weight: WeightFunction::SoftmaxOverSelected, ..Self::softmax_top_k(top_k) }
    }

    /// Top-2, weights normalised before dropping, capacity 2·T/E with first choices first (GShard, algorithm 1). In
    /// training, the second choice is kept at random:
    /// [`NoiseKind::RandomSecond`](super::NoiseKind::RandomSecond) with scale 2.
    pub fn gshard() -> Self {
        let capacity = Capacity { normalize_before_dropping: true, ..Capacity::new(CapacityLimit::Factor(1.0)) };
        Self { renormalize: Some(RENORMALIZE), capacity: Some(capacity), ..Self::softmax_top_k(2) }
    }

    /// Top-1 weighed by its probability, capacity factor · T/E in each sequence (Switch Transformers, eq. 1 to 3). In
    /// training, [`NoiseKind::InputJitter`](super::NoiseKind::InputJitter) with 0.01.
    pub fn switch(capacity_factor: f64) -> Self {
        let capacity = Capacity { per_sequence: true, ..Capacity::new(CapacityLimit::Factor(capacity_factor)) };
        Self { capacity: Some(capacity), ..Self::softmax_top_k(1) }
    }

    /// Softmax before top-k, not renormalised, capacity by batch priority (V-MoE, Riquelme et al. 2021). In training,
    /// [`NoiseKind::Normal`](super::NoiseKind::Normal) with std 1/E.
    pub fn vmoe(top_k: usize, capacity_ratio: f64) -> Self {
        let order = CapacityOrder::BatchPriority;
        let capacity = Capacity { order, ..Capacity::new(CapacityLimit::Factor(capacity_ratio)) };
        Self { capacity: Some(capacity), ..Self::softmax_top_k(top_k) }
    }

    /// GShard's top-2 with room for `capacity_factor · T/E` tokens in each expert (GLaM, Du et al. 2022).
    pub fn glam(capacity_factor: f64) -> Self {
        let limit = CapacityLimit::Factor(capacity_factor / 2.0);
        let capacity = Capacity { normalize_before_dropping: true, ..Capacity::new(limit) };
        Self { capacity: Some(capacity), ..Self::gshard() }
    }

    /// Each expert takes its `capacity_factor · T/E` best tokens, weighed by the softmax over experts (Zhou et al.
    /// 2022).
    pub fn expert_choice(capacity_factor: f64) -> Self {
        let selection = Selection::ExpertChoice { limit: CapacityLimit::Factor(capacity_factor) };
        Self { selection, ..Self::softmax_top_k(1) }
    }

    /// Expert choice with capacity factor 1 (Brainformers, Zhou et al. 2023, its searched block).
    pub fn brainformer() -> Self {
        Self::expert_choice(1.0)
    }

    /// Top-2 over old experts, which are frozen, and added ones (Lifelong-MoE, Chen et al. 2023).
    pub fn lifelong(num_old: usize, num_added: usize) -> Self {
        let mut expert_states = vec![ExpertState::Frozen; num_old];
        expert_states.resize(num_old + num_added, ExpertState::Added);
        Self { expert_states, renormalize: Some(RENORMALIZE), ..Self::softmax_top_k(2) }
    }

    /// Top-2, softmax over the two (Mixtral of Experts, section 2.1): the same as softmax over all, renormalised.
    pub fn mixtral() -> Self {
        Self { renormalize: Some(Renormalize::default()), ..Self::softmax_top_k(2) }
    }

    /// Top-k of the logits, softmax over them, times a scale that makes up for the FFN's missing parts (LLaMA-MoE).
    pub fn llama_moe(top_k: usize, score_scale: f32) -> Self {
        Self { scaling_factor: score_scale, ..Self::shazeer2017(top_k) }
    }

    /// Softmax before top-k, not renormalised (DeepSeekMoE, Dai et al. 2024; its shared experts are the layer's).
    pub fn deepseek_moe(top_k: usize) -> Self {
        Self::softmax_top_k(top_k)
    }

    /// 6 of 160 from the 3 best of 8 groups, a group by its best expert, weights times 16 (DeepSeek-V2's config).
    pub fn deepseek_v2() -> Self {
        let groups = GroupLimit { num_groups: 8, topk_groups: 3, score: GroupScore::Max };
        Self { groups: Some(groups), scaling_factor: 16.0, ..Self::softmax_top_k(6) }
    }

    /// Sigmoid and selection bias, 8 of 256 from the 4 best of 8 groups, a group by its two best experts, renormalised
    /// and times 2.5 (DeepSeek-V3's config and model file).
    pub fn deepseek_v3() -> Self {
        Self {
            score: ScoreFunction::Sigmoid,
            groups: Some(GroupLimit { num_groups: 8, topk_groups: 4, score: GroupScore::SumTop2 }),
            renormalize: Some(Renormalize { add: 1e-20, ..Renormalize::default() }),
            scaling_factor: 2.5,
            ..Self::softmax_top_k(8)
        }
    }

    /// 4 of 60, softmax before top-k, not renormalised (Qwen1.5-MoE-A2.7B's config).
    pub fn qwen15_moe() -> Self {
        Self::softmax_top_k(4)
    }

    /// Top-2 as in GShard without a capacity in the way at inference (MM1, McKinzie et al. 2024, which follows ST-MoE).
    pub fn mm1() -> Self {
        Self { renormalize: Some(RENORMALIZE), ..Self::softmax_top_k(2) }
    }

    /// All experts, weighed by their probabilities.
    pub fn soft(num_experts: usize) -> Self {
        Self::softmax_top_k(num_experts)
    }

    /// The best expert alone, with weight 1.
    pub fn hard() -> Self {
        Self { weight: WeightFunction::One, ..Self::softmax_top_k(1) }
    }

    /// The `topk_groups` best of `num_groups` groups and `top_k` experts in them, an expert's weight its group's times
    /// its own, each level's summing to 1 (Shazeer et al. 2017, appendix B).
    pub fn hierarchical(num_groups: usize, topk_groups: usize, top_k: usize) -> Self {
        let selection = Selection::Hierarchical { num_groups, topk_groups, renormalize_levels: true };
        Self { selection, ..Self::softmax_top_k(top_k) }
    }
}
