//! The figures of a routing: probabilities by token, sums by expert, scalars.

use super::Call;
use crate::backend::wgpu::bind::{check_disjoint, count};
use crate::backend::wgpu::device::Scratch;
use crate::backend::wgpu::kernel::{
    ROUTE_FIGURES, ROUTE_FIGURES_SUBGROUP, ROUTE_PROBABILITIES, ROUTE_PROBABILITIES_SUBGROUP,
};
use crate::backend::wgpu::params::FiguresParams;
use crate::backend::wgpu::queue::{Launch, bytes_of};
use crate::error::Result;
use crate::ops::FiguresMut;

impl Call<'_, '_> {
    pub(super) fn figures(&mut self, figures: &FiguresMut<'_>) -> Result<()> {
        let bind = |name, view| self.device.bind_tensor(name, view);
        let load = bind("figures.tokens_per_expert", figures.tokens_per_expert.as_view())?;
        let importance = bind("figures.importance", figures.importance.as_view())?;
        let scalars = bind("figures.scalars", figures.scalars.as_view())?;
        let picked = self.before_capacity.clone().unwrap_or_else(|| self.topk_ids.clone());
        let token_offsets = match &self.ragged {
            Some([token_offsets, _]) => token_offsets.clone(),
            None => self.device.bind_optional("token_offsets", None)?,
        };
        for output in [&load, &importance, &scalars] {
            check_disjoint(output, &[&self.topk_ids, &self.topk_weights, &token_offsets])?;
        }
        let columns = u64::from(self.params.num_choices) + 2;
        let work = self.scratch(Scratch::Probabilities, (self.num_tokens() + 3) * columns)?;
        let probabilities = self.device.with_subgroups(&ROUTE_PROBABILITIES, &ROUTE_PROBABILITIES_SUBGROUP);
        self.push_rule(probabilities, self.params, vec![self.topk_ids.binding.clone(), work.clone()])?;
        let params = FiguresParams {
            num_tokens: self.params.num_tokens,
            num_choices: self.params.num_choices,
            top_k: if self.ragged.is_some() { 0 } else { self.params.top_k },
            num_slots: count("slots", self.args.topk_ids.shape().numel())?,
            picked_ids_at: picked.at,
            topk_ids_at: self.topk_ids.at,
            topk_weights_at: self.topk_weights.at,
            token_offsets_at: token_offsets.at,
            tokens_per_expert_at: load.at,
            importance_at: importance.at,
            scalars_at: scalars.at,
        };
        let inputs = [picked, self.topk_ids.clone(), self.topk_weights.clone(), token_offsets];
        let all = inputs.into_iter().chain([load, importance, scalars]).map(|bound| bound.binding);
        let bindings: Vec<_> = std::iter::once(work).chain(all).collect();
        let entries = [("sum_columns", self.grid(columns)?), ("write_scalars", [1, 1, 1])];
        self.launches.extend(entries.map(|(entry, workgroups)| Launch {
            kernel: self.device.with_subgroups(&ROUTE_FIGURES, &ROUTE_FIGURES_SUBGROUP),
            entry,
            constants: Vec::new(),
            params: bytes_of(&params),
            bindings: bindings.clone(),
            workgroups,
        }));
        Ok(())
    }
}
