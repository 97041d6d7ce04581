//! The syntax tree: PTX as written, names not yet resolved.

use crate::types::Ty;

/// A module: global variables, functions and the file table of `.loc`.
#[derive(Debug, Default)]
pub(crate) struct Module<'a> {
    pub target: &'a str,
    pub files: Vec<(u32, &'a str)>,
    pub variables: Vec<Variable<'a>>,
    pub functions: Vec<Function<'a>>,
}

/// State space named by a declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VarSpace {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// One declared variable or parameter.
#[derive(Clone, Debug)]
pub(crate) struct Variable<'a> {
    pub name: &'a str,
    pub space: VarSpace,
    pub ty: Ty,
    pub align: usize,
    /// `None` for `name[]`, whose size the launch gives.
    pub bytes: Option<usize>,
    pub init: Vec<Init<'a>>,
    pub line: u32,
}

/// One element of an initialiser.
#[derive(Clone, Debug)]
pub(crate) enum Init<'a> {
    Bits(u64),
    /// The address of another variable plus an offset; generic when written `generic(x)`.
    Address(&'a str, i64),
}

/// `.entry` or `.func`.
#[derive(Debug)]
pub(crate) struct Function<'a> {
    pub name: &'a str,
    pub entry: bool,
    pub returns: Vec<Variable<'a>>,
    pub params: Vec<Variable<'a>>,
    /// `None` for a declaration without body.
    pub body: Option<Vec<Stmt<'a>>>,
    pub bounds: Bounds,
    pub line: u32,
}

/// Launch bounds written on an entry.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bounds {
    pub max_threads: Option<u32>,
    pub required_threads: Option<[u32; 3]>,
    pub required_cluster: Option<[u32; 3]>,
    pub min_blocks: Option<u32>,
    pub max_registers: Option<u32>,
}

/// A statement of a function body, flat: `{` and `}` are statements.
#[derive(Debug)]
pub(crate) enum Stmt<'a> {
    Open,
    Close,
    Label(&'a str),
    Registers(Ty, Vec<(&'a str, Option<u32>)>),
    Variable(Variable<'a>),
    Loc { file: u32, line: u32 },
    Instr(Instr<'a>),
}

/// An instruction as written.
#[derive(Debug)]
pub(crate) struct Instr<'a> {
    /// Guard predicate and whether it is negated.
    pub guard: Option<(&'a str, bool)>,
    pub opcode: &'a str,
    pub operands: Vec<Operand<'a>>,
    pub line: u32,
}

/// An operand as written.
#[derive(Clone, Debug)]
pub(crate) enum Operand<'a> {
    /// Register, special register, label, symbol or `_`, with `!` in front or an offset behind.
    Name {
        name: &'a str,
        negated: bool,
        offset: i64,
    },
    Int(i64),
    /// Bits of a `0f` literal.
    F32(u32),
    /// Bits of a `0d` or decimal literal.
    F64(u64),
    Vector(Vec<Operand<'a>>),
    /// `[base + offset]`, or `[base, {coordinates}, ...]` of a tensor.
    Memory {
        base: Option<&'a str>,
        offset: i64,
        extra: Vec<Operand<'a>>,
    },
    /// `d|p`.
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `(a, b)` of a call.
    List(Vec<Operand<'a>>),
}
