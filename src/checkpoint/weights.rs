//! An architecture's names to a layer's weights.

use safetensors::tensor::Dtype;

use super::architecture::{Architecture, Experts, Latent, Shared};
use super::error::Result;
use super::files::{Files, TensorRef};
use super::json::Keys;
use super::matrix::Matrix;
use super::stack::{Keep, Stack};
use crate::config::{GateUpLayout, MoeConfig, SharedExpertConfig};
use crate::tensor::Shape;
use crate::weights::{ExpertWeights, LatentWeights, MoeWeights, RouterWeights, SharedWeights};

/// One layer of a checkpoint, found on disk.
pub(super) struct Layer<'a> {
    files: &'a Files,
    architecture: &'a Architecture,
    keys: Keys<'a>,
    /// What the names of all its tensors start with, as they may be.
    prefixes: Vec<String>,
    experts: &'a Experts,
    /// Rows and columns of a block of 8-bit floats.
    fp8_block: Option<[usize; 2]>,
}

impl<'a> Layer<'a> {
    /// Finds which of the architecture's names the files have.
    pub fn find(
        files: &'a Files,
        architecture: &'a Architecture,
        keys: Keys<'a>,
        fp8_block: Option<[usize; 2]>,
    ) -> Result<Self> {
        let layers = architecture.layer_names(keys.layer);
        let blocks = architecture.block.split('|');
        let prefixes: Vec<_> =
            blocks.flat_map(|block| layers.iter().map(move |layer| format!("{layer}{block}"))).collect();
        let weight = files.get_any(&names(&prefixes, architecture.router_weight))?;
        // The router's weight tells what all other names start with.
        let prefixes = prefixes.into_iter().filter(|prefix| weight.name.starts_with(prefix.as_str())).collect();
        let mut layer = Self { files, architecture, keys, prefixes, experts: &architecture.experts[0], fp8_block };
        for experts in architecture.experts {
            if files.find_any(&names(&layer.prefixes, &experts.first_tensor()))?.is_some() {
                layer.experts = experts;
                break;
            }
        }
        Ok(layer)
    }

    /// What the layer is.
    pub fn config(&self) -> Result<MoeConfig> {
        let (a, c) = (self.architecture, self.keys);
        let shared = a.shared.as_ref().map(|shared| shared_config(shared, c)).transpose()?;
        Ok(MoeConfig {
            num_experts: (a.num_experts)(c)?,
            hidden_size: (a.hidden_size)(c)?,
            intermediate_size: (a.intermediate_size)(c)?,
            router: (a.router)(c)?,
            activation: (a.activation)(c)?,
            gate_up_layout: self.experts.gate_up_layout(),
            weight_layout: self.experts.weight_layout(),
            shared: shared.flatten(),
            latent_size: a.latent.as_ref().map(|latent| (latent.size)(c)).transpose()?.flatten(),
        })
    }

    /// Where all its weights lie, with shapes and types checked; none is read yet.
    pub fn weights(&self, config: &MoeConfig) -> Result<MoeWeights<Stack>> {
        let shared = match (&self.architecture.shared, &config.shared) {
            (Some(shared), Some(config_of)) => Some(self.shared(shared, config_of, config.hidden_size)?),
            _ => None,
        };
        let latent = match (&self.architecture.latent, config.latent_size) {
            (Some(latent), Some(latent_size)) => Some(self.latent(latent, latent_size, config.hidden_size)?),
            _ => None,
        };
        Ok(MoeWeights { router: Some(self.router(config)?), experts: self.experts(config)?, shared, latent })
    }

    fn router(&self, config: &MoeConfig) -> Result<RouterWeights<Stack>> {
        let choices = config.router.num_choices(config.num_experts);
        let name = self.architecture.router_weight;
        let has_bias = (self.architecture.router_bias)(self.keys)?;
        let selection_bias = match self.architecture.selection_bias {
            Some(name) if (self.architecture.has_selection_bias)(self.keys)? => {
                Some(self.vector(name, choices, [choices])?)
            }
            _ => None,
        };
        let hidden = match (self.architecture.router_hidden, config.router.hidden_size) {
            (Some(name), Some(width)) => {
                let dims = [width, config.hidden_size];
                Some(self.stack_of_one(name, dims, dims)?.keeping(Keep::Stored))
            }
            _ => None,
        };
        let width = config.router.hidden_size.unwrap_or(config.hidden_size);
        Ok(RouterWeights {
            hidden,
            weight: self.stack_of_one(name, [choices, width], [choices, width])?.keeping(Keep::Stored),
            bias: has_bias.then(|| self.vector(&bias_name(name), choices, [choices])).transpose()?,
            selection_bias,
        })
    }

