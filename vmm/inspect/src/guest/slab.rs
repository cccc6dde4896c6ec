//! Slab caches: every slab, every free object, who keeps it. Bounds as in the module's text: a slab's free list is as long
//! as the slab has objects at most, a list of slabs as long as there are slabs.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::size_of;

use memvisor_abi as abi;
use memvisor_abi::{
    Cache, CacheCpu, CacheNode, MAX_CACHES, PAGE_SHIFT, PAGE_SIZE, PFN_NONE, Page, PageKind, SLOB_MAPPING,
    SlabCounters, SlabKind, SlabList,
};
use zerocopy::{FromZeros, IntoBytes};

use super::tables::Absent;
use super::{Guest, GuestError, TableName};
use crate::MemorySource;

/// A block of frames that holds objects.
#[derive(Clone, Debug)]
pub struct Slab {
    /// Its first frame.
    pub pfn: u64,
    /// The descriptor of that.
    pub page: Page,
    /// Number of its cache, if that exists; `None` also for SLOB's pages.
    pub cache: Option<usize>,
    /// Who manages it; `None` if its cache does not exist.
    pub kind: Option<SlabKind>,
    /// Address of the first object.
    pub first: u64,
    /// Counters of the descriptor; for SLOB, units of 8 bytes.
    pub counters: SlabCounters,
    /// Addresses of objects on its own free list (SLOB: of free blocks), as far as it could be followed.
    pub free: Vec<u64>,
    /// Units of the free blocks (SLOB).
    pub free_units: u64,
    /// Where the free list goes wrong, in words.
    pub problem: Option<String>,
}

impl Slab {
    /// Frames.
    pub fn frames(&self) -> u64 {
        1 << usize::from(self.page.order).min(abi::NR_ORDERS - 1)
    }

    /// Who owns a SLUB slab: a CPU's number plus 1, [`abi::SLAB_FULL`], or 0 for its node.
    pub fn owner(&self) -> u64 {
        self.page.private >> abi::SLAB_OWNER_SHIFT
    }

    /// Whether an object of a cache with this record starts at `addr`.
    pub fn is_place(&self, cache: &Cache, addr: u64) -> bool {
        let size = u64::from(cache.size).max(1);
        addr.checked_sub(self.first)
            .is_some_and(|from| from.is_multiple_of(size) && from / size < u64::from(self.counters.objects))
    }
}

/// Who keeps a free object that its slab counts as in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// The free list of a CPU's slab.
    CpuList(usize),
    /// A CPU's array.
    CpuArray(usize),
    /// A list of what other CPUs than this owner freed in a slab.
    ByOthers(u64),
    /// A node's shared array.
    Shared(usize),
    /// A node's row for another node.
    Alien(usize),
}

/// A list of slabs, walked.
#[derive(Clone, Debug, Default)]
pub struct SlabWalk {
    /// Heads, in order, as far as the links could be followed.
    pub slabs: Vec<u64>,
    /// Where it goes wrong, in words.
    pub problem: Option<String>,
}

/// All caches, as they were read.
#[derive(Debug, Default)]
pub struct Slabs {
    /// The table; slots with refcount 0 are unused.
    pub caches: Vec<Cache>,
    /// By CPU, then by cache.
    pub cpus: Vec<Vec<CacheCpu>>,
    /// By node, then by cache.
    pub nodes: Vec<Vec<CacheNode>>,
    /// By first frame.
    pub slabs: BTreeMap<u64, Slab>,
    /// Cache, address, and who keeps it.
    pub kept: Vec<(usize, u64, Keeper)>,
    /// What is wrong with the lists of CPUs, in words, with the cache.
    pub problems: Vec<(usize, String)>,
}

impl Slabs {
    /// Who manages the caches.
    pub fn kind(&self) -> Option<SlabKind> {
        self.caches
            .iter()
            .find(|cache| cache.refcount != 0)
            .and_then(|cache| SlabKind::from_raw(cache.allocator))
    }

    /// Caches in use, with their numbers.
    pub fn used(&self) -> impl Iterator<Item = (usize, &Cache)> {
        self.caches.iter().enumerate().filter(|(_, cache)| cache.refcount != 0)
    }

