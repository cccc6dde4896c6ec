//! zswap of this machine: behind what writes and reads slots, before the devices (Linux: mm/zswap.c). The rules are mm-zswap's.
//!
//! `zswap.enabled=1` on the command line switches it on; `work.rs` has the memory to compress in, `shrink.rs` the thread that makes room.
//!
//! One lock guards all of it, for a lookup and a copy; below it are only those of the page allocator, and not even they: frames are had before
//! and freed after. Pages are compressed and decompressed without it.

pub mod shrink;
mod work;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use memvisor_abi::{PageKind, TableRef, VmEvent};
use mm_core::{Gfp, MaySleep, MemMap, Order, PAGE_SIZE, Pfn, PhysAddr};
use mm_page_alloc::TaskFlags;
use mm_swap::{Swap, SwapEntry};
use mm_vmscan::Lru as _;
use mm_zswap::{
    Admission, Content, Count, Freed, Lacking, Parameters, PoolMem, Spare, StoreError, Zswap, words_for,
};

use self::work::Work;
use super::io::alloc;
use crate::mm::space::Spaces;
use crate::mm::{page_alloc, phys, scope};
use crate::sync::Lock;
use crate::{cmdline, pr_info, pr_warn};

/// For the pool and its entries: nobody reclaims for it, and who reclaims anyway may use the reserve, as more comes back at once. Never of highmem:
/// the direct map reaches it (Linux: the same).
const POOL_GFP: Gfp = Gfp::NORETRY.union(Gfp::NOWARN).union(Gfp::KSWAPD_RECLAIM);
/// Linux: the same parameters' defaults.
const MAX_POOL_PERCENT: u32 = 20;
const ACCEPT_THRESHOLD_PERCENT: u32 = 90;

static STATE: Lock<Zswap> = Lock::new(Zswap::new());
static ENABLED: AtomicBool = AtomicBool::new(false);

impl PoolMem for Spaces {
    fn write_bytes(&self, addr: PhysAddr, bytes: &[u8]) {
        phys::copy_to_frame(addr.pfn(), addr.page_offset(), bytes);
    }

    fn read_bytes(&self, addr: PhysAddr, bytes: &mut [u8]) {
        phys::copy_from_frame(addr.pfn(), addr.page_offset(), bytes);
    }
}

/// Where all of it is, for the root descriptor.
pub fn table() -> TableRef {
    let stride = u32::try_from(size_of::<Zswap>()).unwrap_or(u32::MAX);
    TableRef { gpa: phys::of_image(STATE.as_ptr() as u64).as_u64(), count: 1, stride }
}

/// Switches it on if the command line asks for it (Linux: `init_zswap`).
pub fn init(context: &MaySleep<'_>) {
    if is_set("zswap.enabled").unwrap_or(false) {
        enable(context);
    }
}

/// Switches it on, with what the command line says of it; areas that come into use from now on have it.
pub fn enable(context: &MaySleep<'_>) {
    if is_enabled() {
        return;
    }
    let percent = |name, default| {
        let given = cmdline::number(name).and_then(|number| u32::try_from(number).ok());
        given.unwrap_or(default).min(100)
    };
    let parameters = Parameters {
        max_pool_percent: percent("zswap.max_pool_percent", MAX_POOL_PERCENT),
        accept_threshold_percent: percent("zswap.accept_threshold_percent", ACCEPT_THRESHOLD_PERCENT),
        same_filled_pages: is_set("zswap.same_filled_pages_enabled").unwrap_or(true),
        totalram_pages: page_alloc::managed_and_free().0,
    };
    if !work::init() || !shrink::init(context) {
        return pr_warn!("zswap: no memory, it stays off");
    }
    STATE.lock().enable(parameters);
    ENABLED.store(true, Ordering::Release);
    pr_info!(
        "zswap: loaded using pool lz4/zbud, {}% of {} pages, accepts again at {}%",
        parameters.max_pool_percent,
        parameters.totalram_pages,
        parameters.accept_threshold_percent
    );
}

