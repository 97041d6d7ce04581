//! Syntax tree to kernels: names become register slots, addresses and instruction indices.

use std::collections::{BTreeMap, HashMap};

use crate::ir::{Addr, Pred, Reg, Special};
use crate::isa;
use crate::parse::ast::{Operand, VarSpace};
use crate::types::Ty;

mod function;
mod layout;
mod names;

pub(crate) use function::lower_kernel;
pub(crate) use layout::{Image, link};

type Result<T> = std::result::Result<T, String>;

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Symbol {
    /// Data register and its width in bytes.
    Reg(Reg, usize),
    Pred(u32),
    /// An address in a state space.
    Address(VarSpace, u64),
}

/// The names of one `{ }` block.
#[derive(Default)]
struct Scope<'a> {
    symbols: HashMap<&'a str, Symbol>,
    /// `%r<100>` declares `%r0` to `%r99`: prefix → first slot, count, type.
    ranges: Vec<(&'a str, u32, u32, Ty)>,
    labels: HashMap<&'a str, u32>,
}

/// A function that calls can name: where its code starts and where its parameters lie.
#[derive(Clone, Debug)]
pub(crate) struct Callee {
    pub entry: u32,
    /// Local addresses and sizes.
    pub params: Vec<(u64, usize)>,
    pub returns: Vec<(u64, usize)>,
}

/// Lowering context of one kernel, used by the instruction families to resolve operands.
pub(crate) struct Cx<'a> {
    scopes: Vec<Scope<'a>>,
    module: &'a HashMap<&'a str, Symbol>,
    num_regs: u32,
    num_preds: u32,
    constants: Vec<u64>,
    constant_of: HashMap<u64, Reg>,
    specials: Vec<(Reg, Special)>,
    local_bytes: usize,
    shared_end: usize,
    callees: BTreeMap<String, Callee>,
    uses: Vec<Reg>,
    defs: Vec<Reg>,
    /// How the opcodes met so far are decoded.
    pub decoders: HashMap<String, isa::Decode>,
    pub uses_wgmma: bool,
}

impl<'a> Cx<'a> {
    /// The slot of a constant.
    pub fn constant(&mut self, bits: u64) -> Reg {
        let constants = &mut self.constants;
        *self.constant_of.entry(bits).or_insert_with(|| {
            constants.push(bits);
            Reg::constant(constants.len() - 1)
        })
    }

    fn special(&mut self, special: Special) -> Reg {
        if let Some((reg, _)) = self.specials.iter().find(|(_, s)| *s == special) {
            return *reg;
        }
        let reg = self.new_reg();
        self.specials.push((reg, special));
        reg
    }

    fn new_reg(&mut self) -> Reg {
        self.num_regs += 1;
        Reg(self.num_regs - 1)
    }

    fn find(&self, name: &str) -> Option<Symbol> {
        for scope in self.scopes.iter().rev() {
            if let Some(symbol) = scope.symbols.get(name) {
                return Some(*symbol);
            }
            for &(prefix, first, count, ty) in &scope.ranges {
                let index = name.strip_prefix(prefix).and_then(|n| n.parse::<u32>().ok());
                if let Some(index) = index.filter(|&i| i < count) {
                    return Some(match ty {
                        Ty::Pred => Symbol::Pred(first + index),
                        _ => Symbol::Reg(Reg(first + index), ty.bytes()),
                    });
                }
            }
        }
        self.module.get(name).copied()
    }

    /// The value of a source operand: register, literal, special register or address of a symbol.
    pub fn value(&mut self, operand: &Operand) -> Result<Reg> {
        let reg = match operand {
            Operand::Int(v) => self.constant(*v as u64),
            Operand::F32(bits) => self.constant(*bits as u64),
            Operand::F64(bits) => self.constant(*bits),
            Operand::Name { name, negated: false, offset } => match self.find(name) {
                Some(Symbol::Reg(reg, _)) if *offset == 0 => reg,
                Some(Symbol::Address(_, a)) => self.constant(a.wrapping_add(*offset as u64)),
                _ => match names::special(name).filter(|_| *offset == 0) {
                    Some(names::Name::Constant(v)) => self.constant(v),
                    Some(names::Name::Special(s)) => self.special(s),
                    None => return Err(format!("unknown register or symbol {name}")),
                },
            },
            _ => return Err("expected a register, literal or symbol".into()),
        };
        self.uses.push(reg);
        Ok(reg)
    }

    /// A value of type `ty`, so that a decimal literal of an f32 instruction is an f32.
    pub fn typed_value(&mut self, operand: &Operand, ty: Ty) -> Result<Reg> {
        match operand {
            Operand::F64(bits) if ty == Ty::F32 => Ok(self.constant((f64::from_bits(*bits) as f32).to_bits() as u64)),
            _ => self.value(operand),
        }
    }

    /// A destination register, or the sink for `_`.
    pub fn dst(&mut self, operand: &Operand) -> Result<Reg> {
        match operand {
            Operand::Name { name: "_", .. } => Ok(Reg::SINK),
            Operand::Name { name, negated: false, offset: 0 } => match self.find(name) {
                Some(Symbol::Reg(reg, _)) => {
                    self.defs.push(reg);
                    Ok(reg)
                }
                _ => Err(format!("{name} is not a data register")),
            },
            _ => Err("expected a destination register".into()),
        }
    }

