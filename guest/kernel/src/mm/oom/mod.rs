//! The OOM killer on this machine: `mm_oom` decides, here are the processes, the killing and the report (Linux: mm/oom_kill.c).
//!
//! Invariants:
//! K1  one caller at a time decides ([`OOM_LOCK`]); all others wait a tick and look for memory again;
//! K2  whoever was chosen stands in `victims::VICTIMS` until its memory is free, or the reaper has taken what it could: meanwhile
//!     nobody else is chosen;
//! K3  nothing here allocates: processes are looked at one by one, under the registry's lock.
//!
//! Lock order: [`OOM_LOCK`], which is never waited for; below it a process's signals, the registry, `VICTIMS`, [`STATE`].

mod kill;
mod processes;
pub mod promises;
mod reaper;
mod report;
mod show_mem;
mod victims;

use core::sync::atomic::{AtomicBool, Ordering};

use memvisor_abi::{self as abi, TableRef};
use mm_core::{Event, EventId, Gfp, MaySleep, Order, Trace};
use mm_oom::{Candidate, OomControl, OomSettings, PanicOnOom, Verdict, constrained_alloc, oom_badness};
use mm_page_alloc::{Context, OomOutcome, Request};
use mm_vma::Errno;

use crate::mm::page_alloc::{self, NODES, nr_nodes};
use crate::mm::{phys, swap};
use crate::sched::clock;
use crate::sync::Lock;
use crate::trace::KernelTrace;
use crate::{pr_warn, sched, task};

pub use processes::badness;
pub use promises::{totalpages, totalram};
pub use report::{dump_stack, with_comm};
pub use show_mem::show_mem;
pub use victims::mm_exited;

/// A tick: how long whoever cannot be served lets others run before it looks again.
const PAUSE_NS: u64 = 1_000_000_000 / clock::HZ;

/// Somebody decides (Linux: `oom_lock`).
static OOM_LOCK: AtomicBool = AtomicBool::new(false);

/// Settings, counts and the last kill, published.
static STATE: Lock<abi::Oom> = Lock::new(DEFAULT);

/// Linux's settings at boot.
const DEFAULT: abi::Oom = abi::Oom {
    panic_on_oom: 0,
    oom_kill_allocating_task: 0,
    oom_dump_tasks: 1,
    overcommit_memory: 0,
    overcommit_ratio: 50,
    reserved: 0,
    overcommit_kbytes: 0,
    admin_reserve_kbytes: 0,
    user_reserve_kbytes: 0,
    committed: 0,
    committed_shmem: 0,
    kills: 0,
    reaped: 0,
    last: abi::OomKill {
        pid: 0,
        oom_score_adj: 0,
        comm: [0; 16],
        points: 0,
        totalpages: 0,
        total_vm: 0,
        rss: [0; 2],
        table_pages: 0,
        caller: 0,
        order: 0,
        gfp: 0,
        is_reaped: 0,
        at_ns: 0,
        freed_after_ns: 0,
    },
};

/// Calls `f` with settings and record.
pub fn with_state<R>(f: impl FnOnce(&mut abi::Oom) -> R) -> R {
    f(&mut STATE.lock())
}

/// The published record.
pub fn table() -> TableRef {
    TableRef {
        gpa: phys::of_image(STATE.as_ptr() as u64).as_u64(),
        count: 1,
        stride: u32::try_from(size_of::<abi::Oom>()).unwrap_or(0),
    }
}

/// Holds [`OOM_LOCK`].
struct Deciding;

impl Deciding {
    fn begin() -> Option<Deciding> {
        // Not `then_some`: it would be made, and opened, where another holds it.
        (!OOM_LOCK.swap(true, Ordering::Acquire)).then(|| Deciding)
    }
}

impl Drop for Deciding {
    fn drop(&mut self) {
        OOM_LOCK.store(false, Ordering::Release);
    }
}

/// Whether the process that runs here was chosen (Linux: `tsk_is_oom_victim`).
#[inline]
pub fn is_victim() -> bool {
    victims::any() && task::current().is_some_and(|task| victims::is_victim(&task))
}

/// Makes memory free for a request that nothing else could serve: somebody is killed, unless somebody is dying already.
///
/// Differs from Linux: while no process has begun yet the request fails. Linux panics; here tests of the kernel run first.
pub fn out_of_memory(token: &MaySleep<'_>, request: &Request) -> OomOutcome {
    let Some(deciding) = Deciding::begin() else {
        pause(token);
        return OomOutcome::Busy;
    };
    if !task::has_processes() {
        pr_warn!(
            "out of memory: order {}, mode {:#x}: there is nobody to kill",
            request.order.as_u8(),
            request.gfp.bits()
        );
        return OomOutcome::NoVictim;
    }
    decide(request);
    drop(deciding);
    pause(token);
    OomOutcome::Progress
}

