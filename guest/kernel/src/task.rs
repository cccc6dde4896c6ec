//! User processes: one at a time, on the boot CPU, demand-paged.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memvisor_abi::{AddressSpace, PFN_NONE, PageKind};
use mm_core::{MemMap, Order, PAGE_SIZE, Pfn, VirtAddr};
use mm_pgtable::{Gather, KeepTables, LeafSize, PageTable, Prot, layout};

use crate::arch::regs;
use crate::arch::trap::{self, TrapFrame};
use crate::arch::user;
use crate::elf::{self, Segment};
use crate::introspect::ADDRESS_SPACES;
use crate::mm::layout::levels;
use crate::mm::memmap::Vmemmap;

use crate::mm::paging::{self, Tables};
use crate::mm::{kmap, page_alloc};
use crate::sync::Lock;
use crate::{println, trace};

/// Page faults from ring 3 (Linux: `PGFAULT`).
pub static FAULTS: AtomicU64 = AtomicU64::new(0);
/// System calls.
pub static SYSCALLS: AtomicU64 = AtomicU64::new(0);

/// The stack may grow to this (Linux: `RLIMIT_STACK`'s default).
const STACK_LEN: u64 = 8 << 20;
/// Status of a process that a signal ended, as a shell shows it: 128 + SIGSEGV.
const KILLED: u64 = 139;
/// Status of a process that called `pause`: it is still alive.
pub const PAUSED: u64 = 1 << 32;

const SEGMENTS: usize = 4;

/// A process.
#[derive(Debug)]
pub struct Task {
    /// Process id.
    pub pid: u32,
    /// Its page tables.
    pub table: PageTable,
    segments: [Segment; SEGMENTS],
    heap: (u64, u64),
    stack: (u64, u64),
    entry: u64,
    rss: u64,
}

static CURRENT: Lock<Option<Task>> = Lock::new(None);

/// What a fault wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Instruction fetch.
    Execute,
}

/// Why a fault cannot be resolved; both end the process with SIGSEGV.
#[derive(Clone, Copy, Debug)]
enum Denied {
    /// No mapping there (`SEGV_MAPERR`).
    Unmapped,
    /// The mapping forbids the access (`SEGV_ACCERR`).
    Forbidden,
    /// No frame left.
    NoMemory,
}

/// Number of the process that runs, 0 for none: for those who may not wait for [`CURRENT`].
pub static PID: AtomicU32 = AtomicU32::new(0);

/// Loads the program and runs it to its end or its `pause`; returns its status. `argument` arrives in
/// RDI.
pub fn run(pid: u32, argument: u64) -> u64 {
    let program = elf::program();
    let table = PageTable::new(&mut Tables, levels()).expect("no memory for a page table");
    table.share_upper_half(&Tables, paging::kernel());
    let top = layout::task_size(levels()) & !(PAGE_SIZE - 1);
    let break_start =
        program.segments.iter().map(|segment| segment.end).max().unwrap_or(0).next_multiple_of(PAGE_SIZE);
    let task = Task {
        pid,
        table,
        segments: program.segments,
        heap: (break_start, break_start),
        stack: (top - STACK_LEN, top),
        entry: program.entry,
        rss: 0,
    };
    let entry = task.entry;
    publish(&task);
    *CURRENT.lock() = Some(task);
    trace::set_pid(pid);
    PID.store(pid, Ordering::Relaxed);
    // SAFETY: the upper half is the kernel's.
    unsafe { regs::write_cr3(table.root.phys().as_u64()) };
    // The ABI wants RSP + 8 to be a multiple of 16 at a function's entry.
    user::enter(entry, top - 8, argument)
}

/// Tears the current process down: every frame and every table goes back to the buddy allocator.
pub fn reap() {
    // SAFETY: the kernel's own tables.
    unsafe { regs::write_cr3(paging::kernel().root.phys().as_u64()) };
    let Some(task) = CURRENT.lock().take() else { return };
    trace::set_pid(0);
    PID.store(0, Ordering::Relaxed);
    let mut gather = Gather::new();
    let mut list = PFN_NONE;
    let outcome = task.table.unmap(
        &mut Tables,
        VirtAddr::new(0),
        layout::task_size(levels()) & !(PAGE_SIZE - 1),
        KeepTables::Root,
        &mut gather,
        |_, entry, level| {
            let pfn = entry.phys(level).pfn();
            let page = Vmemmap.page(pfn).expect("user frames have descriptors");
            page.set_mapcount(page.mapcount() - 1);
            page.set_next(list);
            list = pfn.as_u64();
        },
    );
    // No CPU has these tables in CR3 any more, and without PCID the switch dropped translations.
    gather.no_cpu_uses_it(&mut Tables);
    outcome.expect("unmapping needs no memory: there are no large user pages");
    while list != PFN_NONE {
        let pfn = Pfn::new(list);
        let page = Vmemmap.page(pfn).expect("user frames have descriptors");
        list = page.next();
        page.set_next(PFN_NONE);
        page_alloc::free_pages(pfn, Order::ZERO);
    }
    task.table.free_root(&mut Tables).expect("everything below is unmapped");
    forget(task.pid);
}