    /// Width in bytes of a register operand; zero for anything else.
    pub fn width(&self, operand: &Operand) -> usize {
        match operand {
            Operand::Name { name, .. } => match self.find(name) {
                Some(Symbol::Reg(_, bytes)) => bytes,
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Whether an operand is a predicate register (or the negation of one).
    pub fn is_pred(&self, operand: &Operand) -> bool {
        matches!(operand, Operand::Name { name, .. } if matches!(self.find(name), Some(Symbol::Pred(_))))
    }

    /// A source predicate; 0 and 1 are literals.
    pub fn pred(&mut self, operand: &Operand) -> Result<Pred> {
        match operand {
            Operand::Int(0) => Ok(Pred::FALSE),
            Operand::Int(_) => Ok(Pred::TRUE),
            Operand::Name { name, negated, offset: 0 } => self.guard(name, *negated),
            _ => Err("expected a predicate".into()),
        }
    }

    pub fn guard(&mut self, name: &str, negated: bool) -> Result<Pred> {
        match self.find(name) {
            Some(Symbol::Pred(index)) => Ok(Pred { index, negated }),
            _ => Err(format!("{name} is not a predicate")),
        }
    }

    /// A destination predicate, or the sink for `_`.
    pub fn pred_dst(&mut self, operand: &Operand) -> Result<Pred> {
        match operand {
            Operand::Name { name: "_", .. } => Ok(Pred::SINK),
            Operand::Name { name, negated: false, offset: 0 } => self.guard(name, false),
            _ => Err("expected a destination predicate".into()),
        }
    }

    /// `{a, b, ...}` or a single operand, as source values.
    pub fn values(&mut self, operand: &Operand) -> Result<Vec<Reg>> {
        match operand {
            Operand::Vector(items) => items.iter().map(|x| self.value(x)).collect(),
            _ => Ok(vec![self.value(operand)?]),
        }
    }

    /// `{a, b, ...}` or a single operand, as destinations.
    pub fn dsts(&mut self, operand: &Operand) -> Result<Vec<Reg>> {
        match operand {
            Operand::Vector(items) => items.iter().map(|x| self.dst(x)).collect(),
            _ => Ok(vec![self.dst(operand)?]),
        }
    }

    /// Registers that are read and written, such as accumulators.
    pub fn accumulators(&mut self, operand: &Operand) -> Result<Vec<Reg>> {
        let regs = self.dsts(operand)?;
        self.uses.extend(&regs);
        Ok(regs)
    }

    /// `[base + offset]`.
    pub fn addr(&mut self, operand: &Operand) -> Result<Addr> {
        match operand {
            Operand::Memory { base, offset, extra } if extra.is_empty() => self.base(*base, *offset),
            _ => Err("expected an address in brackets".into()),
        }
    }

    /// The address part of a memory operand.
    pub fn base(&mut self, base: Option<&str>, offset: i64) -> Result<Addr> {
        let Some(name) = base else {
            return Ok(Addr { base: self.constant(0), offset });
        };
        match self.find(name) {
            Some(Symbol::Reg(reg, _)) => {
                self.uses.push(reg);
                Ok(Addr { base: reg, offset })
            }
            Some(Symbol::Address(_, a)) => Ok(Addr { base: self.constant(a), offset }),
            _ => Err(format!("unknown address {name}")),
        }
    }

    /// State space of the symbol a memory operand names, if it names one.
    pub fn symbol_space(&self, operand: &Operand) -> Option<VarSpace> {
        let Operand::Memory { base: Some(name), .. } = operand else {
            return None;
        };
        match self.find(name) {
            Some(Symbol::Address(space, _)) => Some(space),
            _ => None,
        }
    }

    /// Instruction index of a label.
    pub fn label(&self, operand: &Operand) -> Result<u32> {
        let Operand::Name { name, .. } = operand else {
            return Err("expected a label".into());
        };
        let found = self.scopes.iter().rev().find_map(|s| s.labels.get(name));
        found.copied().ok_or_else(|| format!("unknown label {name}"))
    }

    /// The function an operand names.
    pub fn callee(&self, operand: &Operand) -> Result<Callee> {
        let Operand::Name { name, .. } = operand else {
            return Err("expected a function name".into());
        };
        let found = self.callees.get(*name);
        found.cloned().ok_or_else(|| format!("call of {name}, which has no body here"))
    }

    /// Local address of a `.param` variable of a call.
    pub fn call_param(&self, operand: &Operand) -> Result<u64> {
        let Operand::Name { name, .. } = operand else {
            return Err("expected a .param variable".into());
        };
        match self.find(name) {
            Some(Symbol::Address(VarSpace::Param | VarSpace::Local, a)) => Ok(a),
            _ => Err(format!("{name} is not a .param variable")),
        }
    }

    /// Makes the name of a call's result stand for the callee's return variable at `address`. Each
    /// function has one activation, and results are read before the next call.
    pub fn alias_result(&mut self, operand: &Operand, address: u64) -> Result<()> {
        self.call_param(operand)?;
        let Operand::Name { name, .. } = operand else {
            return Ok(());
        };
        for scope in self.scopes.iter_mut().rev() {
            if let Some((_, symbol)) = scope.symbols.iter_mut().find(|(key, _)| *key == name) {
                *symbol = Symbol::Address(VarSpace::Local, address);
                return Ok(());
            }
        }
        Ok(())
    }
}