    fn experts(&self, config: &MoeConfig) -> Result<ExpertWeights<Stack>> {
        let (e, n, k) = (config.num_experts, config.intermediate_size, config.expert_hidden_size());
        match self.experts {
            Experts::PerExpert { gate, up, down, bias } => {
                let gate_up: Vec<_> = gate.iter().chain([up]).copied().collect();
                Ok(ExpertWeights {
                    gate_up_proj: self.per_expert(&gate_up, e, [n, k])?,
                    gate_up_bias: bias.then(|| self.per_expert_bias(&gate_up, e, n)).transpose()?,
                    down_proj: self.per_expert(&[down], e, [k, n])?,
                    down_bias: bias.then(|| self.per_expert_bias(&[down], e, k)).transpose()?,
                })
            }
            Experts::Stacked { gate_up, down, weight_layout, bias, .. } => {
                let gate_up_size = config.gate_up_size();
                let bias_of = |name: &str, n| self.vector(&format!("{name}_bias"), e * n, [e, n]);
                Ok(ExpertWeights {
                    gate_up_proj: self.stacked(
                        gate_up,
                        weight_layout.shape(e, gate_up_size, k),
                        config.router.num_zero_experts,
                    )?,
                    gate_up_bias: bias.then(|| bias_of(gate_up, gate_up_size)).transpose()?,
                    down_proj: self.stacked(down, weight_layout.shape(e, k, n), 0)?,
                    down_bias: bias.then(|| bias_of(down, k)).transpose()?,
                })
            }
            Experts::Rows { gate, up, down } => self.rows([gate, up, down], [e, n, k]),
            Experts::Mxfp4 { gate_up, down } => {
                let gate_up_size = config.gate_up_size();
                let bias_of = |name: &str, n| self.vector(&format!("{name}_bias"), e * n, [e, n]).map(Some);
                Ok(ExpertWeights {
                    gate_up_proj: self.mxfp4(gate_up, [e, gate_up_size, k])?,
                    gate_up_bias: bias_of(gate_up, gate_up_size)?,
                    down_proj: self.mxfp4(down, [e, k, n])?,
                    down_bias: bias_of(down, k)?,
                })
            }
        }
    }

    fn shared(&self, shared: &Shared, of: &SharedExpertConfig, hidden_size: usize) -> Result<SharedWeights<Stack>> {
        let (n, k) = (of.intermediate_size, hidden_size);
        let has_bias = (shared.bias)(self.keys)?;
        let name = |projection: &str| {
            let names: Vec<_> = shared.name.split('|').map(|name| format!("{name}{projection}.weight")).collect();
            names.join("|")
        };
        let (gate, up, down) = (name("gate_proj"), name("up_proj"), name("down_proj"));
        let gate_up: Vec<&str> = if shared.gated { vec![&gate, &up] } else { vec![&up] };
        let experts = ExpertWeights {
            gate_up_proj: self.per_expert(&gate_up, 1, [n, k])?,
            gate_up_bias: has_bias.then(|| self.per_expert_bias(&gate_up, 1, n)).transpose()?,
            down_proj: self.per_expert(&[&down], 1, [k, n])?,
            down_bias: has_bias.then(|| self.per_expert_bias(&[&down], 1, k)).transpose()?,
        };
        let gate = shared.sigmoid_gate.map(|name| self.stack_of_one(name, [1, hidden_size], [1, hidden_size]));
        Ok(SharedWeights { experts, gate: gate.transpose()?.map(|gate| gate.keeping(Keep::Stored)) })
    }

    fn latent(&self, latent: &Latent, latent_size: usize, hidden_size: usize) -> Result<LatentWeights<Stack>> {
        let has_bias = (latent.bias)(self.keys)?;
        let (l, h) = (latent_size, hidden_size);
        let bias = |name: &str, n: usize| has_bias.then(|| self.vector(&format!("{name}.bias"), n, [1, n])).transpose();
        let weight = |name: &str, n, k| self.stack_of_one(&format!("{name}.weight"), [n, k], [1, n, k]);
        Ok(LatentWeights {
            down: weight(latent.down, l, h)?,
            down_bias: bias(latent.down, l)?,
            up: weight(latent.up, h, l)?,
            up_bias: bias(latent.up, h)?,
        })
    }

    /// A tensor for each expert, or two, of which the first goes above the second.
    fn per_expert(&self, patterns: &[&str], num_experts: usize, [n, k]: [usize; 2]) -> Result<Stack> {
        let mut parts = Vec::new();
        for expert in 0..num_experts {
            for pattern in patterns {
                parts.push(self.matrix(&for_expert(pattern, expert), [n, k])?);
            }
        }
        Ok(Stack::of(parts, [num_experts, n * patterns.len(), k]))
    }

    fn per_expert_bias(&self, patterns: &[&str], num_experts: usize, n: usize) -> Result<Stack> {
        let mut parts = Vec::new();
        for expert in 0..num_experts {
            for pattern in patterns {
                let tensor = self.tensor(&bias_name(&for_expert(pattern, expert)))?;
                tensor.expect_shape(&[n])?;
                parts.push(Matrix::plain(tensor, 1, n)?);
            }
        }
        Ok(Stack::of(parts, [num_experts, n * patterns.len()]).keeping(Keep::F32))
    }

