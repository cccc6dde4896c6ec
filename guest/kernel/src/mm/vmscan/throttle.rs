//! Reclaim that gets nowhere waits (Linux: mm/vmscan.c, `reclaim_throttle`).

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::{MAX_NUMNODES, VmEvent};
use mm_core::{Event, Trace, ZoneKind};
use mm_vmscan::{Lru, Throttle, Zones};

use super::kswapd;
use crate::mm::space::Spaces;
use crate::mm::writeback;
use crate::sched::{self, WaitQueue, clock};
use crate::task;
use crate::trace::KernelTrace;

const REASONS: usize = 4;
/// Where reclaim waits, by reason; nodes share a queue, and look at their own turn (Linux: `reclaim_wait`).
static WAITS: [WaitQueue; REASONS] = [const { WaitQueue::new() }; REASONS];
/// Wake-ups so far, by node and reason.
static TURNS: [[AtomicU64; REASONS]; MAX_NUMNODES] =
    [const { [const { AtomicU64::new(0) }; REASONS] }; MAX_NUMNODES];

/// A tick (Linux: HZ / 100).
const TICK_NS: u64 = 10_000_000;

const fn index(why: Throttle) -> usize {
    match why {
        Throttle::Writeback => 0,
        Throttle::Isolated => 1,
        Throttle::NoProgress => 2,
        Throttle::Congested => 3,
    }
}

/// What somebody waits for in reclaim of a node got better (Linux: `wake_throttle_isolated`, `__acct_reclaim_writeback`). Also for interrupts.
pub fn wake(node: u32, why: Throttle) {
    let turn = TURNS.get(node as usize).map(|turns| &turns[index(why)]);
    if let Some(turn) = turn {
        turn.fetch_add(1, Ordering::Release);
        WAITS[index(why)].wake_up_all();
    }
}

/// Linux: the same name.
pub fn reclaim_throttle(node: u32, why: Throttle) {
    let Some(context) = sched::might_sleep() else { return };
    // Threads of the kernel other than kswapd do not wait: programs wait for them.
    let waits = task::current().is_some() || kswapd::is_current();
    let ticks = match why {
        Throttle::Writeback => 10,
        Throttle::Isolated => 2,
        Throttle::NoProgress | Throttle::Congested if has_other_pages(node) => 0,
        Throttle::NoProgress | Throttle::Congested => 1,
    };
    let turn = TURNS.get(node as usize).map(|turns| &turns[index(why)]);
    let Some(turn) = turn.filter(|_| waits && ticks > 0) else {
        sched::yield_now(&context);
        return;
    };
    Spaces.count_vm_events(VmEvent::ReclaimThrottled, 1);
    KernelTrace.emit(Event::MmVmscanThrottled {
        nid: Some(node),
        reason: u8::try_from(index(why)).unwrap_or(u8::MAX),
        usec_timeout: ticks * TICK_NS / 1000,
    });
    let before = turn.load(Ordering::Acquire);
    let deadline = clock::now() + ticks * TICK_NS;
    WAITS[index(why)].wait_midway(&context, Some(deadline), || turn.load(Ordering::Acquire) != before);
}

/// Whether it is not writes that reclaim waits for, so that waiting does not help (Linux: `skip_throttle_noprogress`).
fn has_other_pages(node: u32) -> bool {
    let zones = Spaces.managed_zones(node, ZoneKind::Movable);
    let reclaimable: u64 = zones.map(|zone| Spaces.zone_reclaimable_pages(node, zone)).sum();
    kswapd::is_hopeless(node) || 2 * write_pending() <= reclaimable
}

/// Pages that are dirty or being written (Linux: `NR_ZONE_WRITE_PENDING`, of the node's zones; here nobody counts by zone).
fn write_pending() -> u64 {
    let counts = writeback::counts();
    counts.dirty + counts.writeback
}
