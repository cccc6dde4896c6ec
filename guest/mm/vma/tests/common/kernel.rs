//! A kernel on the host: frames, objects, locks that refuse misuse, and a TLB that keeps what nobody flushed.

mod cache;
mod migrate;
mod swap;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use mm_core::{
    Folios, Gfp, MemMap, Migratetype, NodeMask, Order, PAGE_SIZE, Page, PageAlloc, PageFlags, PageKind,
    Pageblock, Pfn, PhysAddr, PhysMem, Policy, PolicyAt, Trace, ZoneKind,
};
use mm_filemap::shmem::{self, FallocFlags};
use mm_pgtable::{Entry, FlushRange, Levels, PageTable, TABLE_ENTRIES, TableMem};
use mm_sim::SimSwap;
use mm_vma::{
    AnonVma, AnonVmaChain, Arena, Errno, Id, Kernel, Layout, MappedError, MappedPage, Mapping, Mm, MoveTo,
    Node, Owner, Vma, owner, put_page,
};

const FRAMES: usize = 1 << 14;
/// The first frame; the zero page is the last.
const FIRST: u64 = 0x1_0000;
const CHUNK: usize = 256;
/// Swap areas, once in use.
const SWAP_SLOTS: [u32; 2] = [300, 200];
const ZERO_PAGE: Pfn = Pfn::new(FIRST + FRAMES as u64 - 1);

type Frame = Box<[AtomicU64; TABLE_ENTRIES]>;

/// RAM and who owns it.
#[derive(Debug)]
pub struct Ram {
    frames: Vec<OnceLock<Frame>>,
    pages: Vec<Page>,
    nodes: u32,
    free: Mutex<Vec<u64>>,
    /// Allocations that still succeed.
    pub budget: AtomicUsize,
    tables: Mutex<HashSet<u64>>,
}

impl Ram {
    fn index(pfn: Pfn) -> usize {
        usize::try_from(pfn.as_u64().checked_sub(FIRST).expect("a frame")).expect("a frame")
    }

    fn frame(&self, pfn: Pfn) -> &Frame {
        self.frames[Self::index(pfn)].get_or_init(|| Box::new([const { AtomicU64::new(0) }; TABLE_ENTRIES]))
    }

    fn node_of(&self, pfn: u64) -> u32 {
        u32::try_from(pfn % u64::from(self.nodes)).unwrap()
    }

    fn spend(&self) -> bool {
        self.budget.try_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn take(&self) -> Option<Pfn> {
        self.take_from(NodeMask::ALL)
    }

    /// A free frame of one of the nodes.
    fn take_from(&self, nodes: NodeMask) -> Option<Pfn> {
        if !self.spend() {
            return None;
        }
        let pfn = {
            let mut free = self.free.lock().unwrap();
            let at = free.iter().rposition(|pfn| nodes.contains(self.node_of(*pfn)))?;
            Pfn::new(free.remove(at))
        };
        let page = &self.pages[Self::index(pfn)];
        assert_eq!(page.refcount(), 0);
        page.set_refcount(1);
        page.set_kind(PageKind::Allocated);
        Some(pfn)
    }

    fn give(&self, pfn: Pfn) {
        let page = &self.pages[Self::index(pfn)];
        assert_eq!((page.refcount(), page.mapcount()), (1, -1), "{pfn} is freed while it is used");
        page.set_refcount(0);
        page.set_kind(PageKind::Buddy);
        self.free.lock().unwrap().push(pfn.as_u64());
    }

    pub fn used(&self) -> usize {
        FRAMES - 1 - self.free.lock().unwrap().len()
    }

    pub fn table_count(&self) -> usize {
        self.tables.lock().unwrap().len()
    }
}

/// Page tables in that RAM.
#[derive(Debug)]
pub struct Tables(Arc<Ram>);

impl TableMem for Tables {
    fn read(&self, table: Pfn, index: usize) -> u64 {
        assert!(self.0.tables.lock().unwrap().contains(&table.as_u64()), "{table} is no table");
        self.0.frame(table)[index].load(Relaxed)
    }

    fn write(&self, table: Pfn, index: usize, value: u64) {
        self.0.frame(table)[index].store(value, Relaxed);
    }

    fn compare_exchange(&self, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.0.frame(table)[index].compare_exchange(old, new, Relaxed, Relaxed).map(|_| ())
    }

    fn alloc_table(&mut self) -> Option<Pfn> {
        let pfn = self.0.take()?;
        self.0.frame(pfn).iter().for_each(|word| word.store(0, Relaxed));
        self.0.tables.lock().unwrap().insert(pfn.as_u64());
        Some(pfn)
    }

