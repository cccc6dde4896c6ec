//! Memory pressure: files larger than memory, read through the page cache, with contents that each page can be checked by. What stands in
//! for the disk is a formula, so that all of it is clean and comes back as it was.
//!
//! Each test says what it did and its numbers. `pressure=PERCENT` on the command line says how large the file is, of all memory.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{LruKind, VmEvent, Watermark};
use mm_core::{Gfp, MemMap, Order, PAGE_SIZE, Pfn};
use mm_filemap::{Bound, add_to_page_cache, find_get_page, read_cache_page};
use mm_slab::{CacheArgs, CacheId, Object, SlabFlags};
use mm_vma::{
    Id, Kernel, Layout, Limits, MapFile, MapFlags, Mapping, Mm, MmapRequest, ProtFlags, Space,
    populate_locked, put_page,
};
use mm_vmscan::{Lru, folio_mark_accessed, lru_add_drain_all};

use super::{Failure, Test, check};
use crate::mm::layout::levels;
use crate::mm::reclaim::{self, DEFAULT_SEEKS, Shrinker};
use crate::mm::slab::KMEM;
use crate::mm::space::cache::{Source, new_mapping};
use crate::mm::space::{self, Spaces, program_mapping};
use crate::mm::vmscan::{self, kswapd};
use crate::mm::{kmap, page_alloc, pcp, phys};
use crate::sched::{self, clock};
use crate::sync::Lock;
use crate::{cmdline, println};

/// `ktest=reclaim`.
pub const TESTS: [(&str, Test); 5] = [
    ("kswapd_keeps_free_pages_between_low_and_high", kswapd_saws),
    ("direct_reclaim_serves_who_allocates", direct_reclaim),
    ("shrinkers_give_slabs_back", slab_pressure),
    ("locked_pages_stay_until_they_are_unlocked", mlock_pressure),
    ("a_full_node_is_reclaimed_alone", numa_pressure),
];

type Outcome<T = ()> = Result<T, Failure>;

fn event(event: VmEvent) -> u64 {
    pcp::sum_events().get(event as usize).copied().unwrap_or(0)
}

/// Events of a test, from its beginning.
struct Since([u64; WATCHED.len()]);

const WATCHED: [VmEvent; 9] = [
    VmEvent::Pageoutrun,
    VmEvent::PgscanKswapd,
    VmEvent::PgstealKswapd,
    VmEvent::PgscanDirect,
    VmEvent::PgstealDirect,
    VmEvent::AllocstallMovable,
    VmEvent::WorkingsetRefaultFile,
    VmEvent::Pgactivate,
    VmEvent::SlabsScanned,
];

impl Since {
    fn now() -> Since {
        Since(WATCHED.map(event))
    }

    /// What happened since, told on the console.
    fn tell(&self) -> [u64; WATCHED.len()] {
        let mut deltas = WATCHED.map(event);
        for ((delta, before), watched) in deltas.iter_mut().zip(self.0).zip(WATCHED) {
            *delta -= before;
            println!("#   {} {delta}", VmEvent::NAMES[watched as usize]);
        }
        deltas
    }
}

/// Pages that CPUs may move at once.
const SLACK: u64 = 64;