    /// Slabs of a cache.
    pub fn of(&self, cache: usize) -> impl Iterator<Item = &Slab> {
        self.slabs.values().filter(move |slab| slab.cache == Some(cache))
    }

    /// Follows a list through the slabs' descriptors.
    pub fn walk(&self, list: &SlabList) -> SlabWalk {
        let mut walk = SlabWalk::default();
        let mut seen = BTreeSet::new();
        let (mut at, mut previous) = (list.head, PFN_NONE);
        while at != PFN_NONE {
            let Some(slab) = self.slabs.get(&at) else {
                walk.problem = Some(format!("{at:#x} on the list is no slab"));
                return walk;
            };
            if !seen.insert(at) {
                walk.problem = Some(format!("the list comes back to {at:#x}"));
                return walk;
            }
            if slab.page.prev != previous {
                walk.problem =
                    Some(format!("the back link of {at:#x} is {:#x}, not {previous:#x}", slab.page.prev));
                return walk;
            }
            walk.slabs.push(at);
            (previous, at) = (at, slab.page.next);
        }
        if list.tail != previous {
            walk.problem = Some(format!("the tail is {:#x}, the last slab {previous:#x}", list.tail));
        }
        walk
    }

    /// Follows a list of a CPU's, of which only the head is known.
    pub fn walk_cpu(&self, head: u64) -> SlabWalk {
        let mut walk = SlabWalk::default();
        let mut seen = BTreeSet::new();
        let (mut at, mut previous) = (head, PFN_NONE);
        while at != PFN_NONE && walk.problem.is_none() {
            match self.slabs.get(&at) {
                None => walk.problem = Some(format!("{at:#x} on a CPU's list is no slab")),
                Some(_) if !seen.insert(at) => {
                    walk.problem = Some(format!("a CPU's list comes back to {at:#x}"));
                }
                Some(slab) if slab.page.prev != previous => {
                    let back = slab.page.prev;
                    walk.problem = Some(format!("the back link of {at:#x} is {back:#x}, not {previous:#x}"));
                }
                Some(slab) => {
                    walk.slabs.push(at);
                    (previous, at) = (at, slab.page.next);
                }
            }
        }
        walk
    }
}

