//! Grammar of modules, functions and variables.

use super::ast::{Bounds, Function, Init, Module, VarSpace, Variable};
use super::lexer::Kind;
use super::{ParseError, Parser, Result};
use crate::types::Ty;

impl<'a> Parser<'a> {
    pub(super) fn module(mut self) -> Result<Module<'a>> {
        let mut module = Module::default();
        while self.peek().kind != Kind::End {
            match self.peek().text {
                ".version" | ".address_size" => {
                    self.next();
                    self.next();
                }
                ".target" => {
                    self.next();
                    module.target = self.word()?;
                    while self.take(",") {
                        self.word()?;
                    }
                }
                ".file" => module.files.push(self.file()?),
                ".section" => {
                    self.next();
                    self.word()?;
                    self.skip_block()?;
                }
                ".visible" | ".weak" | ".extern" | ".common" => {
                    self.next();
                }
                ".entry" | ".func" => module.functions.push(self.function()?),
                ".global" | ".const" | ".shared" => {
                    let variable = self.variable()?;
                    self.expect(";")?;
                    module.variables.push(variable);
                }
                ".pragma" => self.pragma()?,
                _ => return Err(self.unexpected("a module directive")),
            }
        }
        Ok(module)
    }

    fn file(&mut self) -> Result<(u32, &'a str)> {
        self.next();
        let number = self.u32()?;
        let mut name = self.next().text;
        if self.peek().kind == Kind::Text {
            // LLVM writes the directory first.
            name = self.next().text;
        }
        while self.take(",") {
            self.int()?;
        }
        Ok((number, name))
    }

    pub(super) fn pragma(&mut self) -> Result<()> {
        self.next();
        self.next();
        self.expect(";")
    }

    fn function(&mut self) -> Result<Function<'a>> {
        let line = self.peek().line;
        let entry = self.next().text == ".entry";
        let returns = if self.is("(") { self.parameters()? } else { vec![] };
        let name = self.word()?;
        let params = if self.is("(") { self.parameters()? } else { vec![] };
        let bounds = self.bounds()?;
        let body = if self.take(";") { None } else { Some(self.body()?) };
        Ok(Function { name, entry, returns, params, body, bounds, line })
    }

    fn parameters(&mut self) -> Result<Vec<Variable<'a>>> {
        self.expect("(")?;
        let mut out = vec![];
        while !self.take(")") {
            if !out.is_empty() {
                self.expect(",")?;
            }
            out.push(self.variable()?);
        }
        Ok(out)
    }

    fn bounds(&mut self) -> Result<Bounds> {
        let mut bounds = Bounds::default();
        loop {
            match self.peek().text {
                ".maxntid" => bounds.max_threads = Some(self.triple()?.iter().product()),
                ".reqntid" => bounds.required_threads = Some(self.triple()?),
                ".reqnctapercluster" => bounds.required_cluster = Some(self.triple()?),
                ".minnctapersm" => bounds.min_blocks = Some(self.triple()?[0]),
                ".maxnreg" => bounds.max_registers = Some(self.triple()?[0]),
                ".maxclusterrank" => drop(self.triple()?),
                ".explicitcluster" | ".noreturn" | ".blocksareclusters" => drop(self.next()),
                _ => return Ok(bounds),
            }
        }
    }

    /// A directive followed by one to three numbers.
    fn triple(&mut self) -> Result<[u32; 3]> {
        self.next();
        let mut out = [1; 3];
        out[0] = self.u32()?;
        for slot in &mut out[1..] {
            if self.take(",") {
                *slot = self.u32()?;
            }
        }
        let fits = out.iter().try_fold(1u32, |product, &n| product.checked_mul(n));
        fits.map(|_| out).ok_or_else(|| self.unexpected("a smaller bound"))
    }

    /// `.space .align n .type name[size] = init`, without what ends it.
    pub(super) fn variable(&mut self) -> Result<Variable<'a>> {
        let line = self.peek().line;
        let space = match self.next().text {
            ".global" => VarSpace::Global,
            ".const" => VarSpace::Const,
            ".shared" => VarSpace::Shared,
            ".local" => VarSpace::Local,
            ".param" | ".reg" => VarSpace::Param,
            other => {
                return Err(ParseError::new(line, format!("unknown state space {other}"), ""));
            }
        };
        let (mut align, mut ty, mut lanes) = (None, None, 1);
        while self.peek().text.starts_with('.') {
            match self.next().text {
                // Says what a pointer parameter points to, not how the parameter itself lies.
                ".ptr" => {
                    while self.peek().text.starts_with('.') {
                        if self.next().text == ".align" {
                            self.u32()?;
                        }
                    }
                }
                ".align" => align = Some(self.u32()? as usize),
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                ".attribute" => {
                    return Err(ParseError::new(line, ".attribute is not supported", ""));
                }
                word => {
                    let known = Ty::parse(&word[1..]).filter(|&t| t != Ty::Pred);
                    ty = Some(known.ok_or_else(|| ParseError::new(line, format!("unknown type {word}"), ""))?);
                }
            }
        }
        let ty = ty.ok_or_else(|| self.unexpected("a type"))?;
        let align = align.unwrap_or(ty.bytes() * lanes);
        if !align.is_power_of_two() || align > 4096 {
            return Err(ParseError::new(line, "alignment must be a power of two up to 4096", ""));
        }
        let name = self.word()?;
        let count = self.dimensions()?;
        let too_big = || ParseError::new(line, "variable too large", name);
        let bytes = match count {
            Some(n) => {
                let bytes = n.checked_mul((ty.bytes() * lanes) as u64).ok_or_else(too_big)?;
                Some(usize::try_from(bytes).ok().filter(|&b| b < 1 << 30).ok_or_else(too_big)?)
            }
            None => None,
        };
        let init = if self.take("=") { self.initialiser()? } else { vec![] };
        Ok(Variable { name, space, ty, align, bytes, init, line })
    }

    /// Product of the array dimensions; `None` if the first is left open.
    fn dimensions(&mut self) -> Result<Option<u64>> {
        let mut count = Some(1u64);
        while self.take("[") {
            if self.take("]") {
                count = None;
            } else {
                let n = self.u32()? as u64;
                count = count.and_then(|c| c.checked_mul(n));
                self.expect("]")?;
            }
        }
        Ok(count)
    }

    fn initialiser(&mut self) -> Result<Vec<Init<'a>>> {
        let mut out = vec![];
        if !self.take("{") {
            out.push(self.init_element()?);
            return Ok(out);
        }
        while !self.take("}") {
            if !out.is_empty() {
                self.expect(",")?;
            }
            if self.is("{") {
                out.extend(self.initialiser()?);
            } else {
                out.push(self.init_element()?);
            }
        }
        Ok(out)
    }

    fn init_element(&mut self) -> Result<Init<'a>> {
        if self.peek().kind == Kind::Word {
            let name = self.word()?;
            let name = if name == "generic" && self.take("(") {
                let inner = self.word()?;
                self.expect(")")?;
                inner
            } else {
                name
            };
            let offset = if self.take("+") { self.int()? } else { 0 };
            return Ok(Init::Address(name, offset));
        }
        let text = self.peek().text;
        if let Some(bits) = text.strip_prefix("0f").or(text.strip_prefix("0d")) {
            let bits = u64::from_str_radix(bits, 16).map_err(|_| self.unexpected("a number"))?;
            self.next();
            return Ok(Init::Bits(bits));
        }
        Ok(Init::Bits(self.int()? as u64))
    }
}
