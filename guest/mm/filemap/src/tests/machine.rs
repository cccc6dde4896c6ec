//! A kernel on the host: frames, objects that keep their type, and locks that notice when they are taken twice.

use std::boxed::Box;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};
use std::vec::Vec;

use memvisor_abi::NodeStat;
use mm_core::Rcu;
use mm_core::{
    Arena, Folios, Gfp, Id, MemMap, Migratetype, Order, PAGE_SIZE, Page, PageAlloc, PageKind, Pageblock, Pfn,
    PhysAddr, PhysMem, PolicyAt, Trace, ZoneKind,
};

use mm_core::{PageFlags, refcount};
use mm_sim::SimSwap;
use mm_swap::{
    Swap, SwapEntry, SwapInError, SwapIo, SwappedIn, folio_swap_entry, read_swap_cache_async,
    remove_from_swap_cache,
};

use crate::{Cache, Cows, Mapping, Node, ShadowNodes, put_page, shmem};

const FRAMES: usize = 1 << 10;
const FIRST: u64 = 0x1000;
const CHUNK: usize = 64;

std::thread_local! {
    /// Whether this thread holds the mapping's lock.
    static HELD: Cell<bool> = const { Cell::new(false) };
}

type Frame = Box<[AtomicU64; 512]>;

pub struct Machine {
    frames: Vec<OnceLock<Frame>>,
    pages: Vec<Page>,
    free: Mutex<Vec<u64>>,
    pub nodes: Pool<Node>,
    pub mappings: Pool<Mapping>,
    lock: Mutex<()>,
    /// Allocations that still succeed.
    pub budget: AtomicUsize,
    pub file_pages: AtomicI64,
    pub shmem: AtomicU64,
    pub max_shmem: AtomicU64,
    pub unmapped: Mutex<Vec<(Range<u64>, Cows)>>,
    pub swap: SimSwap,
    pub swapped: AtomicI64,
    /// Whether a mapping is on the list of those with swapped pages.
    pub has_swapped: AtomicBool,
    /// A page that reclaim swaps out before somebody has the mapping's lock next.
    pub reclaims: Mutex<Option<u64>>,
    /// Mappings are shared memory: their values are slots.
    pub has_shmem: AtomicBool,
    pub shadow_nodes: Mutex<ShadowNodes>,
    /// Nodes that are counted, and those that reclaim freed.
    pub workingset: [AtomicI64; 2],
}

/// Objects by number.
pub struct Pool<T> {
    chunks: Vec<OnceLock<Box<[T]>>>,
    free: Mutex<BTreeSet<u64>>,
    next: AtomicU64,
}

