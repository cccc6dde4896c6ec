//! Page faults (Linux: arch/x86/mm/fault.c, `do_user_addr_fault`; mm/memory.c, `handle_mm_fault`).
//!
//! A fault first tries to go on with the lock of its VMA alone; it takes mmap_lock when a writer is in the way, when the
//! stack must grow, or when the VMA needs its first `AnonVma`.

mod around;
mod entry;
mod stack;

use entry::VmFault;
use mm_core::{Event, EventId};

use crate::id::Id;
use crate::{Arena, Kernel, Limits, Mm, Space, VmFlags, Vma, anon};

/// What a CPU wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read.
    Read,
    /// To write.
    Write,
    /// To fetch an instruction.
    Fetch,
}

/// Why a fault ends in a signal: `si_signo` and `si_code`; `si_addr` is the address of the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGSEGV, SEGV_MAPERR: nothing is mapped there.
    MapErr,
    /// SIGSEGV, SEGV_ACCERR: what is mapped there does not allow the access.
    AccErr,
    /// SIGBUS, BUS_ADRERR: past the end of a file, or what a device could not read.
    AdrErr,
    /// No signal: out of memory, the kernel decides who dies (Linux: `pagefault_out_of_memory`).
    NoMemory,
}

impl Fault {
    /// `si_signo`; 0 for none.
    pub const fn signo(self) -> i32 {
        match self {
            Fault::MapErr | Fault::AccErr => 11,
            Fault::AdrErr => 7,
            Fault::NoMemory => 0,
        }
    }

    /// `si_code`; 0 for none.
    pub const fn code(self) -> i32 {
        match self {
            Fault::MapErr => 1,
            Fault::AccErr | Fault::AdrErr => 2,
            Fault::NoMemory => 0,
        }
    }
}

/// How a fault was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Without I/O (Linux: a minor fault).
    Minor,
    /// With I/O.
    Major,
    /// There was nothing to do: another CPU was faster, or the translation was stale.
    Spurious,
    /// The page is being moved; the access is to be tried again later (Linux: `migration_entry_wait`).
    Wait,
}

/// What a step of the fault needs instead of going on.
enum Stop {
    Fault(Fault),
    /// mmap_lock.
    NeedsLock,
}

/// A fault as the CPU tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultInfo {
    /// The address that was used, in user space.
    pub addr: u64,
    /// What for.
    pub access: Access,
    /// Bit 0 of the CPU's error code: the entry was there and refused.
    pub present: bool,
}

/// Deals with a fault. `limits` is asked only where a stack must grow.
///
/// # Errors
/// The signal to send.
pub fn handle_fault<K: Kernel>(
    k: &K,
    mm: Id<Mm>,
    what: FaultInfo,
    limits: impl FnOnce() -> Limits,
) -> Result<Done, Fault> {
    let at: &Mm = k.at(mm);
    let FaultInfo { addr, access, present } = what;
    k.emit_with(EventId::HandleMmFault, || Event::HandleMmFault {
        address: addr,
        write: access == Access::Write,
        exec: access == Access::Fetch,
        present,
    });
    let result = match fault_unlocked(k, mm, what) {
        Ok(done) => Ok(done),
        Err(Stop::Fault(fault)) => Err(fault),
        Err(Stop::NeedsLock) => fault_locked(k, mm, what, limits),
    };
    if let Ok(done @ (Done::Minor | Done::Major | Done::Spurious)) = result {
        at.count_fault(done == Done::Major);
        k.count_fault(done == Done::Major);
    }
    k.emit_with(EventId::HandleMmFaultRet, || Event::HandleMmFaultRet { outcome: outcome(result) });
    result
}

/// As the event `handle_mm_fault` has it.
const fn outcome(result: Result<Done, Fault>) -> u8 {
    match result {
        Ok(Done::Minor) => 1,
        Ok(Done::Major) => 2,
        Ok(Done::Spurious) => 3,
        Ok(Done::Wait) => 4,
        Err(Fault::MapErr) => 5,
        Err(Fault::AccErr) => 6,
        Err(Fault::AdrErr) => 7,
        Err(Fault::NoMemory) => 8,
    }
}