/// Not in the slow path's frame, which is there while pages are reclaimed: kernel stacks have 16 KiB.
#[cold]
#[inline(never)]
fn decide(request: &Request) {
    let control = control(request);
    let (settings, dump_tasks) = with_state(|state| {
        let settings = OomSettings {
            panic_on_oom: PanicOnOom::from_raw(state.panic_on_oom).unwrap_or_default(),
            oom_kill_allocating_task: state.oom_kill_allocating_task != 0,
        };
        (settings, state.oom_dump_tasks != 0)
    });
    let me = task::current();
    let caller = me.as_ref().and_then(|task| processes::candidate(task.process.pid));
    let is_dying = task::fatal_signal_pending() || me.as_ref().is_some_and(|task| task.process.is_ending());
    let all = victims::dying().chain(processes::Candidates::all()).inspect(|process| tell(process, &control));
    let header = report::Header { request, control: &control, dump_tasks };
    match mm_oom::out_of_memory(&control, settings, (caller, is_dying), all) {
        Verdict::CallerExits => {
            if let Some(task) = &me {
                victims::mark_caller(task);
            }
        }
        Verdict::Wait | Verdict::Dying => {}
        Verdict::Kill(process, message) => kill::oom_kill_process(&process, message, &header),
        Verdict::Panic(text) => {
            header.print();
            if text.starts_with("System") {
                pr_warn!("Out of memory and no killable processes...");
            }
            panic!("{text}");
        }
    }
}

/// The badness of a process that is looked at.
fn tell(process: &Candidate, control: &OomControl) {
    KernelTrace.emit_with(EventId::OomBadness, || {
        let points = oom_badness(process, control.totalpages);
        Event::OomBadness {
            pid: process.pid,
            oom_score_adj: process.oom_score_adj.into(),
            points: points.unwrap_or(0).max(0).unsigned_abs(),
            rss: process.rss.unwrap_or(0),
            swapents: process.swapents,
            pgtables: i32::try_from(process.table_pages).unwrap_or(i32::MAX),
            exempt: points.is_none(),
        }
    });
}

/// What the request is bound to and what it could have been served from (Linux: `constrained_alloc`).
fn control(request: &Request) -> OomControl {
    let nodes = (0..nr_nodes()).filter_map(|node| {
        let number = u32::try_from(node).ok()?;
        let pages = NODES.lock()[node].present_pages;
        (pages > 0).then(|| (page_alloc::managed_pages(number), request.nodes.contains(number)))
    });
    constrained_alloc(request.gfp, swap::total_swap_pages(), nodes)
}

/// Starts the reaper and counts what may be promised (Linux: `oom_init`).
pub fn init(context: &MaySleep<'_>) {
    promises::init();
    reaper::init(context);
}

/// One of the two holds, and the other is 0 (Linux: `overcommit_kbytes_handler`).
pub fn set_overcommit_kbytes(kbytes: u64) {
    with_state(|state| (state.overcommit_kbytes, state.overcommit_ratio) = (kbytes, 0));
}

/// See [`set_overcommit_kbytes`] (Linux: `overcommit_ratio_handler`).
pub fn set_overcommit_ratio(percent: u32) {
    with_state(|state| (state.overcommit_ratio, state.overcommit_kbytes) = (percent, 0));
}

/// Gives whoever dies a chance to, and everybody else, for a tick at most.
fn pause(token: &MaySleep<'_>) {
    let is_over = || !victims::any() || task::fatal_signal_pending();
    victims::FREED.wait_timeout_midway(token, clock::now() + PAUSE_NS, is_over);
}

/// Calls `make`, which allocates where nothing may sleep, again as long as that is `ENOMEM` and memory can be waited for.
///
/// # Errors
/// Those of `make`.
pub fn or_wait<R>(mut make: impl FnMut() -> Result<R, Errno>) -> Result<R, Errno> {
    loop {
        match make() {
            Err(Errno::Enomem) if wait_for_page() => {}
            made => return made,
        }
    }
}

/// Waits until a page can be had, by all that a request which may sleep does, and leaves it to whoever takes it. False where nothing
/// may sleep, and for a victim that has used up its part of the reserve.
pub fn wait_for_page() -> bool {
    if task::fatal_signal_pending() {
        return false;
    }
    let Some(token) = sched::might_sleep() else { return false };
    let context = Context { may_sleep: Some(&token), task: page_alloc::task_flags() };
    let page = page_alloc::alloc_gfp(context, Gfp::KERNEL, Order::ZERO, None);
    if let Some(pfn) = page {
        page_alloc::free_pages(pfn, Order::ZERO);
    }
    page.is_some()
}
