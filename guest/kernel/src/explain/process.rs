//! Memory of processes, on an address space that no CPU runs: what a program's instructions would do, the kernel does through
//! the same faults.

use mm_core::{Gfp, MigrateMode, PAGE_SIZE, PhysAddr};
use mm_page_alloc::{AllocTarget, Context};
use mm_vma::{
    Access, FaultInfo, Id, Layout, Limits, MapFlags, Mm, MmapRequest, ProtFlags, Space, dup_mmap,
    handle_fault,
};

use super::part;
use crate::elf::{self, Bundled};
use crate::mm::layout::levels;
use crate::mm::page_alloc::PAGES;
use crate::mm::space::{self, Spaces};
use crate::{exec, sched, uaccess};

type Outcome<T = ()> = Result<T, &'static str>;

/// Number of the process that a walkthrough shows; the next one is its child.
const PID: u32 = 100;

/// An address space that is shown, and given back.
struct Shown {
    id: Id<Mm>,
}

impl Shown {
    fn new(pid: u32) -> Outcome<Shown> {
        let shape = Layout::new(levels(), Limits::default().stack, 0);
        let id = space::mm_alloc(shape).map_err(|_| "no memory for an address space")?;
        space::set_owner(id, pid);
        Ok(Shown { id })
    }

    fn lock(&self) -> Space<'static, Spaces> {
        Space::lock(&Spaces, self.id, Limits::default())
    }

    fn map(&self, addr: u64, pages: u64, prot: ProtFlags, flags: MapFlags) -> Outcome<u64> {
        let flags = flags | MapFlags::PRIVATE | MapFlags::ANONYMOUS;
        let request = MmapRequest { addr, len: pages * PAGE_SIZE, prot, flags, file: None, offset: 0 };
        self.lock().mmap(&request).map(|(va, _)| va).map_err(|_| "mmap failed")
    }

    fn write(&self, va: u64) -> Outcome {
        uaccess::copy_to_user(self.id, &Limits::default(), va, &[1]).ok_or("a write was refused")
    }

    fn fault(&self, va: u64, access: Access, present: bool) -> bool {
        handle_fault(&Spaces, self.id, FaultInfo { addr: va, access, present }, Limits::default).is_ok()
    }

    fn end(self) {
        space::mm_free(self.id);
    }
}

const RW: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// malloc of a page: the heap grows, and the first write brings the page.
pub fn first_touch() -> Outcome {
    let process = Shown::new(PID)?;
    let heap = 0x60_0000;
    space::mm_of(process.id).set_program(heap, heap, heap);
    let grown =
        part(c"before: brk, as malloc(4096) calls it", c"after: brk, as malloc(4096) calls it", || {
            process.lock().set_brk(heap + PAGE_SIZE)
        });
    if grown.0 != heap + PAGE_SIZE {
        return Err("brk failed");
    }
    part(c"before: the first write", c"after: the first write", || process.write(heap))?;
    let _gone =
        part(c"before: free: brk goes back", c"after: free: brk goes back", || process.lock().set_brk(heap));
    process.end();
    Ok(())
}

/// A page that parent and child share: the child's write copies it, the parent's finds it its own again.
pub fn cow() -> Outcome {
    let (parent, child) = (Shown::new(PID)?, Shown::new(PID + 1)?);
    let va = parent.map(0, 1, RW, MapFlags::empty())?;
    parent.write(va)?;
    dup_mmap(&parent.lock(), &child.lock()).map_err(|_| "fork failed")?;
    part(c"before: the child writes", c"after: the child writes", || child.write(va))?;
    part(c"before: the parent writes", c"after: the parent writes", || parent.write(va))?;
    child.end();
    parent.end();
    Ok(())
}

/// fork: VMAs and entries are copied, pages are not.
pub fn fork() -> Outcome {
    let (parent, child) = (Shown::new(PID)?, Shown::new(PID + 1)?);
    let va = parent.map(0, 4, RW, MapFlags::empty())?;
    for page in 0..4 {
        parent.write(va + page * PAGE_SIZE)?;
    }
    let copied =
        part(c"before: fork: dup_mmap", c"after: fork: dup_mmap", || dup_mmap(&parent.lock(), &child.lock()));
    copied.map_err(|_| "fork failed")?;
    part(c"before: the child ends", c"after: the child ends", || {
        let _ = child.lock().munmap(0, space::mm_of(child.id).task_size());
    });
    child.end();
    parent.end();
    Ok(())
}