fn fault_unlocked<K: Kernel>(k: &K, mm: Id<Mm>, what: FaultInfo) -> Result<Done, Stop> {
    let at: &Mm = k.at(mm);
    let read = at.lock_vma(k, mm, what.addr).ok_or(Stop::NeedsLock)?;
    found(k, read.vma(), what.addr);
    check_access(read.vma(), what).map_err(Stop::Fault)?;
    let fault = VmFault { k, mm: at, vma: read.vma(), what };
    if read.vma().anon_vma().is_none() && fault.needs_anon_vma() {
        return Err(Stop::NeedsLock);
    }
    fault.handle().map_err(Stop::Fault)
}

#[inline(never)]
fn fault_locked<K: Kernel>(
    k: &K,
    mm: Id<Mm>,
    what: FaultInfo,
    limits: impl FnOnce() -> Limits,
) -> Result<Done, Fault> {
    let at: &Mm = k.at(mm);
    let addr = what.addr;
    k.mmap_read_lock(at);
    let found = at.find(k, addr);
    let inside = found.is_some_and(|id| Arena::<Vma>::at(k, id).start() <= addr);
    if !inside {
        // Only a writer moves bounds.
        k.mmap_read_unlock(at);
        let grows = found.is_some_and(|id| Arena::<Vma>::at(k, id).flags().contains(VmFlags::GROWSDOWN));
        if !grows || addr >= at.task_size() {
            return Err(Fault::MapErr);
        }
        Space::lock(k, mm, limits()).expand_stack(addr).map_err(|_| Fault::MapErr)?;
        return handle_fault_grown(k, mm, what);
    }
    let result = in_vma(k, at, found, what);
    k.mmap_read_unlock(at);
    result
}

/// Once more, after the stack grew; a writer may have changed everything in between.
fn handle_fault_grown<K: Kernel>(k: &K, mm: Id<Mm>, what: FaultInfo) -> Result<Done, Fault> {
    let at: &Mm = k.at(mm);
    k.mmap_read_lock(at);
    let found = at.find(k, what.addr).filter(|&id| Arena::<Vma>::at(k, id).start() <= what.addr);
    let result = in_vma(k, at, found, what);
    k.mmap_read_unlock(at);
    result
}

/// With mmap_lock held.
pub(crate) fn in_vma<K: Kernel>(k: &K, mm: &Mm, id: Option<Id<Vma>>, what: FaultInfo) -> Result<Done, Fault> {
    let id = id.ok_or(Fault::MapErr)?;
    let vma: &Vma = k.at(id);
    found(k, vma, what.addr);
    check_access(vma, what)?;
    let fault = VmFault { k, mm, vma, what };
    if fault.needs_anon_vma() {
        if vma.anon_vma().is_none() {
            k.emit(Event::AnonVmaPrepare { start: vma.start() });
        }
        anon::prepare(k, id).map_err(|_| Fault::NoMemory)?;
    }
    fault.handle()
}

#[inline(always)]
fn found<K: Kernel>(k: &K, vma: &Vma, address: u64) {
    k.emit_with(EventId::VmaFound, || {
        let flags = vma.flags();
        Event::VmaFound {
            address,
            start: vma.start(),
            end: vma.end(),
            write: flags.contains(VmFlags::WRITE),
            exec: flags.contains(VmFlags::EXEC),
        }
    });
}

/// Linux: `access_error`.
fn check_access(vma: &Vma, what: FaultInfo) -> Result<(), Fault> {
    let flags = vma.flags();
    let allowed = match what.access {
        Access::Write => flags.contains(VmFlags::WRITE),
        // Fetches from memory that is not executable bring the page in first, and fault again.
        Access::Fetch if what.present => flags.contains(VmFlags::EXEC),
        Access::Read | Access::Fetch => flags.is_accessible(),
    };
    if allowed { Ok(()) } else { Err(Fault::AccErr) }
}
