//! What a rule's settings may be, alone and together.

use super::{
    Capacity, CapacityLimit, CapacityOrder, GroupLimit, NoiseKind, Overflow, Renormalize, RouterConfig, ScoreFunction,
    Selection, WeightFunction,
};
use crate::error::{Error, Result};

impl RouterConfig {
    /// Checks that the rule can run over `num_experts` experts with weights.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first field that does not fit.
    pub fn validate(&self, num_experts: usize) -> Result<()> {
        self.validate_choices(self.num_choices(num_experts))?;
        let here = num_experts + self.num_zero_experts;
        match self.expert_map.iter().flatten().find(|&&id| id as usize >= here) {
            Some(id) => Err(Error::invalid("router.expert_map", format!("ids below {here}, or null"), id)),
            None => Ok(()),
        }
    }

    /// As [`RouterConfig::validate`], knowing only how many experts can be chosen, zero experts included.
    pub(crate) fn validate_choices(&self, choices: usize) -> Result<()> {
        if self.top_k == 0 || self.top_k > choices {
            return Err(Error::invalid("router.top_k", format!("1 to {choices}"), self.top_k));
        }
        finite("scaling_factor", self.scaling_factor)?;
        for (name, limit) in [("logit_clip", self.logit_clip), ("logit_softcap", self.logit_softcap)] {
            limit.map_or(Ok(()), |c| positive(name, c))?;
        }
        for (name, len) in [("expert_states", self.expert_states.len()), ("expert_map", self.expert_map.len())] {
            if len != 0 && len != choices {
                return Err(Error::invalid(format!("router.{name}"), format!("none, or {choices}"), len));
            }
        }
        if self.num_zero_experts >= choices {
            return Err(Error::invalid("router.num_zero_experts", format!("below {choices}"), self.num_zero_experts));
        }
        self.groups.as_ref().map_or(Ok(()), |groups| groups.validate(self.top_k, choices))?;
        self.renormalize.as_ref().map_or(Ok(()), Renormalize::validate)?;
        self.capacity.as_ref().map_or(Ok(()), Capacity::validate)?;
        self.validate_selection(choices)?;
        self.validate_noise()?;
        self.validate_states(choices)
    }

    fn validate_selection(&self, choices: usize) -> Result<()> {
        match self.selection {
            Selection::TopK => Ok(()),
            Selection::Hash { .. } if self.capacity.is_some_and(|c| c.overflow == Overflow::NextBest) => {
                Err(Error::invalid("router.capacity.overflow", "drop with selection hash", "next_best"))
            }
            Selection::Hash { .. } => Ok(()),
            Selection::SparseMixer { jitter } => {
                if self.top_k != 2 {
                    return Err(Error::invalid("router.top_k", "2 with selection sparse_mixer", self.top_k));
                }
                at_least_zero("selection.sparse_mixer.jitter", jitter)?;
                self.alone("sparse_mixer", &[])
            }
            Selection::ExpertChoice { limit } => {
                limit.validate("router.selection.expert_choice.limit")?;
                self.alone("expert_choice", &["renormalize", "noise"])
            }
            Selection::Sinkhorn { tolerance, max_iterations } => {
                positive("selection.sinkhorn.tolerance", tolerance)?;
                if !(1..=10_000).contains(&max_iterations) {
                    let name = "router.selection.sinkhorn.max_iterations";
                    return Err(Error::invalid(name, "1 to 10000", max_iterations));
                }
                self.alone("sinkhorn", &["renormalize", "noise", "capacity"])
            }
            Selection::Hierarchical { num_groups, topk_groups, .. } => {
                let whole = num_groups > 0 && choices.is_multiple_of(num_groups);
                if !whole {
                    let name = "router.selection.hierarchical.num_groups";
                    return Err(Error::invalid(name, format!("a divisor of {choices}"), num_groups));
                }
                let fits = (1..=num_groups).contains(&topk_groups)
                    && self.top_k.is_multiple_of(topk_groups)
                    && self.top_k / topk_groups <= choices / num_groups;
                if !fits {
                    let name = "router.selection.hierarchical.topk_groups";
                    let expected = format!("a divisor of top_k, to {num_groups}, with room for top_k experts in them");
                    return Err(Error::invalid(name, expected, topk_groups));
                }
                if self.score != ScoreFunction::Softmax || self.weight != WeightFunction::Score {
                    let name = "router.score";
                    return Err(Error::invalid(name, "softmax, weight score, with selection hierarchical", "another"));
                }
                self.alone("hierarchical", &["renormalize", "noise"])
            }
        }
    }