/// A stack that grows to where it is written, and no further than its limit.
pub fn stack_growth() -> Outcome {
    let process = Shown::new(PID)?;
    let top = 1 << 40;
    process.map(top - PAGE_SIZE, 1, RW, MapFlags::FIXED | MapFlags::GROWSDOWN)?;
    part(c"before: a write two pages below the stack", c"after: a write two pages below the stack", || {
        process.write(top - 3 * PAGE_SIZE)
    })?;
    let below = top - Limits::default().stack - PAGE_SIZE;
    let met = part(c"before: a write below RLIMIT_STACK", c"after: a write below RLIMIT_STACK", || {
        process.fault(below, Access::Write, false)
    });
    process.end();
    if met { Err("the stack grew past its limit") } else { Ok(()) }
}

/// Mappings side by side are one VMA, until a part of them gets other rights.
pub fn mmap() -> Outcome {
    let process = Shown::new(PID)?;
    let anywhere = MapFlags::empty();
    let first =
        part(c"before: mmap of 4 pages", c"after: mmap of 4 pages", || process.map(0, 4, RW, anywhere))?;
    part(c"before: mmap of 4 pages more", c"after: mmap of 4 pages more", || {
        process.map(0, 4, RW, anywhere)
    })?;
    let protected = part(c"before: mprotect of one page", c"after: mprotect of one page", || {
        process.lock().mprotect(first + PAGE_SIZE, PAGE_SIZE, ProtFlags::READ)
    });
    protected.map_err(|_| "mprotect failed")?;
    let unmapped = part(c"before: munmap", c"after: munmap", || {
        process.lock().munmap(first - 4 * PAGE_SIZE, 8 * PAGE_SIZE)
    });
    process.end();
    unmapped.map_err(|_| "munmap failed")
}

/// A page that two processes map moves, as compaction and `alloc_contig_range` move it, and both find it where it is then.
pub fn migrate_page() -> Outcome {
    let (parent, child) = (Shown::new(PID)?, Shown::new(PID + 1)?);
    let va = parent.map(0, 1, RW, MapFlags::empty())?;
    parent.write(va)?;
    dup_mmap(&parent.lock(), &child.lock()).map_err(|_| "fork failed")?;
    let frame = |of: &Shown| space::translate(space::mm_of(of.id), va, false).map(PhysAddr::pfn);
    let old = frame(&parent).ok_or("the page is gone")?;
    let token = sched::task_context();
    let done = part(c"before: migrate_pages of the page", c"after: migrate_pages of the page", || {
        let mut found = PAGES.isolate_migratepages_range(old, old.offset(1), MigrateMode::Sync);
        let context = Context::task(&token);
        let mut target = AllocTarget { pages: &PAGES, context, gfp: Gfp::HIGHUSER_MOVABLE, node: None };
        let done = PAGES.migrate_pages(&mut found.pages, MigrateMode::Sync, &mut target);
        PAGES.putback_movable_pages(&mut found.pages);
        done
    });
    let new = frame(&parent);
    let moved = done.succeeded == 1 && new.is_some_and(|new| new != old) && new == frame(&child);
    child.end();
    parent.end();
    if moved { Ok(()) } else { Err("the page could not be moved") }
}

/// Accesses that end in SIGSEGV: nothing is there, or it may not be written.
pub fn segv() -> Outcome {
    let process = Shown::new(PID)?;
    let va = process.map(0, 1, ProtFlags::READ, MapFlags::empty())?;
    let mut met = part(c"before: a read of address 0", c"after: a read of address 0", || {
        process.fault(0, Access::Read, false)
    });
    met |= part(c"before: a write to read-only memory", c"after: a write to read-only memory", || {
        process.fault(va, Access::Write, false)
    });
    process.end();
    if met { Err("an access was met that must not be") } else { Ok(()) }
}

/// A program: segments become VMAs, and its pages come when they are touched.
pub fn load_program() -> Outcome {
    let process = Shown::new(PID)?;
    let limits = Limits::default();
    let missing = "no memory for the program's file";
    let program = Bundled::open().map_err(|_| missing)?;
    let strings = elf::strings(limits.stack).map_err(|_| missing)?;
    let begin = part(c"before: execve: segments become VMAs", c"after: execve: segments become VMAs", || {
        exec::load(process.id, &limits, &program, &strings)
    })
    .map_err(|_| "the program cannot be loaded")?;
    let mut met = part(c"before: the first instruction", c"after: the first instruction", || {
        process.fault(begin.rip, Access::Fetch, false)
    });
    // The arguments' page is there; the next one below it comes by a fault.
    met &= part(c"before: the first page of the stack", c"after: the first page of the stack", || {
        process.fault(begin.rsp - PAGE_SIZE, Access::Write, false)
    });
    process.end();
    if met { Ok(()) } else { Err("the program could not run") }
}
