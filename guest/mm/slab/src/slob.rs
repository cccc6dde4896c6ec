//! SLOB: first fit over pages on three lists, for small, medium and large objects (Linux 6.1: mm/slob.c).
//!
//! A page is free blocks and what was allocated between them. A free block begins with a word: its units in the low half, the
//! next free block's offset from the page's start in the high half, in units; an offset that is not above the block's own ends the
//! list. Blocks ascend and never touch. A kmalloc allocation has a word before it that holds its size.
//!
//! One lock guards all pages: that of cache 0 on node 0, whose lists they are on.
//!
//! Differs from Linux: a unit is 8 bytes, not 2, because memory is reached by words; a block that overlaps a free one is refused.

use memvisor_abi::{CacheNode, LARGE_MAPPING, SLOB_MAPPING};
use mm_core::{Event, Gfp, MemMap, Order, PAGE_SIZE, Page, PageAlloc, PageKind, Pfn, PhysAddr, PhysMem};

use crate::slab_page::Discard;
use crate::{Cache, CacheId, FreeError, Kmem, Machine, Object, SlabFlags, list};

/// Bytes of a unit.
const UNIT: u64 = 8;
/// Units of a page.
const PAGE_UNITS: u64 = PAGE_SIZE / UNIT;
/// Bytes from which a block is medium, and large (Linux: `SLOB_BREAK1`, `SLOB_BREAK2`).
const BREAKS: [u64; 2] = [256, 1024];

/// Where a block may start.
#[derive(Clone, Copy)]
struct Place {
    units: u64,
    align: u64,
    /// What is aligned starts this many bytes into the block.
    header: u64,
}

impl<M: Machine> Kmem<M> {
    /// Linux: `slob_alloc_node`.
    pub(crate) fn slob_cache_alloc(
        &self,
        id: CacheId,
        cache: &Cache,
        gfp: Gfp,
        node: Option<u32>,
    ) -> Option<Object> {
        let size = u64::from(cache.size());
        let object = if size < PAGE_SIZE {
            let align = u64::from(cache.align().max(8));
            self.slob_alloc(Place { units: size / UNIT, align, header: 0 }, gfp | zone_of(cache), node)?
        } else {
            let order = cache.slab_order();
            let comp = if order == Order::ZERO { Gfp::empty() } else { Gfp::COMP };
            let pfn =
                self.machine.pages().alloc_pages((gfp - Gfp::ZERO) | zone_of(cache) | comp, order, node)?;
            self.machine.map().page(pfn)?.set_mapping(whole(id));
            pfn.phys().as_u64()
        };
        if cache.ctor() != 0 {
            self.machine.construct(cache.ctor(), Object(object), cache.object_size());
        }
        self.machine.with_node(id, 0, |n| n.live += 1);
        Some(Object(object))
    }

    /// Linux: `kmem_cache_free`.
    pub(crate) fn slob_cache_free(
        &self,
        id: CacheId,
        cache: &Cache,
        object: Object,
    ) -> Result<(), FreeError> {
        if cache.slab_flags().contains(SlabFlags::TYPESAFE_BY_RCU) {
            // What is next to it may be of another cache, so it becomes something else at once.
            self.machine.synchronize_rcu();
        }
        let size = u64::from(cache.size());
        if size < PAGE_SIZE {
            let (pfn, page) = self.slob_page(object)?;
            self.slob_free(pfn, page, object, object.0, size / UNIT)?;
        } else {
            let pfn = object.addr().pfn();
            let page = self.machine.map().page(pfn).ok_or(FreeError::NotSlab { object })?;
            if page.kind() != PageKind::Allocated || page.mapping() != whole(id) {
                return Err(FreeError::WrongCache { object, owner: None });
            }
            if object.addr().page_offset() != 0 {
                return Err(FreeError::NotObject { object });
            }
            page.set_mapping(0);
            self.machine.pages().free_pages(pfn, page.order());
        }
        self.machine.with_node(id, 0, |n| n.live = n.live.saturating_sub(1));
        Ok(())
    }

    /// Objects in use.
    pub(crate) fn slob_live(&self, id: CacheId) -> u64 {
        self.machine.with_node(id, 0, |n| n.live)
    }

    /// Linux: `__do_kmalloc_node`.
    pub(crate) fn slob_kmalloc(&self, size: u64, gfp: Gfp) -> Option<Object> {
        if size == 0 || size >= PAGE_SIZE - UNIT {
            return self.kmalloc_large(size, gfp, None);
        }
        let align = if size.is_power_of_two() { size.max(UNIT) } else { UNIT };
        let units = size.div_ceil(UNIT) + 1;
        let block = self.slob_alloc(Place { units, align, header: UNIT }, gfp, None)?;
        self.machine.mem().write_u64(PhysAddr::new(block), size);
        let object = Object(block + UNIT);
        if gfp.contains(Gfp::ZERO) {
            self.clear(object, u32::try_from(size).unwrap_or(0));
        }
        Some(object)
    }

