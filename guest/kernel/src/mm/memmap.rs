//! The memmap: `struct page` for every frame of every present section, in a sparse vmemmap
//! (Linux: mm/sparse-vmemmap.c).
//!
//! Frames for all descriptors are reserved at boot, 2 MiB a section, but the descriptors are
//! written section by section, when the section is first needed. Untouched RAM costs the host
//! nothing, so a guest with much RAM starts as fast as one with little.

use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use memvisor_abi as abi;
use memvisor_abi::{NODE_NONE, PAGES_PER_SECTION, SECTION_SIZE_BITS};
use mm_core::{
    MemMap, PAGE_SHIFT, PAGE_SIZE, Page, PageFlags, PageKind, Pageblock, Pfn, PhysAddr, Section, Trace,
    VirtAddr, ZoneKind,
};
use mm_page_alloc::init_range;
use mm_pgtable::{LeafSize, Prot, layout};

use crate::mm::layout::levels;
use crate::mm::{early, limits, page_alloc, paging, phys};
use crate::pr_info;

const SECTION_PAGES_SHIFT: u32 = SECTION_SIZE_BITS - PAGE_SHIFT;
/// Frames that hold one section's descriptors.
const MEMMAP_FRAMES: u64 = PAGES_PER_SECTION * size_of::<Page>() as u64 / PAGE_SIZE;

// Written once by `init`, then only what `Section` lets change through a shared reference.
static SECTIONS: AtomicPtr<Section> = AtomicPtr::new(core::ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);
static TABLE: AtomicU64 = AtomicU64::new(0);
/// Sections that are online, by number, for the first 512 GiB: what most other look-ups need to know.
static ONLINE: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
/// Frames from 0 on whose sections are all present and online: what most look-ups need to know.
static DENSE: AtomicU64 = AtomicU64::new(0);
/// Address of frame 0's descriptor.
static BASE: AtomicU64 = AtomicU64::new(0);

/// The present sections, ascending.
pub fn sections() -> &'static [Section] {
    let first = SECTIONS.load(Ordering::Acquire);
    if first.is_null() {
        return &[];
    }
    // SAFETY: `init` published an array of that length that lives for ever, and gave up its own reference.
    unsafe { core::slice::from_raw_parts(first, COUNT.load(Ordering::Relaxed)) }
}

/// Physical address of the table of sections.
pub fn table_address() -> PhysAddr {
    PhysAddr::new(TABLE.load(Ordering::Relaxed))
}

fn find(pfn: Pfn) -> Option<usize> {
    let number = pfn.as_u64() >> SECTION_PAGES_SHIFT;
    let sections = sections();
    // Where RAM has no holes the number is the index.
    let guess = usize::try_from(number - sections.first()?.number.min(number)).unwrap_or(usize::MAX);
    match sections.get(guess) {
        Some(section) if section.number == number => Some(guess),
        _ => search(sections, number),
    }
}

#[inline(never)]
fn search(sections: &[Section], number: u64) -> Option<usize> {
    sections.binary_search_by_key(&number, |section| section.number).ok()
}

/// The descriptors, by frame number.
#[derive(Clone, Copy, Debug)]
pub struct Vmemmap;

impl Vmemmap {
    fn run(pfn: Pfn) -> &'static [Page] {
        let rest = usize::try_from(PAGES_PER_SECTION - (pfn.as_u64() & (PAGES_PER_SECTION - 1))).unwrap_or(0);
        let first = layout::vmemmap_start(levels()).as_u64() + pfn.as_u64() * size_of::<Page>() as u64;
        // SAFETY: the caller found the section present, and `init` mapped all of its descriptors.
        unsafe { core::slice::from_raw_parts(first as *const Page, rest) }
    }

    /// The descriptor of a frame, which the caller found online.
    #[inline]
    fn at(pfn: Pfn) -> &'static Page {
        let first = BASE.load(Ordering::Relaxed) as *const Page;
        // SAFETY: inside the descriptors of one section, which is online.
        let page = unsafe { first.add(usize::try_from(pfn.as_u64()).unwrap_or(0)) };
        // SAFETY: as above: mapped and written.
        unsafe { &*page }
    }

    /// The descriptor of a frame behind a hole, or behind a section that is not online.
    #[inline(never)]
    fn page_above(&self, pfn: Pfn) -> Option<&Page> {
        let number = pfn.as_u64() >> SECTION_PAGES_SHIFT;
        let online = ONLINE.get(usize::try_from(number / 64).unwrap_or(usize::MAX));
        if online.is_some_and(|word| word.load(Ordering::Acquire) >> (number % 64) & 1 != 0) {
            return Some(Vmemmap::at(pfn));
        }
        self.pages(pfn).first()
    }
}