/// A switch on the command line, with Linux's spellings (Linux: `kstrtobool`).
fn is_set(name: &str) -> Option<bool> {
    let given = cmdline::value(name, |value| match value.as_bytes() {
        [b'1' | b'y' | b'Y' | b't' | b'T', ..] => Some(true),
        [b'0' | b'n' | b'N' | b'f' | b'F', ..] => Some(false),
        [b'o' | b'O', b'n' | b'N', ..] => Some(true),
        [b'o' | b'O', b'f' | b'F', ..] => Some(false),
        _ => None,
    });
    given.flatten().or_else(|| cmdline::flag(name).then_some(true))
}

/// Whether pages are taken.
fn is_enabled() -> bool {
    ENABLED.load(Ordering::Acquire)
}

/// Order of a block for the words of an area.
fn order_of(words: u64) -> Option<Order> {
    Order::covering((words * 8).div_ceil(PAGE_SIZE))
}

/// An area is about to come into use. Without memory for its words nothing is kept of it.
pub(super) fn add_area(area: u32) {
    if !is_enabled() {
        return;
    }
    let words = words_for(Spaces.slots(area).len() as u64);
    let gfp = Gfp::KERNEL | Gfp::ZERO | Gfp::NOWARN;
    match order_of(words).and_then(|order| page_alloc::alloc_here(gfp, order, None)) {
        Some(first) => STATE.lock().add_area(area, first.phys(), words),
        None => pr_warn!("zswap: no memory for entries of swap area {area}, which goes without"),
    }
}

/// No slot of an area is in use, and none will be.
pub(super) fn remove_area(area: u32) {
    let gone = STATE.lock().remove_area(area);
    let Some((words, order)) = gone.and_then(|gone| Some((gone, order_of(gone.count.into())?))) else {
        return;
    };
    let leaves = phys::words(PhysAddr::new(words.gpa), words.count.into());
    let is_empty = leaves.iter().all(|leaf| leaf.load(Ordering::Relaxed) == 0);
    assert!(is_empty, "BUG: zswap keeps pages of swap area {area}, of which no slot is in use");
    page_alloc::free_pages(PhysAddr::new(words.gpa).pfn(), order);
}

/// Keeps the page of a slot, which the caller has locked in the swap cache; false if it has to go to the device, and nothing is kept then (Linux:
/// `zswap_frontswap_store`).
pub(super) fn store(slot: SwapEntry, pfn: Pfn) -> bool {
    if !is_enabled() {
        return false;
    }
    let (old, admission) = {
        let mut zswap = STATE.lock();
        let old = zswap.invalidate(&Spaces, slot);
        if old.is_some() {
            zswap.count(Count::Duplicate);
        }
        (old, zswap.admit())
    };
    free(old.unwrap_or_default());
    match admission {
        Admission::Granted => {}
        Admission::Full => {
            shrink::ask();
            return false;
        }
        Admission::NotYet => return false,
    }
    let same_filled = STATE.lock().state().same_filled_pages_enabled != 0;
    // Nothing below sleeps: the CPU's memory is back before anybody else runs here.
    let mut work = Work::take();
    let Some(content) = work.reduce(pfn, same_filled) else {
        STATE.lock().count(Count::CompressPoor);
        return false;
    };
    insert(slot, content)
}

fn insert(slot: SwapEntry, content: Content<'_>) -> bool {
    let mut spare = Spare::new();
    let stored = loop {
        let result = STATE.lock().store(&Spaces, slot, content, &mut spare);
        let refused = match result {
            Ok(()) => break true,
            // Two are enough for anything.
            Err(StoreError::Lacks(_)) if add_frame(&mut spare) => continue,
            Err(StoreError::Lacks(Lacking { pool: true, .. })) => Count::AllocFail,
            Err(StoreError::Lacks(_)) => Count::KmemcacheFail,
            Err(StoreError::Poor) => Count::CompressPoor,
            Err(StoreError::NoArea) => break false,
        };
        STATE.lock().count(refused);
        break false;
    };
    while let Some(frame) = spare.take() {
        page_alloc::free_pages(frame, Order::ZERO);
    }
    if stored {
        Spaces.count_vm_events(VmEvent::Zswpout, 1);
    }
    stored
}

