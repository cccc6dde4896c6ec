//! What the caches need from the machine.

use core::fmt;

use memvisor_abi::{CacheCpu, CacheNode, MAX_CACHES, Track};
use mm_core::{CpuLocal, Gfp, MemMap, PageAlloc, PhysAddr, PhysMem};

use crate::{Cache, CacheId, Options};

/// A CPU's part of all caches.
pub type CpuCaches = [CacheCpu; MAX_CACHES];

/// An object of a cache, by the physical address of its first byte. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Object(pub(crate) u64);

impl Object {
    /// What an allocation of no bytes gives (Linux: `ZERO_SIZE_PTR`). It may be freed, and has no bytes.
    pub const ZERO_SIZE: Object = Object(16);

    /// The object at `addr`, for handles that went through memory. [`crate::Kmem`] checks it when it is used.
    pub const fn new(addr: PhysAddr) -> Object {
        Object(addr.as_u64())
    }

    /// Its first byte.
    pub const fn addr(self) -> PhysAddr {
        PhysAddr::new(self.0)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {:#x}", self.0)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The machine under the caches.
pub trait Machine {
    /// Descriptors.
    type Map: MemMap;
    /// Contents of frames.
    type Mem: PhysMem;
    /// Pages.
    type Pages: PageAlloc;
    /// Per-CPU data.
    type Cpus: CpuLocal<CpuCaches>;

    /// Descriptors of all frames.
    fn map(&self) -> &Self::Map;

    /// Contents of frames.
    fn mem(&self) -> &Self::Mem;

    /// The page allocator.
    fn pages(&self) -> &Self::Pages;

    /// Each CPU's part of the caches, at first all zeroes.
    fn cpus(&self) -> &Self::Cpus;

    /// The table of caches, at first all empty.
    fn caches(&self) -> &[Cache; MAX_CACHES];

    /// What the command line says.
    fn options(&self) -> Options;

    /// CPUs that can run.
    fn nr_cpus(&self) -> u32;

    /// Nodes, numbered from 0.
    fn nr_nodes(&self) -> u32;

    /// Node of a CPU.
    fn node_of(&self, cpu: u32) -> u32;

    /// Calls `f` with a node's part of a cache, under its list lock.
    fn with_node<R>(&self, cache: CacheId, node: u32, f: impl FnOnce(&mut CacheNode) -> R) -> R;

    /// Calls `f` while nobody else creates or destroys a cache (Linux: `slab_mutex`).
    fn with_caches<R>(&self, f: impl FnOnce() -> R) -> R;

    /// Waits until every reader that began before has ended; the caller may hold locks (Linux: `synchronize_rcu`, and the `call_rcu` of
    /// `free_slab`, which need not wait).
    fn synchronize_rcu(&self);

    /// Whether a request is to fail though there is memory (Linux: `should_failslab`).
    fn should_failslab(&self, cache: CacheId, gfp: Gfp) -> bool;

    /// Writes a new object of `size` bytes. A constructor is a number, because an outsider cannot read a function's name.
    fn construct(&self, ctor: u32, object: Object, size: u32);

    /// Who runs now, and how it came here.
    fn track(&self) -> Track;

    /// Says a line on the console.
    fn report(&self, line: fmt::Arguments<'_>);
}
