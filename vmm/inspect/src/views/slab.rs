//! Slab caches (Linux: /proc/slabinfo), counted on the slabs.

use std::collections::BTreeMap;
use std::fmt;

use memvisor_abi::{Cache, SlabKind};
use serde::Serialize;

use crate::{Guest, GuestError, MemorySource, Slab, Slabs, cache_name};

/// `inspect slab`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlabView {
    /// Who manages the caches; `None` before there are any.
    pub allocator: Option<&'static str>,
    /// Caches, in the order of the table.
    pub caches: Vec<CacheRow>,
    /// Pages of SLOB, which belong to no cache.
    pub slob_pages: u64,
    /// Free units of 8 bytes on SLOB's pages.
    pub slob_free_units: u64,
    /// Slabs of the cache that was asked for.
    pub slabs: Option<Vec<SlabRow>>,
    /// Slabs by colour of the cache, or of all, if asked for: cache, offset of the first object, slabs.
    pub colours: Option<Vec<(String, u64, u64)>>,
}

/// A cache, with the columns of /proc/slabinfo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheRow {
    /// Name.
    pub name: String,
    /// Objects in use by the kernel: neither on a free list nor in an array.
    pub active_objs: u64,
    /// Objects of all slabs.
    pub num_objs: u64,
    /// Bytes from one object to the next.
    pub objsize: u32,
    /// Objects of a slab.
    pub objperslab: u32,
    /// Pages of a slab.
    pub pagesperslab: u32,
    /// Objects that a CPU's array holds.
    pub limit: u32,
    /// Objects that move at a time.
    pub batchcount: u32,
    /// Batches of the shared array.
    pub sharedfactor: u32,
    /// Slabs with an object in use.
    pub active_slabs: u64,
    /// Slabs.
    pub num_slabs: u64,
    /// Objects in shared arrays.
    pub sharedavail: u64,
    /// Users of the cache.
    pub refcount: u32,
    /// `SLAB_*` bits.
    #[serde(serialize_with = "crate::hex")]
    pub flags: u64,
    /// Free objects that CPUs hold, in lists and arrays.
    pub cpu_free: u64,
    /// What is wrong, in words.
    pub problems: Vec<String>,
}

/// A slab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlabRow {
    /// First frame.
    pub pfn: u64,
    /// Pages.
    pub pages: u64,
    /// Node.
    pub node: u32,
    /// Objects that are not on its free list.
    pub inuse: u32,
    /// Objects.
    pub objects: u32,
    /// Objects on its own free list.
    pub free: usize,
    /// Whether a CPU owns it.
    pub frozen: bool,
    /// Bytes before the first object.
    pub colour: u64,
}

impl SlabView {
    /// Reads all caches; details of the one named `cache`; colours if `colour`.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        cache: Option<&str>,
        colour: bool,
    ) -> Result<SlabView, GuestError> {
        let all = guest.slabs()?;
        let wanted = |record: &Cache| cache.is_none_or(|name| cache_name(record) == name);
        let slob = all.slabs.values().filter(|slab| slab.kind == Some(SlabKind::Slob));
        let (slob_pages, slob_free_units) =
            slob.fold((0, 0), |sum, slab| (sum.0 + 1, sum.1 + slab.free_units));
        let details = |(index, _)| all.of(index).map(slab_row).collect::<Vec<_>>();
        Ok(SlabView {
            allocator: all.kind().map(SlabKind::name),
            caches: all
                .used()
                .filter(|(_, record)| wanted(record))
                .map(|(index, record)| row(&all, index, record))
                .collect(),
            slob_pages,
            slob_free_units,
            slabs: cache.map(|_| all.used().filter(|(_, record)| wanted(record)).flat_map(details).collect()),
            colours: colour.then(|| colours(&all, wanted)),
        })
    }
}

fn colours(all: &Slabs, wanted: impl Fn(&Cache) -> bool) -> Vec<(String, u64, u64)> {
    let mut colours: BTreeMap<(usize, u64), u64> = BTreeMap::new();
    for (index, _) in all.used().filter(|(_, record)| wanted(record)) {
        for slab in all.of(index).filter(|slab| slab.kind == Some(SlabKind::Slab)) {
            *colours.entry((index, colour(slab))).or_default() += 1;
        }
    }
    let name = |index: usize| all.caches.get(index).map(cache_name).unwrap_or_default();
    colours.into_iter().map(|((index, colour), slabs)| (name(index), colour, slabs)).collect()
}