    /// Linux: `kfree`.
    pub(crate) fn slob_kfree(&self, object: Object) -> Result<(), FreeError> {
        let freed = self.slob_page(object).and_then(|(pfn, page)| {
            let size = self.slob_size(object).ok_or(FreeError::NotObject { object })?;
            self.slob_free(pfn, page, object, object.0 - UNIT, size.div_ceil(UNIT) + 1)
        });
        if let Err(error) = freed {
            self.machine.report(format_args!("BUG kfree: {error}"));
        }
        freed
    }

    /// Linux: `__ksize`.
    pub(crate) fn slob_ksize(&self, object: Object) -> Option<u64> {
        self.slob_size(object).map(|size| size.next_multiple_of(UNIT))
    }

    /// The size in the word before a kmalloc allocation, if it can be one.
    fn slob_size(&self, object: Object) -> Option<u64> {
        let offset = object.addr().page_offset();
        if offset < UNIT || !object.addr().is_aligned(UNIT) {
            return None;
        }
        let size = self.machine.mem().read_u64(PhysAddr::new(object.0 - UNIT));
        (size != 0 && size <= PAGE_SIZE - offset).then_some(size)
    }

    fn slob_page(&self, object: Object) -> Result<(Pfn, &Page), FreeError> {
        let (pfn, page) = self.slab_of(object).ok_or(FreeError::NotSlab { object })?;
        if page.mapping() != SLOB_MAPPING {
            return Err(FreeError::WrongCache { object, owner: CacheId::new(page.mapping()) });
        }
        Ok((pfn, page))
    }

    /// Linux: `slob_alloc`.
    fn slob_alloc(&self, place: Place, gfp: Gfp, node: Option<u32>) -> Option<u64> {
        self.emit(Event::SlobAlloc { size: place.units * UNIT, align: place.align, gfp, node });
        let mut examined = 0;
        let found = self.slob_search(place, gfp, node, &mut examined);
        let block = found.or_else(|| self.slob_new_page(place, gfp, node));
        self.emit(Event::SlobAllocRet { object: block.unwrap_or(0), new_page: found.is_none(), examined });
        block
    }

    /// Finds room in the pages of its list.
    fn slob_search(&self, place: Place, gfp: Gfp, node: Option<u32>, examined: &mut u64) -> Option<u64> {
        let kind = list_of(place.units * UNIT);
        let highest = gfp.highest_zone()?;
        self.machine.with_node(CacheId::SLOB, 0, |n| {
            let map = self.machine.map();
            let mut link = n.lists[kind].head;
            while let Some((pfn, page)) = list::at(link, map) {
                link = page.next();
                *examined += 1;
                let near = node.is_none_or(|node| page.node() == node) && page.zone() <= highest;
                if near
                    && units_free(page) >= place.units
                    && let Some(block) = self.slob_page_alloc(n, page, place)
                {
                    if units_free(page) != 0 {
                        // The next search starts here: first fit, but not always from the same pages.
                        list::remove(&mut n.lists[kind], map, page);
                        list::push_front(&mut n.lists[kind], map, pfn, page);
                    }
                    return Some(block);
                }
            }
            None
        })
    }

    /// A block of a new page.
    fn slob_new_page(&self, place: Place, gfp: Gfp, node: Option<u32>) -> Option<u64> {
        let kind = list_of(place.units * UNIT);
        let pfn = self.machine.pages().alloc_pages(gfp - Gfp::ZERO, Order::ZERO, node)?;
        let page = self.machine.map().page(pfn)?;
        let start = pfn.phys().as_u64();
        page.set_mapping(SLOB_MAPPING);
        page.set_private((kind as u64) << 1);
        page.set_index(start);
        set_units(page, PAGE_UNITS);
        page.set_kind(PageKind::Slab);
        self.set_block(start, PAGE_UNITS, 0);
        self.machine.with_node(CacheId::SLOB, 0, |n| {
            list::push_front(&mut n.lists[kind], self.machine.map(), pfn, page);
            n.nr_slabs += 1;
            n.free_objects += PAGE_UNITS;
            self.slob_page_alloc(n, page, place)
        })
    }