    fn free_table(&mut self, table: Pfn) {
        assert!(self.0.tables.lock().unwrap().remove(&table.as_u64()));
        assert!(self.0.frame(table).iter().all(|word| word.load(Relaxed) == 0));
        self.0.give(table);
    }
}

/// Objects that keep their type.
#[derive(Debug)]
pub struct Pool<T> {
    chunks: Vec<OnceLock<Box<[T]>>>,
    free: Mutex<Vec<u64>>,
    next: AtomicU64,
    /// How often one of them was looked at.
    pub looks: AtomicU64,
}

impl<T: Default> Pool<T> {
    fn new() -> Pool<T> {
        Pool {
            chunks: (0..256).map(|_| OnceLock::new()).collect(),
            free: Mutex::new(Vec::new()),
            next: AtomicU64::new(0),
            looks: AtomicU64::new(0),
        }
    }

    pub fn at(&self, id: Id<T>) -> &T {
        self.looks.fetch_add(1, Relaxed);
        let index = usize::try_from(id.as_u64() / 64 - 1).unwrap();
        let chunk = self.chunks[index / CHUNK].get().expect("an object that was allocated");
        &chunk[index % CHUNK]
    }

    fn alloc(&self) -> Option<Id<T>> {
        let old = self.free.lock().unwrap().pop();
        let index = old.unwrap_or_else(|| self.next.fetch_add(1, Relaxed));
        let chunk = usize::try_from(index).unwrap() / CHUNK;
        self.chunks[chunk].get_or_init(|| (0..CHUNK).map(|_| T::default()).collect());
        Id::new((index + 1) * 64)
    }

    fn free(&self, id: Id<T>) {
        let index = id.as_u64() / 64 - 1;
        let mut free = self.free.lock().unwrap();
        assert!(!free.contains(&index), "{id:?} was freed twice");
        free.push(index);
    }

    pub fn live(&self) -> usize {
        usize::try_from(self.next.load(Relaxed)).unwrap() - self.free.lock().unwrap().len()
    }
}

/// The kernel.
#[derive(Debug)]
pub struct TestKernel {
    pub ram: Arc<Ram>,
    tables: Mutex<Tables>,
    pub vmas: Pool<Vma>,
    pub nodes: Pool<Node>,
    pub mms: Pool<Mm>,
    pub anons: Pool<AnonVma>,
    pub chains: Pool<AnonVmaChain>,
    pub mappings: Pool<Mapping>,
    pub cache_nodes: Pool<mm_filemap::Node>,
    references: Mutex<HashMap<u64, usize>>,
    pages_lock: Mutex<()>,
    /// Pages of shared memory.
    pub shmem: AtomicU64,
    locks: Mutex<HashMap<usize, i32>>,
    rmap: Mutex<()>,
    /// What a CPU remembers: by root table and page.
    pub tlb: Mutex<HashMap<(u64, u64), Entry>>,
    /// Translations whose flush is put off.
    pub deferred: Mutex<HashSet<(u64, u64)>>,
    pub flushes: AtomicU64,
    /// Read faults get pages of their own.
    pub forbids_zero_page: AtomicBool,
    /// The next fault's page leaves the file between its lookup and its mapping.
    pub truncates_on_fault: AtomicBool,
    /// Waits for a page table that still succeed: sixteen more allocations each.
    pub refills: AtomicUsize,
    /// Pages promised.
    pub committed: AtomicU64,
    pub commit_limit: AtomicU64,
    pub swap: SimSwap,
    /// Reads of swap areas fail.
    pub swap_reads_fail: AtomicBool,
    /// Reads of several slots fail.
    pub swap_readahead_fails: AtomicBool,
}

impl TestKernel {
    pub fn new() -> TestKernel {
        TestKernel::with_nodes(1)
    }