fn colour(slab: &Slab) -> u64 {
    slab.first.wrapping_sub(slab.pfn << memvisor_abi::PAGE_SHIFT)
}

fn slab_row(slab: &Slab) -> SlabRow {
    SlabRow {
        pfn: slab.pfn,
        pages: slab.frames(),
        node: slab.page.node(),
        inuse: slab.counters.inuse,
        objects: slab.counters.objects,
        free: slab.free.len(),
        frozen: slab.counters.frozen,
        colour: colour(slab),
    }
}

fn row(all: &Slabs, index: usize, cache: &Cache) -> CacheRow {
    let nodes = || all.nodes.iter().filter_map(|caches| caches.get(index));
    let kept = all.kept.iter().filter(|kept| kept.0 == index).count() as u64;
    let shared: u64 = nodes().map(|node| u64::from(node.shared_avail)).sum();
    let slob = SlabKind::from_raw(cache.allocator) == Some(SlabKind::Slob);
    let inuse: u64 = all.of(index).map(|slab| u64::from(slab.counters.inuse)).sum();
    let live: u64 = nodes().map(|node| node.live).fold(0, u64::saturating_add);
    let objects: u64 = all.of(index).map(|slab| u64::from(slab.counters.objects)).sum();
    let mut problems: Vec<String> = all
        .of(index)
        .filter_map(|slab| Some(format!("slab {:#x}: {}", slab.pfn, slab.problem.as_ref()?)))
        .collect();
    problems
        .extend(all.problems.iter().filter(|problem| problem.0 == index).map(|problem| problem.1.clone()));
    CacheRow {
        name: cache_name(cache),
        active_objs: if slob { live } else { inuse.saturating_sub(kept) },
        num_objs: if slob { live } else { objects },
        objsize: cache.size,
        objperslab: cache.objects,
        pagesperslab: 1 << cache.order.min(31),
        limit: cache.limit,
        batchcount: cache.batchcount,
        sharedfactor: cache.shared,
        active_slabs: all.of(index).filter(|slab| slab.counters.inuse != 0).count() as u64,
        num_slabs: all.of(index).count() as u64,
        sharedavail: shared,
        refcount: cache.refcount,
        flags: cache.flags.into(),
        cpu_free: kept.saturating_sub(shared),
        problems,
    }
}

impl fmt::Display for SlabView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(allocator) = self.allocator else { return writeln!(f, "slab caches: none yet") };
        writeln!(f, "slabinfo - version: 2.1 ({allocator}, counted on the slabs)")?;
        writeln!(
            f,
            "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail> : cpus <free>"
        )?;
        for row in &self.caches {
            writeln!(
                f,
                "{:<17} {:>6} {:>6} {:>6} {:>4} {:>4} : tunables {:>4} {:>4} {:>4} : slabdata {:>6} {:>6} {:>6} : cpus {:>4}",
                row.name,
                row.active_objs,
                row.num_objs,
                row.objsize,
                row.objperslab,
                row.pagesperslab,
                row.limit,
                row.batchcount,
                row.sharedfactor,
                row.active_slabs,
                row.num_slabs,
                row.sharedavail,
                row.cpu_free,
            )?;
            for problem in &row.problems {
                writeln!(f, "     ! {problem}")?;
            }
        }
        if self.slob_pages != 0 {
            writeln!(
                f,
                "pages of all caches: {}, free units of 8 bytes: {}",
                self.slob_pages, self.slob_free_units
            )?;
        }
        if let Some(slabs) = &self.slabs {
            writeln!(f, "slab             pages node  inuse/objects   free colour state")?;
            for slab in slabs {
                let state = if slab.frozen { "a CPU's" } else { "" };
                writeln!(
                    f,
                    "{:#016x} {:>5} {:>4} {:>6}/{:<7} {:>6} {:>6} {state}",
                    slab.pfn, slab.pages, slab.node, slab.inuse, slab.objects, slab.free, slab.colour
                )?;
            }
        }
        if let Some(colours) = &self.colours {
            writeln!(f, "cache             first object at  slabs")?;
            for (name, colour, slabs) in colours {
                writeln!(f, "{name:<17} {colour:>15} {slabs:>6} {}", "#".repeat((*slabs).min(60) as usize))?;
            }
        }
        Ok(())
    }
}
