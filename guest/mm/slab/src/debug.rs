//! Debugging of a SLUB cache: every alloc and free checked under the list lock, no per-CPU slab (Linux: mm/slub.c with
//! `slub_debug`).
//!
//! ```text
//!  red_left   object_size   to inuse   link   alloc track, free track   to size
//! |red zone  |object       |red zone  |word  |80 bytes each            |0x5a   |
//! ```
//!
//! Red zones hold 0xbb while the object is free, 0xcc while it is used. The contents of a free object are 0x6b, the last byte 0xa5.
//! What is found damaged is reported (file `report.rs`), repaired where that is safe, and else put out of use: an object is
//! not taken back, a slab is called full for ever.

use memvisor_abi::{CacheNode, SlabListKind, Track, poison};
use mm_core::{Event, Gfp, Page, Pfn, PhysAddr, PhysMem};

use crate::report::{Finding, Report};
use crate::slab_page::{Discard, Place, counters, set_counters};
use crate::slub::{forget, link};
use crate::{Cache, CacheId, FreeError, Kmem, Machine, Object, SlabFlags, list};

const PARTIAL: usize = SlabListKind::Partial as usize;
const FULL: usize = SlabListKind::Full as usize;

/// Whether an object is used or free, for its red zones and contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Used,
}

impl State {
    const fn red(self) -> u8 {
        match self {
            State::Free => poison::RED_INACTIVE,
            State::Used => poison::RED_ACTIVE,
        }
    }
}

/// The two records of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrackKind {
    Alloc = 0,
    Free = 1,
}

impl<M: Machine> Kmem<M> {
    /// Linux: `alloc_single_from_partial`, `alloc_single_from_new_slab`.
    pub(crate) fn debug_alloc(
        &self,
        id: CacheId,
        cache: &Cache,
        gfp: Gfp,
        node: Option<u32>,
    ) -> Option<Object> {
        let near = node.unwrap_or_else(|| self.current_node());
        let nodes = self.machine.nr_nodes();
        loop {
            let others = if gfp.contains(Gfp::THISNODE) { near..near } else { 0..nodes };
            let found = core::iter::once(near)
                .chain(others)
                .find_map(|node| self.machine.with_node(id, node, |n| self.debug_take(id, cache, n)));
            if found.is_some() {
                return found;
            }
            let (pfn, page) = self.new_slab(id, cache, gfp, near)?;
            self.machine.with_node(id, page.node(), |n| {
                n.nr_slabs += 1;
                n.total_objects += u64::from(counters(page).objects);
                list::push_front(&mut n.lists[PARTIAL], self.machine.map(), pfn, page);
            });
        }
    }

    /// The first free object of the node. A slab in which it is damaged goes out of use, and the next one is tried.
    fn debug_take(&self, id: CacheId, cache: &Cache, n: &mut CacheNode) -> Option<Object> {
        let map = self.machine.map();
        while let Some((pfn, page)) = list::first(&n.lists[PARTIAL], map) {
            let object = Object(page.index());
            let mut k = counters(page);
            let place = Place { id, cache, pfn, page, object };
            let good = place.is_object() && k.inuse < k.objects && {
                let checked = !cache.slab_flags().contains(SlabFlags::CONSISTENCY_CHECKS);
                checked || self.check_object(&place, State::Free)
            };
            if !good {
                self.fix(cache, format_args!("Marking all objects used"));
                k.inuse = k.objects;
                page.set_index(0);
            } else {
                let next = self.machine.mem().read_u64(link(cache, object.0));
                k.inuse += 1;
                if next != 0 && !place.at(Object(next)).is_object() {
                    self.bug(&place, Finding::FreeChain);
                    self.fix(cache, format_args!("Isolate corrupted freechain"));
                    k.inuse = k.objects;
                }
                page.set_index(if k.inuse == k.objects { 0 } else { next });
            }
            set_counters(page, k);
            if k.inuse == k.objects {
                list::remove(&mut n.lists[PARTIAL], map, page);
                list::push_front(&mut n.lists[FULL], map, pfn, page);
            }
            if good {
                self.record(cache, object, TrackKind::Alloc);
                self.init_object(cache, object, State::Used);
                return Some(object);
            }
        }
        None
    }

    /// Linux: `free_debug_processing`.
    pub(crate) fn debug_free(&self, place: &Place<'_>) -> Result<(), FreeError> {
        let &Place { id, cache, pfn, page, object } = place;
        let mut discard = Discard::NONE;
        let map = self.machine.map();
        let freed = self.machine.with_node(id, page.node(), |n| {
            self.check_free(place)?;
            self.record(cache, object, TrackKind::Free);
            self.init_object(cache, object, State::Free);
            self.machine.mem().write_u64(link(cache, object.0), page.index());
            page.set_index(object.0);
            let mut k = counters(page);
            let was_full = k.inuse == k.objects;
            k.inuse = k.inuse.saturating_sub(1);
            set_counters(page, k);
            if was_full {
                list::remove(&mut n.lists[FULL], map, page);
                list::push_back(&mut n.lists[PARTIAL], map, pfn, page);
            }
            if k.inuse == 0 && n.lists[PARTIAL].nr > u64::from(cache.min_partial()) {
                list::remove(&mut n.lists[PARTIAL], map, page);
                forget(n, pfn, page, &mut discard);
            }
            Ok(())
        });
        self.discard(discard);
        freed
    }

