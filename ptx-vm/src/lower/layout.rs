//! Addresses of module variables and the bytes they start with.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Symbol;
use crate::parse::ParseError;
use crate::parse::ast::{Init, Module, VarSpace, Variable};
use crate::types::truncate;

/// Module variables live far below the buffers of a GPU; each module takes its own range, so that
/// several can be launched on one GPU.
static NEXT_ADDRESS: AtomicU64 = AtomicU64::new(0x1_0000_0000);
/// Gap between variables, so that running past one is found.
const GAP: u64 = 256;

/// One module variable as it is when the module is loaded.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub name: String,
    pub address: u64,
    pub bytes: Vec<u8>,
    pub read_only: bool,
}

/// Gives every module-scope `.global` and `.const` variable an address and its initial bytes.
pub(crate) fn link<'a>(module: &Module<'a>) -> Result<(HashMap<&'a str, Symbol>, Vec<Image>), ParseError> {
    let mut symbols = HashMap::new();
    let mut placed = vec![];
    for variable in &module.variables {
        if !matches!(variable.space, VarSpace::Global | VarSpace::Const) {
            continue;
        }
        let Some(bytes) = variable.bytes else {
            return Err(ParseError::new(variable.line, "extern variable without size", variable.name));
        };
        let align = variable.align.max(16) as u64;
        let span = bytes as u64 + GAP + 2 * align;
        let address = NEXT_ADDRESS.fetch_add(span, Ordering::Relaxed).next_multiple_of(align);
        symbols.insert(variable.name, Symbol::Address(variable.space, address));
        placed.push((variable, address, bytes));
    }
    let mut images = vec![];
    for (variable, address, bytes) in placed {
        images.push(Image {
            name: variable.name.to_string(),
            address,
            bytes: initial_bytes(variable, bytes, &symbols)?,
            read_only: variable.space == VarSpace::Const,
        });
    }
    Ok((symbols, images))
}

/// Module variables without initialiser are zero.
fn initial_bytes(variable: &Variable, bytes: usize, symbols: &HashMap<&str, Symbol>) -> Result<Vec<u8>, ParseError> {
    let mut data = vec![0; bytes];
    let size = variable.ty.bytes().min(8);
    for (i, init) in variable.init.iter().enumerate() {
        let bits = match init {
            Init::Bits(bits) => *bits,
            Init::Address(name, offset) => match symbols.get(name) {
                Some(Symbol::Address(_, a)) => a.wrapping_add(*offset as u64),
                _ => {
                    return Err(ParseError::new(variable.line, "unknown name in initialiser", *name));
                }
            },
        };
        let Some(slot) = data.get_mut(i * size..(i + 1) * size) else {
            return Err(ParseError::new(variable.line, "initialiser too long", variable.name));
        };
        slot.copy_from_slice(&truncate(bits, size).to_le_bytes()[..size]);
    }
    Ok(data)
}