/// A cache's name.
pub fn cache_name(cache: &Cache) -> String {
    let len = cache.name.iter().position(|byte| *byte == 0).unwrap_or(cache.name.len());
    String::from_utf8_lossy(cache.name.get(..len).unwrap_or(&[])).into_owned()
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// The table of slab caches; empty if the guest has not published it.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn caches(&self) -> Result<Vec<Cache>, GuestError> {
        self.table(TableName::Caches, self.root().caches, MAX_CACHES as u64, Absent::IsEmpty)
    }

    /// CPUs' parts of the caches, by CPU.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn cache_cpus(&self) -> Result<Vec<Vec<CacheCpu>>, GuestError> {
        let max = self.root().cpus.count.into();
        let tables: Vec<u64> =
            self.table(TableName::CacheCpus, self.root().cache_cpus, max, Absent::IsEmpty)?;
        let mut cpus = Vec::new();
        for (index, gpa) in tables.into_iter().enumerate() {
            if !self.source().is_ram(gpa, (MAX_CACHES * size_of::<CacheCpu>()) as u64) {
                let why = "the CPU's caches are not RAM";
                return Err(GuestError::Element {
                    table: TableName::CacheCpus,
                    index,
                    field: "address",
                    value: gpa,
                    why,
                });
            }
            let mut caches = vec![CacheCpu::new_zeroed(); MAX_CACHES];
            self.source().read(gpa, caches.as_mut_slice().as_mut_bytes())?;
            cpus.push(caches);
        }
        Ok(cpus)
    }

    /// Nodes' parts of the caches, by node.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn cache_nodes(&self) -> Result<Vec<Vec<CacheNode>>, GuestError> {
        let max = (abi::MAX_NUMNODES * MAX_CACHES) as u64;
        let flat: Vec<CacheNode> =
            self.table(TableName::CacheNodes, self.root().cache_nodes, max, Absent::IsEmpty)?;
        Ok(flat.chunks(MAX_CACHES).map(<[CacheNode]>::to_vec).collect())
    }

    /// Reads all caches, slabs and free objects.
    ///
    /// # Errors
    /// [`GuestError`] for tables that cannot be read; what is wrong inside slabs is part of the result.
    pub fn slabs(&self) -> Result<Slabs, GuestError> {
        let mut all = Slabs {
            caches: self.caches()?,
            cpus: self.cache_cpus()?,
            nodes: self.cache_nodes()?,
            ..Slabs::default()
        };
        if all.caches.is_empty() {
            return Ok(all);
        }
        let mut heads = Vec::new();
        self.for_each_page(|pfn, page| {
            if page.kind == PageKind::Slab as u8 {
                heads.push((pfn, *page));
            }
        })?;
        for (pfn, page) in heads {
            let slab = self.slab(&all.caches, pfn, page);
            all.slabs.insert(pfn, slab);
        }
        self.kept(&mut all);
        Ok(all)
    }

    /// A word of guest memory, if it is RAM.
    pub fn word(&self, gpa: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.source().is_ram(gpa, 8) && self.source().read(gpa, &mut bytes).is_ok())
            .then(|| u64::from_le_bytes(bytes))
    }

    fn slab(&self, caches: &[Cache], pfn: u64, page: Page) -> Slab {
        let index = usize::try_from(page.mapping).ok().filter(|index| {
            page.mapping != SLOB_MAPPING && caches.get(*index).is_some_and(|cache| cache.refcount != 0)
        });
        let cache = index.and_then(|index| caches.get(index));
        let kind = match cache {
            Some(cache) => SlabKind::from_raw(cache.allocator),
            None => (page.mapping == SLOB_MAPPING).then_some(SlabKind::Slob),
        };
        let start = pfn << PAGE_SHIFT;
        let counters = SlabCounters::from_raw(page.mapcount);
        let mut slab = Slab {
            pfn,
            page,
            cache: index,
            kind,
            first: start,
            counters,
            free: Vec::new(),
            free_units: 0,
            problem: None,
        };
        match (kind, cache) {
            (Some(SlabKind::Slub), Some(cache)) => {
                slab.first = start + u64::from(cache.red_left);
                self.slub_free(&mut slab, cache);
            }
            (Some(SlabKind::Slab), Some(cache)) => {
                slab.first = page.index;
                self.slab_free(&mut slab, cache);
            }
            (Some(SlabKind::Slob), _) => self.slob_free(&mut slab),
            _ => slab.problem = Some(format!("it names cache {}, which does not exist", page.mapping)),
        }
        slab
    }

    fn slub_free(&self, slab: &mut Slab, cache: &Cache) {
        let mut at = slab.page.index;
        while at != 0 {
            if !slab.is_place(cache, at) {
                slab.problem = Some(format!("free list leads to {at:#x}, where no object starts"));
                return;
            }
            if slab.free.contains(&at) {
                slab.problem = Some(format!("free list comes back to {at:#x}"));
                return;
            }
            slab.free.push(at);
            let Some(next) = self.word(at + u64::from(cache.offset)) else {
                slab.problem = Some(format!("link of {at:#x} cannot be read"));
                return;
            };
            at = next;
        }
    }

    fn slab_free(&self, slab: &mut Slab, cache: &Cache) {
        let end = (slab.pfn + slab.frames()) << PAGE_SHIFT;
        for place in slab.counters.inuse..slab.counters.objects {
            let word = match cache.index_array {
                0 => Some(slab.page.private),
                bytes => self.word(end.wrapping_sub(bytes.into()).wrapping_add(u64::from(place / 8 * 8))),
            };
            let Some(number) = word.map(|word| word.to_le_bytes()[(place % 8) as usize]) else {
                slab.problem = Some(format!("place {place} of the index array cannot be read"));
                return;
            };
            let at = slab.first.wrapping_add(u64::from(number) * u64::from(cache.size));
            if !slab.is_place(cache, at) {
                slab.problem = Some(format!(
                    "place {place} of the index array is object {number} of {}",
                    slab.counters.objects
                ));
                return;
            }
            if slab.free.contains(&at) {
                slab.problem = Some(format!("the index array has object {number} twice"));
                return;
            }
            slab.free.push(at);
        }
    }

    fn slob_free(&self, slab: &mut Slab) {
        let start = slab.pfn << PAGE_SHIFT;
        let (mut at, mut end) = (slab.page.index, 0);
        while at != 0 {
            let word =
                if at >> PAGE_SHIFT == slab.pfn && at.is_multiple_of(8) { self.word(at) } else { None };
            let Some(word) = word.filter(|_| at > end) else {
                slab.problem = Some(format!("free blocks lead to {at:#x}, outside the page or back"));
                return;
            };
            let units = word & u64::from(u32::MAX);
            end = at + 8 * units;
            if units == 0 || end > start + PAGE_SIZE {
                slab.problem = Some(format!("free block {at:#x} has {units} units, more than its page"));
                return;
            }
            slab.free.push(at);
            slab.free_units += units;
            let next = start + (word >> 32) * 8;
            at = if next > at { next } else { 0 };
        }
    }

    /// Finds objects that are free but not on their slabs' lists.
    fn kept(&self, all: &mut Slabs) {
        let (mut kept, mut problems) = (Vec::new(), Vec::new());
        for slab in all.slabs.values().filter(|slab| slab.kind == Some(SlabKind::Slub)) {
            let Some((index, cache)) = slab.cache.and_then(|index| Some((index, all.caches.get(index)?)))
            else {
                continue;
            };
            let mut at = slab.page.private & ((1 << abi::SLAB_OWNER_SHIFT) - 1);
            for _ in 0..slab.counters.objects {
                if at == 0 {
                    break;
                }
                kept.push((index, at, Keeper::ByOthers(slab.owner())));
                at = self.word(at.wrapping_add(cache.offset.into())).unwrap_or(0);
            }
            if at != 0 {
                let list = format!("what others freed in slab {:#x} does not end: {at:#x}", slab.pfn);
                problems.push((index, list));
            }
        }
        for (cpu, caches) in all.cpus.iter().enumerate() {
            for (index, c) in caches.iter().enumerate().filter(|(_, c)| c.span_words != 0) {
                let mut at = c.freelist;
                let objects = all.slabs.get(&c.slab).map_or(0, |slab| slab.counters.objects);
                for _ in 0..=objects {
                    if at == 0 {
                        break;
                    }
                    kept.push((index, at, Keeper::CpuList(cpu)));
                    match self.word(at.wrapping_add(c.offset.into())) {
                        Some(next) => at = next,
                        None => break,
                    }
                }
                if at != 0 {
                    problems
                        .push((index, format!("free list of CPU {cpu} does not end in its slab: {at:#x}")));
                }
                if c.avail > c.limit || c.avail as usize > c.array.len() {
                    problems.push((index, format!("array of CPU {cpu} holds {} of {}", c.avail, c.limit)));
                }
                kept.extend(
                    c.array.iter().take(c.avail as usize).map(|at| (index, *at, Keeper::CpuArray(cpu))),
                );
            }
        }
        for (node, caches) in all.nodes.iter().enumerate() {
            for (index, n) in caches.iter().enumerate() {
                for at in 0..u64::from(n.shared_avail.min(512)) {
                    let object = self.word(n.shared.wrapping_add(8 * at)).unwrap_or(0);
                    kept.push((index, object, Keeper::Shared(node)));
                }
                for row in 0..u64::from(n.alien_rows).min(abi::MAX_NUMNODES as u64) {
                    let row = n.alien.wrapping_add(row * abi::ALIEN_ROW * 8);
                    let avail = self.word(row).unwrap_or(0).min(abi::ALIEN_LIMIT.into());
                    for at in 0..avail {
                        let object = self.word(row.wrapping_add(16 + 8 * at)).unwrap_or(0);
                        kept.push((index, object, Keeper::Alien(node)));
                    }
                }
            }
        }
        (all.kept, all.problems) = (kept, problems);
    }
}
