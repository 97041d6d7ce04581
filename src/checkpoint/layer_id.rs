//! Which layer: `3`, `encoder.1`, `decoder.1`.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// A layer of a model, by its index; in an encoder-decoder, of its encoder or decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId {
    stack: LayerStack,
    index: usize,
}

/// The stack of layers that a layer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerStack {
    /// The only one.
    Only,
    /// The encoder of an encoder-decoder.
    Encoder,
    /// The decoder of an encoder-decoder.
    Decoder,
}

impl LayerId {
    /// Layer `index` of `stack`.
    pub const fn new(stack: LayerStack, index: usize) -> Self {
        Self { stack, index }
    }

    /// The stack it is in.
    pub const fn stack(self) -> LayerStack {
        self.stack
    }

    /// Its index in the stack.
    pub const fn index(self) -> usize {
        self.index
    }
}

impl From<usize> for LayerId {
    fn from(index: usize) -> Self {
        Self::new(LayerStack::Only, index)
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stack {
            LayerStack::Only => write!(f, "{}", self.index),
            LayerStack::Encoder => write!(f, "encoder.{}", self.index),
            LayerStack::Decoder => write!(f, "decoder.{}", self.index),
        }
    }
}

impl FromStr for LayerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (stack, index) = match text.split_once('.') {
            None => (Some(LayerStack::Only), text),
            Some(("encoder", index)) => (Some(LayerStack::Encoder), index),
            Some(("decoder", index)) => (Some(LayerStack::Decoder), index),
            Some((_, index)) => (None, index),
        };
        match (stack, index.parse()) {
            (Some(stack), Ok(index)) => Ok(Self::new(stack, index)),
            _ => Err(Error::invalid("layer", "N, encoder.N or decoder.N", text)),
        }
    }
}

/// Layers for a message: `1, 3 to 60`.
pub(super) fn list(layers: &[LayerId]) -> String {
    let mut runs: Vec<(LayerId, LayerId)> = Vec::new();
    for &layer in layers {
        match runs.last_mut() {
            Some((_, last)) if last.stack == layer.stack && last.index.checked_add(1) == Some(layer.index) => {
                *last = layer;
            }
            _ => runs.push((layer, layer)),
        }
    }
    const SHOWN: usize = 8;
    let mut words: Vec<String> = runs
        .iter()
        .take(SHOWN)
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first} to {last}") })
        .collect();
    if runs.len() > SHOWN {
        words.push("…".into());
    }
    if words.is_empty() { "none".into() } else { words.join(", ") }
}
