//! PTX text to a syntax tree. No name is resolved and no opcode judged here: see [`crate::lower`].

pub(crate) mod ast;
mod decl;
mod lexer;
mod stmt;

use lexer::{Kind, Token};

/// Why a module was refused, with the place in the PTX text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {message}{}", if text.is_empty() { String::new() } else { format!(": {text}") })]
pub struct ParseError {
    /// Name of the PTX file, as given by the caller.
    pub file: String,
    /// Line in the PTX text, from 1.
    pub line: u32,
    /// What is wrong.
    pub message: String,
    /// The statement in question.
    pub text: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, message: impl Into<String>, text: impl Into<String>) -> Self {
        ParseError { file: String::new(), line, message: message.into(), text: text.into() }
    }
}

pub(crate) type Result<T> = std::result::Result<T, ParseError>;

/// Parses the text of a module.
pub(crate) fn parse(src: &str) -> Result<ast::Module<'_>> {
    Parser { tokens: lexer::tokenize(src)?, at: 0 }.module()
}

/// A cursor over the tokens; `decl` and `stmt` hold the grammar.
struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens[self.at]
    }

    fn peek_after(&self) -> Token<'a> {
        self.tokens[(self.at + 1).min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        if token.kind != Kind::End {
            self.at += 1;
        }
        token
    }

    fn is(&self, text: &str) -> bool {
        let token = self.peek();
        token.text == text && !matches!(token.kind, Kind::Text | Kind::End)
    }

    /// Takes the next token if it reads `text`.
    fn take(&mut self, text: &str) -> bool {
        let found = self.is(text);
        if found {
            self.at += 1;
        }
        found
    }

    fn expect(&mut self, text: &str) -> Result<()> {
        if self.take(text) { Ok(()) } else { Err(self.unexpected(&format!("`{text}`"))) }
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.peek().kind {
            Kind::Word => Ok(self.next().text),
            _ => Err(self.unexpected("a name")),
        }
    }

    fn unexpected(&self, wanted: &str) -> ParseError {
        let token = self.peek();
        let found = if token.kind == Kind::End { "end of file" } else { token.text };
        ParseError::new(token.line, format!("expected {wanted}, found `{found}`"), "")
    }

    /// A signed integer literal.
    fn int(&mut self) -> Result<i64> {
        let negative = self.take("-");
        if self.peek().kind != Kind::Number {
            return Err(self.unexpected("an integer"));
        }
        let value = integer(self.peek().text).ok_or_else(|| self.unexpected("an integer"))? as i64;
        self.next();
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    /// A non-negative integer that fits 32 bits.
    fn u32(&mut self) -> Result<u32> {
        let line = self.peek().line;
        let value = self.int()?;
        u32::try_from(value).map_err(|_| ParseError::new(line, "number out of range", ""))
    }

    /// Skips a `{ ... }` block with everything in it.
    fn skip_block(&mut self) -> Result<()> {
        self.expect("{")?;
        let mut depth = 1;
        while depth > 0 {
            if self.peek().kind == Kind::End {
                return Err(self.unexpected("`}`"));
            }
            if self.is("{") {
                depth += 1;
            } else if self.is("}") {
                depth -= 1;
            }
            self.next();
        }
        Ok(())
    }
}

/// Value of an integer literal: decimal, hexadecimal, octal or binary, with an optional `U`.
fn integer(text: &str) -> Option<u64> {
    let text = text.strip_suffix('U').unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16).ok()
    } else if let Some(bin) = text.strip_prefix("0b") {
        u64::from_str_radix(bin, 2).ok()
    } else if text.len() > 1 && text.starts_with('0') {
        u64::from_str_radix(text, 8).ok()
    } else {
        text.parse().ok()
    }
}
