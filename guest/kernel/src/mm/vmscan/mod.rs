//! The LRU lists of this machine: a [`Lruvec`] a node, batches of each CPU, and what address spaces, page cache and migration tell of their
//! pages (Linux: mm/swap.c, mm/vmscan.c).
//!
//! mm-vmscan decides; here are the lists' memory, their locks, and what reclaim asks of the rest of the kernel:
//!
//! ```text
//! mod.rs       lists, batches, the hooks of those who make and free pages
//! pages.rs     what reclaim does to a page: who used it, unmap, write, remove
//! zones.rs     what it knows of zones: watermarks, free pages, waiting
//! kswapd.rs    the reclaimer of each node
//! throttle.rs  waiting where reclaim gets nowhere
//! shrinker.rs  caches of the kernel that can give pages back
//! ```
//!
//! Locks: a node's LRU lock comes below page tables, rmap and the lock of a mapping's pages; only the counting of events comes below it.

pub mod kswapd;
mod pages;
pub mod shrinker;
pub mod throttle;
mod zones;

pub use pages::{set_swappiness, swappiness};

use core::sync::atomic::{AtomicBool, Ordering};

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi::{LruKind, Lruvec, MAX_NUMNODES, NR_LRU_LISTS, NodeStat, PageKind, TableRef, VmEvent};
use mm_core::{CpuLocal, Folios, Page, PageFlags, Pfn};
use mm_page_alloc::CpuPages;
use mm_vmscan::{
    CpuBatches, Lru, Pages, Refault, folio_add_lru_as, folio_del_lru, folio_mark_accessed, lru_gen_init,
    mark_page_lazyfree, set_unevictable, workingset_refault,
};

use crate::mm::cpu_local::PerCpuTable;
use crate::mm::space::Spaces;
use crate::mm::{early, page_alloc, pcp, phys, vmstat};
use crate::sched::clock;
use crate::sync::Lock;
use crate::{cmdline, pr_info, pr_warn, println, topology};

/// The lists, by node.
static LRUVECS: [Lock<Lruvec>; MAX_NUMNODES] = [const { Lock::new(Lruvec::EMPTY) }; MAX_NUMNODES];

static BATCHES: PerCpuTable<CpuBatches> = PerCpuTable::new();

/// Whether `lru=gen` chose generations.
static LRU_GEN_ENABLED: AtomicBool = AtomicBool::new(false);

/// Chooses the policy and gives every CPU its batches; memblock still allocates, and no page is on a list.
pub fn init() {
    init_policy();
    const _: () = assert!(size_of::<CpuBatches>() <= 4096);
    for cpu in 0..topology::CPUS.lock().count {
        let frame = early::alloc(1, 1, None, PageKind::Reserved).expect("no memory for per-CPU data");
        // SAFETY: allocated just now, one frame, which is more than the batches of a CPU; those of zeroes are empty.
        unsafe { BATCHES.install(cpu, frame.phys()) };
    }
}

/// Reads `lru=`. What is wrong is said, and the default holds.
fn init_policy() {
    let wanted = cmdline::value("lru", |name| match name {
        "classic" => Ok(false),
        "gen" => Ok(true),
        other => {
            let mut wrong = [0; 32];
            let len = other.len().min(wrong.len());
            wrong[..len].copy_from_slice(&other.as_bytes()[..len]);
            Err((wrong, len))
        }
    });
    match wanted {
        Some(Ok(true)) => {
            for lruvec in &LRUVECS {
                lru_gen_init(&mut lruvec.lock(), clock::now());
            }
            LRU_GEN_ENABLED.store(true, Ordering::Relaxed);
            pr_info!("lru: generations");
        }
        Some(Err((wrong, len))) => {
            let wrong = core::str::from_utf8(&wrong[..len]).unwrap_or("?");
            pr_warn!("lru: wrong lru={wrong:?}, it takes classic or gen; classic is used");
        }
        Some(Ok(false)) | None => {}
    }
}

/// The lists of all nodes, for the root descriptor.
pub fn table(nodes: usize) -> TableRef {
    TableRef {
        gpa: phys::of_image(LRUVECS[0].as_ptr() as u64).as_u64(),
        count: u32::try_from(nodes).unwrap_or(0),
        stride: u32::try_from(size_of::<Lock<Lruvec>>()).unwrap_or(0),
    }
}

/// Where each CPU's batches are, for the root descriptor.
pub fn batches() -> &'static [core::sync::atomic::AtomicU64; MAX_CPUS] {
    &BATCHES.gpas
}