impl MemMap for Vmemmap {
    #[inline]
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        if pfn.as_u64() < DENSE.load(Ordering::Acquire) {
            return Some(Vmemmap::at(pfn));
        }
        self.page_above(pfn)
    }

    #[inline]
    fn pages(&self, pfn: Pfn) -> &[Page] {
        match find(pfn) {
            Some(index) if sections()[index].is_online() => Vmemmap::run(pfn),
            _ => &[],
        }
    }

    #[inline]
    fn pageblock(&self, pfn: Pfn) -> Option<&Pageblock> {
        if pfn.as_u64() < DENSE.load(Ordering::Acquire) {
            // Without holes the number is the index.
            let index = usize::try_from(pfn.as_u64() >> SECTION_PAGES_SHIFT).ok()?;
            return sections().get(index).map(|section| section.pageblock(pfn));
        }
        find(pfn).map(|index| sections()[index].pageblock(pfn))
    }
}

/// Descriptors of a section that is being initialised.
struct Fresh;

// Boot hands over all memory through it: not a step of anybody's allocation.
impl Trace for Fresh {}

impl MemMap for Fresh {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.pages(pfn).first()
    }

    fn pages(&self, pfn: Pfn) -> &[Page] {
        if find(pfn).is_some() { Vmemmap::run(pfn) } else { &[] }
    }

    fn pageblock(&self, pfn: Pfn) -> Option<&Pageblock> {
        Vmemmap.pageblock(pfn)
    }
}

/// Reserves and maps the descriptors of every section with RAM. Nothing is online yet.
pub fn init() {
    let mut count = 0;
    for_each_present(|_, _| count += 1);
    let bytes = (count * size_of::<Section>()) as u64;
    let table = early::alloc(early::pages_for(bytes), 1, None, PageKind::Reserved)
        .expect("no memory for the table of sections");
    let empty = abi::Section::deferred(0, 0);
    // SAFETY: allocated above, with room for `count` sections, and given up here.
    let sections = unsafe { phys::leak_array(table.phys(), count, empty) };
    let mut index = 0;
    for_each_present(|number, node| {
        sections[index].number = number;
        sections[index].reserved = node;
        index += 1;
    });
    for run in sections.chunk_by_mut(|a, b| a.number + 1 == b.number && a.reserved == b.reserved) {
        place(run);
    }
    TABLE.store(table.phys().as_u64(), Ordering::Relaxed);
    BASE.store(layout::vmemmap_start(levels()).as_u64(), Ordering::Relaxed);
    COUNT.store(sections.len(), Ordering::Relaxed);
    // The same layout, pinned by mm-core.
    SECTIONS.store(sections.as_mut_ptr().cast(), Ordering::Release);
    pr_info!(
        "sparse: {count} sections of {} MiB, {} KiB of page descriptors",
        1 << (SECTION_SIZE_BITS - 20),
        count as u64 * MEMMAP_FRAMES * 4
    );
}

/// Reserves and maps the descriptors of sections that follow each other on one node, which
/// [`Section::reserved`] holds meanwhile. One block if there is one that large: with a thousand
/// sections, a thousand searches and walks would take seconds.
fn place(run: &mut [abi::Section]) {
    let count = run.len() as u64;
    let node = Some(run[0].reserved).filter(|&node| node != NODE_NONE);
    let Some(frames) = early::alloc(count * MEMMAP_FRAMES, MEMMAP_FRAMES, node, PageKind::Memmap) else {
        assert!(count > 1, "no memory for page descriptors");
        let (low, high) = run.split_at_mut(run.len() / 2);
        place(low);
        return place(high);
    };
    let first = run[0].number << SECTION_PAGES_SHIFT;
    let va = layout::vmemmap_start(levels()).as_u64() + first * size_of::<Page>() as u64;
    let len = count * MEMMAP_FRAMES * PAGE_SIZE;
    paging::map_kernel(VirtAddr::new(va), frames.phys(), len, Prot::KERNEL_RW, LeafSize::Size2M);
    for (index, section) in (0..).zip(run) {
        section.memmap_pfn = frames.offset(index * MEMMAP_FRAMES).as_u64();
        section.reserved = 0;
    }
}

/// Calls `f(number, node of its first frame)` for every section that holds RAM, ascending.
fn for_each_present(mut f: impl FnMut(u64, u32)) {
    let memblock = early::MEMBLOCK.lock();
    let mut next = 0;
    for (start, end, node) in memblock.mem_pfn_ranges(None) {
        let first = (start.as_u64() >> SECTION_PAGES_SHIFT).max(next);
        let last = (end.as_u64() - 1) >> SECTION_PAGES_SHIFT;
        for number in first..=last {
            f(number, node);
        }
        next = next.max(last + 1);
    }
}