fn add_frame(spare: &mut Spare) -> bool {
    let reclaims = scope::current_flags().contains(TaskFlags::MEMALLOC);
    let gfp = if reclaims { POOL_GFP | Gfp::MEMALLOC } else { POOL_GFP };
    let Some(frame) = alloc(gfp) else { return false };
    if let Some(page) = MemMap::page(&Spaces, frame) {
        page.set_kind(PageKind::Zswap);
    }
    spare.add(frame).inspect_err(|frame| page_alloc::free_pages(*frame, Order::ZERO)).is_ok()
}

/// Frees what an entry had.
fn free(freed: Freed) {
    for frame in freed.0.into_iter().flatten() {
        page_alloc::free_pages(frame, Order::ZERO);
    }
}

/// Fills a frame with the page of a slot, if it is kept; it stays so (Linux: `zswap_frontswap_load`). The caller has the frame, in the swap cache,
/// locked.
pub(super) fn load(slot: SwapEntry, pfn: Pfn) -> bool {
    if !is_enabled() {
        return false;
    }
    let mut work = Work::take();
    let loaded = STATE.lock().load(&Spaces, slot, work.packed());
    let Some(loaded) = loaded else { return false };
    work.restore(loaded, slot, pfn);
    Spaces.count_vm_events(VmEvent::Zswpin, 1);
    true
}

/// Fills a frame with the page of a slot, if it is kept, and keeps it no longer.
fn take(slot: SwapEntry, pfn: Pfn) -> bool {
    let mut work = Work::take();
    let (loaded, freed) = {
        let mut zswap = STATE.lock();
        (zswap.load(&Spaces, slot, work.packed()), zswap.invalidate(&Spaces, slot))
    };
    free(freed.unwrap_or_default());
    let Some(loaded) = loaded else { return false };
    work.restore(loaded, slot, pfn);
    true
}

/// Nobody uses a slot any more (Linux: `zswap_frontswap_invalidate_page`). With locks held or without.
pub(super) fn invalidate(slot: SwapEntry) {
    if is_enabled() {
        let freed = STATE.lock().invalidate(&Spaces, slot);
        free(freed.unwrap_or_default());
    }
}

/// KiB of the pool, and KiB of the pages that are kept (Linux: `Zswap` and `Zswapped` of /proc/meminfo).
pub fn sizes_kib() -> [u64; 2] {
    let zswap = STATE.lock();
    [zswap.pool_total_size() / 1024, zswap.state().stored_pages * PAGE_SIZE / 1024]
}

/// /proc/zswap: a line for each of the files that Linux has in /sys/kernel/debug/zswap, by their names.
///
/// # Errors
/// Those of `out`.
pub fn write_counts(out: &mut dyn Write) -> fmt::Result {
    let (bytes, state) = {
        let zswap = STATE.lock();
        (zswap.pool_total_size(), *zswap.state())
    };
    for (name, number) in [
        ("duplicate_entry", state.duplicate_entry),
        ("pool_limit_hit", state.pool_limit_hit),
        ("pool_total_size", bytes),
        ("reject_alloc_fail", state.reject_alloc_fail),
        ("reject_compress_poor", state.reject_compress_poor),
        ("reject_kmemcache_fail", state.reject_kmemcache_fail),
        ("reject_reclaim_fail", state.reject_reclaim_fail),
        ("same_filled_pages", state.same_filled_pages),
        ("stored_pages", state.stored_pages),
        ("written_back_pages", state.written_back_pages),
    ] {
        writeln!(out, "{name} {number}")?;
    }
    Ok(())
}