/// Says what is wrong with the lists. Nobody reclaims or migrates meanwhile.
pub fn audit_all() {
    let mut sound = true;
    for node in 0..u32::try_from(page_alloc::nr_nodes()).unwrap_or(0) {
        if let Err(broken) = mm_vmscan::audit(&Spaces, node) {
            println!("BUG: LRU lists of node {node}: {broken:?}");
            sound = false;
        }
        let isolated = Spaces.lruvec(node, |lruvec| lruvec.isolated);
        if isolated != [0; 2] {
            println!("BUG: LRU lists of node {node}: {isolated:?} pages are isolated, and nobody has them");
            sound = false;
        }
    }
    if sound {
        println!("LRU lists are sound");
    }
}

/// A copy of the lists' heads and counts of a node.
pub fn lruvec(node: u32) -> Lruvec {
    Spaces.lruvec(node, |lruvec| *lruvec)
}

/// Pages on the lists and off them, of all nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// By [`LruKind`].
    pub lists: [u64; NR_LRU_LISTS],
    /// In somebody's hands: anonymous, of files.
    pub isolated: [u64; 2],
}

impl Counts {
    /// Pages on the lists of that kind.
    pub fn list(&self, kind: LruKind) -> u64 {
        self.lists[kind as usize]
    }
}

/// Pages on the lists; those that wait in batches are on none yet.
pub fn counts() -> Counts {
    let mut counts = Counts::default();
    for node in 0..u32::try_from(page_alloc::nr_nodes()).unwrap_or(0) {
        let lruvec = lruvec(node);
        for (sum, kind) in counts.lists.iter_mut().zip(LruKind::ALL) {
            *sum += lruvec.pages(kind);
        }
        for (sum, isolated) in counts.isolated.iter_mut().zip(lruvec.isolated) {
            *sum += isolated;
        }
    }
    counts
}

impl CpuLocal<CpuBatches> for Spaces {
    #[inline(always)]
    fn with<R>(&self, f: impl FnOnce(u32, &mut CpuBatches) -> R) -> R {
        BATCHES.with(f)
    }

    fn for_each(&self, f: impl FnMut(u32, &mut CpuBatches)) {
        BATCHES.for_each(f);
    }
}

impl Lru for Spaces {
    #[inline]
    fn lruvec<R>(&self, node: u32, f: impl FnOnce(&mut Lruvec) -> R) -> R {
        // A descriptor's node has ten bits.
        let index = (node as usize).min(MAX_NUMNODES - 1);
        f(&mut LRUVECS[index].lock())
    }

    #[inline]
    fn lru_gen_enabled(&self) -> bool {
        LRU_GEN_ENABLED.load(Ordering::Relaxed)
    }

    fn now_ns(&self) -> u64 {
        clock::now()
    }

    fn count_vm_events(&self, event: VmEvent, count: u64) {
        if count > 0 {
            pcp::Local.with(|_, cpu: &mut CpuPages| cpu.count(event, count));
        }
    }
}

impl Folios for Spaces {
    #[inline]
    fn folio_add_lru(&self, pfn: Pfn, page: &Page, flags: PageFlags) {
        folio_add_lru_as(self, (pfn, page), flags);
    }

    #[inline]
    fn folio_del_lru(&self, page: &Page) {
        folio_del_lru(self, page);
    }

    fn folio_mark_accessed(&self, pfn: Pfn, page: &Page) {
        folio_mark_accessed(self, pfn, page);
    }

    fn mark_page_lazyfree(&self, pfn: Pfn, page: &Page) {
        mark_page_lazyfree(self, pfn, page);
    }

    fn set_unevictable(&self, pfn: Pfn, page: &Page, unevictable: bool) {
        set_unevictable(self, pfn, page, unevictable);
    }

    fn mod_page_state(&self, page: &Page, stat: NodeStat, delta: i64) {
        vmstat::mod_page_state(page, stat, delta);
    }

    fn workingset_refault(&self, page: &Page, shadow: u64) {
        let file = !page.has(PageFlags::SWAPBACKED);
        let (refault, activate, restore) = if file {
            (VmEvent::WorkingsetRefaultFile, VmEvent::WorkingsetActivateFile, VmEvent::WorkingsetRestoreFile)
        } else {
            (VmEvent::WorkingsetRefaultAnon, VmEvent::WorkingsetActivateAnon, VmEvent::WorkingsetRestoreAnon)
        };
        let stats = if file {
            [NodeStat::RefaultFile, NodeStat::ActivateFile, NodeStat::RestoreFile]
        } else {
            [NodeStat::RefaultAnon, NodeStat::ActivateAnon, NodeStat::RestoreAnon]
        };
        let seen = workingset_refault(self, page, shadow, self.nr_swap_pages());
        let happened = [
            seen != Refault::Unknown,
            matches!(seen, Refault::Activated | Refault::Restored),
            seen == Refault::Restored,
        ];
        for ((event, stat), _) in [refault, activate, restore]
            .into_iter()
            .zip(stats)
            .zip(happened)
            .filter(|(_, happened)| *happened)
        {
            self.count_vm_events(event, 1);
            vmstat::mod_page_state(page, stat, 1);
        }
    }
}
