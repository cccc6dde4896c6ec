//! Slab caches. The numbers are those of guest/mm/slab.
//!
//! L1  `slab.owner`: a slab's first frame has one reference and names a cache that exists, and its other frames lead to it.
//! L2  `slab.inuse`: `inuse` plus the objects on the slab's own free list is `objects`, which is what the cache's size gives.
//! L3  `slab.freelist`: every free object, on a slab's list, a CPU's list or in an array, starts where an object may start, and is
//!     free once.
//! L4  `slab.lists`: lists are well linked, and a slab is on exactly the list that its counters ask for.
//! L5  `slab.counters`: the counters of nodes and CPUs are what is there.
//! L6  `slab.redzone`: with debugging, red zones are whole, and so is the poison of free objects.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use memvisor_abi::{Cache, PFN_NONE, SLAB_FULL, SlabKind, SlabListKind, cache_flags, poison};
use memvisor_inspect::{Keeper, Slab, Slabs, cache_name};

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};

pub(crate) const OWNER: Rule = Rule {
    name: "slab.owner",
    invariant: "a slab has one reference, a cache, and its frames lead to it",
    reads: "descriptors, caches",
    seeded: &["slab-owner"],
    hint: "allocate_slab and free_slab; a write to a descriptor",
};
pub(crate) const INUSE: Rule = Rule {
    name: "slab.inuse",
    invariant: "inuse + free = objects of a slab",
    reads: "descriptors, free lists in slabs",
    seeded: &["slab-inuse"],
    hint: "the counters' update beside every push and pop",
};
pub(crate) const FREELIST: Rule = Rule {
    name: "slab.freelist",
    invariant: "free objects start where objects start, and are free once",
    reads: "free lists in slabs and of CPUs, arrays",
    seeded: &["slab-freelist-cycle", "slab-freelist-outside", "slab-double-free"],
    hint: "a write to a freed object, or a double free",
};
pub(crate) const LISTS: Rule = Rule {
    name: "slab.lists",
    invariant: "a slab is on exactly the list that its counters ask for",
    reads: "cache_nodes, cache_cpus, descriptors",
    seeded: &["slab-lists"],
    hint: "unfreezing, and the moves between full, partial and free",
};
pub(crate) const COUNTERS: Rule = Rule {
    name: "slab.counters",
    invariant: "counters of nodes and CPUs are what is there",
    reads: "cache_nodes, cache_cpus, descriptors",
    seeded: &["slab-counters"],
    hint: "inc_slabs_node and dec_slabs_node, free_objects",
};
pub(crate) const REDZONE: Rule = Rule {
    name: "slab.redzone",
    invariant: "red zones and the poison of free objects are whole",
    reads: "objects of debugged caches",
    seeded: &["slab-redzone"],
    hint: "the object's owner wrote outside it, or after its free: its records of alloc and free name him",
};

const ALL: [&Rule; 6] = [&OWNER, &INUSE, &FREELIST, &LISTS, &COUNTERS, &REDZONE];

const PARTIAL: usize = SlabListKind::Partial as usize;
const FULL: usize = SlabListKind::Full as usize;
const FREE: usize = SlabListKind::Free as usize;

/// Runs L1 to L6.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    if !context.needs_zones(ledger, &ALL) {
        return;
    }
    let all = match context.guest.slabs() {
        Ok(all) if !all.caches.is_empty() => all,
        Ok(_) => {
            ALL.iter().for_each(|rule| ledger.skip(rule, "the guest has no slab caches"));
            return;
        }
        Err(error) => {
            ALL.iter().for_each(|rule| ledger.skip(rule, "a table of the slab caches cannot be read"));
            let what = finding(&crate::attach::TABLES, "slab caches", "they are there", error.to_string());
            ledger.report(&crate::attach::TABLES, what);
            return;
        }
    };
    let mut pass = Pass { context, ledger, all: &all };
    for slab in all.slabs.values() {
        pass.owner(slab);
        pass.inuse(slab);
        pass.redzone(slab);
    }
    pass.freelists();
    pass.lists();
    pass.counters();
}

