//! User processes: one at a time, on the boot CPU, demand-paged.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memvisor_abi::AddressSpace;
use mm_pgtable::PageTable;
use mm_vma::{Access, Done, Fault, Id, Kernel, Layout, Limits, Mm, RssKind, handle_fault};

use crate::arch::trap::{self, TrapFrame};
use crate::arch::user;
use crate::introspect::ADDRESS_SPACES;
use crate::mm::layout::levels;
use crate::mm::space::{self, Spaces};
use crate::sync::Lock;
use crate::{elf, exec, println, trace, uaccess};

/// Page faults from ring 3 (Linux: `PGFAULT`).
pub static FAULTS: AtomicU64 = AtomicU64::new(0);
/// System calls.
pub static SYSCALLS: AtomicU64 = AtomicU64::new(0);

/// Status of a process that a signal ended, as a shell shows it: 128 + SIGSEGV.
const KILLED: u64 = 139;
/// Status of a process that called `pause`: it is still alive.
pub const PAUSED: u64 = 1 << 32;

/// A process.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Process id.
    pub pid: u32,
    /// Its address space.
    pub mm: Id<Mm>,
    /// Its limits (Linux: `signal->rlim`).
    pub limits: Limits,
}

static CURRENT: Lock<Option<Task>> = Lock::new(None);

/// Number of the process that runs, 0 for none: for those who may not wait for [`CURRENT`].
pub static PID: AtomicU32 = AtomicU32::new(0);

/// Loads the program and runs it to its end or its `pause`; returns its status. `argument` arrives in
/// RDI.
pub fn run(pid: u32, argument: u64) -> u64 {
    let program = elf::program();
    let limits = Limits::default();
    let mm = space::mm_alloc(Layout::new(levels(), limits.stack, 0)).expect("no memory for an address space");
    let task = Task { pid, mm, limits };
    if let Err(error) = exec::load(mm, &limits, &program) {
        println!("task[{pid}]: cannot be loaded: {error}");
        space::mm_free(mm);
        return KILLED;
    }
    publish(&task);
    *CURRENT.lock() = Some(task);
    trace::set_pid(pid);
    PID.store(pid, Ordering::Relaxed);
    space::activate(mm);
    // The ABI wants RSP + 8 to be a multiple of 16 at a function's entry.
    user::enter(program.entry, exec::STACK_TOP - 8, argument)
}

/// Tears the current process down: every frame and every table goes back to the buddy allocator.
pub fn reap() {
    space::deactivate();
    let Some(task) = CURRENT.lock().take() else { return };
    trace::set_pid(0);
    PID.store(0, Ordering::Relaxed);
    space::mm_free(task.mm);
    forget(task.pid);
}

fn publish(task: &Task) {
    let mm = space::mm_of(task.mm);
    let table = mm.page_table();
    let entry = AddressSpace {
        pgd_pfn: table.root.as_u64(),
        pid: task.pid,
        reserved: 0,
        rss_pages: mm.rss(RssKind::Anon) + mm.rss(RssKind::File),
        table_pages: mm.table_pages(),
        mm: task.mm.as_u64(),
    };
    let mut spaces = ADDRESS_SPACES.lock();
    let slot = spaces.iter().position(|space| space.pid == task.pid && space.pgd_pfn != 0);
    let slot = slot.or_else(|| spaces.iter().position(|space| space.pgd_pfn == 0)).expect("a free slot");
    spaces[slot] = entry;
}

fn forget(pid: u32) {
    for space in ADDRESS_SPACES.lock().iter_mut().filter(|space| space.pid == pid) {
        *space = AddressSpace::default();
    }
}

/// Publishes the current process's counts, after a look whether its address space is as it must be.
pub fn publish_current() {
    let Some(task) = current() else { return };
    if let Err(broken) = mm_vma::audit(&Spaces, task.mm) {
        println!(
            "BUG: address space of task[{}]: {} does not hold at {:#x}",
            task.pid, broken.what, broken.at
        );
    }
    publish(&task);
}

/// The current process.
pub fn current() -> Option<Task> {
    *CURRENT.lock()
}

/// The current process's tree.
pub fn current_table() -> Option<PageTable> {
    current().map(|task| space::mm_of(task.mm).page_table())
}

/// The current process's id.
pub fn current_pid() -> u32 {
    current().map_or(0, |task| task.pid)
}

/// A page fault from ring 3 (Linux: `do_user_addr_fault`).
pub fn page_fault(frame: &TrapFrame, address: u64) {
    const PRESENT: u64 = 1;
    const WRITE: u64 = 1 << 1;
    const RESERVED: u64 = 1 << 3;
    const FETCH: u64 = 1 << 4;
    FAULTS.fetch_add(1, Ordering::Relaxed);
    assert!(frame.error & RESERVED == 0, "corrupted page table at {address:#x}, error {:#x}", frame.error);
    let access = match frame.error {
        error if error & FETCH != 0 => Access::Fetch,
        error if error & WRITE != 0 => Access::Write,
        _ => Access::Read,
    };
    let Some(task) = current() else { user::leave(KILLED) };
    match handle_fault(&Spaces, task.mm, &task.limits, address, access, frame.error & PRESENT != 0) {
        Ok(Done::Wait) => Spaces.relax(),
        Ok(Done::Minor | Done::Major | Done::Spurious) => {}
        Err(fault) => bad_area(frame, address, fault),
    }
}

/// Ends the process: there are no signals to tell it by (Linux: `show_signal_msg`, `force_sig_fault`).
fn bad_area(frame: &TrapFrame, address: u64, fault: Fault) -> ! {
    println!(
        "task[{}]: {} at {address:x} ip {:x} sp {:x} error {:x} (si_code {})",
        current_pid(),
        match fault {
            Fault::NoMemory => "out of memory",
            Fault::AdrErr => "bus error",
            Fault::MapErr | Fault::AccErr => "segfault",
        },
        frame.rip,
        frame.rsp,
        frame.error,
        fault.code(),
    );
    user::leave(KILLED)
}

/// Any other trap from ring 3 ends the process.
pub fn trap(frame: &TrapFrame) {
    println!(
        "task[{}]: {} ip {:x} sp {:x} error {:x}",
        current_pid(),
        trap::name(frame.vector),
        frame.rip,
        frame.rsp,
        frame.error
    );
    user::leave(KILLED)
}

/// Copies from the process's memory, faulting pages in as its own access would. `None` for a bad address.
pub fn copy_from_user(address: u64, bytes: &mut [u8]) -> Option<()> {
    let task = current()?;
    uaccess::copy_from_user(task.mm, &task.limits, address, bytes)
}
