//! The interface: modules, a GPU with its memory, launches.

use std::collections::BTreeMap;

use crate::counters::Counters;
use crate::ir::Kernel;
use crate::lower::{self, Image};
use crate::machine::{self, Geometry};
use crate::mem::global::Global;
use crate::parse::{self, ParseError};
use crate::report::Fault;

/// What the machine checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checks {
    /// Accesses that nothing orders.
    pub races: bool,
    /// Uninitialised values that reach memory, addresses or control flow.
    pub poison: bool,
    /// Also those stored to shared memory. Off, the poison travels through shared memory.
    pub poison_in_shared: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Checks { races: true, poison: true, poison_in_shared: true }
    }
}

/// How to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Picks the schedule and every other free choice.
    pub seed: u64,
    /// What to check.
    pub checks: Checks,
    /// Thread-instructions a launch may take before it counts as a livelock.
    pub max_instructions: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { seed: 1, checks: Checks::default(), max_instructions: 1_000_000_000 }
    }
}

impl Config {
    /// The default configuration with a seed.
    pub fn with_seed(seed: u64) -> Self {
        Config { seed, ..Config::default() }
    }
}

/// A parsed PTX module.
#[derive(Debug)]
pub struct Module {
    kernels: BTreeMap<String, Kernel>,
    images: Vec<Image>,
}

impl Module {
    /// Parses PTX text; `file` names it in errors.
    pub fn parse(text: &str, file: &str) -> Result<Module, ParseError> {
        let named = |e: ParseError| ParseError { file: file.to_string(), ..e };
        let ast = parse::parse(text).map_err(named)?;
        let lines: Vec<&str> = text.lines().collect();
        let (symbols, images) = lower::link(&ast).map_err(named)?;
        let mut kernels = BTreeMap::new();
        for entry in ast.functions.iter().filter(|f| f.entry && f.body.is_some()) {
            let kernel = lower::lower_kernel(&ast, entry, &symbols, &lines).map_err(named)?;
            kernels.insert(kernel.name.clone(), kernel);
        }
        Ok(Module { kernels, images })
    }

    /// Names of the kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.keys().map(String::as_str)
    }

    /// The kernel whose name contains `part`, as mangled names are long; `None` unless it is one.
    pub fn find(&self, part: &str) -> Option<&str> {
        let mut found = self.kernels().filter(|name| name.contains(part));
        let name = found.next()?;
        found.next().is_none().then_some(name)
    }

    /// Device address of a module-scope variable.
    pub fn address_of(&self, variable: &str) -> Option<u64> {
        self.images.iter().find(|i| i.name == variable).map(|i| i.address)
    }

    /// Bytes of static shared memory of a kernel.
    pub fn static_shared_bytes(&self, kernel: &str) -> Option<usize> {
        self.kernels.get(kernel).map(|k| k.static_shared_end - crate::ir::SHARED_BASE)
    }
}

/// A kernel argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arg(Vec<u8>);

macro_rules! arg_from {
    ($($t:ty)*) => {$(
        impl From<$t> for Arg {
            fn from(value: $t) -> Arg {
                Arg(value.to_le_bytes().to_vec())
            }
        }
    )*};
}

arg_from!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

impl Arg {
    /// A structure passed by value.
    pub fn bytes(bytes: &[u8]) -> Arg {
        Arg(bytes.to_vec())
    }
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

impl Launch {
    /// A launch without clusters and dynamic shared memory.
    pub fn new(grid: impl Into<Dim3>, block: impl Into<Dim3>) -> Self {
        Launch { grid: grid.into().0, block: block.into().0, cluster: [1; 3], shared_bytes: 0 }
    }

    /// With dynamic shared memory.
    pub fn shared(self, bytes: u32) -> Self {
        Launch { shared_bytes: bytes, ..self }
    }