struct Pass<'p, 'a> {
    context: &'p Context<'a>,
    ledger: &'p mut Ledger,
    all: &'p Slabs,
}

/// A slab in words.
fn name(all: &Slabs, slab: &Slab) -> String {
    match slab.cache.and_then(|index| all.caches.get(index)) {
        Some(cache) => format!("{} slab {:#x}", cache_name(cache), slab.pfn),
        None => format!("slab {:#x}", slab.pfn),
    }
}

impl Pass<'_, '_> {
    fn report(&mut self, rule: &'static Rule, slab: &Slab, claim: String, outside: String) {
        let what = finding(rule, name(self.all, slab), claim, outside).frame(slab.pfn);
        self.ledger.report(rule, what);
    }

    fn cache(&self, slab: &Slab) -> Option<&Cache> {
        slab.cache.and_then(|index| self.all.caches.get(index))
    }

    fn owner(&mut self, slab: &Slab) {
        self.ledger.checked(&OWNER, slab.frames());
        if slab.kind.is_none() {
            let claim = format!("it belongs to cache {}", slab.page.mapping);
            self.report(&OWNER, slab, claim, "there is no such cache".to_owned());
        }
        if slab.page.refcount != 1 {
            let claim = format!("{} references", slab.page.refcount);
            self.report(&OWNER, slab, claim, "a slab in use has one".to_owned());
        }
        if !slab.pfn.is_multiple_of(slab.frames()) {
            let claim = format!("order {}", slab.page.order);
            self.report(&OWNER, slab, claim, "it does not start at a multiple of its size".to_owned());
        }
        for pfn in slab.pfn + 1..slab.pfn + slab.frames() {
            let Some(page) = self.context.page(pfn) else { continue };
            if self.all.slabs.contains_key(&pfn) {
                let claim = format!("{pfn:#x} is its frame");
                self.report(&OWNER, slab, claim, format!("{pfn:#x} is a slab itself"));
            } else if page.private != slab.pfn << 1 | 1 {
                let claim = format!("{pfn:#x} leads to {:#x}", page.private >> 1);
                self.report(&OWNER, slab, claim, format!("it is a frame of {:#x}", slab.pfn));
            }
        }
    }

    fn inuse(&mut self, slab: &Slab) {
        self.ledger.checked(&INUSE, 1);
        let k = slab.counters;
        if slab.kind == Some(SlabKind::Slob) {
            let units = i64::from(slab.page.mapcount);
            if slab.problem.is_none() && units != i64::try_from(slab.free_units).unwrap_or(-1) {
                let outside = format!("its free blocks have {}", slab.free_units);
                self.report(&INUSE, slab, format!("{units} units are free"), outside);
            }
            return;
        }
        let Some(cache) = self.cache(slab) else { return };
        let fits = match u32::from(slab.page.order) {
            order if order == cache.order => cache.objects,
            _ => cache.min_objects,
        };
        if k.objects != fits {
            let outside = format!("{fits} of {} bytes fit order {}", cache.size, slab.page.order);
            self.report(&INUSE, slab, format!("{} objects", k.objects), outside);
        }
        let free = slab.free.len() as u64;
        if slab.problem.is_none() && u64::from(k.inuse) + free != u64::from(k.objects) {
            let claim = format!("{} of {} objects are in use", k.inuse, k.objects);
            self.report(&INUSE, slab, claim, format!("{free} are on its free list"));
        }
    }

