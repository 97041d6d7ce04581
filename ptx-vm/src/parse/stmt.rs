//! Grammar of function bodies: declarations, labels, instructions and their operands.

use super::ast::{Instr, Operand, Stmt};
use super::lexer::Kind;
use super::{ParseError, Parser, Result, integer};
use crate::types::Ty;

/// Deepest nesting of operands; real PTX needs three.
const MAX_DEPTH: usize = 8;

impl<'a> Parser<'a> {
    /// `{ ... }` as a flat list; the outer braces are not in it.
    pub(super) fn body(&mut self) -> Result<Vec<Stmt<'a>>> {
        self.expect("{")?;
        let mut out = vec![];
        let mut depth = 0;
        loop {
            if self.take("{") {
                depth += 1;
                out.push(Stmt::Open);
            } else if self.take("}") {
                if depth == 0 {
                    return Ok(out);
                }
                depth -= 1;
                out.push(Stmt::Close);
            } else if !self.take(";")
                && let Some(stmt) = self.statement()?
            {
                out.push(stmt);
            }
        }
    }

    fn statement(&mut self) -> Result<Option<Stmt<'a>>> {
        let token = self.peek();
        if token.kind == Kind::Word && self.peek_after().text == ":" {
            self.next();
            self.next();
            return Ok(Some(Stmt::Label(token.text)));
        }
        Ok(Some(match token.text {
            ".reg" => self.registers()?,
            ".shared" | ".local" | ".param" | ".const" | ".global" => {
                let variable = self.variable()?;
                self.expect(";")?;
                Stmt::Variable(variable)
            }
            ".loc" => self.loc()?,
            ".pragma" => {
                self.pragma()?;
                return Ok(None);
            }
            text if text.starts_with('.') => {
                return Err(ParseError::new(token.line, "unknown directive", text));
            }
            _ => Stmt::Instr(self.instruction()?),
        }))
    }

    fn registers(&mut self) -> Result<Stmt<'a>> {
        self.next();
        let line = self.peek().line;
        let word = self.word()?;
        let ty = word.strip_prefix('.').and_then(Ty::parse);
        let ty = ty
            .filter(|&t| t != Ty::B128)
            .ok_or_else(|| ParseError::new(line, format!("register type {word} is not supported"), ""))?;
        let mut names = vec![];
        loop {
            let name = self.word()?;
            let count = if self.take("<") {
                let n = self.u32()?;
                self.expect(">")?;
                Some(n)
            } else {
                None
            };
            names.push((name, count));
            if self.take(";") {
                return Ok(Stmt::Registers(ty, names));
            }
            self.expect(",")?;
        }
    }

    /// `.loc file line column, function_name label [+ n], inlined_at file line column`.
    fn loc(&mut self) -> Result<Stmt<'a>> {
        self.next();
        let (file, line) = (self.u32()?, self.u32()?);
        self.int()?;
        while self.take(",") {
            match self.word()? {
                "function_name" => {
                    self.word()?;
                    if self.take("+") {
                        self.int()?;
                    }
                }
                "inlined_at" => {
                    for _ in 0..3 {
                        self.int()?;
                    }
                }
                _ => return Err(self.unexpected("function_name or inlined_at")),
            }
        }
        Ok(Stmt::Loc { file, line })
    }

    fn instruction(&mut self) -> Result<Instr<'a>> {
        let line = self.peek().line;
        let guard = if self.take("@") {
            let negated = self.take("!");
            Some((self.word()?, negated))
        } else {
            None
        };
        let opcode = self.word()?;
        let mut operands = vec![];
        while !self.take(";") {
            if !operands.is_empty() {
                self.expect(",")?;
            }
            let operand = self.operand(0)?;
            operands.push(if self.take("|") {
                Operand::Pair(Box::new(operand), Box::new(self.operand(0)?))
            } else {
                operand
            });
        }
        Ok(Instr { guard, opcode, operands, line })
    }

    fn operand(&mut self, depth: usize) -> Result<Operand<'a>> {
        if depth > MAX_DEPTH {
            return Err(self.unexpected("operands nested less deeply"));
        }
        if self.take("{") {
            return Ok(Operand::Vector(self.operands_until("}", depth)?));
        }
        if self.take("(") {
            return Ok(Operand::List(self.operands_until(")", depth)?));
        }
        if self.take("[") {
            return self.memory(depth);
        }
        if self.take("!") {
            return Ok(Operand::Name { name: self.word()?, negated: true, offset: 0 });
        }
        if self.peek().kind == Kind::Word {
            let name = self.word()?;
            return Ok(Operand::Name { name, negated: false, offset: self.offset()? });
        }
        self.literal()
    }

    fn operands_until(&mut self, end: &str, depth: usize) -> Result<Vec<Operand<'a>>> {
        let mut out = vec![];
        while !self.take(end) {
            if !out.is_empty() {
                self.expect(",")?;
            }
            out.push(self.operand(depth + 1)?);
        }
        Ok(out)
    }

    /// `+n`, `-n` or `+-n` behind a name.
    fn offset(&mut self) -> Result<i64> {
        if self.take("+") || self.is("-") { self.int() } else { Ok(0) }
    }

    fn memory(&mut self, depth: usize) -> Result<Operand<'a>> {
        let base = if self.peek().kind == Kind::Word { Some(self.word()?) } else { None };
        let offset = if base.is_some() { self.offset()? } else { self.int()? };
        let mut extra = vec![];
        while self.take(",") {
            extra.push(self.operand(depth + 1)?);
        }
        self.expect("]")?;
        Ok(Operand::Memory { base, offset, extra })
    }

    fn literal(&mut self) -> Result<Operand<'a>> {
        let negative = self.take("-");
        let token = self.peek();
        if token.kind != Kind::Number {
            return Err(self.unexpected("an operand"));
        }
        let text = token.text;
        let bad = |_| ParseError::new(token.line, "malformed number", text);
        let literal = if let Some(hex) = strip(text, "0f", "0F") {
            Operand::F32(u32::from_str_radix(hex, 16).map_err(bad)? ^ (negative as u32) << 31)
        } else if let Some(hex) = strip(text, "0d", "0D") {
            Operand::F64(u64::from_str_radix(hex, 16).map_err(bad)? ^ (negative as u64) << 63)
        } else if text.contains('.') {
            let value: f64 = text.parse().map_err(|_| ParseError::new(token.line, "malformed number", text))?;
            Operand::F64(if negative { -value } else { value }.to_bits())
        } else {
            let value = integer(text).ok_or_else(|| self.unexpected("an integer"))? as i64;
            Operand::Int(if negative { value.wrapping_neg() } else { value })
        };
        self.next();
        Ok(literal)
    }
}

fn strip<'a>(text: &'a str, lower: &str, upper: &str) -> Option<&'a str> {
    text.strip_prefix(lower).or_else(|| text.strip_prefix(upper))
}
