//! Lowers an entry and the functions it calls into one kernel.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Callee, Cx, Scope, Symbol};
use crate::ir::{Instr, Kernel, Param, Pred, SHARED_BASE, Source};
use crate::isa;
use crate::parse::ParseError;
use crate::parse::ast::{self, Function, Module, Operand, Stmt, VarSpace, Variable};
use crate::types::Ty;

/// Most registers a kernel may declare; real kernels stay far below.
const MAX_REGS: u32 = 1 << 16;

type Result<T> = std::result::Result<T, ParseError>;

/// Lowers `entry`. `module` holds the addresses of module variables.
pub(crate) fn lower_kernel<'a>(
    ast: &'a Module<'a>,
    entry: &'a Function<'a>,
    module: &'a HashMap<&'a str, Symbol>,
    lines: &[&str],
) -> Result<Kernel> {
    let functions = reachable(ast, entry)?;
    let mut cx = Cx {
        scopes: vec![Scope::default()],
        module,
        num_regs: 0,
        num_preds: 1,
        constants: vec![],
        constant_of: HashMap::new(),
        specials: vec![],
        local_bytes: 0,
        shared_end: SHARED_BASE,
        callees: BTreeMap::new(),
        uses: vec![],
        defs: vec![],
        decoders: HashMap::new(),
        uses_wgmma: false,
    };
    let used = names_used(&functions);
    let dynamic_align = cx.shared_variables(&ast.variables, &used);
    cx.place_callees(&functions);
    let (params, param_bytes) = cx.kernel_params(entry);
    let mut code = vec![];
    let mut sources = vec![];
    for function in &functions {
        cx.lower_body(function, &mut code, &mut sources).map_err(|mut e: ParseError| {
            e.text = lines.get(e.line as usize - 1).map_or("", |l| l.trim()).to_string();
            e
        })?;
    }
    let dynamic_shared = cx.shared_end.next_multiple_of(dynamic_align);
    // Dynamic shared memory has a placeholder so far: its place is known only now.
    for constant in &mut cx.constants {
        if *constant >> 32 == DYNAMIC >> 32 {
            *constant = *constant - DYNAMIC + dynamic_shared as u64;
        }
    }
    Ok(Kernel {
        name: entry.name.to_string(),
        code,
        sources,
        files: ast.files.iter().map(|&(n, name)| (n, Arc::from(name))).collect(),
        num_regs: cx.num_regs as usize,
        num_preds: cx.num_preds as usize,
        constants: cx.constants,
        specials: cx.specials,
        params,
        param_bytes,
        static_shared_end: cx.shared_end,
        dynamic_shared,
        local_bytes: cx.local_bytes,
        bounds: entry.bounds,
        uses_wgmma: cx.uses_wgmma,
    })
}

/// Placeholder base of dynamic shared memory; see `lower_kernel`.
const DYNAMIC: u64 = 0x7fff_dead_0000_0000;

/// `entry` and every function it may call, each once, callers first. Recursion is refused.
fn reachable<'a>(ast: &'a Module<'a>, entry: &'a Function<'a>) -> Result<Vec<&'a Function<'a>>> {
    fn visit<'a>(
        ast: &'a Module<'a>,
        function: &'a Function<'a>,
        path: &mut Vec<&'a str>,
        out: &mut Vec<&'a Function<'a>>,
    ) -> Result<()> {
        if path.contains(&function.name) {
            return Err(ParseError::new(function.line, "recursion is not supported", function.name));
        }
        if path.len() > 64 {
            return Err(ParseError::new(function.line, "calls nested too deeply", function.name));
        }
        path.push(function.name);
        if !out.iter().any(|f| f.name == function.name) {
            out.push(function);
        }
        for stmt in function.body.as_deref().unwrap_or_default() {
            let Stmt::Instr(instr) = stmt else { continue };
            if !instr.opcode.starts_with("call") {
                continue;
            }
            for operand in &instr.operands {
                let Operand::Name { name, .. } = operand else {
                    continue;
                };
                let callee = ast.functions.iter().find(|f| f.name == *name && f.body.is_some());
                if let Some(callee) = callee {
                    visit(ast, callee, path, out)?;
                }
            }
        }
        path.pop();
        Ok(())
    }
    let mut out = vec![];
    visit(ast, entry, &mut vec![], &mut out)?;
    Ok(out)
}

