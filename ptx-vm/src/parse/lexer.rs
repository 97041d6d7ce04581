//! PTX text to tokens. Every token knows its line, because every later error must name it.

use super::ParseError;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Identifier, register, directive or opcode: anything starting with a letter, `_`, `$`, `%` or `.`.
    Word,
    /// A literal starting with a digit: `12`, `0x1F`, `0f3F800000`, `1.5`.
    Number,
    /// A quoted string, without its quotes.
    Text,
    /// One punctuation character.
    Punct,
    /// End of input.
    End,
}

/// A token of the source text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    pub line: u32,
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// Splits `src` into tokens, ending with one of kind [`Kind::End`].
pub(crate) fn tokenize(src: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = src.as_bytes();
    let mut tokens = Vec::with_capacity(src.len() / 4);
    let (mut at, mut line) = (0, 1u32);
    while at < bytes.len() {
        let c = bytes[at];
        if c == b'\n' {
            line += 1;
            at += 1;
        } else if c.is_ascii_whitespace() {
            at += 1;
        } else if bytes[at..].starts_with(b"//") {
            at += bytes[at..].iter().position(|&b| b == b'\n').unwrap_or(bytes.len() - at);
        } else if bytes[at..].starts_with(b"/*") {
            let end = src[at..].find("*/").ok_or_else(|| error(line, "comment without end"))?;
            line += count_lines(&src[at..at + end]);
            at += end + 2;
        } else {
            let (kind, len) = measure(src, at, line)?;
            let text = match kind {
                Kind::Text => &src[at + 1..at + len - 1],
                _ => &src[at..at + len],
            };
            tokens.push(Token { kind, text, line });
            line += count_lines(text);
            at += len;
        }
    }
    tokens.push(Token { kind: Kind::End, text: "", line });
    Ok(tokens)
}

/// Kind and length in bytes of the token starting at `at`.
fn measure(src: &str, at: usize, line: u32) -> Result<(Kind, usize), ParseError> {
    let bytes = &src.as_bytes()[at..];
    let c = bytes[0];
    if c == b'"' {
        let end = src[at + 1..].find('"').ok_or_else(|| error(line, "string without end"))?;
        return Ok((Kind::Text, end + 2));
    }
    if c.is_ascii_digit() {
        let len = bytes.iter().position(|&b| !(b.is_ascii_alphanumeric() || b == b'.'));
        return Ok((Kind::Number, len.unwrap_or(bytes.len())));
    }
    if is_word(c) {
        let mut len = 1;
        while len < bytes.len() {
            if is_word(bytes[len]) {
                len += 1;
            } else if bytes[len..].starts_with(b"::") {
                len += 2;
            } else {
                break;
            }
        }
        return Ok((Kind::Word, len));
    }
    if c.is_ascii_punctuation() {
        return Ok((Kind::Punct, 1));
    }
    Err(error(line, "a character that PTX does not use"))
}

fn count_lines(text: &str) -> u32 {
    text.bytes().filter(|&b| b == b'\n').count() as u32
}

fn error(line: u32, what: &str) -> ParseError {
    ParseError::new(line, what, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_lines() {
        let t = tokenize("a.b::c %r1, 0x1F; // gone\n$L: [x+-4]").unwrap();
        let texts: Vec<_> = t.iter().map(|t| t.text).collect();
        assert_eq!(texts, ["a.b::c", "%r1", ",", "0x1F", ";", "$L", ":", "[", "x", "+", "-", "4", "]", ""]);
        assert_eq!(t[5].line, 2);
    }

    #[test]
    fn errors_name_the_line() {
        assert_eq!(tokenize("a\n/* b").unwrap_err().line, 2);
        assert_eq!(tokenize("\n\"b").unwrap_err().line, 2);
        assert_eq!(tokenize("é").unwrap_err().line, 1);
    }
}
