//! A machine in ordinary memory: nodes of frames, pages of programs and files that are touched, a swap area that writes at once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use memvisor_abi::{LruGen, LruKind, Lruvec};
use mm_core::{
    CpuLocal, Gfp, MemMap, Order, Page, PageFlags, PageKind, Pageblock, Pfn, Trace, ZoneKind, refcount,
};
use mm_sim::SimMem;

use crate::{
    CpuBatches, Lru, Mark, PageOut, Pages, Refault, Referenced, Throttle, Zones, audit, folio_add_lru,
    folio_del_lru, folio_mark_accessed, folios_update_gen, lru_gen_init, try_to_free_pages,
    workingset_refault,
};

/// What a page of a program or file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Anon,
    /// Mapped.
    Mapped,
    /// Mapped, of a program.
    Code,
    /// Read by calls.
    Cached,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Virtual {
    pub kind: Kind,
    pub frame: Option<Pfn>,
    pub accessed: bool,
    pub locked: bool,
    /// One entry of several always stays.
    pub held: bool,
    pub shadow: u64,
    pub swapped: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub swap_outs: u64,
    pub refaults: u64,
    pub activated: u64,
    pub flusher: u64,
    pub throttled: u64,
    pub kcompactd: u64,
    pub slab: u64,
    pub unmapped: u64,
    /// Flushes that had something to do.
    pub flushes: u64,
}

pub(super) struct Machine {
    mem: SimMem,
    lruvecs: Vec<RefCell<Lruvec>>,
    cpu: RefCell<CpuBatches>,
    free: Vec<RefCell<Vec<Pfn>>>,
    pub pages: RefCell<BTreeMap<u64, Virtual>>,
    pub counts: RefCell<Counts>,
    pub swap: Cell<(u64, u64)>,
    pub swappiness: Cell<u32>,
    pub min: Cell<u64>,
    pub boost: Cell<u64>,
    per_node: u64,
    generations: bool,
    clock: Cell<u64>,
    /// Pages that were unmapped, and that CPUs may still reach.
    unflushed: RefCell<BTreeSet<Pfn>>,
}

const ANON: u64 = 0x1000 | memvisor_abi::Page::MAPPING_ANON;
const FILE: u64 = 0x2000;

impl Machine {
    /// `nodes` nodes of `frames` frames, `swap` slots; min is a 64th, low and high are that much higher each.
    pub fn new(nodes: u64, frames: u64, swap: u64) -> Machine {
        let all = Pfn::new(1)..Pfn::new(1 + nodes * frames);
        let mem = SimMem::new(std::slice::from_ref(&all));
        let mut free = Vec::new();
        for (node, number) in (0..nodes).zip(0u32..) {
            let first = Pfn::new(1 + node * frames);
            mem.init(first..first.offset(frames), number, ZoneKind::Normal, PageKind::Tail);
            free.push(RefCell::new((0..frames).rev().map(|page| first.offset(page)).collect()));
        }
        Machine {
            mem,
            lruvecs: (0..nodes).map(|_| RefCell::new(Lruvec::EMPTY)).collect(),
            cpu: RefCell::default(),
            free,
            pages: RefCell::default(),
            counts: RefCell::default(),
            swap: Cell::new((0, swap)),
            swappiness: Cell::new(60),
            min: Cell::new(frames / 64),
            boost: Cell::new(0),
            per_node: frames,
            generations: false,
            clock: Cell::new(0),
            unflushed: RefCell::default(),
        }
    }

    /// [`Machine::new`] whose pages are on lists of generations.
    pub fn with_generations(nodes: u64, frames: u64, swap: u64) -> Machine {
        let machine = Machine { generations: true, ..Machine::new(nodes, frames, swap) };
        machine.lruvecs.iter().for_each(|lruvec| lru_gen_init(&mut lruvec.borrow_mut(), 0));
        machine
    }

    /// Of a node.
    pub fn lrugen(&self, node: usize) -> LruGen {
        self.lruvecs[node].borrow().lrugen
    }

    /// Generations from the youngest that a page is on the list of.
    pub fn age_of(&self, id: u64) -> Option<u64> {
        let page = self.descriptor(self.frame(id));
        let lrugen = self.lrugen(page.node() as usize);
        let place = page.flags().lru_gen()?;
        (0..4).find(|age| LruGen::place(lrugen.max_seq - age) == place)
    }