    /// One tensor with all experts. In the library's own layout, LongCat-Flash's has unused matrices for zero experts.
    fn stacked(&self, name: &str, shape: [usize; 3], zero_experts: usize) -> Result<Stack> {
        let tensor = self.tensor(name)?;
        let [num_experts, rows, cols] = shape;
        let padded = [num_experts + zero_experts, rows, cols];
        if tensor.shape == padded && zero_experts > 0 {
            let matrix = self.coded(tensor, padded)?;
            return Ok(Stack::of(vec![matrix.slice(0, num_experts * rows)], shape));
        }
        tensor.expect_shape(&shape)?;
        let matrix = self.coded(tensor.clone(), shape)?;
        Ok(Stack::whole(tensor, &matrix, shape))
    }

    /// DBRX: `[E·I, H]` each, the last to be used as its transpose.
    fn rows(&self, names: [&str; 3], [num_experts, n, k]: [usize; 3]) -> Result<ExpertWeights<Stack>> {
        let [gate, up, down] = names.map(|name| self.matrix(name, [num_experts * n, k]));
        let (gate, up, down) = (gate?, up?, down?);
        let gate_up = (0..num_experts).flat_map(|e| [gate.slice(e * n, n), up.slice(e * n, n)]).collect();
        let down = (0..num_experts).map(|e| down.slice(e * n, n).transpose()).collect();
        Ok(ExpertWeights {
            gate_up_proj: Stack::of(gate_up, [num_experts, 2 * n, k]),
            gate_up_bias: None,
            down_proj: Stack::of(down, [num_experts, k, n]),
            down_bias: None,
        })
    }

    fn mxfp4(&self, name: &str, shape: [usize; 3]) -> Result<Stack> {
        let blocks = self.tensor(&format!("{name}_blocks"))?;
        let scales = self.tensor(&format!("{name}_scales"))?;
        let matrix = Matrix::mxfp4(blocks.clone(), scales, shape)?;
        Ok(Stack::whole(blocks, &matrix, shape))
    }

    fn stack_of_one(&self, name: &str, dims: [usize; 2], shape: impl Into<Shape>) -> Result<Stack> {
        let tensor = self.tensor(name)?;
        tensor.expect_shape(&dims)?;
        let matrix = self.coded(tensor.clone(), [1, dims[0], dims[1]])?;
        Ok(Stack::whole(tensor, &matrix, shape))
    }

    /// Numbers in a row; on disk `[n]`, with a leading 1 (ERNIE 4.5), or in their shape.
    fn vector(&self, name: &str, n: usize, shape: impl Into<Shape>) -> Result<Stack> {
        let tensor = self.tensor(name)?;
        let shape = shape.into();
        if tensor.shape != [n] && tensor.shape != [1, n] {
            tensor.expect_shape(shape.dims())?;
        }
        Ok(Stack::of(vec![Matrix::plain(tensor, 1, n)?], shape).keeping(Keep::F32))
    }

    fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix> {
        let tensor = self.tensor(name)?;
        tensor.expect_shape(&[rows, cols])?;
        self.coded(tensor, [1, rows, cols])
    }

    /// A tensor of plain numbers, or of 8-bit floats with its scales beside it.
    fn coded(&self, tensor: TensorRef, dims: [usize; 3]) -> Result<Matrix> {
        match (tensor.dtype, self.fp8_block) {
            (Dtype::F8_E4M3, Some(block)) => {
                let scales = self.files.get(&format!("{}_scale_inv", tensor.name))?;
                Matrix::fp8(tensor, scales, block, dims)
            }
            _ => Matrix::plain(tensor, dims[0] * dims[1], dims[2]),
        }
    }

    /// A tensor by its name inside the block.
    fn tensor(&self, name: &str) -> Result<TensorRef> {
        self.files.get_any(&names(&self.prefixes, name))
    }
}

fn shared_config(shared: &Shared, c: Keys<'_>) -> Result<Option<SharedExpertConfig>> {
    let intermediate_size = (shared.intermediate_size)(c)?;
    if intermediate_size == 0 {
        return Ok(None);
    }
    Ok(Some(SharedExpertConfig {
        intermediate_size,
        activation: (shared.activation)(c)?,
        gate_up_layout: shared.gated.then_some(GateUpLayout::GateThenUp),
        weight_layout: Default::default(),
        sigmoid_gate: shared.sigmoid_gate.is_some(),
        output_scale: (shared.scale)(c)?,
    }))
}

/// Every spelling of a name behind every prefix.
fn names(prefixes: &[String], name: &str) -> Vec<String> {
    name.split('|').flat_map(|name| prefixes.iter().map(move |prefix| format!("{prefix}{name}"))).collect()
}

fn for_expert(pattern: &str, expert: usize) -> String {
    pattern.replace("{e}", &expert.to_string())
}

/// The bias beside a weight.
fn bias_name(weight: &str) -> String {
    let names = weight.split('|').map(|name| format!("{}bias", name.strip_suffix("weight").unwrap_or(name)));
    names.collect::<Vec<_>>().join("|")
}
