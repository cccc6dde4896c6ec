//! A machine with areas in ordinary memory.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memvisor_abi::SwapHeader;
use mm_core::{CpuLocal, MemMap, Page, PageKind, Pageblock, Pfn, Trace, ZoneKind};
use zerocopy::FromZeros;

use crate::{
    Cluster, CpuCluster, NewArea, Swap, SwapInfo, SwapList, Totals, audit, read_swap_header, swapon,
};

use crate::cluster::CLUSTER_SLOTS;

type Info = SwapInfo<Vec<Cluster>>;

pub(super) struct Machine {
    pages: Vec<Page>,
    areas: Vec<(Vec<AtomicU64>, Mutex<Option<Info>>)>,
    list: Mutex<SwapList>,
    cpu: Mutex<CpuCluster>,
    totals: Totals,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A header for that many slots, its own included.
pub(super) fn header(slots: u32, bad: &[u32]) -> SwapHeader {
    let mut header = SwapHeader::new_zeroed();
    header.version = 1;
    header.last_page = slots - 1;
    header.nr_badpages = u32::try_from(bad.len()).expect("few bad pages");
    header.badpages[..bad.len()].copy_from_slice(bad);
    header.magic = *b"SWAPSPACE2";
    header
}

impl Machine {
    /// Areas with these headers and priorities, in use, and frames 1 to `frames - 1`, each with a reference.
    pub fn new(frames: usize, areas: &[(SwapHeader, Option<u16>)]) -> Machine {
        let pages: Vec<Page> = (0..frames).map(|_| Page::default()).collect();
        Page::init_all(&pages, 0, ZoneKind::Normal, PageKind::None);
        for page in &pages {
            page.set_kind(PageKind::User);
            page.set_refcount(1);
        }
        let mut m = Machine {
            pages,
            areas: Vec::new(),
            list: Mutex::new(SwapList::new()),
            cpu: Mutex::new(CpuCluster::default()),
            totals: Totals::new(),
        };
        for (header, _) in areas {
            let parsed = read_swap_header(header, u64::MAX).expect("a good header");
            let slots = usize::try_from(parsed.max()).expect("a small area");
            let words: Vec<AtomicU64> = (0..slots).map(|_| AtomicU64::new(0)).collect();
            let clusters = vec![Cluster::NEW; slots.div_ceil(CLUSTER_SLOTS)];
            let info =
                NewArea::new(&parsed, &words, clusters).expect("tables that are large enough").into_info();
            m.areas.push((words, Mutex::new(Some(info))));
        }
        for (area, (_, prio)) in (0u32..).zip(areas) {
            swapon(&m, area, *prio).expect("the area exists");
        }
        m
    }

    /// One area of that many slots.
    pub fn one(frames: usize, slots: u32) -> Machine {
        Machine::new(frames, &[(header(slots, &[]), None)])
    }

    pub fn descriptor(&self, pfn: u64) -> &Page {
        self.page(Pfn::new(pfn)).expect("a frame")
    }

    pub fn order(&self) -> Vec<u32> {
        lock(&self.list).areas().collect()
    }

    pub fn inuse(&self, area: u32) -> u64 {
        self.with_area(area, |info| info.inuse_pages()).expect("the area exists")
    }

    pub fn audit(&self) {
        for area in 0..u32::try_from(self.areas.len()).expect("few areas") {
            assert_eq!(audit(self, area), Ok(()));
        }
    }
}

impl Trace for Machine {}

impl MemMap for Machine {
    fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.pages.get(usize::try_from(pfn.as_u64()).ok()?)
    }

    fn pageblock(&self, _: Pfn) -> Option<&Pageblock> {
        None
    }
}

impl CpuLocal<CpuCluster> for Machine {
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuCluster) -> R) -> R {
        f(0, &mut lock(&self.cpu))
    }

    fn for_each(&self, mut f: impl FnMut(u32, &mut CpuCluster)) {
        f(0, &mut lock(&self.cpu));
    }
}

impl Swap for Machine {
    type Word = AtomicU64;
    type Clusters = Vec<Cluster>;

    fn slots(&self, area: u32) -> &[AtomicU64] {
        self.areas.get(area as usize).map_or(&[], |(words, _)| words)
    }

    fn with_area<R>(&self, area: u32, f: impl FnOnce(&mut Info) -> R) -> Option<R> {
        lock(&self.areas.get(area as usize)?.1).as_mut().map(f)
    }

    fn with_list<R>(&self, f: impl FnOnce(&mut SwapList) -> R) -> R {
        f(&mut lock(&self.list))
    }

    fn totals(&self) -> &Totals {
        &self.totals
    }
}