    /// Linux: `free_consistency_checks`.
    fn check_free(&self, place: &Place<'_>) -> Result<(), FreeError> {
        let &Place { cache, object, .. } = place;
        let refused = |finding, error| {
            self.bug(place, finding);
            self.fix(cache, format_args!("Object at {object} not freed"));
            Err(error)
        };
        if !place.is_object() {
            return refused(Finding::InvalidPointer, FreeError::NotObject { object });
        }
        if self.is_on_freelist(place) {
            return refused(Finding::AlreadyFree, FreeError::DoubleFree { object });
        }
        let checked = cache.slab_flags().contains(SlabFlags::CONSISTENCY_CHECKS);
        if checked && !self.check_object(place, State::Used) {
            self.fix(cache, format_args!("Object at {object} not freed"));
            return Err(FreeError::Damaged { object });
        }
        Ok(())
    }

    /// Walks the slab's free list, which may be damaged (Linux: `on_freelist`).
    fn is_on_freelist(&self, place: &Place<'_>) -> bool {
        let mut at = place.page.index();
        for _ in 0..counters(place.page).objects {
            if at == place.object.0 {
                return true;
            }
            if at == 0 || !place.at(Object(at)).is_object() {
                return false;
            }
            at = self.machine.mem().read_u64(link(place.cache, at));
        }
        false
    }

    /// A fresh object: red zones, contents, no history (Linux: `setup_object_debug`).
    pub(crate) fn debug_init(&self, cache: &Cache, object: u64) {
        let flags = cache.slab_flags();
        let first = object - u64::from(cache.red_left());
        if flags.contains(SlabFlags::POISON) {
            let from = object + u64::from(cache.inuse());
            self.fill(from, first + u64::from(cache.size()), poison::INUSE);
        }
        self.init_object(cache, Object(object), State::Free);
        if flags.contains(SlabFlags::STORE_USER) {
            let track = object + u64::from(cache.track());
            self.fill(track, track + 2 * size_of::<Track>() as u64, 0);
        }
    }

    /// Linux: `init_object`.
    fn init_object(&self, cache: &Cache, object: Object, state: State) {
        let flags = cache.slab_flags();
        let end = object.0 + u64::from(cache.object_size());
        if flags.contains(SlabFlags::RED_ZONE) {
            self.fill(object.0 - u64::from(cache.red_left()), object.0, state.red());
            self.fill(end, object.0 + u64::from(cache.inuse()), state.red());
        }
        if is_poisoned(cache) {
            self.fill(object.0, end - 1, poison::FREE);
            self.fill(end - 1, end, poison::END);
        }
    }

    /// Checks all that debugging keeps about an object, reports what is wrong and repairs it (Linux: `check_object`).
    pub(crate) fn check_object(&self, place: &Place<'_>, state: State) -> bool {
        let &Place { cache, object, .. } = place;
        let flags = cache.slab_flags();
        let end = object.0 + u64::from(cache.object_size());
        let inuse = object.0 + u64::from(cache.inuse());
        let first = object.0 - u64::from(cache.red_left());
        let check = |finding, from: u64, to: u64, byte: u8| {
            let Some(bad) = (from..to).find(|addr| self.byte(*addr) != byte) else { return true };
            let last = (from..to).rev().find(|addr| self.byte(*addr) != byte).unwrap_or(bad);
            let found = self.byte(bad);
            self.bug(place, Finding::Bytes { what: finding, from: bad, to: last + 1, found, byte });
            self.fix(cache, format_args!("Restoring {finding} {bad:#x}-{last:#x}={byte:#04x}"));
            self.fill(bad, last + 1, byte);
            false
        };
        if flags.contains(SlabFlags::RED_ZONE) {
            let good = check("Left Redzone", first, object.0, state.red());
            if !check("Right Redzone", end, inuse, state.red()) || !good {
                return false;
            }
        }
        if is_poisoned(cache) && state == State::Free {
            let good = check("Poison", object.0, end - 1, poison::FREE);
            if !check("End Poison", end - 1, end, poison::END) || !good {
                return false;
            }
        }
        if flags.contains(SlabFlags::POISON) {
            let mut info = inuse.max(object.0 + u64::from(cache.offset()) + 8);
            if flags.contains(SlabFlags::STORE_USER) {
                info += 2 * size_of::<Track>() as u64;
            }
            if !check("Object padding", info, first + u64::from(cache.size()), poison::INUSE) {
                return false;
            }
        }
        // The link of a used object is the user's, unless it is behind the object.
        if state == State::Free || cache.offset() >= cache.inuse() {
            let next = self.machine.mem().read_u64(link(cache, object.0));
            if next != 0 && !place.at(Object(next)).is_object() {
                self.bug(place, Finding::FreePointer);
                self.machine.mem().write_u64(link(cache, object.0), 0);
                return false;
            }
        }
        true
    }

