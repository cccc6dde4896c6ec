//! The memmap: `struct page` for every frame of every present section, in a sparse vmemmap
//! (Linux: mm/sparse-vmemmap.c).
//!
//! A section's descriptors, 2 MiB, are placed and written when the section is first needed. Sections
//! that boot needs get theirs from memblock; a section that comes online later gives its own first
//! 2 MiB that are aligned (Linux: `MHP_MEMMAP_ON_MEMORY`), so that it needs no memory to become memory.
//! Untouched RAM costs the host nothing, so a guest with much RAM starts almost as fast as one with
//! little.

use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use memvisor_abi::{NODE_NONE, PAGES_PER_SECTION, PFN_NONE, SECTION_SIZE_BITS, Section, SectionState};
use mm_core::{MemMap, PAGE_SHIFT, PAGE_SIZE, Page, PageFlags, PageKind, Pfn, PhysAddr, VirtAddr, ZoneKind};
use mm_page_alloc::init_range;
use mm_pgtable::{LeafSize, Prot, layout};

use crate::mm::layout::levels;
use crate::mm::{early, page_alloc, paging, phys};
use crate::println;

const SECTION_PAGES_SHIFT: u32 = SECTION_SIZE_BITS - PAGE_SHIFT;
/// Frames that hold one section's descriptors.
const MEMMAP_FRAMES: u64 = PAGES_PER_SECTION * size_of::<Page>() as u64 / PAGE_SIZE;
/// Sections whose descriptors one page table maps with 2 MiB leaves.
const SECTIONS_PER_TABLE: u64 = 512;

// Written once by `init`, then only `Section::state` changes, under the section's initialisation.
static SECTIONS: AtomicPtr<Section> = AtomicPtr::new(core::ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);
static TABLE: AtomicU64 = AtomicU64::new(0);
static OWN: AtomicU64 = AtomicU64::new(0);

/// The present sections, ascending.
pub fn sections() -> &'static [Section] {
    let first = SECTIONS.load(Ordering::Acquire);
    if first.is_null() {
        return &[];
    }
    // SAFETY: `init` published an array of that length that lives for ever; states are written
    // through `set_online` by one CPU, before it uses what the state admits.
    unsafe { core::slice::from_raw_parts(first, COUNT.load(Ordering::Relaxed)) }
}

/// Physical address of the table of sections.
pub fn table_address() -> PhysAddr {
    PhysAddr::new(TABLE.load(Ordering::Relaxed))
}

/// Frames that sections gave for their own descriptors when they came online: managed, never free again.
pub fn own_frames() -> u64 {
    OWN.load(Ordering::Relaxed)
}

fn find(pfn: Pfn) -> Option<usize> {
    let number = pfn.as_u64() >> SECTION_PAGES_SHIFT;
    sections().binary_search_by_key(&number, |section| section.number).ok()
}

fn set_online(index: usize) {
    let section = SECTIONS.load(Ordering::Relaxed).wrapping_add(index);
    // SAFETY: `index` came from `sections`.
    let state = unsafe { &raw mut (*section).state };
    // SAFETY: as above; readers see either state, and descriptors are written before.
    unsafe { state.write_volatile(SectionState::Online as u32) };
}

fn set_memmap(index: usize, frames: Pfn) {
    let section = SECTIONS.load(Ordering::Relaxed).wrapping_add(index);
    // SAFETY: `index` came from `sections`.
    let memmap = unsafe { &raw mut (*section).memmap_pfn };
    // SAFETY: as above; nobody looks at it before the state says online.
    unsafe { memmap.write_volatile(frames.as_u64()) };
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
}

impl MemMap for Vmemmap {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.pages(pfn).first()
    }

    fn pages(&self, pfn: Pfn) -> &[Page] {
        match find(pfn) {
            Some(index) if sections()[index].state == SectionState::Online as u32 => Vmemmap::run(pfn),
            _ => &[],
        }
    }
}

/// Descriptors of a section that is being initialised.
struct Fresh;