impl<T: Default> Pool<T> {
    fn new() -> Pool<T> {
        Pool {
            chunks: (0..256).map(|_| OnceLock::new()).collect(),
            free: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    fn at(&self, id: Id<T>) -> &T {
        let index = usize::try_from(id.as_u64() / 64 - 1).unwrap();
        &self.chunks[index / CHUNK].get().expect("an object that was allocated")[index % CHUNK]
    }

    fn alloc(&self) -> Option<Id<T>> {
        let old = self.free.lock().unwrap().pop_first();
        let index = old.unwrap_or_else(|| self.next.fetch_add(1, Relaxed));
        self.chunks[usize::try_from(index).unwrap() / CHUNK]
            .get_or_init(|| (0..CHUNK).map(|_| T::default()).collect());
        Id::new((index + 1) * 64)
    }

    fn free(&self, id: Id<T>) {
        assert!(self.free.lock().unwrap().insert(id.as_u64() / 64 - 1), "{id:?} was freed twice");
    }

    pub fn live(&self) -> usize {
        usize::try_from(self.next.load(Relaxed)).unwrap() - self.free.lock().unwrap().len()
    }
}

impl Machine {
    pub fn new() -> Machine {
        let machine = Machine {
            frames: (0..FRAMES).map(|_| OnceLock::new()).collect(),
            pages: (0..FRAMES).map(|_| Page::default()).collect(),
            free: Mutex::new((0..FRAMES as u64).map(|index| FIRST + index).collect()),
            nodes: Pool::new(),
            mappings: Pool::new(),
            lock: Mutex::default(),
            budget: AtomicUsize::new(usize::MAX),
            file_pages: AtomicI64::new(0),
            shmem: AtomicU64::new(0),
            max_shmem: AtomicU64::new(u64::MAX),
            unmapped: Mutex::default(),
            swap: SimSwap::new(&[101]),
            swapped: AtomicI64::new(0),
            has_swapped: AtomicBool::new(false),
            reclaims: Mutex::new(None),
            has_shmem: AtomicBool::new(false),
            shadow_nodes: Mutex::default(),
            workingset: Default::default(),
        };
        for page in &machine.pages {
            page.init(0, ZoneKind::Normal, PageKind::None);
        }
        machine
    }

    pub fn mapping(&self, bytes: u64) -> Id<Mapping> {
        let id = Arena::<Mapping>::alloc(self).unwrap();
        self.mappings.at(id).init(bytes);
        id
    }

    pub fn used(&self) -> usize {
        FRAMES - self.free.lock().unwrap().len()
    }

    pub fn frame(&self) -> Pfn {
        self.alloc_pages(Gfp::HIGHUSER, Order::ZERO, None).unwrap()
    }

    pub fn byte(&self, pfn: Pfn, offset: u64) -> u8 {
        let word = self.read_u64(PhysAddr::new(pfn.phys().as_u64() + offset / 8 * 8));
        word.to_le_bytes()[usize::try_from(offset % 8).unwrap()]
    }

    pub fn set_byte(&self, pfn: Pfn, offset: u64, value: u8) {
        let addr = PhysAddr::new(pfn.phys().as_u64() + offset / 8 * 8);
        let mut bytes = self.read_u64(addr).to_le_bytes();
        bytes[usize::try_from(offset % 8).unwrap()] = value;
        self.write_u64(addr, u64::from_le_bytes(bytes));
    }

    fn spend(&self) -> bool {
        self.budget.try_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn words(&self, pfn: Pfn) -> &Frame {
        let index = usize::try_from(pfn.as_u64() - FIRST).unwrap();
        self.frames[index].get_or_init(|| Box::new([const { AtomicU64::new(0) }; 512]))
    }
}

impl Trace for Machine {}

impl MemMap for Machine {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.pages.get(usize::try_from(pfn.as_u64().checked_sub(FIRST)?).ok()?)
    }

    fn pageblock(&self, _pfn: Pfn) -> Option<&Pageblock> {
        static BLOCK: OnceLock<Pageblock> = OnceLock::new();
        Some(BLOCK.get_or_init(|| Pageblock::new(Migratetype::Movable)))
    }
}

impl PhysMem for Machine {
    fn read_u64(&self, addr: PhysAddr) -> u64 {
        self.words(addr.pfn())[usize::try_from(addr.page_offset() / 8).unwrap()].load(Relaxed)
    }

    fn write_u64(&self, addr: PhysAddr, value: u64) {
        self.words(addr.pfn())[usize::try_from(addr.page_offset() / 8).unwrap()].store(value, Relaxed);
    }

    fn zero_frame(&self, pfn: Pfn) {
        self.words(pfn).iter().for_each(|word| word.store(0, Relaxed));
    }
}

impl Folios for Machine {}

impl PageAlloc for Machine {
    fn alloc_pages(&self, gfp: Gfp, order: Order, _node: Option<u32>) -> Option<Pfn> {
        assert!(!HELD.get(), "memory under the mapping's lock");
        assert_eq!(order, Order::ZERO);
        if !self.spend() {
            return None;
        }
        let pfn = Pfn::new(self.free.lock().unwrap().pop()?);
        let page = MemMap::page(self, pfn).unwrap();
        assert_eq!((page.refcount(), page.mapping()), (0, 0));
        page.set_kind(PageKind::Allocated);
        let fill = if gfp.contains(Gfp::ZERO) { 0 } else { 0x5a5a_5a5a_5a5a_5a5a };
        self.words(pfn).iter().for_each(|word| word.store(fill, Relaxed));
        page.set_refcount(1);
        Some(pfn)
    }

    fn free_pages(&self, pfn: Pfn, _order: Order) {
        let page = MemMap::page(self, pfn).unwrap();
        assert_eq!(page.mapcount(), -1, "{pfn} is freed while it is mapped");
        match mm_core::refcount::put(page.references()) {
            Some(true) => self.free.lock().unwrap().push(pfn.as_u64()),
            Some(false) => {}
            None => panic!("{pfn} is freed twice"),
        }
    }
}

impl Arena<Node> for Machine {
    fn at(&self, id: Id<Node>) -> &Node {
        self.nodes.at(id)
    }

    fn alloc(&self) -> Option<Id<Node>> {
        if self.spend() { self.nodes.alloc() } else { None }
    }

    fn free(&self, id: Id<Node>) {
        assert!(self.nodes.at(id).is_blank(), "X5: a free node is blank");
        self.nodes.free(id);
    }
}

impl Arena<Mapping> for Machine {
    fn at(&self, id: Id<Mapping>) -> &Mapping {
        self.mappings.at(id)
    }

    fn alloc(&self) -> Option<Id<Mapping>> {
        self.mappings.alloc()
    }

    fn free(&self, id: Id<Mapping>) {
        self.mappings.free(id);
    }
}

impl Rcu for Machine {
    fn rcu_read<R>(&self, f: impl FnOnce() -> R) -> R {
        // Objects are never anything else.
        f()
    }
}

mm_sim::swap_by_field!(Machine, swap);

impl SwapIo for Machine {
    fn swapin_readahead(&self, entry: SwapEntry, _at: PolicyAt) -> Result<SwappedIn, SwapInError> {
        assert!(!HELD.get(), "a read with the mapping's lock held");
        let alloc = || self.alloc_pages(Gfp::HIGHUSER_MOVABLE, Order::ZERO, None);
        let found = read_swap_cache_async(self, entry, alloc, |pfn| put_page(self, pfn))?;
        if found.major {
            self.swap_readpage(found.pfn);
            self.unlock_page(found.pfn);
        }
        Ok(found)
    }

    fn swap_readpage(&self, pfn: Pfn) {
        let page = MemMap::page(self, pfn).unwrap();
        let Some(words) = self.swap.read(folio_swap_entry(page).unwrap()) else { return };
        for (at, word) in (0..).step_by(8).zip(words) {
            self.write_u64(PhysAddr::new(pfn.phys().as_u64() + at), word);
        }
        page.insert(PageFlags::UPTODATE);
    }

    fn lock_page(&self, pfn: Pfn) {
        MemMap::page(self, pfn).unwrap().lock();
    }

    fn wait_on_page_writeback(&self, _pfn: Pfn) {}
}

impl Machine {
    /// Has an area of 100 slots used.
    pub fn swapon(&self) {
        SimSwap::swapon_all(self, 1);
    }

    /// Swaps a page of shared memory out, which nobody maps; whether its frame is free now.
    pub fn swap_out(&self, id: Id<Mapping>, index: u64) -> bool {
        let Some(pfn) = crate::find_get_page(self, id, index) else { return false };
        let page = MemMap::page(self, pfn).unwrap();
        page.lock();
        let moved = shmem::move_to_swap(self, pfn);
        let mut gone = false;
        if moved {
            let word = |at: u64| self.read_u64(PhysAddr::new(pfn.phys().as_u64() + at * 8));
            let words = core::array::from_fn(|at| word(at as u64));
            self.swap.write(folio_swap_entry(page).unwrap(), words);
            page.remove(PageFlags::DIRTY);
            gone = remove_from_swap_cache(self, pfn, || 0);
        }
        page.unlock();
        if gone {
            refcount::unfreeze(page.references(), 1);
        }
        put_page(self, pfn);
        gone
    }
}

impl Cache for Machine {
    fn is_shmem(&self, _mapping: Id<Mapping>) -> bool {
        self.has_shmem.load(Relaxed)
    }

    fn count_swapped(&self, _mapping: Id<Mapping>, pages: i64) {
        self.swapped.fetch_add(pages, Relaxed);
        if pages > 0 {
            self.has_swapped.store(true, Relaxed);
        }
    }

    fn forget_swapped(&self, _mapping: Id<Mapping>) {
        self.has_swapped.store(false, Relaxed);
    }

    fn pages_lock<R>(&self, mapping: Id<Mapping>, f: impl FnOnce() -> R) -> R {
        let reclaimed = self.reclaims.lock().unwrap().take();
        if let Some(index) = reclaimed {
            self.swap_out(mapping, index);
        }
        assert!(!HELD.replace(true), "the mapping's lock is taken twice");
        let _held = self.lock.lock().unwrap();
        let result = f();
        HELD.set(false);
        result
    }

    fn shadow_nodes<R>(&self, f: impl FnOnce(&mut ShadowNodes) -> R) -> R {
        f(&mut self.shadow_nodes.try_lock().expect("the list's lock is not taken twice"))
    }

    fn mod_kmem_state(&self, _node: Id<Node>, stat: NodeStat, delta: i64) {
        let index = match stat {
            NodeStat::WorkingsetNodes => 0,
            NodeStat::NodeReclaim => 1,
            _ => panic!("{stat:?} is nothing of a node"),
        };
        self.workingset[index].fetch_add(delta, Relaxed);
    }

    fn unmap_mapping_range(&self, _mapping: Id<Mapping>, pages: Range<u64>, cows: Cows) {
        self.unmapped.lock().unwrap().push((pages, cows));
    }

    fn zero_user(&self, pfn: Pfn, bytes: Range<u64>) {
        assert!(bytes.end <= PAGE_SIZE);
        bytes.for_each(|offset| self.set_byte(pfn, offset, 0));
    }

    fn count_file_pages(&self, pages: i64) {
        self.file_pages.fetch_add(pages, Relaxed);
    }

    fn shmem_acct_blocks(&self, _mapping: Id<Mapping>, pages: u64) -> bool {
        let max = self.max_shmem.load(Relaxed);
        self.shmem.try_update(Relaxed, Relaxed, |now| (now + pages <= max).then_some(now + pages)).is_ok()
    }

    fn shmem_unacct_blocks(&self, _mapping: Id<Mapping>, pages: u64) {
        self.shmem.fetch_sub(pages, Relaxed);
    }
}