    fn freelists(&mut self) {
        let all = self.all;
        let mut free: BTreeSet<u64> = BTreeSet::new();
        for slab in all.slabs.values() {
            self.ledger.checked(&FREELIST, slab.free.len() as u64 + 1);
            if let Some(problem) = slab.problem.as_ref().filter(|_| slab.kind.is_some()) {
                let claim = format!("first free object {:#x}", slab.page.index);
                self.report(&FREELIST, slab, claim, problem.clone());
            }
            free.extend(&slab.free);
        }
        for (index, problem) in &all.problems {
            let cache = all.caches.get(*index).map(cache_name).unwrap_or_default();
            let what = finding(&FREELIST, cache, "a CPU's free objects", problem.clone());
            self.ledger.report(&FREELIST, what);
        }
        for (index, object, keeper) in &all.kept {
            self.ledger.checked(&FREELIST, 1);
            let Some(cache) = all.caches.get(*index) else { continue };
            let place = all
                .slabs
                .range(..=object >> memvisor_abi::PAGE_SHIFT)
                .next_back()
                .map(|(_, slab)| slab)
                .filter(|slab| slab.cache == Some(*index) && slab.is_place(cache, *object));
            let kept = match keeper {
                Keeper::CpuList(cpu) => format!("free list of CPU {cpu} has {object:#x}"),
                Keeper::CpuArray(cpu) => format!("array of CPU {cpu} has {object:#x}"),
                Keeper::ByOthers(owner) => {
                    format!("{object:#x} was freed by others than CPU {}", owner.wrapping_sub(1))
                }
                Keeper::Shared(node) => format!("shared array of node {node} has {object:#x}"),
                Keeper::Alien(node) => format!("a row of node {node} has {object:#x}"),
            };
            let outside = match (place, keeper) {
                (None, _) => "no object of the cache starts there".to_owned(),
                (Some(slab), Keeper::CpuList(cpu))
                    if all
                        .cpus
                        .get(*cpu)
                        .and_then(|cpu| cpu.get(*index))
                        .is_none_or(|c| c.slab != slab.pfn) =>
                {
                    format!("it is in slab {:#x}, which is not the CPU's", slab.pfn)
                }
                _ if !free.insert(*object) => "it is free elsewhere, too".to_owned(),
                _ => continue,
            };
            let what = finding(&FREELIST, cache_name(cache), kept, outside)
                .frame(object >> memvisor_abi::PAGE_SHIFT);
            self.ledger.report(&FREELIST, what);
        }
    }

    fn lists(&mut self) {
        let all = self.all;
        // Where each slab was found: (node, list), or a CPU.
        let mut found: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
        for (node, caches) in all.nodes.iter().enumerate() {
            for (index, n) in caches.iter().enumerate() {
                for (kind, list) in n.lists.iter().enumerate() {
                    let walk = all.walk(list);
                    self.ledger.checked(&LISTS, walk.slabs.len() as u64 + 1);
                    let cache = all.caches.get(index).map(cache_name).unwrap_or_default();
                    let what = format!("{cache} node {node} {} list", LIST_NAMES[kind.min(2)]);
                    if let Some(problem) = walk.problem {
                        self.ledger
                            .report(&LISTS, finding(&LISTS, what, format!("{} slabs", list.nr), problem));
                    } else if walk.slabs.len() as u64 != list.nr {
                        let outside = format!("{} are linked", walk.slabs.len());
                        self.ledger
                            .report(&LISTS, finding(&LISTS, what, format!("{} slabs", list.nr), outside));
                    }
                    for pfn in walk.slabs {
                        found.entry(pfn).or_default().push(Place::Node { cache: index, node, kind });
                    }
                }
            }
        }
        for (cpu, caches) in all.cpus.iter().enumerate() {
            for (index, c) in caches.iter().enumerate().filter(|(_, c)| c.span_words != 0) {
                let cache = all.caches.get(index).map(cache_name).unwrap_or_default();
                let mut own: Vec<u64> = (c.slab != PFN_NONE).then_some(c.slab).into_iter().collect();
                for (list, head, nr) in
                    [("partial", c.partial, c.partial_slabs), ("empty", c.empty, c.empty_slabs)]
                {
                    let walk = all.walk_cpu(head);
                    let what = format!("{cache} CPU {cpu} {list} list");
                    if let Some(problem) = walk.problem {
                        self.ledger.report(&LISTS, finding(&LISTS, what, format!("{nr} slabs"), problem));
                    } else {
                        self.ledger.expect_eq(&COUNTERS, what, u64::from(nr), walk.slabs.len() as u64);
                    }
                    let is_empty =
                        |pfn: &u64| all.slabs.get(pfn).is_some_and(|slab| slab.counters.inuse == 0);
                    for pfn in walk.slabs.iter().filter(|pfn| is_empty(pfn) != (list == "empty")) {
                        let claim = format!("{pfn:#x} is on {cache} CPU {cpu} {list} list");
                        let inuse = all.slabs.get(pfn).map_or(0, |slab| slab.counters.inuse);
                        let outside = format!("{inuse} of its objects are in use");
                        let what = finding(&LISTS, cache.clone(), claim, outside).frame(*pfn);
                        self.ledger.report(&LISTS, what);
                    }
                    own.extend(walk.slabs);
                }
                for pfn in own {
                    found.entry(pfn).or_default().push(Place::Cpu { cache: index, cpu });
                }
            }
        }
        for slab in all.slabs.values() {
            self.ledger.checked(&LISTS, 1);
            let places = found.get(&slab.pfn).map_or(&[][..], Vec::as_slice);
            let Some(wanted) = self.wanted(slab) else { continue };
            let right = match (wanted, places) {
                (Wanted::Nowhere, []) => true,
                (Wanted::Cpu(owner), [Place::Cpu { cache, cpu }]) => {
                    slab.cache == Some(*cache) && owner == *cpu as u64 + 1
                }
                (Wanted::Node(kinds), [Place::Node { cache, node, kind }]) => {
                    slab.cache.unwrap_or(0) == *cache
                        && (slab.cache.is_none() || slab.page.node() as usize == *node)
                        && kinds.contains(kind)
                }
                _ => false,
            };
            if !right {
                let k = slab.counters;
                let claim = format!("inuse {} of {}, frozen {}", k.inuse, k.objects, k.frozen);
                self.report(
                    &LISTS,
                    slab,
                    claim,
                    format!("it should be {}, and is {places:?}", wanted.words()),
                );
            }
        }
    }

