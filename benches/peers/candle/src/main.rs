//! The layer in candle on the CPU, the way its models write it: for each hit expert `index_select`, three matmuls,
//! `index_add`. Takes the manifest that `benches/peers/ours.rs` wrote, and times laps as asked for on the standard input.

#[path = "../../../common/data.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod data;
#[path = "../../../common/laps.rs"]
mod laps;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor, WithDType};
use data::{Part, Source, unit_scale};
use half::bf16;
use serde_json::{Value, json};

const VERSION: &str = "0.11";

/// A layer's experts. Every matrix is a tensor of its own, as candle's models load them, and it matters: a bf16 product
/// widens the whole storage that its operand is a view of.
struct Experts(Vec<Expert>);

struct Expert {
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

struct Layer {
    experts: Experts,
    shared: Option<Experts>,
}

struct Call {
    layer: usize,
    hidden_states: Tensor,
    topk_ids: Vec<Vec<u32>>,
    topk_weights: Vec<Vec<f32>>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, manifest] = &arguments[..] else { bail!("usage: candle-layer MANIFEST") };
    let dir = Path::new(manifest).parent().context("the manifest lies in a directory")?;
    let manifest: Value = serde_json::from_slice(&fs::read(manifest)?)?;
    let source = Source::new();
    let layers = (0..size(&manifest, "layers")?)
        .map(|layer| match text(&manifest, "dtype")? {
            "f32" => Layer::new(&manifest, &source, layer, |x: f32| x),
            "bf16" => Layer::new(&manifest, &source, layer, bf16::from_f32),
            other => bail!("{other} is not compared"),
        })
        .collect::<Result<Vec<_>>>()?;
    let mut cases = HashMap::new();
    laps::serve(json!({ "impls": { "candle": VERSION } }), |tokens, seconds, _| {
        time(&manifest, dir, &layers, &mut cases, tokens, seconds).map_err(|error| format!("{error:#}"))
    })
    .map_err(anyhow::Error::msg)
}

/// Laps of one number of tokens; the first time with the error of the first output.
fn time(
    manifest: &Value,
    dir: &Path,
    layers: &[Layer],
    cases: &mut HashMap<usize, Vec<Call>>,
    tokens: usize,
    seconds: f64,
) -> Result<Value> {
    let mut checked = None;
    let calls = match cases.entry(tokens) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            let calls = entry.insert(load(manifest, dir, tokens)?);
            let output = layers[calls[0].layer].forward(&calls[0])?.to_dtype(DType::F32)?.flatten_all()?;
            let expected = floats(&dir.join(format!("t{tokens}-0.output")))?;
            checked = Some(relative_error(&output.to_vec1::<f32>()?, &expected));
            calls
        }
    };
    let laps = laps::laps(calls.len(), seconds, |i| {
        layers[calls[i].layer].forward(&calls[i]).expect("its like worked a moment ago");
    });
    let mut answer = laps::answer(calls.len(), &laps);
    if let Some(rel_error) = checked {
        answer["rel_error"] = json!(rel_error);
    }
    Ok(answer)
}

fn load(manifest: &Value, dir: &Path, tokens: usize) -> Result<Vec<Call>> {
    let cases = manifest["cases"].as_array().context("cases")?;
    let case = cases.iter().find(|case| case["tokens"] == tokens).context("not one of the manifest's cases")?;
    case["calls"].as_array().context("calls")?.iter().map(|call| Call::load(manifest, dir, call)).collect()
}

impl Experts {
    fn new<T: WithDType>(
        [num_experts, hidden_size, intermediate_size]: [usize; 3],
        source: &Source,
        [gate_up_id, down_id]: [u64; 2],
        round: fn(f32) -> T,
    ) -> Result<Self> {
        let values = |id, n: usize, k: usize| {
            let mut values = vec![round(0.0); num_experts * n * k];
            source.fill(&mut values, id, unit_scale(k), round);
            values
        };
        let gate_up = values(gate_up_id, 2 * intermediate_size, hidden_size);
        let down = values(down_id, hidden_size, intermediate_size);
        let size = intermediate_size * hidden_size;
        let matrix = |values: &[T], from: usize, shape: (usize, usize)| {
            Tensor::from_slice(&values[from..from + size], shape, &Device::Cpu)
        };
        let expert = |e| {
            Ok(Expert {
                gate: matrix(&gate_up, 2 * e * size, (intermediate_size, hidden_size))?,
                up: matrix(&gate_up, (2 * e + 1) * size, (intermediate_size, hidden_size))?,
                down: matrix(&down, e * size, (hidden_size, intermediate_size))?,
            })
        };
        (0..num_experts).map(expert).collect::<Result<_>>().map(Self)
    }
}

