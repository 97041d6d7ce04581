//! `config.json`, read the way transformers reads it: keys with defaults, several spellings of one key.

use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::LayerId;
use super::error::{CheckpointError, Result};
use crate::config::Activation;

/// More layers, experts or features than this are taken for damage; products of two fit any integer.
const MAX_SIZE: usize = 1 << 24;

/// A parsed `config.json`.
#[derive(Debug)]
pub(super) struct ConfigJson {
    pub path: PathBuf,
    root: Map<String, Value>,
}

/// A `config.json`, asked on behalf of one layer.
///
/// A key may be given as `a|b`: the first spelling that is there counts; and as `a.b`: inside an object. `null` is as
/// good as absent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys<'a> {
    json: &'a ConfigJson,
    object: &'a Map<String, Value>,
    pub layer: LayerId,
}

impl ConfigJson {
    pub fn read(path: PathBuf) -> Result<Self> {
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(source) => return Err(CheckpointError::Io { path, source }),
        };
        match serde_json::from_slice(&without_non_finite(&text)) {
            Ok(Value::Object(root)) => Ok(Self { path, root }),
            Ok(_) => Err(CheckpointError::Malformed { path, reason: "expected a JSON object".into() }),
            Err(error) => Err(CheckpointError::Malformed { path, reason: format!("not JSON: {error}") }),
        }
    }

    /// `model_type` of the whole.
    pub fn model_type(&self) -> Result<&str> {
        let value = self.root.get("model_type");
        value.and_then(Value::as_str).ok_or_else(|| self.wrong("model_type", "a string", value))
    }

    /// `model_type` of the language model inside a multimodal one.
    pub fn inner_model_type(&self) -> Option<&str> {
        self.inner()?.get("model_type")?.as_str()
    }

    /// The keys, as `layer` sees them.
    pub fn keys(&self, layer: LayerId) -> Keys<'_> {
        Keys { json: self, object: self.inner().unwrap_or(&self.root), layer }
    }

    /// The keys of the whole, beside the language model's own.
    pub fn root_keys(&self) -> Keys<'_> {
        Keys { json: self, object: &self.root, layer: LayerId::from(0) }
    }

    /// The error for a key whose value cannot be used.
    pub fn wrong(&self, key: &str, expected: impl Into<String>, actual: Option<&Value>) -> CheckpointError {
        CheckpointError::ConfigValue {
            path: self.path.clone(),
            key: key.replace('|', " or "),
            expected: expected.into(),
            actual: actual.map_or_else(|| "nothing".into(), shortened),
        }
    }

    fn inner(&self) -> Option<&Map<String, Value>> {
        self.root.get("text_config")?.as_object()
    }
}