/// Every name that an operand of the functions mentions.
fn names_used<'a>(functions: &[&'a Function<'a>]) -> BTreeSet<&'a str> {
    fn collect<'a>(operand: &'a Operand<'a>, out: &mut BTreeSet<&'a str>) {
        match operand {
            Operand::Name { name, .. } => drop(out.insert(name)),
            Operand::Memory { base, extra, .. } => {
                out.extend(base);
                extra.iter().for_each(|x| collect(x, out));
            }
            Operand::Vector(items) | Operand::List(items) => {
                items.iter().for_each(|x| collect(x, out));
            }
            Operand::Pair(a, b) => {
                collect(a, out);
                collect(b, out);
            }
            Operand::Int(_) | Operand::F32(_) | Operand::F64(_) => {}
        }
    }
    let mut out = BTreeSet::new();
    for function in functions {
        for stmt in function.body.as_deref().unwrap_or_default() {
            if let Stmt::Instr(instr) = stmt {
                instr.operands.iter().for_each(|x| collect(x, &mut out));
            }
        }
    }
    out
}

fn instructions(function: &Function) -> u32 {
    let body = function.body.as_deref().unwrap_or_default();
    // One more: the return at the end, which may be left out.
    body.iter().filter(|s| matches!(s, Stmt::Instr(_))).count() as u32 + 1
}

impl<'a> Cx<'a> {
    /// Places the module-scope shared variables that are used; returns the alignment of dynamic ones.
    fn shared_variables(&mut self, variables: &[Variable<'a>], used: &BTreeSet<&str>) -> usize {
        let mut dynamic_align = 16;
        for variable in variables.iter().filter(|v| used.contains(v.name)) {
            if variable.space == VarSpace::Shared {
                if variable.bytes.is_none() {
                    dynamic_align = dynamic_align.max(variable.align);
                }
                self.declare_variable(variable);
            }
        }
        dynamic_align
    }

    fn declare(&mut self, name: &'a str, symbol: Symbol) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.symbols.insert(name, symbol);
        }
    }

    /// Gives a shared or per-thread variable its address.
    fn declare_variable(&mut self, variable: &Variable<'a>) {
        let address = match (variable.space, variable.bytes) {
            (VarSpace::Shared, None) => DYNAMIC,
            (VarSpace::Shared, Some(bytes)) => {
                let at = self.shared_end.next_multiple_of(variable.align);
                self.shared_end = at + bytes;
                at as u64
            }
            _ => self.local(variable),
        };
        let space = if variable.space == VarSpace::Shared { VarSpace::Shared } else { VarSpace::Local };
        self.declare(variable.name, Symbol::Address(space, address));
    }

    /// Per-thread memory for a variable or a parameter of a call.
    fn local(&mut self, variable: &Variable) -> u64 {
        // Address 0 stays invalid.
        let at = self.local_bytes.max(16).next_multiple_of(variable.align);
        self.local_bytes = at + variable.bytes.unwrap_or(0);
        at as u64
    }

    fn place_callees(&mut self, functions: &[&'a Function<'a>]) {
        let mut entry = instructions(functions[0]);
        for function in &functions[1..] {
            let mut place =
                |vars: &[Variable]| vars.iter().map(|v| (self.local(v), v.bytes.unwrap_or(0))).collect::<Vec<_>>();
            let callee = Callee { entry, params: place(&function.params), returns: place(&function.returns) };
            self.callees.insert(function.name.to_string(), callee);
            entry += instructions(function);
        }
    }

    fn kernel_params(&mut self, entry: &Function<'a>) -> (Vec<Param>, usize) {
        let mut params = vec![];
        let mut end = 0usize;
        for variable in &entry.params {
            let offset = end.next_multiple_of(variable.align);
            let bytes = variable.bytes.unwrap_or(0);
            self.declare(variable.name, Symbol::Address(VarSpace::Param, offset as u64));
            params.push(Param { offset, bytes });
            end = offset + bytes;
        }
        (params, end)
    }