    /// A machine whose nodes have a frame each in turn.
    pub fn with_nodes(nodes: u32) -> TestKernel {
        let ram = Arc::new(Ram {
            frames: (0..FRAMES).map(|_| OnceLock::new()).collect(),
            pages: (0..FRAMES).map(|_| Page::default()).collect(),
            free: Mutex::new((0..FRAMES as u64 - 1).map(|i| FIRST + i).collect()),
            budget: AtomicUsize::new(usize::MAX),
            nodes,
            tables: Mutex::default(),
        });
        for (page, pfn) in ram.pages.iter().zip(FIRST..) {
            page.init(ram.node_of(pfn), ZoneKind::Normal, PageKind::None);
        }
        TestKernel {
            tables: Mutex::new(Tables(ram.clone())),
            ram,
            vmas: Pool::new(),
            nodes: Pool::new(),
            mms: Pool::new(),
            anons: Pool::new(),
            chains: Pool::new(),
            mappings: Pool::new(),
            cache_nodes: Pool::new(),
            references: Mutex::default(),
            pages_lock: Mutex::default(),
            shmem: AtomicU64::new(0),
            locks: Mutex::default(),
            rmap: Mutex::default(),
            tlb: Mutex::default(),
            deferred: Mutex::default(),
            flushes: AtomicU64::new(0),
            forbids_zero_page: AtomicBool::new(false),
            truncates_on_fault: AtomicBool::new(false),
            refills: AtomicUsize::new(0),
            committed: AtomicU64::new(0),
            commit_limit: AtomicU64::new(u64::MAX),
            swap: SimSwap::new(&SWAP_SLOTS),
            swap_reads_fail: AtomicBool::new(false),
            swap_readahead_fails: AtomicBool::new(false),
        }
    }

    pub fn nodes_with_memory(&self) -> NodeMask {
        NodeMask::of(0..self.ram.nodes)
    }

    /// Has the swap areas used.
    pub fn swapon(&self) {
        SimSwap::swapon_all(self, 2);
    }

    /// A new address space.
    pub fn new_mm(&self, shape: Layout) -> Id<Mm> {
        let id = Arena::<Mm>::alloc(self).unwrap();
        let pt = PageTable::new(&mut *self.tables.lock().unwrap(), Levels::Four).unwrap();
        self.mms.at(id).init(pt, shape);
        id
    }

    pub fn is_empty(&self) -> bool {
        let objects = [self.vmas.live(), self.anons.live(), self.chains.live(), self.mappings.live()];
        objects.iter().sum::<usize>() + self.cache_nodes.live() == 0 && self.shmem.load(Relaxed) == 0
    }
}

impl Trace for TestKernel {}

impl MemMap for TestKernel {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        let index = usize::try_from(pfn.as_u64().checked_sub(FIRST)?).ok()?;
        self.ram.pages.get(index)
    }

    fn pageblock(&self, _pfn: Pfn) -> Option<&Pageblock> {
        static BLOCK: OnceLock<Pageblock> = OnceLock::new();
        Some(BLOCK.get_or_init(|| Pageblock::new(Migratetype::Movable)))
    }
}

impl PhysMem for TestKernel {
    fn read_u64(&self, addr: PhysAddr) -> u64 {
        self.ram.frame(addr.pfn())[usize::try_from(addr.page_offset() / 8).unwrap()].load(Relaxed)
    }

    fn write_u64(&self, addr: PhysAddr, value: u64) {
        assert_ne!(addr.pfn(), ZERO_PAGE, "the zero page is written to");
        self.ram.frame(addr.pfn())[usize::try_from(addr.page_offset() / 8).unwrap()].store(value, Relaxed);
    }

    fn zero_frame(&self, pfn: Pfn) {
        self.ram.frame(pfn).iter().for_each(|word| word.store(0, Relaxed));
    }
}

/// No lists, but what the flags say of them.
impl Folios for TestKernel {
    fn folio_add_lru(&self, _pfn: Pfn, page: &Page, flags: PageFlags) {
        page.insert(flags);
    }

    fn folio_del_lru(&self, page: &Page) {
        page.remove(PageFlags::SWAPBACKED | PageFlags::UNEVICTABLE);
    }

    fn mark_page_lazyfree(&self, _pfn: Pfn, page: &Page) {
        assert!(matches!(owner(page), Owner::Anon(_)) && !page.has(PageFlags::SWAPCACHE));
        page.remove(PageFlags::SWAPBACKED);
    }
}

impl TestKernel {
    fn alloc_from(&self, gfp: Gfp, nodes: NodeMask) -> Option<Pfn> {
        let pfn = self.ram.take_from(nodes)?;
        let fill = if gfp.contains(Gfp::ZERO) { 0 } else { 0x5a5a_5a5a_5a5a_5a5a };
        self.ram.frame(pfn).iter().for_each(|word| word.store(fill, Relaxed));
        Some(pfn)
    }
}

impl PageAlloc for TestKernel {
    fn alloc_pages(&self, gfp: Gfp, order: Order, _node: Option<u32>) -> Option<Pfn> {
        assert_eq!(order, Order::ZERO);
        self.alloc_from(gfp, NodeMask::ALL)
    }