    /// As the entries of page tables show: who was used, of these.
    fn take_young(&self, node: u32, ids: std::ops::Range<u64>) -> Vec<Pfn> {
        let mut young = Vec::new();
        for virt in self.pages.borrow_mut().range_mut(ids).map(|(_, virt)| virt) {
            let Some(pfn) = virt.frame.filter(|_| virt.kind != Kind::Cached && !virt.locked) else {
                continue;
            };
            let page = self.descriptor(pfn);
            if page.node() == node && std::mem::take(&mut virt.accessed) {
                if !page.has_any(PageFlags::LRU | PageFlags::LRU_ADD) {
                    page.insert(PageFlags::REFERENCED);
                }
                young.push(pfn);
            }
        }
        young
    }

    /// Uses page `id`, which is of that kind, and makes it present if need be, on `node` or another.
    pub fn touch_on(&self, node: u32, id: u64, kind: Kind) {
        let fresh = Virtual {
            kind,
            frame: None,
            accessed: false,
            locked: false,
            held: false,
            shadow: 0,
            swapped: false,
        };
        let seen = *self.pages.borrow_mut().entry(id).or_insert(fresh);
        let pfn = seen.frame.unwrap_or_else(|| self.fault(node, id, seen));
        match kind {
            Kind::Cached => folio_mark_accessed(self, pfn, self.descriptor(pfn)),
            Kind::Anon | Kind::Mapped | Kind::Code => self.edit(id, |page| page.accessed = true),
        }
    }

    pub fn touch(&self, id: u64, kind: Kind) {
        self.touch_on(0, id, kind);
    }

    pub fn touch_all(&self, ids: std::ops::Range<u64>, kind: Kind) {
        ids.for_each(|id| self.touch(id, kind));
    }

    pub fn edit(&self, id: u64, f: impl FnOnce(&mut Virtual)) {
        f(self.pages.borrow_mut().get_mut(&id).expect("the page was touched"));
    }

    pub fn present(&self, ids: std::ops::Range<u64>) -> usize {
        self.pages.borrow().range(ids).filter(|(_, page)| page.frame.is_some()).count()
    }

    pub fn frame(&self, id: u64) -> Pfn {
        self.pages.borrow()[&id].frame.expect("the page is present")
    }

    pub fn descriptor(&self, pfn: Pfn) -> &Page {
        self.mem.page(pfn).expect("a frame")
    }

    pub fn list(&self, kind: LruKind) -> u64 {
        self.lruvecs.iter().map(|lruvec| lruvec.borrow().pages(kind)).sum()
    }

    pub fn free_on(&self, node: u32) -> u64 {
        self.free[node as usize].borrow().len() as u64
    }

    pub fn audit(&self) {
        for (lruvec, node) in self.lruvecs.iter().zip(0u32..) {
            assert_eq!(audit(self, node), Ok(()));
            assert_eq!(lruvec.borrow().isolated, [0, 0]);
        }
    }

    /// Frees the page as its owner does.
    pub fn drop_page(&self, id: u64) {
        let page = self.pages.borrow_mut().remove(&id);
        let Some(pfn) = page.and_then(|page| page.frame) else { return };
        let page = self.descriptor(pfn);
        page.set_mapcount(-1);
        assert_eq!(page.refcount(), 1, "nobody else has it");
        self.folio_put(pfn);
    }

    fn fault(&self, node: u32, id: u64, seen: Virtual) -> Pfn {
        let pfn = self.allocate(node);
        let page = self.descriptor(pfn);
        let is_anon = seen.kind == Kind::Anon;
        page.set_kind(PageKind::User);
        page.set_owner(if is_anon { ANON } else { FILE }, id);
        page.set_refcount(1);
        if is_anon {
            page.insert(PageFlags::SWAPBACKED);
            // What was only read may be in its slot still; this machine writes everything again.
            page.insert(PageFlags::DIRTY);
            if seen.swapped {
                let (used, all) = self.swap.get();
                self.swap.set((used - 1, all));
            }
        }
        if seen.kind != Kind::Cached {
            page.set_mapcount(0);
        }
        if seen.shadow != 0 {
            let refault = workingset_refault(self, page, seen.shadow, self.nr_swap_pages());
            let mut counts = self.counts.borrow_mut();
            counts.refaults += 1;
            counts.activated += u64::from(matches!(refault, Refault::Activated | Refault::Restored));
        }
        self.edit(id, |virt| *virt = Virtual { frame: Some(pfn), shadow: 0, swapped: false, ..*virt });
        folio_add_lru(self, pfn, page);
        pfn
    }