    /// With clusters.
    pub fn cluster(self, cluster: impl Into<Dim3>) -> Self {
        Launch { cluster: cluster.into().0, ..self }
    }
}

/// One to three extents.
#[derive(Clone, Copy, Debug)]
pub struct Dim3([u32; 3]);

impl From<u32> for Dim3 {
    fn from(x: u32) -> Self {
        Dim3([x, 1, 1])
    }
}

impl From<(u32, u32)> for Dim3 {
    fn from((x, y): (u32, u32)) -> Self {
        Dim3([x, y, 1])
    }
}

impl From<[u32; 3]> for Dim3 {
    fn from(v: [u32; 3]) -> Self {
        Dim3(v)
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The launch or the memory access from the host is not possible as asked.
    #[error("{0}")]
    Invalid(String),
    /// The kernel did something wrong.
    #[error(transparent)]
    Fault(#[from] Box<Fault>),
}

fn invalid(text: impl Into<String>) -> Error {
    Error::Invalid(text.into())
}

/// A GPU: device memory and a configuration.
#[derive(Debug, Default)]
pub struct Gpu {
    global: Global,
    config: Config,
    launches: u64,
}

impl Gpu {
    /// An empty GPU.
    pub fn new(config: Config) -> Self {
        Gpu { config, ..Gpu::default() }
    }

    /// Allocates uninitialised memory; its address is a multiple of 256.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        self.global.alloc(bytes)
    }

    /// Allocates memory that holds `data`.
    pub fn upload(&mut self, data: &[u8]) -> u64 {
        let address = self.alloc(data.len());
        if let Some((buffer, _)) = self.global.locate(address, data.len()) {
            self.global.buffer_mut(buffer).bytes.store(0, data);
        }
        address
    }

    /// Frees memory that [`Gpu::alloc`] returned.
    pub fn free(&mut self, address: u64) -> Result<(), Error> {
        if self.global.free(address) { Ok(()) } else { Err(invalid("no buffer starts there")) }
    }

    /// Copies from the host.
    pub fn copy_to(&mut self, address: u64, data: &[u8]) -> Result<(), Error> {
        let found = self.global.locate(address, data.len());
        let (buffer, offset) = found.ok_or_else(|| invalid("copy outside of a buffer"))?;
        self.global.buffer_mut(buffer).bytes.store(offset, data);
        Ok(())
    }

    /// Copies to the host. Bytes that were never written read as 0xff.
    pub fn copy_from(&mut self, address: u64, bytes: usize) -> Result<Vec<u8>, Error> {
        let found = self.global.locate(address, bytes);
        let (buffer, offset) = found.ok_or_else(|| invalid("copy outside of a buffer"))?;
        Ok(self.global.buffer(buffer).bytes.slice(offset, bytes).to_vec())
    }

    /// Whether every byte of a range was written.
    pub fn is_initialised(&mut self, address: u64, bytes: usize) -> bool {
        let found = self.global.locate(address, bytes);
        found.is_some_and(|(buffer, at)| !self.global.buffer(buffer).bytes.is_poisoned(at, bytes))
    }

    /// Runs a kernel to its end.
    pub fn launch(&mut self, module: &Module, kernel: &str, launch: Launch, args: &[Arg]) -> Result<Counters, Error> {
        let found = module.kernels.get(kernel);
        let kernel = found.ok_or_else(|| invalid(format!("no kernel {kernel} in the module")))?;
        let geometry = geometry(kernel, launch)?;
        let params = pack(kernel, args)?;
        for image in &module.images {
            self.global.place(image.address, &image.bytes, image.read_only);
        }
        self.launches += 1;
        let seed = self.config.seed.wrapping_add(self.launches << 32);
        let (counters, result) = machine::run(kernel, &mut self.global, &self.config, seed, geometry, params);
        result?;
        Ok(counters)
    }
}

fn geometry(kernel: &Kernel, launch: Launch) -> Result<Geometry, Error> {
    let volume = |v: [u32; 3]| v.iter().map(|&n| n as u64).product::<u64>();
    let threads = volume(launch.block);
    if threads == 0 || threads > 1024 || launch.block[2] > 64 {
        return Err(invalid(format!("a block of {:?} threads", launch.block)));
    }
    if volume(launch.grid) == 0 || volume(launch.grid) > u32::MAX as u64 {
        return Err(invalid(format!("a grid of {:?} blocks", launch.grid)));
    }
    if let Some(max) = kernel.bounds.max_threads.filter(|&max| threads > max as u64) {
        return Err(invalid(format!("{threads} threads, but the kernel allows {max}")));
    }
    if kernel.bounds.required_threads.is_some_and(|r| r != launch.block) {
        return Err(invalid("the block differs from what the kernel requires"));
    }
    let cluster = match kernel.bounds.required_cluster {
        Some(required) if launch.cluster == [1; 3] => required,
        Some(required) if launch.cluster != required => {
            return Err(invalid("the cluster differs from what the kernel requires"));
        }
        _ => launch.cluster,
    };
    let fits = (0..3).all(|i| cluster[i] > 0 && launch.grid[i].is_multiple_of(cluster[i]));
    if !fits || volume(cluster) > 16 {
        return Err(invalid(format!("clusters of {cluster:?} in a grid of {:?}", launch.grid)));
    }
    let shared = kernel.dynamic_shared as u64 + launch.shared_bytes as u64;
    if shared > crate::ir::SHARED_BASE as u64 + 227 * 1024 {
        return Err(invalid(format!("{} bytes of shared memory", launch.shared_bytes)));
    }
    let (grid, block) = (launch.grid, launch.block);
    Ok(Geometry { grid, block, cluster, dynamic_shared: launch.shared_bytes })
}

/// The parameter space of a launch.
fn pack(kernel: &Kernel, args: &[Arg]) -> Result<Vec<u8>, Error> {
    if args.len() != kernel.params.len() {
        let (given, taken) = (args.len(), kernel.params.len());
        return Err(invalid(format!("{given} arguments, but the kernel takes {taken}")));
    }
    let mut params = vec![0; kernel.param_bytes];
    for (i, (arg, param)) in args.iter().zip(&kernel.params).enumerate() {
        if arg.0.len() != param.bytes {
            let (given, taken) = (arg.0.len(), param.bytes);
            return Err(invalid(format!("argument {i} has {given} bytes, the parameter {taken}")));
        }
        params[param.offset..param.offset + param.bytes].copy_from_slice(&arg.0);
    }
    Ok(params)
}
