//! The tables of swap areas, as mm-swap and readers from outside see them.
//!
//! An area's words stay when it goes out of use, for the next one of its number: whoever looked at them before it went may still do.

use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::mem::offset_of;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi::{MAX_SWAPFILES, NodeStat, SwapArea, TableRef};
use mm_core::{CpuLocal, Folios, Gfp, MemMap, Order, PAGE_SIZE, Page, PageFlags, Pfn, PhysAddr};
use mm_swap::{Cluster, CpuCluster, Swap, SwapEntry, SwapInfo, SwapList, Totals};

use super::zswap;
use crate::arch::percpu;
use crate::drivers::block::Disk;
use crate::mm::space::Spaces;
use crate::mm::{page_alloc, page_wait, phys, vmstat};
use crate::sync::Lock;

/// [`SwapArea`] with fields that may be written through a shared reference.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Published {
    words: AtomicU64,
    max: AtomicU64,
    pages: AtomicU64,
    inuse: AtomicU64,
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub read_errors: AtomicU64,
    pub write_errors: AtomicU64,
    prio: AtomicI32,
    flags: AtomicU32,
    disk: AtomicU32,
    reserved: AtomicU32,
}

const _: () = assert!(
    size_of::<Published>() == size_of::<SwapArea>()
        && offset_of!(Published, words) == offset_of!(SwapArea, words)
        && offset_of!(Published, inuse) == offset_of!(SwapArea, inuse)
        && offset_of!(Published, reads) == offset_of!(SwapArea, reads)
        && offset_of!(Published, write_errors) == offset_of!(SwapArea, write_errors)
        && offset_of!(Published, prio) == offset_of!(SwapArea, prio)
        && offset_of!(Published, flags) == offset_of!(SwapArea, flags)
        && offset_of!(Published, disk) == offset_of!(SwapArea, disk)
);

impl Published {
    const fn new() -> Published {
        Published {
            words: AtomicU64::new(0),
            max: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            inuse: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            read_errors: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
            prio: AtomicI32::new(0),
            flags: AtomicU32::new(0),
            disk: AtomicU32::new(0),
            reserved: AtomicU32::new(0),
        }
    }
}

type Info = SwapInfo<Vec<Cluster>>;

/// Words in a row in the direct map, which stay for ever.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    start: PhysAddr,
    count: u64,
}

impl Words {
    const NONE: Words = Words { start: PhysAddr::new(0), count: 0 };

    fn first(self, count: usize) -> Words {
        Words { count: self.count.min(count as u64), ..self }
    }

    /// The words.
    pub(super) fn slots(self) -> &'static [AtomicU64] {
        if self.count == 0 { &[] } else { phys::words(self.start, self.count) }
    }
}

struct Area {
    /// None while it is not in use.
    words: Lock<Words>,
    info: Lock<Option<Info>>,
    disk: Lock<Option<Disk>>,
    /// The longest that were made for this number.
    kept: Lock<Words>,
}

static AREAS: [Area; MAX_SWAPFILES] = [const {
    Area {
        words: Lock::new(Words::NONE),
        info: Lock::new(None),
        disk: Lock::new(None),
        kept: Lock::new(Words::NONE),
    }
}; MAX_SWAPFILES];
static PUBLISHED: [Published; MAX_SWAPFILES] = [const { Published::new() }; MAX_SWAPFILES];
static LIST: Lock<SwapList> = Lock::new(SwapList::new());
static TOTALS: Totals = Totals::new();
static CPUS: [Lock<CpuCluster>; MAX_CPUS] = [const { Lock::new(CpuCluster::NOWHERE) }; MAX_CPUS];

/// The published table.
pub fn table() -> TableRef {
    TableRef {
        gpa: phys::of_image((&raw const PUBLISHED) as u64).as_u64(),
        count: u32::try_from(MAX_SWAPFILES).unwrap_or(0),
        stride: u32::try_from(size_of::<Published>()).unwrap_or(0),
    }
}

fn at(area: u32) -> Option<(&'static Area, &'static Published)> {
    let index = usize::try_from(area).ok()?;
    Some((AREAS.get(index)?, PUBLISHED.get(index)?))
}

/// What is published of an area.
pub(super) fn published(area: u32) -> Option<&'static Published> {
    at(area).map(|(_, published)| published)
}

/// The disk of an area.
pub(super) fn disk(area: u32) -> Option<Disk> {
    at(area).and_then(|(area, _)| *area.disk.lock())
}

/// The area on a disk.
pub(super) fn area_on(index: u8) -> Option<u32> {
    (0..).take(MAX_SWAPFILES).find(|area| disk(*area).is_some_and(|disk| disk.index == index))
}

/// A number that no area has.
pub(super) fn free_number() -> Option<u32> {
    (0..).take(MAX_SWAPFILES).find(|area| disk(*area).is_none())
}

