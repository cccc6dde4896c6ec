//! What is said about a failure (Linux: `warn_alloc`, `show_mem`).

use memvisor_abi::{MAX_NR_ZONES, VmEvent};
use mm_core::{Event, Gfp, Trace, ZoneKind};

use super::freelist::node_of;
use super::{Machine, PageAllocator, Request};
use crate::AllocFlags;
use crate::gfp::GfpNames;

impl<M: Machine> PageAllocator<M> {
    /// Counts a failure and reports it, with every zone's state, unless the caller said NOWARN or there were
    /// many reports of late.
    #[cold]
    pub(super) fn warn_alloc(&self, request: &Request) {
        self.count(VmEvent::AllocFail, 1);
        self.machine.map().emit(Event::WarnAlloc { gfp: request.gfp, order: request.order });
        if request.gfp.contains(Gfp::NOWARN) || !self.machine.may_report() {
            return;
        }
        self.machine.report(format_args!(
            "page allocation failure: order:{}, mode:{:#x}({}), nodemask={}",
            request.order.as_u8(),
            request.gfp.bits(),
            GfpNames(request.gfp),
            if request.nodes == crate::NodeMask::ALL { "(null)" } else { "policy" },
        ));
        self.show_mem();
    }

    /// Prints free pages and marks of every zone that has pages (Linux: `show_free_areas`).
    pub fn show_mem(&self) {
        let glances = self.machine.glances().iter().enumerate();
        let populated = || glances.clone().filter(|(_, glance)| glance.managed_pages() > 0);
        self.machine.report(format_args!("Mem-Info:"));
        self.machine.report(format_args!(
            " free:{} deferred:{} managed:{}",
            populated().map(|(_, glance)| glance.free_pages()).sum::<u64>(),
            populated().map(|(_, glance)| glance.deferred_pages()).sum::<u64>(),
            populated().map(|(_, glance)| glance.managed_pages()).sum::<u64>(),
        ));
        for (index, glance) in populated() {
            let kind = u32::try_from(index % MAX_NR_ZONES).ok().and_then(ZoneKind::from_raw);
            self.machine.report(format_args!(
                "Node {} {} free:{}kB boost:{} min:{}kB low:{}kB high:{}kB managed:{}kB",
                node_of(index),
                kind.map_or("?", ZoneKind::name),
                glance.free_pages() * 4,
                if glance.is_boosted() { "yes" } else { "no" },
                glance.mark(AllocFlags::WMARK_MIN) * 4,
                glance.mark(AllocFlags::WMARK_LOW) * 4,
                glance.mark(AllocFlags::WMARK_HIGH) * 4,
                glance.managed_pages() * 4,
            ));
        }
    }
}