    /// A frame, after direct reclaim if none is above min.
    fn allocate(&self, node: u32) -> Pfn {
        let count = u32::try_from(self.free.len()).expect("few nodes");
        let order: Vec<(u32, ZoneKind)> =
            (0..count).map(|step| ((node + step) % count, ZoneKind::Normal)).collect();
        for _ in 0..3 {
            let found = order.iter().find(|(node, _)| self.free_on(*node) > self.min.get());
            if let Some((node, _)) = found {
                let pfn = self.free[*node as usize].borrow_mut().pop();
                return pfn.expect("it was counted");
            }
            try_to_free_pages(self, &|| order.iter().copied(), (Gfp::KERNEL, Order::ZERO, ZoneKind::Normal));
        }
        panic!("out of memory");
    }

    fn id_of(&self, page: &Page) -> u64 {
        page.index()
    }
}

impl Trace for Machine {}

impl MemMap for Machine {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.mem.page(pfn)
    }

    fn pageblock(&self, pfn: Pfn) -> Option<&Pageblock> {
        self.mem.pageblock(pfn)
    }
}

impl CpuLocal<CpuBatches> for Machine {
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuBatches) -> R) -> R {
        f(0, &mut self.cpu.borrow_mut())
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut CpuBatches)) {
        f(0, &mut self.cpu.borrow_mut());
    }
}

impl Lru for Machine {
    fn lruvec<R>(&self, node: u32, f: impl FnOnce(&mut Lruvec) -> R) -> R {
        f(&mut self.lruvecs[node as usize].borrow_mut())
    }

    fn lru_gen_enabled(&self) -> bool {
        self.generations
    }

    fn now_ns(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }
}

impl Pages for Machine {
    fn folio_referenced(&self, _: Pfn, page: &Page) -> Referenced {
        let id = self.id_of(page);
        let used = self.pages.borrow().get(&id).is_some_and(|virt| virt.accessed);
        if self.generations && used && page.mapcount() >= 0 {
            let window = id & !63;
            for ids in [window..id, id + 1..window + 64] {
                let young = self.take_young(page.node(), ids);
                folios_update_gen(self, page.node(), &young);
            }
        }
        let mut pages = self.pages.borrow_mut();
        let Some(virt) = pages.get_mut(&self.id_of(page)) else { return Referenced::default() };
        let used = std::mem::take(&mut virt.accessed) && page.mapcount() >= 0;
        Referenced {
            ptes: u32::from(used),
            is_locked: virt.locked,
            is_exec: virt.kind == Kind::Code,
            is_contended: false,
        }
    }

    fn walk_page_tables(&self, node: u32, used: &mut dyn FnMut(&[Pfn])) {
        let young = self.take_young(node, 0..u64::MAX);
        young.chunks(64).for_each(used);
    }

    fn add_to_swap(&self, _: Pfn, page: &Page) -> bool {
        let (used, all) = self.swap.get();
        if used == all {
            return false;
        }
        self.swap.set((used + 1, all));
        refcount::get(page.references());
        page.insert(PageFlags::SWAPCACHE | PageFlags::DIRTY);
        true
    }

    fn unlock_page(&self, pfn: Pfn, page: &Page) {
        assert!(!self.unflushed.borrow().contains(&pfn), "{pfn} is unlocked while CPUs may reach it");
        page.unlock();
    }

    type Unflushed = Vec<Pfn>;

    fn try_to_unmap_flush(&self, unflushed: &mut Vec<Pfn>) {
        let mut counts = self.counts.borrow_mut();
        counts.unmapped += unflushed.len() as u64;
        counts.flushes += u64::from(!unflushed.is_empty());
        for pfn in unflushed.drain(..) {
            assert!(self.descriptor(pfn).has(PageFlags::LOCKED), "{pfn} was unlocked before its flush");
            assert!(self.unflushed.borrow_mut().remove(&pfn));
        }
    }

    fn try_to_unmap(&self, pfn: Pfn, page: &Page, unflushed: &mut Vec<Pfn>) -> bool {
        assert!(self.unflushed.borrow_mut().insert(pfn));
        unflushed.push(pfn);
        let is_lazyfree = !page.has(PageFlags::SWAPBACKED) && page.mapping() == ANON;
        if self.pages.borrow()[&self.id_of(page)].held {
            if is_lazyfree {
                // It was written to since.
                page.insert(PageFlags::SWAPBACKED);
            }
            return false;
        }
        self.edit(self.id_of(page), |virt| {
            virt.frame = None;
            virt.swapped = virt.kind == Kind::Anon && !is_lazyfree;
        });
        page.set_mapcount(-1);
        // A page of a file stays in its cache, whose reference is the entry's here.
        if page.has(PageFlags::SWAPCACHE) {
            assert!(refcount::put_unless_last(page.references()));
        }
        true
    }