/// Words for an area of that number, each of any value; `None` without memory for so many in a row.
///
/// Differs from Linux, where the map is vmalloced: here it lies in a row, so that readers from outside find it without page tables. One
/// block of 4 MiB at most, for an area of 2 GiB.
pub(super) fn make_words(area: u32, count: usize) -> Option<Words> {
    const PER_FRAME: u64 = PAGE_SIZE / 8;
    let (area, _) = at(area)?;
    let kept = *area.kept.lock();
    if kept.slots().len() >= count {
        return Some(kept.first(count));
    }
    // Each is twice as long as the one before at least, so that those left behind are less than the one in use.
    let order = Order::covering((count as u64).div_ceil(PER_FRAME))?;
    let first = page_alloc::alloc_here(Gfp::KERNEL | Gfp::NOWARN, order, None)?;
    let words = Words { start: first.phys(), count: order.pages() * PER_FRAME };
    *area.kept.lock() = words;
    Some(words.first(count))
}

/// Makes an area known, not in use yet.
pub(super) fn install(area: u32, of: Disk, words: Words, info: Info) {
    let Some((area, published)) = at(area) else { return };
    *area.info.lock() = Some(info);
    *area.words.lock() = words;
    *area.disk.lock() = Some(of);
    published.disk.store(of.index.into(), Relaxed);
    published.words.store(words.start.as_u64(), Relaxed);
    published.max.store(words.count, Relaxed);
    for counter in [
        &published.reads,
        &published.writes,
        &published.read_errors,
        &published.write_errors,
        &published.inuse,
    ] {
        counter.store(0, Relaxed);
    }
    published.flags.store(SwapArea::USED, Relaxed);
}

/// Ends [`install`]; no slot is in use.
pub(super) fn uninstall(area: u32) {
    let Some((area, published)) = at(area) else { return };
    published.flags.store(0, Relaxed);
    published.max.store(0, Relaxed);
    published.words.store(0, Relaxed);
    *area.words.lock() = Words::NONE;
    *area.info.lock() = None;
    *area.disk.lock() = None;
}

/// /proc/swaps (Linux: `swap_show`).
///
/// # Errors
/// Those of `out`.
pub fn write_swaps(out: &mut dyn Write) -> fmt::Result {
    const KIB: u64 = 4;
    writeln!(out, "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority")?;
    for (number, published) in (0..).zip(&PUBLISHED) {
        let Some(disk) = disk(number) else { continue };
        let name = disk.name();
        let name = core::str::from_utf8(&name).unwrap_or("?");
        let (size, used) = (published.pages.load(Relaxed) * KIB, published.inuse.load(Relaxed) * KIB);
        let tab = |number: u64| if number < 10_000_000 { "\t" } else { "" };
        writeln!(
            out,
            "/dev/{name:<35}partition\t{size}\t{}{used}\t{}{}",
            tab(size),
            tab(used),
            published.prio.load(Relaxed)
        )?;
    }
    Ok(())
}

impl CpuLocal<CpuCluster> for Spaces {
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuCluster) -> R) -> R {
        // Elsewhere by the time it is locked is no harm: it is a place to go on.
        let cpu = percpu::cpu();
        let own = usize::try_from(cpu).ok().and_then(|cpu| CPUS.get(cpu));
        f(cpu, &mut own.unwrap_or(&CPUS[0]).lock())
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut CpuCluster)) {
        for (cpu, own) in (0..).zip(&CPUS) {
            f(cpu, &mut own.lock());
        }
    }
}

impl Swap for Spaces {
    type Word = AtomicU64;
    type Clusters = Vec<Cluster>;

    fn slots(&self, area: u32) -> &[AtomicU64] {
        at(area).map_or(&[], |(area, _)| area.words.lock().slots())
    }

    fn with_area<R>(&self, area: u32, f: impl FnOnce(&mut Info) -> R) -> Option<R> {
        let (area, published) = at(area)?;
        let mut locked = area.info.lock();
        let info = locked.as_mut()?;
        let result = f(info);
        published.pages.store(info.pages(), Relaxed);
        published.inuse.store(info.inuse_pages(), Relaxed);
        published.prio.store(info.prio(), Relaxed);
        let writeok = if info.is_writeok() { SwapArea::WRITEOK } else { 0 };
        published.flags.store(SwapArea::USED | writeok, Relaxed);
        Some(result)
    }

    fn with_list<R>(&self, f: impl FnOnce(&mut SwapList) -> R) -> R {
        f(&mut LIST.lock())
    }

    fn totals(&self) -> &Totals {
        &TOTALS
    }

    fn swapped_in(&self, pfn: Pfn, shadow: u64) {
        let Some(page) = MemMap::page(self, pfn) else { return };
        if shadow != 0 {
            self.workingset_refault(page, shadow);
        }
        self.folio_add_lru(pfn, page, PageFlags::empty());
    }

    fn invalidate_page(&self, entry: SwapEntry) {
        zswap::invalidate(entry);
    }

    fn count_cached(&self, page: &Page, delta: i64) {
        vmstat::mod_page_state(page, NodeStat::SwapCache, delta);
        vmstat::mod_page_state(page, NodeStat::FilePages, delta);
    }

    fn unlock_page(&self, pfn: Pfn) {
        if let Some(page) = MemMap::page(self, pfn) {
            page_wait::unlock_page(pfn, page);
        }
    }
}