impl Expert {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gate = x.matmul(&self.gate.t()?)?.silu()?;
        let up = x.matmul(&self.up.t()?)?;
        Ok((gate * up)?.matmul(&self.down.t()?)?)
    }
}

impl Layer {
    fn new<T: WithDType>(manifest: &Value, source: &Source, layer: usize, round: fn(f32) -> T) -> Result<Self> {
        let hidden_size = size(manifest, "hidden_size")?;
        let sizes = [size(manifest, "num_experts")?, hidden_size, size(manifest, "intermediate_size")?];
        let shared = size(manifest, "shared_intermediate_size")?;
        let ids = |parts: [Part; 2]| parts.map(|part| part.id(layer));
        Ok(Self {
            experts: Experts::new(sizes, source, ids([Part::GateUp, Part::Down]), round)?,
            shared: (shared > 0)
                .then(|| {
                    Experts::new([1, hidden_size, shared], source, ids([Part::SharedGateUp, Part::SharedDown]), round)
                })
                .transpose()?,
        })
    }

    fn forward(&self, call: &Call) -> Result<Tensor> {
        let x = &call.hidden_states;
        let mut slots: Vec<(Vec<u32>, Vec<f32>)> = vec![Default::default(); self.experts.0.len()];
        for (token, (ids, weights)) in call.topk_ids.iter().zip(&call.topk_weights).enumerate() {
            for (&id, &weight) in ids.iter().zip(weights) {
                slots[id as usize].0.push(token as u32);
                slots[id as usize].1.push(weight);
            }
        }
        let mut output = x.zeros_like()?;
        for (expert, (tokens, weights)) in
            self.experts.0.iter().zip(&slots).filter(|(_, (tokens, _))| !tokens.is_empty())
        {
            let tokens = Tensor::new(&tokens[..], &Device::Cpu)?;
            let weights = Tensor::new(&weights[..], &Device::Cpu)?.to_dtype(x.dtype())?.unsqueeze(D::Minus1)?;
            let result = expert.forward(&x.index_select(&tokens, 0)?)?.broadcast_mul(&weights)?;
            output = output.index_add(&tokens, &result, 0)?;
        }
        match &self.shared {
            Some(shared) => Ok((output + shared.0[0].forward(x)?)?),
            None => Ok(output),
        }
    }
}

impl Call {
    fn load(manifest: &Value, dir: &Path, call: &Value) -> Result<Self> {
        let (top_k, hidden_size) = (size(manifest, "top_k")?, size(manifest, "hidden_size")?);
        let path = |name: &str| -> Result<_> { Ok(dir.join(format!("{}.{name}", text(call, "stem")?))) };
        let hidden_states = floats(&path("hidden")?)?;
        let ids = words(&path("ids")?)?;
        let weights = floats(&path("weights")?)?;
        let dtype = if text(manifest, "dtype")? == "f32" { DType::F32 } else { DType::BF16 };
        let shape = (hidden_states.len() / hidden_size, hidden_size);
        Ok(Self {
            layer: size(call, "layer")?,
            hidden_states: Tensor::from_vec(hidden_states, shape, &Device::Cpu)?.to_dtype(dtype)?,
            topk_ids: ids.chunks_exact(top_k).map(<[u32]>::to_vec).collect(),
            topk_weights: weights.chunks_exact(top_k).map(<[f32]>::to_vec).collect(),
        })
    }
}

/// A file of little-endian u32.
fn words(path: &Path) -> Result<Vec<u32>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// A file of little-endian f32.
fn floats(path: &Path) -> Result<Vec<f32>> {
    Ok(words(path)?.into_iter().map(f32::from_bits).collect())
}

fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| square(a - b)).sum();
    (difference / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

fn size(value: &Value, key: &str) -> Result<usize> {
    Ok(value[key].as_u64().with_context(|| format!("{key} in the manifest"))? as usize)
}

fn text<'v>(value: &'v Value, key: &str) -> Result<&'v str> {
    value[key].as_str().with_context(|| format!("{key} in the manifest"))
}