impl MemMap for Fresh {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.pages(pfn).first()
    }

    fn pages(&self, pfn: Pfn) -> &[Page] {
        if find(pfn).is_some() { Vmemmap::run(pfn) } else { &[] }
    }
}

/// Lists the sections with RAM, and reserves and maps the descriptors of those that cannot provide
/// their own. Nothing is online yet.
pub fn init() {
    let mut count = 0;
    for_each_present(|_, _| count += 1);
    let bytes = (count * size_of::<Section>()) as u64;
    let table = early::alloc(early::pages_for(bytes), 1, None, PageKind::Reserved)
        .expect("no memory for the table of sections");
    let empty =
        Section { number: 0, memmap_pfn: PFN_NONE, state: SectionState::Deferred as u32, reserved: 0 };
    // SAFETY: allocated above, with room for `count` sections, and given up here.
    let sections = unsafe { phys::leak_array(table.phys(), count, empty) };
    let mut index = 0;
    for_each_present(|number, node| {
        sections[index].number = number;
        sections[index].reserved = node;
        index += 1;
    });
    // One section a page table of the vmemmap is mapped now, so that mapping the others later takes
    // no memory: they are needed when there is none.
    let mut table_of = None;
    for section in sections.iter_mut() {
        let this = section.number / SECTIONS_PER_TABLE;
        if table_of.replace(this) != Some(this) {
            provide_memmap(section);
        }
    }
    let ram_ends = |nth| {
        let memblock = early::MEMBLOCK.lock();
        memblock.mem_pfn_ranges(None).nth(nth).map(|(start, end, _)| (start, end.as_u64() - 1))
    };
    for nth in 0.. {
        let Some((first, last)) = ram_ends(nth) else { break };
        for pfn in [first, Pfn::new(last)] {
            if let Some(section) = section_of(sections, pfn)
                && own_room(section).is_none()
            {
                provide_memmap(section);
            }
        }
    }
    // What is reserved for descriptors makes further sections needed.
    while let Some(section) = next_reserved_without_memmap(sections) {
        provide_memmap(section);
    }
    let provided = sections.iter().filter(|section| section.memmap_pfn != PFN_NONE).count();
    for section in sections.iter_mut() {
        section.reserved = 0;
    }
    TABLE.store(table.phys().as_u64(), Ordering::Relaxed);
    COUNT.store(sections.len(), Ordering::Relaxed);
    SECTIONS.store(sections.as_mut_ptr(), Ordering::Release);
    println!(
        "sparse: {count} sections of {} MiB, page descriptors of {provided} of them reserved ({} KiB)",
        1 << (SECTION_SIZE_BITS - 20),
        provided as u64 * MEMMAP_FRAMES * 4
    );
}

/// Reserves and maps descriptors for a section that has none. `section.reserved` is its node.
fn provide_memmap(section: &mut Section) {
    if section.memmap_pfn != PFN_NONE {
        return;
    }
    let node = Some(section.reserved).filter(|&node| node != NODE_NONE);
    let frames = early::alloc(MEMMAP_FRAMES, MEMMAP_FRAMES, node, PageKind::Memmap)
        .expect("no memory for page descriptors");
    section.memmap_pfn = frames.as_u64();
    map_memmap(section.number, frames);
}

fn map_memmap(number: u64, frames: Pfn) {
    let first = number << SECTION_PAGES_SHIFT;
    let va = layout::vmemmap_start(levels()).as_u64() + first * size_of::<Page>() as u64;
    let len = MEMMAP_FRAMES * PAGE_SIZE;
    paging::map_kernel(VirtAddr::new(va), frames.phys(), len, Prot::KERNEL_RW, LeafSize::Size2M);
}

fn section_of(sections: &mut [Section], pfn: Pfn) -> Option<&mut Section> {
    let number = pfn.as_u64() >> SECTION_PAGES_SHIFT;
    let index = sections.binary_search_by_key(&number, |section| section.number).ok()?;
    sections.get_mut(index)
}

