//! CPUs that add, free, isolate and drain the same frames at once.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use memvisor_abi::{LruKind, Lruvec};
use mm_core::{
    CpuLocal, Gfp, MemMap, Order, Page, PageFlags, PageKind, Pageblock, Pfn, Trace, ZoneKind, refcount,
};

use crate::isolate::isolate_lru_folios;
use crate::list::{self, End};
use crate::{
    CpuBatches, Lru, ScanControl, Who, audit, folio_activate, folio_add_lru, folio_del_lru,
    folio_mark_accessed, folios_del_lru, lru_add_drain, lru_add_drain_all, set_unevictable,
};

const CPUS: usize = 3;
const FRAMES: usize = 24;

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

struct Shared {
    pages: Vec<Page>,
    free: Vec<AtomicBool>,
    lruvec: Mutex<Lruvec>,
    cpus: Vec<Mutex<CpuBatches>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Trace for Shared {}

impl MemMap for Shared {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.pages.get(usize::try_from(pfn.as_u64()).ok()?)
    }

    fn pageblock(&self, _: Pfn) -> Option<&Pageblock> {
        None
    }
}

impl CpuLocal<CpuBatches> for Shared {
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuBatches) -> R) -> R {
        f(0, &mut lock(&self.cpus[CPU.get()]))
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut CpuBatches)) {
        self.cpus.iter().for_each(|cpu| f(0, &mut lock(cpu)));
    }
}

impl Lru for Shared {
    fn lruvec<R>(&self, _: u32, f: impl FnOnce(&mut Lruvec) -> R) -> R {
        f(&mut lock(&self.lruvec))
    }
}

impl Shared {
    fn new() -> Shared {
        let pages: Vec<Page> = (0..FRAMES).map(|_| Page::default()).collect();
        Page::init_all(&pages, 0, ZoneKind::Normal, PageKind::Tail);
        Shared {
            pages,
            free: (0..FRAMES).map(|_| AtomicBool::new(true)).collect(),
            lruvec: Mutex::new(Lruvec::EMPTY),
            cpus: (0..CPUS).map(|_| Mutex::default()).collect(),
        }
    }

    fn put(&self, frame: usize) {
        let page = &self.pages[frame];
        if refcount::put(page.references()) != Some(true) {
            return;
        }
        if frame.is_multiple_of(2) {
            folio_del_lru(self, page);
        } else {
            folios_del_lru(self, &[Pfn::new(frame as u64)]);
        }
        let left = PageFlags::LRU | PageFlags::LRU_ADD | PageFlags::ACTIVE | PageFlags::UNEVICTABLE;
        assert!(!page.has_any(left), "frame {frame} is free with flags of a list");
        self.free[frame].store(true, Release);
    }

    /// Makes a page in a frame, uses it a little and frees it.
    fn live(&self, frame: usize, step: usize) {
        if !self.free[frame].swap(false, Acquire) {
            return;
        }
        let (pfn, page) = (Pfn::new(frame as u64), &self.pages[frame]);
        page.insert(PageFlags::SWAPBACKED);
        page.set_refcount(1);
        folio_add_lru(self, pfn, page);
        match step % 5 {
            0 => (0..2).for_each(|_| folio_mark_accessed(self, pfn, page)),
            1 => lru_add_drain(self),
            2 => folio_activate(self, pfn, page),
            3 => set_unevictable(self, pfn, page, true),
            _ => {}
        }
        self.put(frame);
    }

    /// Takes pages off a list and puts them back, as reclaim does.
    fn reclaim(&self, kind: LruKind) {
        let sc = ScanControl::new(Who::Kswapd, Gfp::KERNEL, Order::ZERO, ZoneKind::Normal);
        let (mut taken, _) = self.lruvec(0, |lruvec| isolate_lru_folios(self, lruvec, (kind, 4), &sc));
        let mut frames = Vec::new();
        self.lruvec(0, |lruvec| {
            lruvec.isolated = [0; 2];
            while let Some((pfn, page)) = taken.pop(self) {
                list::add(self, lruvec, (pfn, page), End::Head);
                frames.push(usize::try_from(pfn.as_u64()).expect("a frame"));
            }
        });
        frames.into_iter().for_each(|frame| self.put(frame));
    }
}

#[test]
fn no_page_is_lost_or_listed_twice_by_cpus_that_race() {
    let m = Shared::new();
    thread::scope(|scope| {
        for cpu in 0..CPUS {
            let m = &m;
            scope.spawn(move || {
                CPU.set(cpu);
                for step in 0..20_000 {
                    m.live((step * 7 + cpu * 5) % FRAMES, step / 3);
                    match step % 16 {
                        3 | 11 => m.reclaim(LruKind::ALL[step / 16 % 5]),
                        7 if step % 64 == 7 => lru_add_drain_all(m),
                        15 => assert_eq!(audit(m, 0), Ok(())),
                        _ => {}
                    }
                }
            });
        }
    });
    lru_add_drain_all(&m);
    assert_eq!(audit(&m, 0), Ok(()));
    assert!(m.free.iter().all(|free| free.load(Relaxed)), "everything was freed");
    assert!(lock(&m.lruvec).lists.iter().all(|list| list.count == 0));
}