    type Plug = ();

    fn pageout(&self, pfn: Pfn, page: &Page, (): &mut ()) -> PageOut {
        assert!(!self.unflushed.borrow().contains(&pfn), "{pfn} is written while CPUs may write to it");
        self.counts.borrow_mut().swap_outs += 1;
        page.remove(PageFlags::DIRTY);
        page.unlock();
        PageOut::Success
    }

    fn remove_mapping(&self, pfn: Pfn, page: &Page, shadow: impl FnOnce() -> u64) -> bool {
        assert!(!self.unflushed.borrow().contains(&pfn), "{pfn} leaves its cache while CPUs may reach it");
        if page.has(PageFlags::DIRTY) || !refcount::freeze(page.references(), 2) {
            return false;
        }
        let shadow = shadow();
        self.edit(self.id_of(page), |virt| {
            virt.frame = None;
            virt.shadow = shadow;
        });
        page.remove(PageFlags::SWAPCACHE);
        true
    }

    fn free_folio(&self, pfn: Pfn) {
        let page = self.descriptor(pfn);
        assert_eq!((page.refcount(), page.mapcount()), (0, -1));
        let gone = PageFlags::LRU | PageFlags::LRU_ADD | PageFlags::LOCKED | PageFlags::ACTIVE;
        assert!(!page.has_any(gone | PageFlags::LRU_GEN | PageFlags::LRU_REFS));
        page.remove(PageFlags::DIRTY);
        page.set_owner(0, 0);
        page.set_kind(PageKind::Tail);
        self.free[page.node() as usize].borrow_mut().push(pfn);
    }

    fn folio_free_swap(&self, _: Pfn, _: &Page) -> bool {
        false
    }

    fn folio_put(&self, pfn: Pfn) {
        let page = self.descriptor(pfn);
        if refcount::put(page.references()) == Some(true) {
            folio_del_lru(self, page);
            self.free_folio(pfn);
        }
    }

    fn nr_swap_pages(&self) -> u64 {
        let (used, all) = self.swap.get();
        all - used
    }

    fn is_vm_swap_full(&self) -> bool {
        let (used, all) = self.swap.get();
        used * 2 > all
    }

    fn swappiness(&self) -> u32 {
        self.swappiness.get()
    }
}

impl Zones for Machine {
    fn managed_pages(&self, _: u32, zone: ZoneKind) -> u64 {
        if zone == ZoneKind::Normal { self.per_node } else { 0 }
    }

    fn free_pages(&self, node: u32, _: ZoneKind) -> u64 {
        self.free_on(node)
    }

    fn watermark(&self, _: u32, _: ZoneKind, mark: Mark) -> u64 {
        let level = match mark {
            Mark::Min => 1,
            Mark::Low => 2,
            Mark::High => 3,
        };
        self.min.get() * level + self.boost.get()
    }

    fn is_watermark_ok(&self, node: u32, zone: ZoneKind, _: Order, mark: Mark, _: ZoneKind) -> bool {
        self.free_on(node) > self.watermark(node, zone, mark)
    }

    fn watermark_boost(&self, _: u32, zone: ZoneKind) -> u64 {
        if zone == ZoneKind::Normal { self.boost.get() } else { 0 }
    }

    fn lower_boost(&self, _: u32, _: ZoneKind, by: u64) {
        self.boost.set(self.boost.get() - by);
    }

    fn is_compaction_ready(&self, _: u32, _: ZoneKind, _: Order) -> bool {
        false
    }

    fn shrink_slab(&self, _: u32, _: u8) -> u64 {
        self.counts.borrow_mut().slab += 1;
        0
    }

    fn reclaim_throttle(&self, _: u32, _: Throttle) {
        self.counts.borrow_mut().throttled += 1;
    }

    fn wakeup_flusher_threads(&self) {
        self.counts.borrow_mut().flusher += 1;
    }

    fn cond_resched(&self) {}

    fn wakeup_kcompactd(&self, _: u32, _: ZoneKind) {
        self.counts.borrow_mut().kcompactd += 1;
    }
}