/// The lowest section with something reserved in its RAM and no descriptors.
fn next_reserved_without_memmap(sections: &mut [Section]) -> Option<&mut Section> {
    let memblock = early::MEMBLOCK.lock();
    let index = memblock.reserved().iter().find_map(|region| {
        let first = region.base >> SECTION_SIZE_BITS;
        let last = (region.base + region.size - 1) >> SECTION_SIZE_BITS;
        let from = sections.partition_point(|section| section.number < first);
        let touched = sections[from..].iter().take_while(|section| section.number <= last);
        touched.enumerate().find(|(_, section)| section.memmap_pfn == PFN_NONE).map(|(index, _)| from + index)
    })?;
    sections.get_mut(index)
}

/// The first frames inside the section, all of them RAM and of one node, that can hold its descriptors.
fn own_room(section: &Section) -> Option<Pfn> {
    let (start, end) = span(section);
    let mut room = None;
    for_each_ram(start, end, |first, last, _| {
        let aligned = first.as_u64().next_multiple_of(MEMMAP_FRAMES);
        if room.is_none() && aligned + MEMMAP_FRAMES <= last.as_u64() {
            room = Some(Pfn::new(aligned));
        }
    });
    room
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

/// Whether memblock reserved anything in the section: then its descriptors are needed at once.
pub fn has_reservations(section: &Section) -> bool {
    let (start, end) = span(section);
    let memblock = early::MEMBLOCK.lock();
    memblock
        .reserved()
        .iter()
        .any(|region| region.base < end.phys().as_u64() && region.base + region.size > start.phys().as_u64())
}

/// Writes the descriptors of a deferred section and gives its free frames to their zones. The caller
/// is the only one at it.
pub fn bring_online(index: usize) {
    let section = sections()[index];
    assert!(section.state == SectionState::Deferred as u32, "section {} is online already", section.number);
    let (start, end) = span(&section);
    // Nothing in a section without descriptors is reserved (`init`), so its room for them is free.
    let own = (section.memmap_pfn == PFN_NONE).then(|| {
        let room = own_room(&section).expect("a section without room for descriptors has them from boot");
        phys::DirectMap.zero_frames(room, MEMMAP_FRAMES);
        map_memmap(section.number, room);
        set_memmap(index, room);
        OWN.fetch_add(MEMMAP_FRAMES, Ordering::Relaxed);
        (room, room.offset(MEMMAP_FRAMES))
    });
    let mut at = start;
    for_each_ram(start, end, |first, last, node| {
        hole(at, first);
        page_alloc::for_each_zone_part(first, last, |first, last, kind| {
            init_range(&Fresh, first, last, node, kind, PageKind::BuddyTail);
        });
        at = last;
    });
    hole(at, end);
    for_each_reserved(start, end, |first, last| mark(first, last, PageKind::Reserved));
    early::for_each_owned(start, end, |owned| mark(owned.start, owned.end, owned.kind));
    set_online(index);
    let (own_start, own_end) = own.unwrap_or((end, end));
    for_each_free(start, end, |first, last, node| {
        page_alloc::for_each_zone_part(first, last, |first, last, kind| {
            for (first, last) in [(first, last.min(own_start)), (first.max(own_end), last)] {
                if first < last {
                    page_alloc::hand_over(node, kind, first, last);
                }
            }
            let (first, last) = (first.max(own_start), last.min(own_end));
            if first < last {
                page_alloc::hand_to_memmap(node, kind, first, last);
            }
        });
    });
}

/// Descriptors of frames that are not RAM say so (Linux: `init_unavailable_range`).
fn hole(start: Pfn, end: Pfn) {
    if start < end {
        init_range(&Fresh, start, end, 0, ZoneKind::Dma, PageKind::None);
    }
}

fn mark(start: Pfn, end: Pfn, kind: PageKind) {
    let mut pfn = start;
    while pfn < end {
        if let Some(page) = Fresh.page(pfn)
            && page.kind() != PageKind::None
        {
            page.set_kind(kind);
            page.set_refcount(1);
            page.insert(PageFlags::RESERVED);
        }
        pfn = pfn.offset(1);
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
