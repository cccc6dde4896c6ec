//! What is said about a failure (Linux: `warn_alloc`).

use memvisor_abi::VmEvent;
use mm_core::{Event, Gfp, Trace};

use super::{Machine, PageAllocator, Request};
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
        self.machine.show_mem(request.highest);
    }
}