    /// Checks every object of a debugged cache; the number of slabs with something wrong (Linux:
    /// `validate_slab_cache`).
    pub fn validate(&self, id: CacheId) -> u64 {
        let cache = self.cache(id);
        if !cache.is_used() || !cache.is_debugged() {
            return 0;
        }
        let map = self.machine.map();
        let mut bad = 0;
        for node in 0..self.machine.nr_nodes() {
            bad += self.machine.with_node(id, node, |n| {
                let mut bad = 0;
                for kind in [PARTIAL, FULL] {
                    let mut next = n.lists[kind].head;
                    for _ in 0..n.lists[kind].nr {
                        let Some((pfn, page)) = list::at(next, map) else { break };
                        next = page.next();
                        bad += u64::from(!self.validate_slab(id, cache, pfn, page));
                    }
                }
                bad
            });
        }
        bad
    }

    fn validate_slab(&self, id: CacheId, cache: &Cache, pfn: Pfn, page: &Page) -> bool {
        let start = pfn.phys().as_u64() + u64::from(cache.red_left());
        (0..u64::from(counters(page).objects))
            .map(|number| Object(start + number * u64::from(cache.size())))
            .map(|object| {
                let place = Place { id, cache, pfn, page, object };
                let free = self.is_on_freelist(&place);
                self.check_object(&place, if free { State::Free } else { State::Used })
            })
            .filter(|good| !good)
            .count()
            == 0
    }

    fn record(&self, cache: &Cache, object: Object, kind: TrackKind) {
        if !cache.slab_flags().contains(SlabFlags::STORE_USER) {
            return;
        }
        let track = self.machine.track();
        let at = object.0 + u64::from(cache.track()) + kind as u64 * size_of::<Track>() as u64;
        let words =
            track.stack.into_iter().chain([u64::from(track.pid) | u64::from(track.cpu) << 32, track.when]);
        for (word, value) in (0..).zip(words) {
            self.machine.mem().write_u64(PhysAddr::new(at + 8 * word), value);
        }
    }

    /// Who allocated or freed an object last; `None` if nobody did, or the cache keeps no records.
    pub(crate) fn track_of(&self, cache: &Cache, object: Object, kind: TrackKind) -> Option<Track> {
        if !cache.slab_flags().contains(SlabFlags::STORE_USER) {
            return None;
        }
        let at = object.0 + u64::from(cache.track()) + kind as u64 * size_of::<Track>() as u64;
        let word = |index: u64| self.machine.mem().read_u64(PhysAddr::new(at + 8 * index));
        let mut track = Track { when: word(9), ..Track::default() };
        for (index, address) in (0..).zip(&mut track.stack) {
            *address = word(index);
        }
        #[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
        {
            track.pid = word(8) as u32;
            track.cpu = (word(8) >> 32) as u32;
        }
        (track.when != 0).then_some(track)
    }

    pub(crate) fn byte(&self, addr: u64) -> u8 {
        let word = self.machine.mem().read_u64(PhysAddr::new(addr & !7));
        word.to_le_bytes().get((addr & 7) as usize).copied().unwrap_or(0)
    }

    /// Fills `from..to` with a byte.
    fn fill(&self, from: u64, to: u64, byte: u8) {
        let mut at = from & !7;
        while at < to {
            let addr = PhysAddr::new(at);
            if at >= from && at + 8 <= to {
                self.machine.mem().write_u64(addr, u64::from_le_bytes([byte; 8]));
            } else {
                let mut bytes = self.machine.mem().read_u64(addr).to_le_bytes();
                for (place, old) in (at..).zip(&mut bytes) {
                    if (from..to).contains(&place) {
                        *old = byte;
                    }
                }
                self.machine.mem().write_u64(addr, u64::from_le_bytes(bytes));
            }
            at += 8;
        }
    }

    fn bug(&self, place: &Place<'_>, finding: Finding) {
        let what = match finding {
            Finding::AlreadyFree => 1,
            Finding::Bytes { what: "Right Redzone", .. } => 3,
            Finding::Bytes { what: "Left Redzone", .. } => 4,
            Finding::InvalidPointer => 6,
            _ => 2,
        };
        let object = if finding == Finding::InvalidPointer { 0 } else { place.object.0 };
        self.emit(Event::SlabError { object, cache: u16::try_from(place.page.mapping()).ok(), what });
        Report { kmem: self, place, finding }.print();
    }

    fn fix(&self, cache: &Cache, what: core::fmt::Arguments<'_>) {
        let name = crate::cache::Name::from_raw(cache.load().name);
        self.machine.report(format_args!("FIX {}: {what}", name.as_str()));
    }
}

/// Whether the contents of a free object are poison: not where a constructor's work must stay.
fn is_poisoned(cache: &Cache) -> bool {
    cache.slab_flags().contains(SlabFlags::POISON) && cache.ctor() == 0
}