    /// Where a slab belongs.
    fn wanted(&self, slab: &Slab) -> Option<Wanted> {
        let k = slab.counters;
        match slab.kind? {
            SlabKind::Slub if k.frozen => Some(Wanted::Cpu(slab.owner())),
            SlabKind::Slub if slab.page.index != 0 => Some(Wanted::Node(&[PARTIAL])),
            SlabKind::Slub if self.cache(slab)?.flags & DEBUG != 0 => Some(Wanted::Node(&[FULL])),
            SlabKind::Slub if slab.owner() == SLAB_FULL => Some(Wanted::Nowhere),
            // Nobody knows it: it is lost.
            SlabKind::Slub => Some(Wanted::Node(&[PARTIAL])),
            SlabKind::Slab if k.inuse == 0 => Some(Wanted::Node(&[FREE])),
            SlabKind::Slab if k.inuse == k.objects => Some(Wanted::Node(&[FULL])),
            SlabKind::Slab => Some(Wanted::Node(&[PARTIAL])),
            SlabKind::Slob if slab.page.mapcount == 0 => Some(Wanted::Nowhere),
            SlabKind::Slob => Some(Wanted::Node(&[0, 1, 2])),
        }
    }

    fn counters(&mut self) {
        let all = self.all;
        for (node, caches) in all.nodes.iter().enumerate() {
            for (index, n) in caches.iter().enumerate() {
                let Some(cache) = all.caches.get(index).filter(|cache| cache.refcount != 0) else { continue };
                let what = |field: &str| format!("{} node {node}: {field}", cache_name(cache));
                if SlabKind::from_raw(cache.allocator) == Some(SlabKind::Slob) {
                    if index == 0 && node == 0 {
                        let pages = all.slabs.values().filter(|slab| slab.kind == Some(SlabKind::Slob));
                        let (count, units) =
                            pages.fold((0, 0), |sum, slab| (sum.0 + 1, sum.1 + slab.free_units));
                        self.ledger.expect_eq(&COUNTERS, what("nr_slabs"), n.nr_slabs, count);
                        self.ledger.expect_eq(&COUNTERS, what("free_objects"), n.free_objects, units);
                    }
                    continue;
                }
                let mine: Vec<&Slab> =
                    all.of(index).filter(|slab| slab.page.node() as usize == node).collect();
                let objects = mine.iter().map(|slab| u64::from(slab.counters.objects)).sum();
                self.ledger.expect_eq(&COUNTERS, what("nr_slabs"), n.nr_slabs, mine.len() as u64);
                self.ledger.expect_eq(&COUNTERS, what("total_objects"), n.total_objects, objects);
                if SlabKind::from_raw(cache.allocator) == Some(SlabKind::Slab) {
                    let free = mine
                        .iter()
                        .map(|slab| u64::from(slab.counters.objects.saturating_sub(slab.counters.inuse)));
                    self.ledger.expect_eq(&COUNTERS, what("free_objects"), n.free_objects, free.sum());
                }
            }
        }
    }