/// Frames of a section.
pub fn span(section: &Section) -> (Pfn, Pfn) {
    let start = Pfn::new(section.number << SECTION_PAGES_SHIFT);
    (start, start.offset(PAGES_PER_SECTION))
}

/// Whether memblock reserved anything in the section but room for descriptors: then its own
/// descriptors are needed at once.
pub fn is_needed(section: &Section) -> bool {
    let (start, end) = span(section);
    let pages = |first: Pfn, last: Pfn| last.as_u64() - first.as_u64();
    let (mut reserved, mut memmap) = (0, 0);
    for_each_reserved(start, end, |first, last| reserved += pages(first, last));
    early::for_each_owned(start, end, |owned| {
        if owned.kind == PageKind::Memmap {
            memmap += pages(owned.start, owned.end);
        }
    });
    reserved > memmap
}

/// Writes the descriptors of a deferred section and gives its free frames to their zones. The caller
/// is the only one at it.
pub fn bring_online(index: usize) {
    let section = &sections()[index];
    assert!(!section.is_online(), "section {} is online already", section.number);
    let (start, end) = span(section);
    let mut at = start;
    for_each_ram(start, end, |first, last, node| {
        hole(at, first);
        limits::of(node).for_each_part(first, last, |first, last, kind| {
            init_range(&Fresh, first, last, node, kind, PageKind::Tail);
        });
        at = last;
    });
    hole(at, end);
    for_each_reserved(start, end, |first, last| mark(first, last, PageKind::Reserved));
    early::for_each_owned(start, end, |owned| mark(owned.start, owned.end, owned.kind));
    section.set_online();
    if let Some(word) = ONLINE.get(usize::try_from(section.number / 64).unwrap_or(usize::MAX)) {
        word.fetch_or(1 << (section.number % 64), Ordering::Release);
    }
    let dense = (0..)
        .zip(sections())
        .take_while(|(number, section)| section.number == *number && section.is_online());
    DENSE.store((dense.count() as u64) << SECTION_PAGES_SHIFT, Ordering::Release);
    for_each_free(start, end, |first, last, node| {
        limits::of(node).for_each_part(first, last, |first, last, kind| {
            page_alloc::hand_over(node, kind, first, last);
        });
    });
}

/// Descriptors of frames that are not RAM say so (Linux: `init_unavailable_range`).
fn hole(start: Pfn, end: Pfn) {
    if start < end {
        init_range(&Fresh, start, end, 0, ZoneKind::Dma, PageKind::None);
    }
}

/// Frames of one section that are RAM get an owner other than the buddy allocator.
fn mark(start: Pfn, end: Pfn, kind: PageKind) {
    let count = usize::try_from(end.as_u64() - start.as_u64()).unwrap_or(usize::MAX);
    for page in Fresh.pages(start).iter().take(count).filter(|page| page.kind() != PageKind::None) {
        page.set_kind(kind);
        page.set_refcount(1);
        page.insert(PageFlags::RESERVED);
    }
}

/// The whole frames of RAM in `start..end`, by node.
fn for_each_ram(start: Pfn, end: Pfn, mut f: impl FnMut(Pfn, Pfn, u32)) {
    let memblock = early::MEMBLOCK.lock();
    for (first, last, node) in memblock.mem_pfn_ranges(None) {
        let (first, last) = (first.max(start), last.min(end));
        if first < last {
            f(first, last, node);
        }
    }
}

/// Every frame of RAM that memblock reserves, even in part.
fn for_each_reserved(start: Pfn, end: Pfn, mut f: impl FnMut(Pfn, Pfn)) {
    let memblock = early::MEMBLOCK.lock();
    for region in memblock.reserved() {
        let first = Pfn::new(region.base >> PAGE_SHIFT).max(start);
        let last = Pfn::new((region.base + region.size).div_ceil(PAGE_SIZE)).min(end);
        if first < last {
            f(first, last);
        }
    }
}

/// Whole free frames in `start..end`, by node. Memblock no longer changes.
pub fn for_each_free(start: Pfn, end: Pfn, mut f: impl FnMut(Pfn, Pfn, u32)) {
    let memblock = early::MEMBLOCK.lock();
    for (first, last, node) in memblock.free_ranges() {
        let first = Pfn::new(first.as_u64().div_ceil(PAGE_SIZE)).max(start);
        let last = last.pfn().min(end);
        if first < last {
            f(first, last, node);
        }
    }
}