    fn alloc_page_policy(&self, gfp: Gfp, at: PolicyAt) -> Option<Pfn> {
        match at.policy {
            Policy::Default | Policy::Local => self.alloc_from(gfp, NodeMask::ALL),
            Policy::Bind(nodes) => self.alloc_from(gfp, nodes),
            Policy::Interleave(nodes) => self.alloc_from(gfp, NodeMask::of(nodes.nth_in(at.index))),
            Policy::Preferred(_) | Policy::PreferredMany(_) => {
                let near = self.alloc_from(gfp, at.policy.nodes());
                near.or_else(|| self.alloc_from(gfp, NodeMask::ALL))
            }
        }
    }

    fn free_pages(&self, pfn: Pfn, _order: Order) {
        for ((root, va), entry) in self.tlb.lock().unwrap().iter() {
            assert_ne!(entry.table_pfn(), pfn, "{pfn} is freed while {va:#x} of {root:#x} is in a TLB");
        }
        self.ram.give(pfn);
    }
}

macro_rules! arena {
    ($($ty:ty, $field:ident;)*) => {$(
        impl Arena<$ty> for TestKernel {
            fn at(&self, id: Id<$ty>) -> &$ty {
                self.$field.at(id)
            }

            fn alloc(&self) -> Option<Id<$ty>> {
                if self.ram.spend() { self.$field.alloc() } else { None }
            }

            fn free(&self, id: Id<$ty>) {
                self.$field.free(id);
            }
        }
    )*};
}
arena! {
    Vma, vmas;
    Node, nodes;
    Mm, mms;
    AnonVma, anons;
    AnonVmaChain, chains;
    Mapping, mappings;
    mm_filemap::Node, cache_nodes;
}

impl TestKernel {
    fn lock(&self, mm: &Mm, from: impl Fn(i32) -> bool, add: i32) {
        let mut locks = self.locks.lock().unwrap();
        let lock = locks.entry(core::ptr::from_ref(mm).addr()).or_default();
        assert!(from(*lock), "mmap_lock is {lock}");
        *lock += add;
    }
}

impl TestKernel {
    /// Does what was put off.
    pub fn try_to_unmap_flush(&self, unflushed: &mut Vec<(u64, u64)>) {
        for at in unflushed.drain(..) {
            // Who changed the address space since may have done it.
            if self.deferred.lock().unwrap().remove(&at) {
                self.tlb.lock().unwrap().remove(&at);
            }
        }
    }
}

impl Kernel for TestKernel {
    type Tables = Tables;

    fn tables<R>(&self, _mm: &Mm, f: impl FnOnce(&mut Tables) -> R) -> R {
        f(&mut self.tables.try_lock().expect("the page-table lock is not held"))
    }

    fn flush_tlb(&self, mm: &Mm, range: FlushRange) {
        self.flushes.fetch_add(1, Relaxed);
        let of = mm.page_table().root.as_u64();
        self.tlb.lock().unwrap().retain(|&(root, va), _| {
            root != of
                || match range {
                    FlushRange::Pages(pages) => !pages.as_slice().iter().any(|page| page.as_u64() == va),
                    FlushRange::Range { start, last, stride } => {
                        assert_eq!(stride, PAGE_SIZE);
                        va < start.as_u64() || va > last.as_u64()
                    }
                    FlushRange::All { .. } => false,
                }
        });
    }

    type Unflushed = Vec<(u64, u64)>;

    fn defer_flush(&self, mm: &Mm, va: mm_core::VirtAddr, unflushed: &mut Vec<(u64, u64)>) {
        let at = (mm.page_table().root.as_u64(), va.as_u64());
        self.deferred.lock().unwrap().insert(at);
        unflushed.push(at);
    }

    fn flush_deferred(&self, mm: &Mm) {
        let of = mm.page_table().root.as_u64();
        self.deferred.lock().unwrap().retain(|&(root, va)| {
            if root == of {
                self.tlb.lock().unwrap().remove(&(root, va));
            }
            root != of
        });
    }

    fn mmap_read_lock(&self, mm: &Mm) {
        self.lock(mm, |lock| lock >= 0, 1);
    }

    fn mmap_read_trylock(&self, mm: &Mm) -> bool {
        let mut locks = self.locks.lock().unwrap();
        let lock = locks.entry(core::ptr::from_ref(mm).addr()).or_default();
        let free = *lock >= 0;
        *lock += i32::from(free);
        free
    }

