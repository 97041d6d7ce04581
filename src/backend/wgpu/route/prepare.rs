//! What a rule needs before experts are picked: noise on the logits, hashed ids, balance over the batch.

use rayon::prelude::*;

use super::{Call, LANES, SELECT_GIVEN, SELECT_NOISY_SECOND, WIDE_LANES};
use crate::backend::wgpu::bind::{Binding, check_disjoint, count};
use crate::backend::wgpu::device::Scratch;
use crate::backend::wgpu::kernel::{ROUTE_HASH, ROUTE_PREPARE, ROUTE_SINKHORN, ROUTE_SINKHORN_SUBGROUP};
use crate::backend::wgpu::params::{HashParams, PrepareParams, SinkhornParams};
use crate::backend::wgpu::queue::bytes_of;
use crate::error::Result;
use crate::routing::noise::{Stream, gumbel, normal};
use crate::routing::{Noise, NoiseKind};

impl Call<'_, '_> {
    /// Logits with noise on them, and NaN for disabled experts, where the rule has either.
    pub(super) fn prepare_logits(&mut self) -> Result<()> {
        let noise = self.args.config.noise;
        let (kind, noise_std) = match noise.map(|noise| noise.kind) {
            Some(NoiseKind::Normal { std }) => (1, std),
            Some(NoiseKind::NormalSoftplus) => (2, 0.0),
            _ => (0, 0.0),
        };
        if kind == 0 && self.params.has_disabled == 0 {
            return Ok(());
        }
        let normals = match noise {
            Some(Noise { seed, .. }) if kind != 0 => self.draw(|t, e| normal(seed, Stream::Logit, t, e))?,
            _ => Binding::whole(&self.device.unused),
        };
        let noise_logits = self.device.bind_optional("inputs.noise_logits", self.args.inputs.noise_logits)?;
        let num_logits = u64::from(self.params.num_group_logits + self.params.num_choices);
        let prepared = self.scratch(Scratch::PreparedLogits, self.num_tokens() * num_logits)?;
        let params = PrepareParams {
            num_tokens: self.params.num_tokens,
            num_choices: self.params.num_choices,
            num_group_logits: self.params.num_group_logits,
            router_logits_at: self.params.router_logits_at,
            noise_logits_at: noise_logits.at,
            noise: kind,
            has_disabled: self.params.has_disabled,
            logit_clip: self.params.logit_clip,
            logit_softcap: self.params.logit_softcap,
            noise_std,
        };
        let inputs = [self.router_logits.clone(), noise_logits.binding, normals, self.disabled.clone()];
        let bindings = inputs.into_iter().chain([prepared.clone()]).collect();
        let workgroups = self.grid((self.num_tokens() * num_logits).div_ceil(WIDE_LANES))?;
        self.push(&ROUTE_PREPARE, bytes_of(&params), bindings, workgroups);
        self.router_logits = prepared;
        (self.params.router_logits_at, self.params.logit_clip, self.params.logit_softcap) = (0, f32::MAX, 0.0);
        Ok(())
    }

    /// The noise of the choices after the first, where the rule has it.
    pub(super) fn draw_second(&mut self) -> Result<()> {
        if let Some(Noise { seed, kind: NoiseKind::GumbelSecond }) = self.args.config.noise {
            self.given = self.draw(|t, e| gumbel(seed, Stream::Gumbel, t, e))?;
            self.params.selection = SELECT_NOISY_SECOND;
        }
        Ok(())
    }

    /// Numbers by token and expert, drawn on the host: they come from f64, which WGSL has not, and the routing is to be
    /// that of every other backend.
    fn draw(&self, number: impl Fn(u32, u32) -> f32 + Sync) -> Result<Binding> {
        let mut words = vec![0u32; self.num_pairs() as usize];
        words.par_chunks_mut(self.params.num_choices as usize).enumerate().for_each(|(token, row)| {
            row.iter_mut().zip(0u32..).for_each(|(word, expert)| *word = number(token as u32, expert).to_bits());
        });
        Ok(Binding::whole(&self.device.upload(&words)?))
    }

    /// The ids, by the ids of the tokens.
    pub(super) fn hash(&mut self, seed: u64) -> Result<()> {
        let (table, inputs) = (self.args.inputs.hash_table, &self.args.inputs);
        let token_ids = self.device.bind_optional("inputs.token_ids", inputs.token_ids)?;
        let hash_table = self.device.bind_optional("inputs.hash_table", table)?;
        check_disjoint(&self.topk_ids, &[&token_ids, &hash_table])?;
        let params = HashParams {
            num_tokens: self.params.num_tokens,
            num_choices: self.params.num_choices,
            top_k: self.params.top_k,
            num_ids: count("hash_table", table.map_or(0, |table| table.dims()[0]))?,
            has_table: table.is_some().into(),
            has_disabled: self.params.has_disabled,
            token_ids_at: token_ids.at,
            hash_table_at: hash_table.at,
            seed_low: seed as u32,
            seed_high: (seed >> 32) as u32,
        };
        self.given = self.scratch(Scratch::HashedIds, self.num_slots())?;
        self.params.selection = SELECT_GIVEN;
        let bindings = vec![token_ids.binding, hash_table.binding, self.disabled.clone(), self.given.clone()];
        let workgroups = self.grid(self.num_tokens().div_ceil(LANES))?;
        self.push(&ROUTE_HASH, bytes_of(&params), bindings, workgroups);
        Ok(())
    }

    /// What is added to the logits to balance the experts; the rule has no selection bias then.
    pub(super) fn balance(&mut self, tolerance: f32, max_iterations: usize) -> Result<()> {
        let params = SinkhornParams {
            num_tokens: self.params.num_tokens,
            num_experts: self.params.num_choices,
            router_logits_at: self.params.router_logits_at,
            max_iterations: count("max_iterations", max_iterations)?,
            tolerance,
            logit_clip: self.params.logit_clip,
            logit_softcap: self.params.logit_softcap,
        };
        let factors = self.scratch(Scratch::ExpertFactors, self.params.num_choices.into())?;
        let bindings = vec![
            self.router_logits.clone(),
            self.scratch(Scratch::ExpertCost, self.num_pairs())?,
            self.scratch(Scratch::RowFactors, self.num_tokens())?,
            factors.clone(),
        ];
        let kernel = self.device.with_subgroups(&ROUTE_SINKHORN, &ROUTE_SINKHORN_SUBGROUP);
        self.push(kernel, bytes_of(&params), bindings, [1, 1, 1]);
        self.selection_bias = factors;
        (self.params.selection_bias_at, self.params.has_bias) = (0, 1);
        Ok(())
    }
}