    fn lower_body(
        &mut self,
        function: &'a Function<'a>,
        code: &mut Vec<Instr>,
        sources: &mut Vec<Source>,
    ) -> Result<()> {
        let body = function.body.as_deref().unwrap_or_default();
        let mut blocks = label_blocks(body, code.len() as u32).into_iter();
        self.open(&mut blocks);
        if let Some(callee) = self.callees.get(function.name).cloned() {
            let formals = function.params.iter().chain(&function.returns);
            for (variable, (at, _)) in formals.zip(callee.params.iter().chain(&callee.returns)) {
                self.declare(variable.name, Symbol::Address(VarSpace::Local, *at));
            }
        }
        let mut loc = (0, 0);
        let mut last_line = function.line;
        for stmt in body {
            match stmt {
                Stmt::Open => self.open(&mut blocks),
                Stmt::Close => drop(self.scopes.pop()),
                Stmt::Label(_) => {}
                Stmt::Loc { file, line } if *line > 0 => loc = (*file, *line),
                Stmt::Loc { .. } => {}
                Stmt::Registers(ty, names) => self.registers(*ty, names, last_line)?,
                Stmt::Variable(variable) => match variable.space {
                    VarSpace::Global | VarSpace::Const => {
                        let what = "global variables inside functions are not supported";
                        return Err(ParseError::new(variable.line, what, ""));
                    }
                    _ => self.declare_variable(variable),
                },
                Stmt::Instr(instr) => {
                    last_line = instr.line;
                    code.push(self.instruction(instr)?);
                    sources.push(source(instr.line, instr.opcode, loc));
                }
            }
        }
        self.scopes.pop();
        let op = isa::Op::Control(isa::control::Control::Return);
        code.push(Instr { guard: None, op, uses: Box::default(), defs: Box::default() });
        sources.push(source(last_line, "ret", loc));
        Ok(())
    }

    fn open(&mut self, blocks: &mut impl Iterator<Item = HashMap<&'a str, u32>>) {
        let labels = blocks.next().unwrap_or_default();
        self.scopes.push(Scope { labels, ..Scope::default() });
    }

    fn registers(&mut self, ty: Ty, names: &[(&'a str, Option<u32>)], line: u32) -> Result<()> {
        for &(name, count) in names {
            let n = count.unwrap_or(1);
            let pool = if ty == Ty::Pred { &mut self.num_preds } else { &mut self.num_regs };
            let first = *pool;
            *pool = first
                .checked_add(n)
                .filter(|&total| total <= MAX_REGS)
                .ok_or_else(|| ParseError::new(line, "too many registers", name))?;
            if count.is_some() {
                if let Some(scope) = self.scopes.last_mut() {
                    scope.ranges.push((name, first, n, ty));
                }
            } else if ty == Ty::Pred {
                self.declare(name, Symbol::Pred(first));
            } else {
                self.declare(name, Symbol::Reg(crate::ir::Reg(first), ty.bytes()));
            }
        }
        Ok(())
    }

    fn instruction(&mut self, instr: &ast::Instr<'a>) -> Result<Instr> {
        self.uses.clear();
        self.defs.clear();
        let at = |message: String| ParseError::new(instr.line, message, "");
        let guard: Option<Pred> = match instr.guard {
            Some((name, negated)) => Some(self.guard(name, negated).map_err(at)?),
            None => None,
        };
        let op = isa::decode(self, instr.opcode, &instr.operands).map_err(at)?;
        let (uses, defs) = (self.uses.as_slice().into(), self.defs.as_slice().into());
        Ok(Instr { guard, op, uses, defs })
    }
}

fn source(ptx_line: u32, opcode: &str, (file, line): (u32, u32)) -> Source {
    Source { ptx_line, opcode: opcode.to_string(), file, line }
}

/// The labels of each block, in the order the blocks open: the body itself first.
fn label_blocks<'a>(body: &[Stmt<'a>], start: u32) -> Vec<HashMap<&'a str, u32>> {
    let mut blocks = vec![HashMap::new()];
    let mut open = vec![0];
    let mut at = start;
    for stmt in body {
        match stmt {
            Stmt::Open => {
                open.push(blocks.len());
                blocks.push(HashMap::new());
            }
            Stmt::Close => drop(open.pop()),
            Stmt::Label(name) => {
                if let Some(&block) = open.last() {
                    blocks[block].insert(*name, at);
                }
            }
            Stmt::Instr(_) => at += 1,
            _ => {}
        }
    }
    blocks
}