impl<'a> Keys<'a> {
    /// The value of a key, and the spelling it has.
    fn find<'k>(&self, key: &'k str) -> Option<(&'k str, &'a Value)> {
        key.split('|').find_map(|spelling| Some((spelling, walk(self.object, spelling)?)))
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.find(key).map(|(_, value)| value)
    }

    /// The error for a key whose value cannot be used.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> CheckpointError {
        match self.find(key) {
            Some((spelling, value)) => self.json.wrong(spelling, expected, Some(value)),
            None => self.json.wrong(key, expected, None),
        }
    }

    /// A count or width, if the key is there.
    pub fn size_if_any(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(size) if size <= MAX_SIZE => Ok(Some(size)),
            _ => Err(self.wrong(key, format!("a whole number up to {MAX_SIZE}"))),
        }
    }

    /// A count or width, with the default of the library's configuration class.
    pub fn size(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.size_if_any(key)?.unwrap_or(default))
    }

    /// A count or width without a default.
    pub fn required_size(&self, key: &str) -> Result<usize> {
        self.size_if_any(key)?.ok_or_else(|| self.wrong(key, "a whole number"))
    }

    /// The number of layers, with the default of the library's configuration class.
    pub fn layers(&self, key: &str, default: usize) -> Result<usize> {
        self.bounded_layers(key, self.size(key, default)?)
    }

    /// A number of layers that can be gone through one by one.
    pub fn bounded_layers(&self, key: &str, layers: usize) -> Result<usize> {
        const MAX_LAYERS: usize = 1 << 16;
        if layers <= MAX_LAYERS { Ok(layers) } else { Err(self.wrong(key, format!("at most {MAX_LAYERS} layers"))) }
    }

    /// A count or width that may be a list with one entry per layer.
    pub fn size_per_layer(&self, key: &str, default: usize) -> Result<usize> {
        let Some(Value::Array(list)) = self.value(key) else { return self.size(key, default) };
        let size = list.get(self.layer.index()).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        size.filter(|&n| n <= MAX_SIZE)
            .ok_or_else(|| self.wrong(key, format!("a whole number up to {MAX_SIZE} for layer {}", self.layer)))
    }

    /// The product of a width and a count, within bounds.
    pub fn product(&self, key: &str, width: usize, count: usize) -> Result<usize> {
        width
            .checked_mul(count)
            .filter(|&size| size <= MAX_SIZE)
            .ok_or_else(|| self.wrong(key, format!("a count that makes at most {MAX_SIZE} features of {width}")))
    }

    /// A finite number, with the default of the library's configuration class.
    pub fn number(&self, key: &str, default: f32) -> Result<f32> {
        let number = self.wide_number(key, default.into())? as f32;
        if number.is_finite() { Ok(number) } else { Err(self.wrong(key, "a number that fits 32 bits")) }
    }

    /// As [`Self::number`], in all its digits.
    pub fn wide_number(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.wrong(key, "a finite number"))
    }

    /// A number that may be a list with one entry per layer.
    pub fn number_per_layer(&self, key: &str, default: f32) -> Result<f32> {
        let Some(Value::Array(list)) = self.value(key) else { return self.number(key, default) };
        let number = list.get(self.layer.index()).and_then(Value::as_f64).map(|x| x as f32);
        number
            .filter(|x| x.is_finite())
            .ok_or_else(|| self.wrong(key, format!("a finite number for layer {}", self.layer)))
    }

    /// Whether a key is there and `null`, where that means something else than its absence.
    pub fn is_null(&self, key: &str) -> bool {
        let (object, key) = match key.rsplit_once('.') {
            Some((outer, key)) => (walk(self.object, outer).and_then(Value::as_object), key),
            None => (Some(self.object), key),
        };
        object.and_then(|object| object.get(key)).is_some_and(Value::is_null)
    }

    /// `true` or `false`, with the default of the library's configuration class.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// A word, with the default of the library's configuration class.
    pub fn text(&self, key: &str, default: &'static str) -> Result<&'a str> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_str().ok_or_else(|| self.wrong(key, "a string"))
    }

    /// A list, if the key is there.
    pub fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_array().map(Some).ok_or_else(|| self.wrong(key, "a list"))
    }

    /// Whether a list of numbers holds this layer; `None` without the list.
    pub fn lists_layer(&self, key: &str) -> Result<Option<bool>> {
        let index = self.layer.index() as u64;
        Ok(self.list(key)?.map(|list| list.iter().any(|entry| entry.as_u64() == Some(index))))
    }

    /// This layer's entry in a list with one word per layer; `None` without the list.
    pub fn text_per_layer(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let entry = list.get(self.layer.index()).and_then(Value::as_str);
        entry.map(Some).ok_or_else(|| self.wrong(key, format!("a list with a word for layer {}", self.layer)))
    }

    /// An activation by its name in transformers.
    pub fn activation(&self, key: &str, default: &'static str) -> Result<Activation> {
        Ok(match self.text(key, default)? {
            "silu" | "swish" => Activation::Silu,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh" => {
                Activation::GeluTanh
            }
            "relu" => Activation::Relu,
            "relu2" => Activation::ReluSquared,
            _ => return Err(self.wrong(key, "silu, swish, gelu, a tanh form of gelu, relu or relu2")),
        })
    }
}

/// `a.b` in nested objects; `null` counts as absent.
fn walk<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let value = match key.split_once('.') {
        Some((outer, rest)) => walk(object.get(outer)?.as_object()?, rest)?,
        None => object.get(key)?,
    };
    (!value.is_null()).then_some(value)
}

/// A value for a message: one line, not too long.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Python writes `Infinity` and `NaN` into JSON, and published files have them; no key read here may be one, so they
/// become `null`.
fn without_non_finite(text: &[u8]) -> Vec<u8> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut output = Vec::with_capacity(text.len());
    let mut in_string = false;
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let word = WORDS.into_iter().find(|word| !in_string && rest.starts_with(word));
        if let Some(word) = word {
            output.extend_from_slice(b"null");
            rest = &rest[word.len()..];
            continue;
        }
        output.push(*first);
        rest = tail;
        match (first, tail) {
            (b'"', _) => in_string = !in_string,
            (b'\\', [escaped, after @ ..]) if in_string => {
                output.push(*escaped);
                rest = after;
            }
            _ => {}
        }
    }
    output
}