    fn wait_for_memory(&self) -> bool {
        assert!(self.tables.try_lock().is_ok() && self.rmap.try_lock().is_ok(), "a wait under a spinlock");
        let may = self.refills.try_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        if may {
            self.ram.budget.fetch_add(16, Relaxed);
        }
        may
    }

    fn mmap_read_unlock(&self, mm: &Mm) {
        self.lock(mm, |lock| lock > 0, -1);
    }

    fn mmap_write_lock(&self, mm: &Mm) {
        self.lock(mm, |lock| lock == 0, -1);
    }

    fn mmap_write_unlock(&self, mm: &Mm) {
        self.lock(mm, |lock| lock == -1, 1);
    }

    fn rmap_lock<R>(&self, f: impl FnOnce() -> R) -> R {
        let _held = self.rmap.try_lock().expect("the rmap lock is not held");
        f()
    }

    fn zero_page(&self) -> Option<Pfn> {
        (!self.forbids_zero_page.load(Relaxed)).then_some(ZERO_PAGE)
    }

    fn reclaim_pages(&self, pages: &[Pfn]) {
        for pfn in pages {
            let page = MemMap::page(self, *pfn).unwrap();
            if page.mapping() & 1 == 0 {
                put_page(self, *pfn);
            } else {
                self.swap_out_held(*pfn, true);
            }
        }
    }

    fn migrate_pages(&self, pages: &[Pfn], to: MoveTo) -> u64 {
        assert!(
            self.tables.try_lock().is_ok() && self.rmap.try_lock().is_ok(),
            "a move with a spin lock held"
        );
        let mut stayed = 0;
        for pfn in pages {
            stayed += u64::from(!self.move_held(*pfn, to));
            put_page(self, *pfn);
        }
        stayed
    }

    fn vm_enough_memory(&self, _mm: &Mm, pages: u64) -> bool {
        let enough = self.committed.load(Relaxed) + pages <= self.commit_limit.load(Relaxed);
        self.committed.fetch_add(if enough { pages } else { 0 }, Relaxed);
        enough
    }

    fn vm_acct_memory(&self, pages: u64) {
        self.committed.fetch_add(pages, Relaxed);
    }

    fn vm_unacct_memory(&self, pages: u64) {
        self.committed.try_update(Relaxed, Relaxed, |now| now.checked_sub(pages)).expect("it was promised");
    }

    fn honours_noreserve(&self) -> bool {
        true
    }

    fn shmem_zero_setup(&self, bytes: u64, _flags: mm_vma::VmFlags) -> Result<Id<Mapping>, Errno> {
        let id = Arena::<Mapping>::alloc(self).ok_or(Errno::Enomem)?;
        self.mappings.at(id).init(bytes);
        self.references.lock().unwrap().insert(id.as_u64(), 1);
        Ok(id)
    }

    fn mapping_get(&self, mapping: Id<Mapping>) {
        *self.references.lock().unwrap().get_mut(&mapping.as_u64()).unwrap() += 1;
    }

    fn mapping_put(&self, mapping: Id<Mapping>) {
        let left = {
            let mut references = self.references.lock().unwrap();
            let count = references.get_mut(&mapping.as_u64()).unwrap();
            *count -= 1;
            *count
        };
        if left == 0 {
            self.references.lock().unwrap().remove(&mapping.as_u64());
            shmem::evict(self, mapping);
            Arena::<Mapping>::free(self, mapping);
        }
    }

    fn mapping_page(&self, mapping: Id<Mapping>, at: PolicyAt) -> Result<MappedPage, MappedError> {
        if self.truncates_on_fault.swap(false, Relaxed) {
            let found = shmem::fault(self, mapping, at);
            shmem::set_size(self, mapping, 0).unwrap();
            return found;
        }
        shmem::fault(self, mapping, at)
    }

    fn mapping_ready_page(&self, mapping: Id<Mapping>, index: u64) -> Option<Pfn> {
        mm_filemap::get_ready_page(self, mapping, index)
    }

    fn mapping_has_page(&self, mapping: Id<Mapping>, pgoff: u64) -> bool {
        mm_filemap::has_page(self, mapping, pgoff)
    }

    fn mapping_punch_hole(&self, mapping: Id<Mapping>, offset: u64, len: u64) -> Result<(), Errno> {
        shmem::fallocate(self, mapping, FallocFlags::PUNCH_HOLE | FallocFlags::KEEP_SIZE, offset, len)
            .map_err(|_| Errno::Einval)
    }
}
