//! Routes on a device, from plain vectors.

use fused_moe::ops::{FiguresMut, RaggedMut, RouteArgs, RouteInputs, route};
use fused_moe::routing::{Figures, MASKED, NUM_SCALARS, RouterConfig};
use fused_moe::{Device, Result, TensorView, TensorViewMut};
use proptest::test_runner::Config as ProptestConfig;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A batch to be routed.
#[derive(Clone, Debug)]
pub struct Case {
    pub config: RouterConfig,
    /// `[T, E]`, behind those of the groups where the selection is hierarchical.
    pub logits: Vec<f32>,
    pub num_choices: usize,
    pub bias: Option<Vec<f32>>,
    pub tokens_per_sequence: Option<usize>,
    pub noise_logits: Option<Vec<f32>>,
    pub token_ids: Option<Vec<u32>>,
    pub hash_table: Option<Vec<u32>>,
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    pub ids: Vec<u32>,
    pub weights: Vec<f32>,
    /// Where each token's slots start.
    pub offsets: Vec<u32>,
    pub figures: Figures,
}

impl Routed {
    pub fn token(&self, token: usize) -> (&[u32], &[f32]) {
        let slots = self.offsets[token] as usize..self.offsets[token + 1] as usize;
        (&self.ids[slots.clone()], &self.weights[slots])
    }

    /// Kept experts and weights of a token, by expert.
    pub fn sorted(&self, token: usize) -> Vec<(u32, f32)> {
        let (ids, weights) = self.token(token);
        let mut kept: Vec<_> = ids.iter().copied().zip(weights.iter().copied()).filter(|s| s.0 != MASKED).collect();
        kept.sort_by_key(|slot| slot.0);
        kept
    }

    /// `[T, E]`: the weight of each expert for each token.
    pub fn dense(&self, num_experts: usize) -> Vec<f32> {
        let mut dense = vec![0.0; (self.offsets.len() - 1) * num_experts];
        for token in 0..self.offsets.len() - 1 {
            self.sorted(token).into_iter().for_each(|(e, w)| dense[token * num_experts + e as usize] = w);
        }
        dense
    }
}

impl Case {
    pub fn new(config: RouterConfig, logits: Vec<f32>, num_choices: usize) -> Self {
        let (bias, tokens_per_sequence, noise_logits, token_ids, hash_table) = (None, None, None, None, None);
        Self { config, logits, num_choices, bias, tokens_per_sequence, noise_logits, token_ids, hash_table }
    }

    /// Standard normal logits (by twelve uniforms, close enough), times 2.
    pub fn random(config: RouterConfig, num_tokens: usize, num_choices: usize, seed: u64) -> Self {
        let columns = config.num_logits(num_choices) - config.num_choices(num_choices) + num_choices;
        Self::new(config, random(num_tokens * columns, 2.0, seed), num_choices)
    }

    pub fn with_bias(mut self, seed: u64) -> Self {
        self.bias = Some(random(self.num_choices, 0.2, seed));
        self
    }

    pub fn num_logits(&self) -> usize {
        self.config.num_logits(0) - self.config.num_choices(0) + self.num_choices
    }

    pub fn num_tokens(&self) -> usize {
        self.logits.len() / self.num_logits()
    }