fn publish(task: &Task) {
    let mut tables = 1;
    let top = layout::task_size(levels()) & !(PAGE_SIZE - 1);
    task.table
        .for_each_table(&Tables, VirtAddr::new(0), top, |_, _| tables += 1)
        .expect("the lower half is canonical");
    let entry = AddressSpace {
        pgd_pfn: task.table.root.as_u64(),
        pid: task.pid,
        reserved: 0,
        rss_pages: task.rss,
        table_pages: tables,
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

/// Publishes the current process's counts.
pub fn publish_current() {
    if let Some(task) = CURRENT.lock().as_ref() {
        publish(task);
    }
}

/// The current process's tree.
pub fn current_table() -> Option<PageTable> {
    CURRENT.lock().as_ref().map(|task| task.table)
}

/// The current process's id.
pub fn current_pid() -> u32 {
    CURRENT.lock().as_ref().map_or(0, |task| task.pid)
}

/// A page fault from ring 3 (Linux: `do_user_addr_fault`).
pub fn page_fault(frame: &TrapFrame, address: u64) {
    FAULTS.fetch_add(1, Ordering::Relaxed);
    let access = match frame.error {
        error if error & 0x10 != 0 => Access::Execute,
        error if error & 2 != 0 => Access::Write,
        _ => Access::Read,
    };
    // A fault on a present entry is a question of rights, not of absence.
    let outcome = if frame.error & 1 != 0 { Err(Denied::Forbidden) } else { resolve(address, access) };
    if let Err(reason) = outcome {
        println!(
            "task[{}]: segfault at {address:x} ip {:x} sp {:x} error {:x} ({reason:?})",
            current_pid(),
            frame.rip,
            frame.rsp,
            frame.error
        );
        user::leave(KILLED);
    }
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

/// Makes the page at `address` present, if the process may access it so (Linux: `handle_mm_fault`,
/// `do_anonymous_page`).
fn resolve(address: u64, access: Access) -> Result<(), Denied> {
    let mut current = CURRENT.lock();
    let task = current.as_mut().ok_or(Denied::Unmapped)?;
    let start = address & !(PAGE_SIZE - 1);
    let prot = task.prot_at(start).ok_or(Denied::Unmapped)?;
    let allowed = match access {
        Access::Read => true,
        Access::Write => prot.write,
        Access::Execute => prot.exec,
    };
    if !allowed {
        return Err(Denied::Forbidden);
    }
    let pfn = page_alloc::alloc_pages(Order::ZERO, None, PageKind::User).ok_or(Denied::NoMemory)?;
    kmap::clear_highpage(pfn);
    for segment in &task.segments {
        let from = segment.start.max(start);
        let to = segment.file_end.min(start + PAGE_SIZE);
        if from < to {
            kmap::copy_to_page(pfn, from - start, segment.bytes(from, to));
        }
    }
    let page = Vmemmap.page(pfn).expect("allocated frames have descriptors");
    page.set_mapping(u64::from(task.pid));
    page.set_index(start / PAGE_SIZE);
    page.set_mapcount(0);
    let mapped =
        task.table.map(&mut Tables, VirtAddr::new(start), pfn.phys(), PAGE_SIZE, prot, LeafSize::Size4K);
    if mapped.is_err() {
        page.set_mapcount(-1);
        page_alloc::free_pages(pfn, Order::ZERO);
        return Err(Denied::NoMemory);
    }
    task.rss += 1;
    Ok(())
}

impl Task {
    fn prot_at(&self, page: u64) -> Option<Prot> {
        let within = |range: (u64, u64)| page >= range.0 && page < range.1;
        if within(self.heap) || within(self.stack) {
            return Some(Prot::USER_RW);
        }
        let segment = self.segments.iter().find(|segment| within(segment.pages()))?;
        Some(segment.prot)
    }
}

/// Moves the end of the heap and returns where it is (Linux: `brk`).
pub fn set_break(to: u64) -> u64 {
    let mut current = CURRENT.lock();
    let Some(task) = current.as_mut() else { return 0 };
    // Shrinking would have to unmap; Linux's brk may refuse, and the caller then sees the old value.
    if to >= task.heap.1 && to <= task.stack.0 - PAGE_SIZE {
        task.heap.1 = to.next_multiple_of(PAGE_SIZE);
        return to;
    }
    task.heap.1
}

/// Copies from the process's memory, faulting pages in as its own access would. A user pointer is
/// followed through the page tables and never dereferenced. `None` for a bad address.
pub fn copy_from_user(address: u64, bytes: &mut [u8]) -> Option<()> {
    let table = current_table()?;
    let mut done = 0;
    while done < bytes.len() {
        let at = address.checked_add(done as u64).filter(|&at| at < layout::task_size(levels()))?;
        let mapping = match table.translate(&Tables, VirtAddr::new(at)) {
            Some(mapping) => mapping,
            None => {
                resolve(at, Access::Read).ok()?;
                table.translate(&Tables, VirtAddr::new(at))?
            }
        };
        if !mapping.effective.user {
            return None;
        }
        let offset = mapping.phys.page_offset();
        let len = usize::try_from(PAGE_SIZE - offset).ok()?.min(bytes.len() - done);
        kmap::copy_from_page(mapping.phys.pfn(), offset, &mut bytes[done..done + len]);
        done += len;
    }
    Some(())
}
