//! kswapd: a thread a node that keeps its free pages between the low and the high mark (Linux: mm/vmscan.c, `kswapd`, `wakeup_kswapd`,
//! `kswapd_try_to_sleep`). What it does is mm-vmscan's [`balance_pgdat`]; here it sleeps and is woken.
//!
//! ```text
//! an allocation finds a zone below low ── wake ──► balance_pgdat until a zone is above high, or it is of no use
//!        ▲                                              │
//!        └── who found the reserves half gone waits ◄───┘  then: kcompactd for what is not of order 0, 100 ms of light sleep, sleep
//! ```
//!
//! Between runs it has no page in its hands: [`hold`] keeps it there while somebody looks from outside.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use memvisor_abi::{EventId, MAX_NUMNODES, VmEvent};
use mm_core::{Event, Gfp, MaySleep, Order, Trace, ZoneKind};
use mm_page_alloc::{Request, TaskFlags};
use mm_vmscan::{KswapdState, Lru, Zones, allow_direct_reclaim, balance_pgdat, pgdat_balanced};

use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{NODES, PAGES, nr_nodes};
use crate::mm::space::Spaces;
use crate::mm::{kcompactd, scope};
use crate::sched::{self, WaitQueue, Woken, clock};
use crate::sync::Lock;
use crate::{pr_err, task};

/// How long it sleeps lightly before it sleeps for good (Linux: HZ / 10).
const LIGHT_SLEEP_NS: u64 = 100_000_000;
/// How long who may not wait for file systems waits for it (Linux: HZ).
const THROTTLE_NS: u64 = 1_000_000_000;

/// What a node's thread was asked for (Linux: `kswapd_order`, `kswapd_highest_zoneidx`).
#[derive(Clone, Copy, Debug)]
struct Wish {
    exists: bool,
    running: bool,
    order: Order,
    /// `None` if nobody asked.
    highest: Option<ZoneKind>,
    /// Somebody woke it since it last looked.
    woken: bool,
}

impl Wish {
    const NONE: Wish =
        Wish { exists: false, running: false, order: Order::ZERO, highest: None, woken: false };

    /// Adds what somebody wants.
    fn ask(&mut self, order: Order, highest: ZoneKind) {
        self.order = self.order.max(order);
        self.highest = self.highest.max(Some(highest));
    }
}

static WISHES: [Lock<Wish>; MAX_NUMNODES] = [const { Lock::new(Wish::NONE) }; MAX_NUMNODES];
/// Runs without a page freed, by node (Linux: `kswapd_failures`).
static FAILURES: [AtomicU32; MAX_NUMNODES] = [const { AtomicU32::new(0) }; MAX_NUMNODES];
/// Where the threads wait for work.
static WORK: WaitQueue = WaitQueue::new();
/// Woken when a thread ends a run, or may go on with one.
static DONE: WaitQueue = WaitQueue::new();
/// Where direct reclaim waits for reserves (Linux: `pfmemalloc_wait`).
static PFMEMALLOC_WAIT: WaitQueue = WaitQueue::new();
/// No run begins.
static HELD: AtomicBool = AtomicBool::new(false);

/// Starts a thread for every node with memory (Linux: `kswapd_init`).
pub fn init(context: &MaySleep<'_>) {
    for (node, wish) in WISHES.iter().enumerate().take(nr_nodes()) {
        if NODES.lock()[node].present_pages == 0 {
            continue;
        }
        let number = u32::try_from(node).unwrap_or(0);
        let name = sched::name_of("kswapd", number);
        match sched::spawn_daemon(sched::text(&name), run, node as u64, context) {
            Ok(()) => wish.lock().exists = true,
            Err(error) => pr_err!("kswapd: no thread for node {node}: {error:?}"),
        }
    }
}

fn state(node: u32) -> KswapdState {
    KswapdState { failures: FAILURES[node as usize].load(Ordering::Relaxed) }
}