/// The file's first word of a page, and its last.
const fn word(file: u64, index: u64) -> u64 {
    (index ^ file << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

const LAST: u64 = PAGE_SIZE - 8;

fn fill(file: u64, index: u64, pfn: Pfn) {
    let word = word(file, index).to_le_bytes();
    kmap::copy_to_page(pfn, 0, &word);
    kmap::copy_to_page(pfn, LAST, &word);
}

/// Reads a page of a file: through the cache, or anew. Whether it held what it must.
fn read(id: Id<Mapping>, file: u64, index: u64) -> Outcome<bool> {
    let got = read_cache_page(&Spaces, id, index, Bound::Size, |pfn| {
        fill(file, index, pfn);
        Ok(())
    });
    let (pfn, fresh) = got.map_err(|_| Failure::Wrong("a page of the file cannot be had"))?;
    let (mut first, mut last) = ([0; 8], [0; 8]);
    kmap::copy_from_page(pfn, 0, &mut first);
    kmap::copy_from_page(pfn, LAST, &mut last);
    if let Some(page) = Spaces.page(pfn).filter(|_| !fresh) {
        folio_mark_accessed(&Spaces, pfn, page);
    }
    put_page(&Spaces, pfn);
    let word = word(file, index).to_le_bytes();
    Ok(first == word && last == word)
}

fn file(pages: u64) -> Outcome<Id<Mapping>> {
    new_mapping(Source::Program, pages * PAGE_SIZE).map_err(|_| Failure::Wrong("no mapping"))
}

/// Pages that all of memory has, and how many a file of a test has.
fn sizes() -> (u64, u64) {
    let (managed, _) = page_alloc::managed_and_free();
    let percent = cmdline::number("pressure").unwrap_or(150).clamp(10, 1000);
    (managed, managed * percent / 100)
}

/// Free pages, and sums of the min, low and high marks of all zones.
fn levels_now() -> (u64, [u64; 3]) {
    let (mut free, mut marks) = (0, [0; 3]);
    for zone in page_alloc::zones() {
        let zone = zone.lock();
        free += zone.info().free_pages;
        let boost = zone.info().watermark_boost;
        for (sum, mark) in marks.iter_mut().zip(zone.info().watermark) {
            *sum += mark + if zone.info().managed_pages > 0 { boost } else { 0 };
        }
    }
    (free, marks)
}

/// A file of one and a half times memory is read from end to end, and the free pages are looked at after every page.
fn kswapd_saws() -> Outcome {
    let token = sched::task_context();
    let (managed, pages) = sizes();
    let id = file(pages)?;
    let (start, marks) = levels_now();
    println!("# {managed} pages of memory, {start} free; reads a file of {pages} pages once");
    let since = Since::now();
    let (mut lowest, mut highest, mut wrong) = (u64::MAX, 0, 0_u64);
    let (mut slowest, mut was_low, mut boosted_high) = (0, false, marks[Watermark::High as usize]);
    for index in 0..pages {
        let begin = clock::now();
        wrong += u64::from(!read(id, 1, index)?);
        slowest = slowest.max(clock::now() - begin);
        let (free, [_, low, high]) = levels_now();
        lowest = lowest.min(free);
        // What fragmentation adds to the marks is kept free, too.
        boosted_high = boosted_high.max(high);
        was_low |= free <= low + SLACK;
        if was_low {
            highest = highest.max(free);
        }
        if index % 64 == 0 {
            sched::yield_now(&token);
        }
    }
    kswapd::wait_idle(&token);
    let (rest, _) = levels_now();
    let [min, low, high] = marks;
    println!(
        "#   min {min} low {low} high {high}, with boost {boosted_high}: free went down to {lowest}, up to {highest}, rests at {rest}"
    );
    println!("#   slowest page {} us, wrong pages {wrong}", slowest / 1000);
    let [runs, _, kswapd, _, direct, ..] = since.tell();
    Spaces.mapping_put(id);
    if pages + low < start {
        return Err(Failure::Skip("the file fits into memory"));
    }
    check(wrong == 0, "a page did not hold what was read")?;
    check(runs > 0 && kswapd > 0, "kswapd freed nothing")?;
    check(was_low && lowest + SLACK >= min, "free pages did not come down, or went below the min mark")?;
    // A run frees as many pages as the high mark has, and then looks whether that is enough.
    check(highest <= low + 2 * boosted_high + SLACK, "kswapd freed far more than the high mark asks for")?;
    check(kswapd + direct + start >= pages, "more was read than was freed")?;
    check(rest >= low, "kswapd sleeps below the low mark")
}

/// The same while kswapd is held: who allocates reclaims.
fn direct_reclaim() -> Outcome {
    let token = sched::task_context();
    let (managed, pages) = sizes();
    let id = file(pages)?;
    println!(
        "# {managed} pages of memory; kswapd is held; reads a file of {pages} pages once, then its end again"
    );
    let (start, _) = levels_now();
    let since = Since::now();
    let stalls = || {
        (VmEvent::AllocstallDma as usize..=VmEvent::AllocstallMovable as usize)
            .filter_map(|index| pcp::sum_events().get(index).copied())
            .sum::<u64>()
    };
    let before = stalls();
    kswapd::hold(&token);
    let read_all = |from: u64| -> Outcome<u64> {
        let mut wrong = 0;
        for index in from..pages {
            wrong += u64::from(!read(id, 2, index)?);
        }
        Ok(wrong)
    };
    let wrong = read_all(0).and_then(|wrong| Ok(wrong + read_all(pages - pages / 8)?));
    kswapd::go_on();
    kswapd::wait_idle(&token);
    println!(
        "#   {} direct reclaims, wrong pages {}",
        stalls() - before,
        wrong.as_ref().copied().unwrap_or(0)
    );
    let [_, _, _, scanned, stolen, ..] = since.tell();
    Spaces.mapping_put(id);
    if pages < start {
        return Err(Failure::Skip("the file fits into memory"));
    }
    check(wrong? == 0, "a page did not hold what was read")?;
    check(stalls() > before && stolen > 0 && scanned >= stolen, "nobody reclaimed directly")
}

/// Objects of a cache that a shrinker may take, linked through their second words; the number of each is in the first.
static OBJECTS: AtomicU64 = AtomicU64::new(0);
static OBJECT_COUNT: AtomicU64 = AtomicU64::new(0);
static OBJECT_CACHE: AtomicU64 = AtomicU64::new(u64::MAX);
const OBJECT_BYTES: u32 = 1024;

fn count_objects() -> u64 {
    OBJECT_COUNT.load(Ordering::Relaxed)
}

fn scan_objects(wanted: u64) -> u64 {
    let mut freed = 0;
    while freed < wanted && drop_object() {
        freed += 1;
    }
    freed
}

fn drop_object() -> bool {
    // Nodes are reclaimed at once.
    static TAKING: Lock<()> = Lock::new(());
    let held = TAKING.lock();
    let addr = OBJECTS.load(Ordering::Relaxed);
    if addr == 0 {
        return false;
    }
    let object = Object::new(mm_core::PhysAddr::new(addr));
    let next = phys::words(object.addr(), 2).get(1).map_or(0, |word| word.load(Ordering::Relaxed));
    OBJECTS.store(next, Ordering::Relaxed);
    OBJECT_COUNT.fetch_sub(1, Ordering::Relaxed);
    drop(held);
    let id = CacheId::new(OBJECT_CACHE.load(Ordering::Relaxed));
    id.is_some_and(|id| KMEM.free(id, object).is_ok())
}

/// Objects fill a quarter of memory; then a file takes it.
fn slab_pressure() -> Outcome {
    let token = sched::task_context();
    let (managed, pages) = sizes();
    let args = CacheArgs { flags: SlabFlags::NO_MERGE, ..CacheArgs::new("t-pressure", OBJECT_BYTES) };
    let cache = KMEM.create(&args).map_err(|_| Failure::Wrong("the cache is not created"))?;
    OBJECT_CACHE.store(cache.index() as u64, Ordering::Relaxed);
    let wanted = managed / 4 * (PAGE_SIZE / u64::from(OBJECT_BYTES));
    while count_objects() < wanted {
        let Some(object) = KMEM.alloc(cache, Gfp::NOWAIT | Gfp::NOWARN) else { break };
        if let Some(next) = phys::words(object.addr(), 2).get(1) {
            next.store(OBJECTS.swap(object.addr().as_u64(), Ordering::Relaxed), Ordering::Relaxed);
        }
        OBJECT_COUNT.fetch_add(1, Ordering::Relaxed);
    }
    let made = count_objects();
    let shrinker = Shrinker {
        name: "t-pressure",
        count: count_objects,
        scan: scan_objects,
        seeks: DEFAULT_SEEKS,
        pages: 0,
    };
    check(reclaim::register_shrinker(shrinker), "no room for a shrinker")?;
    println!(
        "# {managed} pages of memory; {made} objects of {OBJECT_BYTES} bytes, then a file of {pages} pages"
    );
    let id = file(pages)?;
    let since = Since::now();
    let mut wrong = 0;
    for index in 0..pages {
        wrong += u64::from(!read(id, 3, index)?);
        if index % 64 == 0 {
            sched::yield_now(&token);
        }
    }
    kswapd::hold(&token);
    reclaim::unregister_shrinker("t-pressure");
    kswapd::go_on();
    let left = count_objects();
    println!("#   objects given back {}, left {left}, wrong pages {wrong}", made - left);
    since.tell();
    while drop_object() {}
    Spaces.mapping_put(id);
    check(KMEM.destroy(cache).is_ok(), "a cache whose objects all came back is not destroyed")?;
    check(wrong == 0, "a page did not hold what was read")?;
    let (start, _) = levels_now();
    if pages < start {
        return Err(Failure::Skip("the file fits into memory"));
    }
    check(left < made, "the shrinker was not asked for anything")
}

/// Pages of the program, mapped and locked, under pressure; then unlocked, and under pressure again.
fn mlock_pressure() -> Outcome {
    let program = program_mapping().map_err(|_| Failure::Wrong("no program"))?;
    let shape = Layout::new(levels(), Limits::default().stack, 0);
    let outcome = match space::mm_alloc(shape) {
        Ok(mm) => {
            let outcome = mlock_in(mm, program);
            space::mm_free(mm);
            outcome
        }
        Err(_) => Err(Failure::Wrong("no address space")),
    };
    Spaces.mapping_put(program);
    outcome
}

fn mlock_in(mm: Id<Mm>, program: Id<Mapping>) -> Outcome {
    let token = sched::task_context();
    let (managed, pages) = sizes();
    let locked = (space::cache::size(program) / PAGE_SIZE).min(16);
    let limits = Limits::default();
    let lock = || Space::lock(&Spaces, mm, limits);
    Spaces.mapping_get(program);
    let request = MmapRequest {
        addr: 0,
        len: locked * PAGE_SIZE,
        prot: ProtFlags::READ,
        flags: MapFlags::SHARED,
        file: Some(MapFile { writable: false, ..MapFile::of(program) }),
        offset: 0,
    };
    let mapped = lock().mmap(&request).map_err(|_| Failure::Wrong("mmap failed"));
    let (area, _) = mapped.inspect_err(|_| Spaces.mapping_put(program))?;
    let range = lock().mlock(area, locked * PAGE_SIZE, 0).map_err(|_| Failure::Wrong("mlock failed"))?;
    populate_locked(&Spaces, mm, &limits, range).map_err(|_| Failure::Wrong("they cannot be brought in"))?;
    let mapped_now = || {
        let at = |index: u64| space::translate(space::mm_of(mm), area + index * PAGE_SIZE, false);
        (0..locked).filter(|index| at(*index).is_some()).count() as u64
    };
    let unevictable = || {
        lru_add_drain_all(&Spaces);
        vmscan::counts().list(LruKind::Unevictable)
    };
    let squeeze = |number: u64| -> Outcome {
        let id = file(pages)?;
        let mut wrong = 0;
        for index in 0..pages {
            wrong += u64::from(!read(id, number, index)?);
            if index % 64 == 0 {
                sched::yield_now(&token);
            }
        }
        Spaces.mapping_put(id);
        check(wrong == 0, "a page did not hold what was read")
    };
    println!(
        "# {managed} pages of memory; {locked} pages of a file are mapped and locked, then a file of {pages} pages is read"
    );
    let before = unevictable();
    squeeze(4)?;
    let (stayed, during) = (mapped_now(), unevictable());
    lock().munlock(area, locked * PAGE_SIZE).map_err(|_| Failure::Wrong("munlock failed"))?;
    let after = unevictable();
    // They were used, and are at the other end of the list: it goes round more than once.
    (5..9).try_for_each(squeeze)?;
    let left = mapped_now();
    println!("#   unevictable {before}, under pressure {during}, unlocked {after}");
    println!("#   of the locked pages {stayed} stayed mapped; unlocked, {left} did");
    check(before >= locked && during >= locked, "locked pages are not all unevictable")?;
    check(stayed == locked, "a locked page was reclaimed")?;
    check(before - after >= locked, "unlocked pages stayed unevictable")?;
    if pages < managed {
        return Err(Failure::Skip("the file fits into memory"));
    }
    if Spaces.lru_gen_enabled() {
        // What is read once comes to the oldest generation and goes from it: it makes nobody else older (Linux: the same).
        return Ok(());
    }
    check(left < locked, "unlocked pages stayed in memory")
}

/// Fills the last node with pages of a file while the others have memory.
fn numa_pressure() -> Outcome {
    let token = sched::task_context();
    let nodes = page_alloc::nr_nodes();
    let Some(full) =
        u32::try_from(nodes).ok().and_then(|nodes| nodes.checked_sub(1)).filter(|node| *node > 0)
    else {
        return Err(Failure::Skip("the machine has one node"));
    };
    let of_node = |node: u32| {
        let zones = page_alloc::zones().map(|zone| zone.lock()).filter(|zone| zone.info().node == node);
        zones.fold((0, 0), |sums, zone| {
            let info = zone.info();
            (sums.0 + info.managed_pages, sums.1 + info.free_pages)
        })
    };
    let (managed, _) = of_node(full);
    if managed == 0 {
        return Err(Failure::Skip("the last node has no memory"));
    }
    let pages = managed + managed / 2;
    let id = file(pages)?;
    let (_, others) = of_node(0);
    let since = Since::now();
    let gfp = Gfp::HIGHUSER_MOVABLE | Gfp::THISNODE;
    let (mut added, mut elsewhere) = (0_u64, 0_u64);
    for index in 0..pages {
        let Some(pfn) = page_alloc::alloc_here(gfp, Order::ZERO, Some(full)) else { break };
        elsewhere += u64::from(Spaces.page(pfn).is_some_and(|page| page.node() != full));
        fill(6, index, pfn);
        added += u64::from(add_to_page_cache(&Spaces, id, index, pfn, Bound::Size).is_ok());
        put_page(&Spaces, pfn);
        if index % 64 == 0 {
            sched::yield_now(&token);
        }
    }
    kswapd::wait_idle(&token);
    let mut present = 0_u64;
    for index in 0..pages {
        if let Some(pfn) = find_get_page(&Spaces, id, index) {
            present += 1;
            put_page(&Spaces, pfn);
        }
    }
    let (_, others_now) = of_node(0);
    let (_, free) = of_node(full);
    println!("# node {full} of {nodes}: {managed} pages; a file of {pages} pages is put there");
    println!("#   added {added}, there now {present}, on other nodes {elsewhere}");
    println!("#   free on node {full}: {free}; on node 0: {others} before, {others_now} after");
    since.tell();
    Spaces.mapping_put(id);
    check(added == pages && elsewhere == 0, "an allocation for the full node failed or went elsewhere")?;
    check(present < pages, "nothing was reclaimed on the full node")?;
    check(others_now + managed / 8 >= others, "memory of another node was used")
}