    /// Poisoned buffers in, results out.
    pub fn route_on(&self, device: &Device) -> Result<Routed> {
        let num_tokens = self.num_tokens();
        let num_slots = self.config.num_slots(num_tokens, self.num_choices).expect("few");
        let ragged = self.config.is_ragged();
        let mut ids = vec![0xdead_beef; num_slots];
        let mut weights = vec![f32::NAN; num_slots];
        let mut offsets: Vec<u32> = (0..=num_tokens).map(|t| (t * self.config.top_k) as u32).collect();
        let mut slot_tokens = vec![0xdead_beef; num_slots];
        let mut load = vec![0xdead_beef; self.num_choices];
        let mut importance = vec![f32::NAN; self.num_choices];
        let mut scalars = [f32::NAN; NUM_SCALARS];
        fn view<T: fused_moe::tensor::Element>(values: &Option<Vec<T>>, rows: usize) -> Result<Option<TensorView<'_>>> {
            values.as_ref().map(|v| TensorView::from_slice(v, [rows, v.len() / rows.max(1)])).transpose()
        }
        fn flat<T: fused_moe::tensor::Element>(values: &Option<Vec<T>>) -> Result<Option<TensorView<'_>>> {
            values.as_ref().map(|v| TensorView::from_slice(v, [v.len()])).transpose()
        }
        let mut figures = FiguresMut {
            tokens_per_expert: TensorViewMut::from_slice(&mut load, [self.num_choices])?,
            importance: TensorViewMut::from_slice(&mut importance, [self.num_choices])?,
            scalars: TensorViewMut::from_slice(&mut scalars, [NUM_SCALARS])?,
        };
        let per_token = [num_tokens, self.config.top_k];
        let table_rows = self.hash_table.as_ref().map_or(0, |t| t.len() / self.config.top_k);
        let args = RouteArgs {
            config: &self.config,
            router_logits: TensorView::from_slice(&self.logits, [num_tokens, self.num_logits()])?,
            selection_bias: flat(&self.bias)?,
            inputs: RouteInputs {
                tokens_per_sequence: self.tokens_per_sequence,
                noise_logits: view(&self.noise_logits, num_tokens)?,
                token_ids: flat(&self.token_ids)?,
                hash_table: view(&self.hash_table, table_rows)?,
            },
            topk_ids: match ragged {
                true => TensorViewMut::from_slice(&mut ids, [num_slots])?,
                false => TensorViewMut::from_slice(&mut ids, per_token)?,
            },
            topk_weights: match ragged {
                true => TensorViewMut::from_slice(&mut weights, [num_slots])?,
                false => TensorViewMut::from_slice(&mut weights, per_token)?,
            },
            ragged: if ragged {
                Some(RaggedMut {
                    token_offsets: TensorViewMut::from_slice(&mut offsets, [num_tokens + 1])?,
                    slot_tokens: TensorViewMut::from_slice(&mut slot_tokens, [num_slots])?,
                })
            } else {
                None
            },
            figures: Some(FiguresMut {
                tokens_per_expert: figures.tokens_per_expert.reborrow(),
                importance: figures.importance.reborrow(),
                scalars: figures.scalars.reborrow(),
            }),
        };
        route(device, args)?;
        let figures = figures.to_figures(device)?;
        if ragged {
            for (t, slots) in offsets.windows(2).enumerate() {
                assert!(slot_tokens[slots[0] as usize..slots[1] as usize].iter().all(|&token| token as usize == t));
            }
        }
        Ok(Routed { ids, weights, offsets, figures })
    }

    /// The oracle's result, after the CPU's was found to be the same.
    pub fn checked(&self) -> Routed {
        let expected = self.route_on(&Device::reference()).expect("the oracle routes");
        let actual = self.route_on(&Device::cpu()).expect("the CPU routes");
        assert_eq!(actual.ids, expected.ids, "{:?}", self.config);
        assert_eq!(actual.offsets, expected.offsets, "{:?}", self.config);
        for (slot, (a, b)) in actual.weights.iter().zip(&expected.weights).enumerate() {
            assert!((a - b).abs() <= 2e-6 * b.abs().max(1e-3), "slot {slot}: {a} for {b}, {:?}", self.config);
        }
        for token in 0..self.num_tokens() {
            let (ids, weights) = expected.token(token);
            for (i, (&id, weight)) in ids.iter().zip(weights).enumerate() {
                assert!(weight.is_finite());
                assert!(id == MASKED || (id as usize) < self.num_choices, "id {id}");
                assert!(id == MASKED || !ids[..i].contains(&id), "id {id} twice");
                assert!(id != MASKED || *weight == 0.0);
            }
        }
        self.check_figures(&actual.figures, &expected.figures);
        expected
    }

    fn check_figures(&self, actual: &Figures, expected: &Figures) {
        assert_eq!(actual.tokens_per_expert, expected.tokens_per_expert, "{:?}", self.config);
        let pairs = actual.importance.iter().zip(&expected.importance);
        for (a, b) in pairs.chain(actual.scalars().iter().zip(&expected.scalars())) {
            // Poisoned logits overflow the z-loss in f32.
            let close = (a - b).abs() <= 1e-5 * b.abs().max(0.1) || (a.is_infinite() && *b > 1e37) || (a == b);
            assert!(close, "{actual:?} for {expected:?}, {:?}", self.config);
        }
    }
}

/// About normal, with this standard deviation.
pub fn random(n: usize, std: f32, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..n).map(|_| ((0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0) * std).collect()
}

/// So many cases of a property, or as many as `PROPTEST_CASES` says.
pub fn cases(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().map(|n| n.parse().expect("PROPTEST_CASES is a number"));
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}