/// Whether the current thread is a node's.
pub fn is_current() -> bool {
    scope::current_flags().contains(TaskFlags::KSWAPD)
}

/// Whether the thread of a node freed nothing for long.
pub fn is_hopeless(node: u32) -> bool {
    state(node).is_hopeless()
}

/// Pages of a node were freed by somebody: its thread may try again.
pub fn made_progress(node: u32) {
    if let Some(failures) = FAILURES.get(node as usize) {
        failures.store(0, Ordering::Relaxed);
    }
}

/// Asks the thread of a node for pages, if it has anything to do (Linux: `wakeup_kswapd`). Any context without locks.
pub fn wake(node: u32, request: &Request) {
    let Some(lock) = WISHES.get(node as usize) else { return };
    let (order, highest) = (request.order, request.highest);
    {
        let mut wish = lock.lock();
        if !wish.exists {
            return;
        }
        wish.ask(order, highest);
        if wish.running || wish.woken {
            return;
        }
    }
    let is_boosted = Spaces.managed_zones(node, highest).any(|zone| Spaces.watermark_boost(node, zone) > 0);
    let is_balanced = !is_boosted && pgdat_balanced(&Spaces, node, order, highest);
    if is_balanced || state(node).is_hopeless() {
        // Who reclaims itself compacts itself, too.
        if !request.gfp.contains(Gfp::DIRECT_RECLAIM) {
            kcompactd::wake(node, order, highest);
        }
        return;
    }
    lock.lock().woken = true;
    WORK.wake_up_all();
}

/// Lets nobody begin a run, and waits until nobody is in one: an audit must not look at pages in somebody's hands.
pub fn hold(context: &MaySleep<'_>) {
    HELD.store(true, Ordering::SeqCst);
    DONE.wait_event(context, || WISHES.iter().take(nr_nodes()).all(|wish| !wish.lock().running));
}

/// Ends [`hold`].
pub fn go_on() {
    HELD.store(false, Ordering::SeqCst);
    DONE.wake_up_all();
}

/// Waits until no thread has anything to do, for tests of what it leaves behind.
pub fn wait_idle(context: &MaySleep<'_>) {
    DONE.wait_event(context, || {
        WISHES.iter().take(nr_nodes()).all(|wish| {
            let wish = wish.lock();
            !wish.running && !wish.woken
        })
    });
}

/// Begins a run, unless runs are held.
fn may_begin(lock: &Lock<Wish>) -> bool {
    let mut wish = lock.lock();
    // Under the lock that [`hold`] takes after it said so.
    wish.running = !HELD.load(Ordering::SeqCst);
    wish.running
}

fn end(lock: &Lock<Wish>) {
    lock.lock().running = false;
    DONE.wake_up_all();
}

/// The thread of a node (Linux: `kswapd`).
fn run(argument: u64) {
    let context = sched::task_context();
    let Ok(node) = u32::try_from(argument) else { return };
    let Some(lock) = WISHES.get(node as usize) else { return };
    let mut highest = ZoneKind::Movable;
    scope::with_flags(TaskFlags::MEMALLOC | TaskFlags::KSWAPD, || {
        // Nothing was asked for at boot.
        WORK.wait_event(&context, || lock.lock().woken);
        loop {
            DONE.wait_event(&context, || may_begin(lock));
            let asked = {
                let mut wish = lock.lock();
                highest = wish.highest.unwrap_or(highest);
                let asked = wish.order;
                (wish.order, wish.highest, wish.woken) = (Order::ZERO, None, false);
                asked
            };
            Vmemmap.emit(Event::MmVmscanKswapdWake { nid: Some(node), zid: highest, order: Some(asked) });
            Spaces.count_vm_events(VmEvent::Pageoutrun, 1);
            let mut state = state(node);
            let balanced =
                balance_pgdat(&Spaces, (node, &mut state), asked, highest, || wake_throttled(node));
            FAILURES[node as usize].store(state.failures, Ordering::Relaxed);
            try_to_sleep(node, (asked, balanced.order, highest), &context);
        }
    });
}