    /// Takes a block from the first free one that holds it (Linux: `slob_page_alloc`).
    fn slob_page_alloc(&self, n: &mut CacheNode, page: &Page, place: Place) -> Option<u64> {
        let (mut previous, mut at) = (0, page.index());
        while at != 0 {
            let (units, next) = self.block(at);
            let start = (at + place.header).next_multiple_of(place.align) - place.header;
            let skip = (start - at) / UNIT;
            if units < place.units + skip {
                (previous, at) = (at, next);
                continue;
            }
            let rest = units - skip - place.units;
            let after = if rest == 0 { next } else { start + place.units * UNIT };
            if rest != 0 {
                self.set_block(after, rest, next);
            }
            if skip != 0 {
                self.set_block(at, skip, after);
            } else if previous != 0 {
                self.set_block(previous, self.block(previous).0, after);
            } else {
                page.set_index(after);
            }
            set_units(page, units_free(page) - place.units);
            n.free_objects = n.free_objects.saturating_sub(place.units);
            if units_free(page) == 0 {
                list::remove(&mut n.lists[list_on(page)], self.machine.map(), page);
            }
            return Some(start);
        }
        None
    }

    /// Puts a block back, joined with free neighbours (Linux: `slob_free`).
    fn slob_free(
        &self,
        pfn: Pfn,
        page: &Page,
        object: Object,
        block: u64,
        units: u64,
    ) -> Result<(), FreeError> {
        let mut discard = Discard::NONE;
        let map = self.machine.map();
        let start = pfn.phys().as_u64();
        if !block.is_multiple_of(UNIT) || units == 0 || block + units * UNIT > start + PAGE_SIZE {
            return Err(FreeError::NotObject { object });
        }
        self.machine.with_node(CacheId::SLOB, 0, |n| {
            let (mut previous, mut next) = (0, page.index());
            while next != 0 && next < block {
                (previous, next) = (next, self.block(next).1);
            }
            let end = block + units * UNIT;
            let overlaps = previous != 0 && previous + self.block(previous).0 * UNIT > block;
            if overlaps || (next != 0 && next < end) {
                return Err(FreeError::DoubleFree { object });
            }
            let free = units_free(page) + units;
            n.free_objects += units;
            if free == PAGE_UNITS {
                if free != units {
                    list::remove(&mut n.lists[list_on(page)], map, page);
                }
                n.free_objects -= PAGE_UNITS;
                n.nr_slabs = n.nr_slabs.saturating_sub(1);
                discard.push(pfn, page);
                return Ok(());
            }
            let (mut units, mut follow) = (units, next);
            if next != 0 && next == end {
                let (more, then) = self.block(next);
                (units, follow) = (units + more, then);
            }
            if previous != 0 && previous + self.block(previous).0 * UNIT == block {
                self.set_block(previous, self.block(previous).0 + units, follow);
            } else {
                self.set_block(block, units, follow);
                if previous != 0 {
                    self.set_block(previous, self.block(previous).0, block);
                } else {
                    page.set_index(block);
                }
            }
            if units_free(page) == 0 {
                let kind = list_of(units * UNIT);
                page.set_private((kind as u64) << 1);
                list::push_front(&mut n.lists[kind], map, pfn, page);
            }
            set_units(page, free);
            Ok(())
        })?;
        self.discard(discard);
        Ok(())
    }

    /// Units of a free block, and the address of the next; 0 for none.
    fn block(&self, at: u64) -> (u64, u64) {
        let word = self.machine.mem().read_u64(PhysAddr::new(at));
        let start = at & !(PAGE_SIZE - 1);
        // Offsets ascend, so that a damaged list ends.
        let next = start + (word >> 32) % PAGE_UNITS * UNIT;
        (word & u64::from(u32::MAX), if next > at { next } else { 0 })
    }

    fn set_block(&self, at: u64, units: u64, next: u64) {
        let offset = if next == 0 { 0 } else { (next & (PAGE_SIZE - 1)) / UNIT };
        self.machine.mem().write_u64(PhysAddr::new(at), units | offset << 32);
    }
}

impl CacheId {
    /// The cache whose lists SLOB's pages are on.
    const SLOB: CacheId = match CacheId::new(0) {
        Some(id) => id,
        None => panic!("the table has no slot"),
    };
}

/// `mapping` of whole pages that are one object of a cache.
const fn whole(id: CacheId) -> u64 {
    LARGE_MAPPING << 8 | id.as_u64()
}

fn zone_of(cache: &Cache) -> Gfp {
    if cache.slab_flags().contains(crate::SlabFlags::CACHE_DMA) { Gfp::DMA_ZONE } else { Gfp::empty() }
}

/// The list for blocks of so many bytes.
fn list_of(bytes: u64) -> usize {
    BREAKS.iter().filter(|limit| bytes >= **limit).count()
}

/// The list that a page is on.
fn list_on(page: &Page) -> usize {
    usize::try_from(page.private() >> 1).unwrap_or(0).min(BREAKS.len())
}

#[expect(clippy::cast_sign_loss, reason = "at most 512")]
fn units_free(page: &Page) -> u64 {
    page.mapcount().max(0) as u64
}

fn set_units(page: &Page, units: u64) {
    page.set_mapcount(i32::try_from(units).unwrap_or(0));
}
