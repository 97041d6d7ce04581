//! Opcode forms: the patterns in which the families list what they accept, and the parts of one being decoded.
//!
//! In a pattern `(a|b)` stands for one of the alternatives, `[a|b]` for one or none, and `{a|b}` for one or none
//! where the choice does not change what the instruction does (cache hints).

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    One,
    Optional,
    Hint,
}

#[derive(Debug)]
enum Node {
    Text(&'static str),
    Choice(Kind, Vec<Vec<Node>>),
}

/// A pattern of opcode forms.
#[derive(Debug)]
pub(crate) struct Pattern(Vec<Node>);

impl Pattern {
    pub fn new(text: &'static str) -> Pattern {
        Pattern(sequence(&mut &*text))
    }

    /// Whether `opcode` is one of the forms.
    pub fn matches(&self, opcode: &str) -> bool {
        rests(&self.0, opcode).iter().any(|rest| rest.is_empty())
    }

    /// Every form; hints one at a time, with the first choice everywhere else.
    pub fn forms(&self) -> Vec<String> {
        let (mut plain, hinted) = expand(&self.0);
        plain.extend(hinted);
        plain
    }
}

/// What comes before the first part of a pattern that can vary, without modifiers: its opcode.
pub(crate) fn base(text: &str) -> &str {
    text.split(['.', '(', '[', '{']).next().unwrap_or("")
}

/// Reads nodes up to the end of an alternative.
fn sequence(text: &mut &'static str) -> Vec<Node> {
    let mut nodes = vec![];
    loop {
        let end = text.find(['(', '[', '{', '|', ')', ']', '}']).unwrap_or(text.len());
        if end > 0 {
            nodes.push(Node::Text(&text[..end]));
        }
        *text = &text[end..];
        let kind = match text.as_bytes().first() {
            Some(b'(') => Kind::One,
            Some(b'[') => Kind::Optional,
            Some(b'{') => Kind::Hint,
            _ => return nodes,
        };
        let mut options = vec![];
        loop {
            *text = &text[1..];
            options.push(sequence(text));
            if !text.starts_with('|') {
                break;
            }
        }
        *text = &text[1..];
        nodes.push(Node::Choice(kind, options));
    }
}

/// What can remain of `text` behind `nodes`.
fn rests<'t>(nodes: &[Node], text: &'t str) -> Vec<&'t str> {
    let Some((first, others)) = nodes.split_first() else { return vec![text] };
    match first {
        Node::Text(part) => text.strip_prefix(part).map_or(vec![], |rest| rests(others, rest)),
        Node::Choice(kind, options) => {
            let mut found: Vec<&str> = options.iter().flat_map(|o| rests(o, text)).collect();
            if *kind != Kind::One {
                found.push(text);
            }
            found.into_iter().flat_map(|rest| rests(others, rest)).collect()
        }
    }
}

/// The forms without and with a hint.
fn expand(nodes: &[Node]) -> (Vec<String>, Vec<String>) {
    let (mut plain, mut hinted) = (vec![String::new()], vec![]);
    for node in nodes {
        let (options, with_hint) = match node {
            Node::Text(part) => (vec![part.to_string()], vec![]),
            Node::Choice(kind, options) => {
                let mut all: Vec<String> = if *kind == Kind::One { vec![] } else { vec![String::new()] };
                let inner = options.iter().flat_map(|o| expand(o).0);
                if *kind == Kind::Hint {
                    (all, inner.collect())
                } else {
                    (all.drain(..).chain(inner).collect(), vec![])
                }
            }
        };
        for form in &mut hinted {
            *form = format!("{form}{}", options[0]);
        }
        hinted.extend(with_hint.iter().map(|hint| format!("{}{hint}", plain[0])));
        plain = plain.iter().flat_map(|form| options.iter().map(move |o| format!("{form}{o}"))).collect();
    }
    (plain, hinted)
}

/// The dotted parts of an opcode, taken from the front as a family recognises them.
pub(crate) struct Form<'a> {
    full: &'a str,
    parts: Vec<&'a str>,
    at: usize,
}

impl<'a> Form<'a> {
    pub fn new(full: &'a str) -> Self {
        Form { full, parts: full.split('.').collect(), at: 0 }
    }

    pub fn full(&self) -> &'a str {
        self.full
    }

    /// The next part, or "" at the end.
    pub fn peek(&self) -> &'a str {
        self.parts.get(self.at).copied().unwrap_or("")
    }

    pub fn next(&mut self) -> &'a str {
        let part = self.peek();
        self.at += 1;
        part
    }

    /// Takes the next part if it is `word`.
    pub fn take(&mut self, word: &str) -> bool {
        let found = self.peek() == word && !word.is_empty();
        self.at += found as usize;
        found
    }

    /// Takes the next part if `parse` knows it.
    pub fn take_with<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let found = parse(self.peek());
        self.at += found.is_some() as usize;
        found
    }

    pub fn require(&mut self, word: &str) -> Result<(), String> {
        if self.take(word) { Ok(()) } else { Err(self.unknown()) }
    }

    pub fn ty(&mut self) -> Result<crate::types::Ty, String> {
        self.take_with(crate::types::Ty::parse).ok_or_else(|| self.unknown())
    }

    /// Fails if parts are left that no one has recognised.
    pub fn end(&self) -> Result<(), String> {
        if self.at >= self.parts.len() { Ok(()) } else { Err(self.unknown()) }
    }

    pub fn unknown(&self) -> String {
        format!("unknown form of {} at .{}", self.parts[0], self.peek())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_and_list_their_forms() {
        let p = Pattern::new("ld[.weak|.acquire(.cta|.gpu)]{.ca|.cg}.(b8|b16)");
        assert!(["ld.b8", "ld.weak.cg.b16", "ld.acquire.gpu.b8"].iter().all(|o| p.matches(o)));
        assert!(["ld", "ld.acquire.b8", "ld.ca.cg.b8", "ld.b8.b8", "ld.b8x"].iter().all(|o| !p.matches(o)));
        let forms = p.forms();
        assert_eq!(forms.len(), 4 * 2 + 2, "{forms:?}");
        assert!(forms.iter().all(|f| p.matches(f)) && forms.contains(&"ld.cg.b8".to_string()));
    }
}
