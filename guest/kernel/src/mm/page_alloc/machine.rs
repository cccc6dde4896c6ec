//! What the page allocator stands on.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memvisor_abi::{MAX_NR_ZONES, Zonelist};
use mm_core::{Gfp, MaySleep, Migrate, Order, Pfn, ZoneKind};
use mm_page_alloc::{Machine, Zone, ZoneGlance};

use super::boot::grow;
use super::zones::{ONLINE_NODES, ZONES, glances};
use crate::arch::regs;
use crate::mm::memmap::Vmemmap;
use crate::mm::movable::Owners;
use crate::mm::reclaim::KernelReclaim;
use crate::mm::{fault_inject, kmap, oom, pcp};
use crate::{pr_warn, sched, topology};

/// The machine that [`PAGES`](super::PAGES) stands on.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

impl Machine for Kernel {
    type Map = Vmemmap;
    type Local = pcp::Local;
    type Reclaim = KernelReclaim;

    fn map(&self) -> &Vmemmap {
        &Vmemmap
    }

    fn local(&self) -> &pcp::Local {
        &pcp::Local
    }

    fn reclaim(&self) -> &KernelReclaim {
        &KernelReclaim
    }

    fn glances(&self) -> &[ZoneGlance] {
        glances()
    }

    fn with_zone<R>(&self, index: usize, f: impl FnOnce(&mut Zone) -> R) -> R {
        f(&mut ZONES[index].lock())
    }

    #[inline(always)]
    fn is_injecting(&self) -> bool {
        fault_inject::is_enabled()
    }

    fn should_fail_alloc_page(&self, gfp: Gfp, order: Order) -> bool {
        fault_inject::should_fail_alloc_page(gfp, order)
    }

    fn zonelists(&self) -> &[Zonelist] {
        pcp::zonelists()
    }

    fn local_node(&self) -> u32 {
        topology::current_node()
    }

    fn nr_online_nodes(&self) -> usize {
        ONLINE_NODES.load(Ordering::Relaxed)
    }

    fn zero_frames(&self, first: Pfn, count: u64) {
        (0..count).for_each(|index| kmap::clear_highpage(first.offset(index)));
    }

    fn migrate(&self) -> &dyn Migrate {
        &Owners
    }

    fn cond_resched(&self, token: &MaySleep<'_>) {
        sched::yield_now(token);
    }

    fn grow(&self, zone: usize) -> bool {
        let kind = u32::try_from(zone % MAX_NR_ZONES).ok().and_then(ZoneKind::from_raw);
        let node = u32::try_from(zone / MAX_NR_ZONES).ok();
        let deferred = glances()[zone].deferred_pages() > 0;
        deferred && node.zip(kind).is_some_and(|(node, kind)| grow(node, kind))
    }

    /// Ten reports in a few seconds at most (Linux: `DEFAULT_RATELIMIT_BURST` in five).
    fn may_report(&self) -> bool {
        const WINDOW: u64 = 1 << 33;
        const BURST: u32 = 10;
        static BEGIN: AtomicU64 = AtomicU64::new(0);
        static REPORTS: AtomicU32 = AtomicU32::new(0);
        let now = regs::rdtsc();
        if now.wrapping_sub(BEGIN.load(Ordering::Relaxed)) > WINDOW {
            BEGIN.store(now, Ordering::Relaxed);
            REPORTS.store(0, Ordering::Relaxed);
        }
        REPORTS.fetch_add(1, Ordering::Relaxed) < BURST
    }

    fn report(&self, line: fmt::Arguments<'_>) {
        oom::with_comm(|comm| pr_warn!("{comm}: {line}"));
    }

    fn show_mem(&self, highest: ZoneKind) {
        oom::dump_stack();
        oom::show_mem(highest);
    }
}
