//! What the machine reports: typed faults that name kernel, block, thread, source line and the other party.

use std::fmt;
use std::sync::Arc;

use crate::mem::shadow::Stamp;
use crate::types::Space;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultKind {
    /// An address outside every live allocation.
    #[error("{space:?} access out of bounds: {bytes} bytes at 0x{address:x}{}", limit.map_or(String::new(), |l| format!(", limit 0x{l:x}")))]
    OutOfBounds {
        /// State space of the access.
        space: Space,
        /// First byte.
        address: u64,
        /// Number of bytes.
        bytes: usize,
        /// End of the space, where it has one.
        limit: Option<u64>,
    },
    /// An address that is not a multiple of what the access needs.
    #[error("misaligned {space:?} access at 0x{address:x}: must be a multiple of {align}")]
    Misaligned {
        /// State space of the access.
        space: Space,
        /// First byte.
        address: u64,
        /// Required alignment.
        align: usize,
    },
    /// A value that was never written reaches memory, an address or control flow.
    #[error("uninitialised value {used}")]
    Poison {
        /// Where the value went.
        used: &'static str,
    },
    /// Two accesses, at least one a write, with no order between them.
    #[error("race: {access} of {space:?} 0x{address:x} is not ordered after an earlier {earlier}")]
    Race {
        /// What this access does.
        access: &'static str,
        /// What the other access did.
        earlier: &'static str,
        /// State space.
        space: Space,
        /// First byte in conflict.
        address: u64,
    },
    /// The async proxy touches memory that was written through the generic proxy without a
    /// `fence.proxy.async` between.
    #[error("async proxy {access}s shared 0x{address:x} written by a thread with no fence.proxy.async between")]
    MissingProxyFence {
        /// "read" or "write".
        access: &'static str,
        /// First byte in conflict.
        address: u64,
    },
    /// An access to bytes that an asynchronous copy is still moving.
    #[error("{access} of {space:?} 0x{address:x}, which an asynchronous copy not yet waited for is moving")]
    InFlight {
        /// What this access does.
        access: &'static str,
        /// State space.
        space: Space,
        /// First byte in conflict.
        address: u64,
    },
    /// A warp-level instruction whose lanes do not come together.
    #[error("divergent warp: {0}")]
    Divergent(String),
    /// Wrong use of `bar`/`barrier`.
    #[error("barrier: {0}")]
    Barrier(String),
    /// Wrong use of an mbarrier.
    #[error("mbarrier: {0}")]
    Mbarrier(String),
    /// Wrong use of an asynchronous copy.
    #[error("asynchronous copy: {0}")]
    Copy(String),
    /// Wrong use of wgmma.
    #[error("wgmma: {0}")]
    Wgmma(String),
    /// Wrong use of setmaxnreg.
    #[error("setmaxnreg: {0}")]
    Registers(String),
    /// Wrong use of a cluster.
    #[error("cluster: {0}")]
    Cluster(String),
    /// `trap` or a failed device assertion.
    #[error("trap")]
    Trap,
    /// No thread can go on.
    #[error("deadlock: {}", .0.join("; "))]
    Deadlock(Vec<String>),
    /// The instruction budget is used up.
    #[error("livelock: more than {0} thread-instructions")]
    Livelock(u64),
    /// Anything else that the ISA forbids.
    #[error("{0}")]
    Illegal(String),
}

/// A place in the source of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// File of the `.loc` line, where the PTX has line information.
    pub file: Option<Arc<str>>,
    /// Line in that file.
    pub line: u32,
    /// Line in the PTX.
    pub ptx_line: u32,
    /// The PTX opcode.
    pub opcode: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:{} ", file.rsplit('/').next().unwrap_or(file), self.line)?;
        }
        write!(f, "({}, PTX line {})", self.opcode, self.ptx_line)
    }
}

/// A thread, or the async proxy on its behalf, at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Block index in the grid.
    pub block: [u32; 3],
    /// Thread index in the block.
    pub thread: [u32; 3],
    /// Whether the async proxy acts for the thread.
    pub asynchronous: bool,
    /// The instruction.
    pub place: Place,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let proxy = if self.asynchronous { "async proxy of " } else { "" };
        write!(f, "{proxy}block {:?} thread {:?} at {}", self.block, self.thread, self.place)
    }
}

/// A fault with everything that is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What went wrong.
    pub kind: FaultKind,
    /// Name of the kernel.
    pub kernel: String,
    /// The thread that ran into it, unless the whole grid did.
    pub party: Option<Party>,
    /// The other side of a race or hazard.
    pub other: Option<Party>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: ", self.kernel)?;
        if let Some(party) = &self.party {
            write!(f, "{party}: ")?;
        }
        write!(f, "{}", self.kind)?;
        if let Some(other) = &self.other {
            write!(f, "; the other: {other}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// A fault on its way up: the family knows what and which lane, the machine adds the rest.
#[derive(Debug)]
pub(crate) struct Raise(pub Box<Raised>);

#[derive(Debug)]
pub(crate) struct Raised {
    pub kind: FaultKind,
    pub lane: Option<u32>,
    pub other: Option<Stamp>,
}

impl From<FaultKind> for Raise {
    fn from(kind: FaultKind) -> Self {
        Raise(Box::new(Raised { kind, lane: None, other: None }))
    }
}

impl Raise {
    /// Names the lane, unless it is named already.
    pub fn lane(mut self, lane: usize) -> Self {
        self.0.lane.get_or_insert(lane as u32);
        self
    }

    pub fn other(mut self, other: Stamp) -> Self {
        self.0.other = Some(other);
        self
    }
}