    /// Settings that a selection has no meaning for.
    fn alone(&self, selection: &str, allowed: &[&str]) -> Result<()> {
        let set = [
            ("groups", self.groups.is_some()),
            ("capacity", self.capacity.is_some()),
            ("renormalize", self.renormalize.is_some()),
            ("noise", self.noise.is_some()),
        ];
        // Zero experts have no place in a rule where experts take tokens or lie in groups.
        let zero = self.num_zero_experts > 0 && selection != "sparse_mixer";
        let set = set.into_iter().chain([("num_zero_experts", zero)]);
        match set.into_iter().find(|(name, set)| *set && !allowed.contains(name)) {
            Some((name, _)) => {
                Err(Error::invalid(format!("router.{name}"), format!("none with selection {selection}"), "some"))
            }
            None => Ok(()),
        }
    }

    fn validate_noise(&self) -> Result<()> {
        let Some(noise) = &self.noise else { return Ok(()) };
        let top_k_rule = self.selection == Selection::TopK;
        let next_best = self.capacity.is_some_and(|c| c.overflow == Overflow::NextBest);
        match noise.kind {
            NoiseKind::NormalSoftplus => Ok(()),
            NoiseKind::Normal { std } => at_least_zero("noise.kind.normal.std", std),
            NoiseKind::InputJitter { epsilon } => {
                at_least_zero("noise.kind.input_jitter.epsilon", epsilon)?;
                if epsilon > 1.0 {
                    return Err(Error::invalid("router.noise.kind.input_jitter.epsilon", "0 to 1", epsilon));
                }
                Ok(())
            }
            NoiseKind::GumbelSecond | NoiseKind::RandomSecond { .. } if !top_k_rule || next_best => {
                let expected = "another with a selection other than top_k, or overflow next_best";
                Err(Error::invalid("router.noise.kind", expected, format!("{:?}", noise.kind)))
            }
            NoiseKind::GumbelSecond => Ok(()),
            NoiseKind::RandomSecond { scale } => at_least_zero("noise.kind.random_second.scale", scale),
        }
    }

    /// Enough experts are left to choose from, whatever the groups.
    fn validate_states(&self, choices: usize) -> Result<()> {
        if self.expert_states.is_empty() {
            return Ok(());
        }
        let (num_groups, topk_groups, wanted) = match (self.selection, self.groups) {
            (Selection::Hierarchical { num_groups, topk_groups, .. }, _) => (num_groups, 1, self.top_k / topk_groups),
            (Selection::ExpertChoice { .. }, _) => (1, 1, 1),
            (_, Some(groups)) => (groups.num_groups, groups.topk_groups, self.top_k),
            (_, None) => (1, 1, self.top_k),
        };
        let size = choices / num_groups;
        let enabled = |g: usize| (g * size..(g + 1) * size).filter(|&e| !self.is_disabled(e)).count();
        let mut counts: Vec<usize> = (0..num_groups).map(enabled).collect();
        counts.sort_unstable();
        let left: usize = counts[..topk_groups].iter().sum();
        if left < wanted {
            let expected =
                format!("{wanted} experts that are not disabled in any {topk_groups} of {num_groups} groups");
            return Err(Error::invalid("router.expert_states", expected, left));
        }
        Ok(())
    }
}

impl GroupLimit {
    fn validate(&self, top_k: usize, choices: usize) -> Result<()> {
        let Self { num_groups, topk_groups, .. } = *self;
        if num_groups == 0 || !choices.is_multiple_of(num_groups) {
            return Err(Error::invalid("router.groups.num_groups", format!("a divisor of {choices}"), num_groups));
        }
        let enough = top_k.div_ceil(choices / num_groups);
        if !(enough..=num_groups).contains(&topk_groups) {
            return Err(Error::invalid("router.groups.topk_groups", format!("{enough} to {num_groups}"), topk_groups));
        }
        Ok(())
    }
}

impl Renormalize {
    fn validate(&self) -> Result<()> {
        at_least_zero("renormalize.add", self.add)?;
        at_least_zero("renormalize.min", self.min)?;
        positive("renormalize.p", self.p)
    }
}

impl CapacityLimit {
    fn validate(self, name: &str) -> Result<()> {
        match self {
            Self::Factor(x) | Self::TokenFraction(x) if !(x.is_finite() && x >= 0.0) => {
                Err(Error::invalid(name, "a finite number ≥ 0", x))
            }
            _ => Ok(()),
        }
    }
}

impl Capacity {
    fn validate(&self) -> Result<()> {
        self.limit.validate("router.capacity.limit")?;
        if self.overflow == Overflow::NextBest && self.order == CapacityOrder::Scores {
            // A slot has no score before it has an expert.
            return Err(Error::invalid("router.capacity.order", "another order with overflow next_best", "scores"));
        }
        Ok(())
    }
}

fn finite(name: &str, x: f32) -> Result<()> {
    check(name, x, x.is_finite(), "a finite number")
}

fn at_least_zero(name: &str, x: f32) -> Result<()> {
    check(name, x, x.is_finite() && x >= 0.0, "a finite number ≥ 0")
}

fn positive(name: &str, x: f32) -> Result<()> {
    check(name, x, x.is_finite() && x > 0.0, "a finite number > 0")
}

fn check(name: &str, x: f32, holds: bool, expected: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::invalid(format!("router.{name}"), expected, x)) }
}