/// Sleeps until somebody asks, unless there is more to do at once (Linux: `kswapd_try_to_sleep`). `reached` is the order that the last run
/// left off at: what it gave up is kcompactd's.
fn try_to_sleep(node: u32, (asked, reached, highest): (Order, Order, ZoneKind), context: &MaySleep<'_>) {
    let Some(lock) = WISHES.get(node as usize) else { return };
    let mut light = Woken::TimedOut;
    if may_sleep(node, reached, highest) {
        PAGES.reset_isolation_suitable(node);
        kcompactd::wake(node, asked, highest);
        end(lock);
        light = WORK.wait_timeout(context, clock::now() + LIGHT_SLEEP_NS, || lock.lock().woken);
        if light == Woken::Event {
            // The next run looks at what the last one was asked for, too.
            let mut wish = lock.lock();
            let had = wish.highest.unwrap_or(highest);
            wish.ask(reached, had);
        }
    }
    if light == Woken::TimedOut && may_sleep(node, reached, highest) {
        if Vmemmap.wants(EventId::MmVmscanKswapdSleep) {
            Vmemmap.emit(Event::MmVmscanKswapdSleep { nid: Some(node) });
        }
        end(lock);
        WORK.wait_event(context, || lock.lock().woken);
    } else {
        end(lock);
        let quickly = if light == Woken::Event {
            VmEvent::KswapdLowWmarkHitQuickly
        } else {
            VmEvent::KswapdHighWmarkHitQuickly
        };
        Spaces.count_vm_events(quickly, 1);
    }
}

/// Whether there is nothing to do, or no use in it (Linux: `prepare_kswapd_sleep`).
fn may_sleep(node: u32, order: Order, highest: ZoneKind) -> bool {
    // Whoever waits for reserves was woken when there were enough, but may have come after that.
    PFMEMALLOC_WAIT.wake_up_all();
    state(node).is_hopeless() || pgdat_balanced(&Spaces, node, order, highest)
}

/// Lets those go on who wait for reserves, if there are some again.
fn wake_throttled(node: u32) {
    if allow_direct_reclaim(&Spaces, node, &state(node)) {
        PFMEMALLOC_WAIT.wake_up_all();
    }
}

/// Whether direct reclaim may go on; else its node's thread runs now (Linux: the same name).
fn allow(node: u32) -> bool {
    let allowed = allow_direct_reclaim(&Spaces, node, &state(node));
    if !allowed && let Some(lock) = WISHES.get(node as usize) {
        let mut wish = lock.lock();
        if !wish.running && !wish.woken {
            wish.ask(Order::ZERO, ZoneKind::Normal);
            wish.woken = true;
            drop(wish);
            WORK.wake_up_all();
        }
    }
    allowed
}

/// A program that is about to reclaim waits for the node's thread if the reserves are nearly gone, so that they are left for reclaim
/// itself; whether it is being ended, and shall not reclaim (Linux: `throttle_direct_reclaim`).
pub fn throttle_direct_reclaim(
    context: &MaySleep<'_>,
    gfp: Gfp,
    zones: impl Iterator<Item = (u32, ZoneKind)>,
) -> bool {
    // A thread of the kernel may be the one that others wait for.
    if task::current().is_none() || task::fatal_signal_pending() {
        return false;
    }
    let node = zones.into_iter().find(|(_, zone)| *zone as u32 <= ZoneKind::Normal as u32);
    let Some((node, _)) = node.filter(|(node, _)| !allow(*node)) else { return false };
    Spaces.count_vm_events(VmEvent::PgscanDirectThrottle, 1);
    let deadline = (!gfp.contains(Gfp::FS)).then(|| clock::now() + THROTTLE_NS);
    PFMEMALLOC_WAIT.wait_midway(context, deadline, || allow(node) || task::fatal_signal_pending());
    task::fatal_signal_pending()
}
