//! kcompactd: a thread a node that compacts it when it is asked to (Linux: `kcompactd`, `wakeup_kcompactd`). What it does
//! is `mm_page_alloc`'s; here it sleeps and is woken.

use memvisor_abi::{EventId, Kcompactd, MAX_NUMNODES, TableRef};
use mm_core::{Event, MaySleep, Order, Trace, ZoneKind};
use mm_page_alloc::{KcompactdWork, TaskFlags};
use mm_vmscan::lru_add_drain_all;

use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{NODES, PAGES, nr_nodes};
use crate::mm::space::Spaces;
use crate::mm::{phys, scope};
use crate::pr_err;
use crate::sched::{self, WaitQueue};
use crate::sync::Lock;

static NODES_STATE: Lock<[Kcompactd; MAX_NUMNODES]> = Lock::new([Kcompactd::NONE; MAX_NUMNODES]);
/// Where the threads wait for work.
static WORK: WaitQueue = WaitQueue::new();
/// Woken when a thread has done its work.
static DONE: WaitQueue = WaitQueue::new();

/// The published table.
pub fn table(nodes: usize) -> TableRef {
    TableRef {
        gpa: phys::of_image(NODES_STATE.as_ptr() as u64).as_u64(),
        count: u32::try_from(nodes).unwrap_or(0),
        stride: u32::try_from(size_of::<Kcompactd>()).unwrap_or(0),
    }
}

/// Starts a thread for every node with memory (Linux: `kcompactd_init`).
pub fn init(context: &MaySleep<'_>) {
    for node in 0..nr_nodes() {
        if NODES.lock()[node].present_pages == 0 {
            continue;
        }
        match sched::spawn_daemon("kcompactd", run, node as u64, context) {
            Ok(()) => NODES_STATE.lock()[node].exists = 1,
            Err(error) => pr_err!("kcompactd: no thread for node {node}: {error:?}"),
        }
    }
}

fn wish(state: &Kcompactd) -> KcompactdWork {
    KcompactdWork {
        max_order: u8::try_from(state.max_order)
            .ok()
            .and_then(Order::new)
            .filter(|order| *order > Order::ZERO),
        highest: ZoneKind::from_raw(state.highest).unwrap_or(ZoneKind::Movable),
    }
}

fn set_wish(state: &mut Kcompactd, work: KcompactdWork) {
    state.max_order = work.max_order.map_or(0, |order| u32::from(order.as_u8()));
    state.highest = work.highest as u32;
}

/// Compacts every node at once, as far as it goes, on the caller's time (Linux: `compact_nodes`, what writing to
/// /proc/sys/vm/compact_memory does). Task context without locks.
pub fn compact_all_nodes() {
    let Some(token) = sched::might_sleep() else { return };
    // Pages that wait in batches and on lists of CPUs are in nobody's way afterwards (Linux: the same).
    lru_add_drain_all(&Spaces);
    for node in (0..nr_nodes()).filter_map(|node| u32::try_from(node).ok()) {
        scope::with_flags(TaskFlags::MEMALLOC, || PAGES.compact_node(&token, node));
    }
}

/// Asks a node's thread for a block of an order, if compaction makes sense there (Linux: `wakeup_kcompactd`). Any
/// context without locks.
pub fn wake(node: u32, order: Order, highest: ZoneKind) {
    let index = node as usize;
    if order == Order::ZERO || index >= nr_nodes() || NODES_STATE.lock()[index].exists == 0 {
        return;
    }
    let mut work = KcompactdWork::NONE;
    work.ask(order, highest);
    if !PAGES.is_kcompactd_node_suitable(node, work) {
        return;
    }
    {
        let mut states = NODES_STATE.lock();
        let state = &mut states[index];
        let mut work = wish(state);
        work.ask(order, highest);
        set_wish(state, work);
        state.wakeups += 1;
    }
    Vmemmap.emit(Event::MmCompactionWakeupKcompactd {
        nid: Some(node),
        order: Some(order),
        highest_zoneidx: highest,
    });
    WORK.wake_up_all();
}

/// Waits until no thread has anything to do: an audit must not look at a migration half done.
pub fn wait_idle(context: &MaySleep<'_>) {
    DONE.wait_event(context, || {
        NODES_STATE.lock().iter().all(|state| state.running == 0 && state.max_order == 0)
    });
}

/// The thread of a node.
fn run(node: u64) {
    let context = sched::task_context();
    let Ok(number) = u32::try_from(node) else { return };
    let index = number as usize;
    loop {
        WORK.wait_event(&context, || NODES_STATE.lock()[index].max_order != 0);
        let work = {
            let mut states = NODES_STATE.lock();
            states[index].running = 1;
            wish(&states[index])
        };
        PAGES.kcompactd_do_work(&context, number, work);
        {
            let mut states = NODES_STATE.lock();
            let mut left = wish(&states[index]);
            left.finish(work);
            set_wish(&mut states[index], left);
            states[index].running = 0;
        }
        if Vmemmap.wants(EventId::MmCompactionKcompactdSleep) {
            Vmemmap.emit(Event::MmCompactionKcompactdSleep { nid: Some(number) });
        }
        DONE.wake_up_all();
    }
}
