//! Walkthroughs: `explain=NAME` runs one operation of the memory manager with tracing on, and ends the machine.
//!
//! An operation has parts. Each part stands between two checkpoints, `before: TITLE` and `after: TITLE`, at which
//! the VMM reads the structures that it touches; only in between are events recorded. `trace=` says which.

mod buddy;
mod highuser;
mod interrupt;
mod pages;
mod process;
mod program;
mod sizes;
mod slab;
mod slow_path;

use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, Ordering};

use memvisor_abi::{BootStage, PFN_NONE};
use mm_core::{Event, Gfp, MemMap, Order, Pfn, Trace};
use mm_page_alloc::Context;

use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc;
use crate::trace::{self, KernelTrace};
use crate::{cmdline, init, introspect, println};

/// An operation; `Err` says why this machine cannot show it.
type Walk = fn() -> Result<(), &'static str>;

/// Names as the command line gives them. The VMM lists the same.
const WALKS: [(&str, Walk); 18] = [
    ("alloc-pages", pages::alloc_pages),
    ("get-zeroed-page", pages::get_zeroed_page),
    ("atomic-in-interrupt", interrupt::atomic_in_interrupt),
    ("highuser", highuser::highuser),
    ("buddy-split", buddy::split),
    ("buddy-merge", buddy::merge),
    ("zone-fallback", pages::zone_fallback),
    ("kmem-cache", slab::kmem_cache),
    ("kmalloc-vs-vmalloc", sizes::kmalloc_vs_vmalloc),
    ("slow-path", slow_path::slow_path),
    ("first-touch", process::first_touch),
    ("cow", process::cow),
    ("fork", process::fork),
    ("stack-growth", process::stack_growth),
    ("mmap", process::mmap),
    ("segv", process::segv),
    ("load-program", process::load_program),
    ("migrate-page", process::migrate_page),
];

/// What became of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command line asks for nothing.
    NotAsked,
    /// Shown.
    Done,
    /// There is no such operation, or this machine cannot show it.
    Failed,
}

/// Runs the program of ring 3 that the command line names as an operation, if it names one; there are file systems by then.
pub fn run_program() -> Outcome {
    let Some(place) = cmdline::value("explain", program::find).flatten() else { return Outcome::NotAsked };
    introspect::stage(BootStage::Running);
    outcome(program::PROGRAMS[place].name, program::run(place))
}

/// Runs the operation of the kernel that the command line names, if it names one.
pub fn run() -> Outcome {
    if cmdline::value("explain", program::find).flatten().is_some() {
        return Outcome::NotAsked;
    }
    let Some(walk) = cmdline::value("explain", |name| WALKS.iter().find(|walk| walk.0 == name)) else {
        return Outcome::NotAsked;
    };
    let Some((name, walk)) = walk else {
        println!("explain: no such operation; known are:");
        for name in WALKS.iter().map(|walk| walk.0).chain(program::PROGRAMS.iter().map(|walk| walk.name)) {
            println!("  {name}");
        }
        return Outcome::Failed;
    };
    outcome(name, walk())
}

fn outcome(name: &str, told: Result<(), &'static str>) -> Outcome {
    match told {
        Ok(()) => Outcome::Done,
        Err(reason) => {
            println!("explain: {name} is impossible on this machine: {reason}");
            Outcome::Failed
        }
    }
}

/// One part of an operation: `before` and `after` name its checkpoints.
fn part<T>(before: &'static CStr, after: &'static CStr, operation: impl FnOnce() -> T) -> T {
    static PARTS: AtomicU32 = AtomicU32::new(0);
    let number = PARTS.fetch_add(1, Ordering::Relaxed);
    init::checkpoint(100 + 2 * number, before);
    let part = u64::from(number);
    let result = trace::record_during(|| {
        KernelTrace.emit(Event::ExplainMark { stage: 1, part });
        let result = operation();
        KernelTrace.emit(Event::ExplainMark { stage: 3, part });
        result
    });
    init::checkpoint(101 + 2 * number, after);
    result
}

/// [`part`] with the checkpoints themselves recorded: what is read at the first one is where the records begin, at the second where they end,
/// so that counts outside and records can be compared.
fn whole_part<T>(before: &'static CStr, after: &'static CStr, operation: impl FnOnce() -> T) -> T {
    static PARTS: AtomicU32 = AtomicU32::new(0);
    let number = PARTS.fetch_add(1, Ordering::Relaxed);
    trace::record_during(|| {
        init::checkpoint(100 + 2 * number, before);
        let result = operation();
        init::checkpoint(101 + 2 * number, after);
        result
    })
}

/// Blocks that a walkthrough takes to bring memory into the state that it needs, linked through their descriptors.
struct Taken {
    head: u64,
}

impl Taken {
    const fn new() -> Taken {
        Taken { head: PFN_NONE }
    }

    /// Takes a block of `order`, without reclaim, if there is one that `wanted` accepts.
    fn take(&mut self, gfp: Gfp, order: Order, wanted: impl Fn(Pfn) -> bool) -> bool {
        let gfp = (gfp | Gfp::NOWARN) - (Gfp::DIRECT_RECLAIM | Gfp::KSWAPD_RECLAIM);
        let Some(pfn) = page_alloc::alloc_gfp(Context::ATOMIC, gfp, order, None) else { return false };
        if !wanted(pfn) {
            page_alloc::free_pages(pfn, order);
            return false;
        }
        self.keep(pfn);
        true
    }

    /// Takes all blocks that `wanted` accepts, large ones first, until one that it refuses comes or none is left above
    /// the min watermarks.
    fn take_all(&mut self, gfp: Gfp, wanted: impl Fn(Pfn) -> bool) {
        for order in Order::all().rev() {
            while self.take(gfp, order, &wanted) {}
        }
    }

    /// Adds a block that was taken in another way.
    fn keep(&mut self, pfn: Pfn) {
        if let Some(page) = Vmemmap.page(pfn) {
            page.set_next(self.head);
            self.head = pfn.as_u64();
        }
    }

    /// Gives all back.
    fn give_back(self) {
        let mut at = self.head;
        while at != PFN_NONE {
            let pfn = Pfn::new(at);
            let Some(page) = Vmemmap.page(pfn) else { return };
            at = page.next();
            page.set_next(PFN_NONE);
            page_alloc::free_pages(pfn, page.order());
        }
    }
}