    fn redzone(&mut self, slab: &Slab) {
        let Some(cache) = self.cache(slab).copied() else { return };
        let zoned = cache.flags & cache_flags::RED_ZONE != 0;
        let poisoned = cache.flags & cache_flags::POISON != 0 && cache.ctor == 0;
        if slab.kind != Some(SlabKind::Slub)
            || !(zoned || poisoned)
            || slab.problem.is_some()
            || self.is_retired(slab, &cache)
        {
            return;
        }
        let free: HashSet<u64> = slab.free.iter().copied().collect();
        for number in 0..u64::from(slab.counters.objects.min(512)) {
            let object = slab.first + number * u64::from(cache.size);
            let is_free = free.contains(&object);
            self.ledger.checked(&REDZONE, 1);
            let red = if is_free { poison::RED_INACTIVE } else { poison::RED_ACTIVE };
            let end = object + u64::from(cache.object_size);
            let mut parts = Vec::new();
            if zoned {
                parts.push(("left red zone", object - u64::from(cache.red_left), object, red));
                parts.push(("right red zone", end, object + u64::from(cache.inuse), red));
            }
            if poisoned && is_free {
                parts.push(("poison", object, end - 1, poison::FREE));
                parts.push(("end of poison", end - 1, end, poison::END));
            }
            for (part, from, to, byte) in parts {
                let Ok(len) = usize::try_from(to - from) else { continue };
                let mut bytes = vec![0; len];
                if self.context.source.read(from, &mut bytes).is_err() {
                    continue;
                }
                if let Some((at, found)) = (from..).zip(&bytes).find(|(_, found)| **found != byte) {
                    let state = if is_free { "free" } else { "used" };
                    let claim = format!("{part} of {state} object {object:#x} is {byte:#04x}");
                    self.report(&REDZONE, slab, claim, format!("{found:#04x} at {at:#x}"));
                }
            }
        }
    }

    /// Whether debugging called the slab full because an object in it was damaged: then its free objects look free still.
    fn is_retired(&self, slab: &Slab, cache: &Cache) -> bool {
        let byte = |addr: u64| {
            let mut byte = [0];
            self.context.source.read(addr, &mut byte).ok().map(|()| byte[0])
        };
        let full = slab.counters.inuse == slab.counters.objects;
        full && (0..u64::from(slab.counters.objects)).any(|number| {
            let object = slab.first + number * u64::from(cache.size);
            let end = object + u64::from(cache.inuse) - 1;
            byte(end) == Some(poison::RED_INACTIVE)
        })
    }
}

/// Flags that make a debugged cache.
const DEBUG: u32 =
    cache_flags::CONSISTENCY_CHECKS | cache_flags::RED_ZONE | cache_flags::POISON | cache_flags::STORE_USER;
const LIST_NAMES: [&str; 3] = ["partial", "full", "free"];

/// Where a slab was found.
#[derive(Clone, Copy, Debug)]
enum Place {
    Node { cache: usize, node: usize, kind: usize },
    Cpu { cache: usize, cpu: usize },
}

/// Where a slab should be.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Nowhere,
    /// The CPU's of that number plus 1.
    Cpu(u64),
    Node(&'static [usize]),
}

impl Wanted {
    fn words(self) -> String {
        match self {
            Wanted::Nowhere => "on no list".to_owned(),
            Wanted::Cpu(owner) => format!("CPU {}'s", owner.wrapping_sub(1)),
            Wanted::Node(kinds) => {
                let names: Vec<&str> =
                    kinds.iter().filter_map(|kind| LIST_NAMES.get(*kind).copied()).collect();
                format!("on a node's {} list", names.join(" or "))
            }
        }
    }
}
