//! The shapes of real models, as data, and how they shrink where there is not enough memory.

use fused_moe::DType;
use fused_moe::config::{Activation, GateUpLayout, MoeConfig, SharedExpertConfig, WeightLayout};
use fused_moe::routing::{GroupLimit, GroupScore, Renormalize, RouterConfig, ScoreFunction, WeightFunction, WeightsOn};

/// A model's MoE layer.
#[derive(Clone, Debug)]
pub struct Preset {
    /// The model; ends in `-e<E>` where experts were left out to fit memory, in `-tiny` in test mode.
    pub name: String,
    pub config: MoeConfig,
    /// Whether the experts have biases.
    pub bias: bool,
}

/// E, k, H, I.
type Sizes = [usize; 4];

/// All presets, at the models' own sizes.
pub fn all() -> Vec<Preset> {
    let softmax = RouterConfig::softmax_top_k;
    vec![
        preset("qwen3-30b-a3b", [128, 8, 2048, 768], normalised(softmax(8))),
        preset("deepseek-moe-16b", [64, 6, 2048, 1408], softmax(6)).shared(2 * 1408, false),
        preset("qwen1.5-moe-a2.7b", [60, 4, 2048, 1408], softmax(4)).shared(5632, true),
        preset("mixtral-8x7b", [8, 2, 4096, 14336], normalised(softmax(2))),
        preset("llama-moe-3.5b", [16, 4, 4096, 688], softmax(4)),
        preset("switch-base-128", [128, 1, 768, 3072], softmax(1)).without_gate(Activation::Relu),
        preset("llama4-scout", [16, 1, 5120, 8192], llama4(1)).shared(8192, false).transposed(),
        gpt_oss(preset("gpt-oss-120b", [128, 4, 2880, 2880], gpt_oss_router(4))),
        preset("minimax-m2", [256, 8, 3072, 1536], normalised(sigmoid(8))),
        preset("deepseek-v2", [160, 6, 5120, 1536], grouped(softmax(6), 8, 3, GroupScore::Max)).shared(2 * 1536, false),
        preset("deepseek-v3", [256, 8, 7168, 2048], grouped(normalised(sigmoid(8)), 8, 4, GroupScore::SumTop2))
            .shared(2048, false),
    ]
}

fn preset(name: &str, [num_experts, top_k, hidden_size, intermediate_size]: Sizes, router: RouterConfig) -> Preset {
    assert_eq!(router.top_k, top_k);
    let config = MoeConfig {
        num_experts,
        hidden_size,
        intermediate_size,
        router,
        activation: Activation::Silu,
        gate_up_layout: Some(GateUpLayout::GateThenUp),
        weight_layout: WeightLayout::Nk,
        shared: None,
        latent_size: None,
    };
    Preset { name: name.into(), config, bias: false }
}

fn normalised(router: RouterConfig) -> RouterConfig {
    RouterConfig { renormalize: Some(Renormalize::default()), ..router }
}

fn sigmoid(top_k: usize) -> RouterConfig {
    RouterConfig { score: ScoreFunction::Sigmoid, ..RouterConfig::softmax_top_k(top_k) }
}

fn grouped(router: RouterConfig, num_groups: usize, topk_groups: usize, score: GroupScore) -> RouterConfig {
    RouterConfig { groups: Some(GroupLimit { num_groups, topk_groups, score }), ..router }
}

fn llama4(top_k: usize) -> RouterConfig {
    RouterConfig {
        score: ScoreFunction::Logit,
        weight: WeightFunction::Sigmoid,
        weights_on: WeightsOn::Input,
        ..RouterConfig::softmax_top_k(top_k)
    }
}

fn gpt_oss_router(top_k: usize) -> RouterConfig {
    RouterConfig {
        score: ScoreFunction::Logit,
        weight: WeightFunction::SoftmaxOverSelected,
        ..RouterConfig::softmax_top_k(top_k)
    }
}

fn gpt_oss(mut preset: Preset) -> Preset {
    preset.config.activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    preset.config.gate_up_layout = Some(GateUpLayout::Interleaved);
    preset.bias = true;
    preset.transposed()
}

impl Preset {
    fn shared(mut self, intermediate_size: usize, sigmoid_gate: bool) -> Self {
        self.config.shared = Some(SharedExpertConfig {
            intermediate_size,
            activation: self.config.activation,
            gate_up_layout: self.config.gate_up_layout,
            weight_layout: WeightLayout::Nk,
            sigmoid_gate,
            output_scale: 1.0,
        });
        self
    }

    fn without_gate(mut self, activation: Activation) -> Self {
        self.config.activation = activation;
        self.config.gate_up_layout = None;
        self
    }

    /// The routed experts' weights as `[E, K, N]`, as these models store them.
    fn transposed(mut self) -> Self {
        self.config.weight_layout = WeightLayout::Kn;
        self
    }

    /// Weights of one routed expert.
    pub fn expert_numel(&self) -> usize {
        (self.config.gate_up_size() + self.config.intermediate_size) * self.config.hidden_size
    }

    /// Weights of the shared expert.
    pub fn shared_numel(&self) -> usize {
        let shared = self.config.shared.as_ref();
        shared.map_or(0, |s| (s.gate_up_size() + s.intermediate_size) * self.config.hidden_size)
    }

    /// Bytes of one layer's experts.
    pub fn bytes(&self, dtype: DType) -> usize {
        (self.config.num_experts * self.expert_numel() + self.shared_numel()) * dtype.size()
    }

    /// The same layer in at most `budget` bytes: whole, or with fewer experts and a name that says so.
    ///
    /// # Errors
    /// In words, where even the fewest experts that the router allows are too many.
    pub fn fitted(&self, dtype: DType, budget: usize) -> Result<Self, String> {
        let mut fitted = self.clone();
        while fitted.bytes(dtype) > budget {
            fitted.config.num_experts /= 2;
            if fitted.config.validate().is_err() {
                let need = fitted.bytes(dtype) as f64 / 1e9;
                let budget = budget as f64 / 1e9;
                return Err(format!("{} {dtype}: needs more than {need:.1} GB, {budget:.1} GB free", self.name));
            }
            fitted.name = format!("{}-e{}", self.name, fitted.config.num_experts);
        }
        Ok(fitted)
    }

    /// The same kind of layer in a few kilobytes, for test mode.
    pub fn tiny(mut self) -> Self {
        let config = &mut self.config;
        config.num_experts = config.num_experts.min(16);
        config.router.top_k = config.router.top_k.min(2);
        if let Some(groups) = &mut config.router.groups {
            (groups.num_groups, groups.topk_groups) = (4, 2);
        }
        (config.hidden_size, config.intermediate_size) = (96, 40);
        if let Some(shared) = &mut config.shared {
            shared.intermediate_size = 56;
        }
        self.name += "-tiny";
        self
    }
}
