//! Loading a program into an empty address space (Linux: fs/binfmt_elf.c, `load_elf_binary`; fs/exec.c, `setup_arg_pages`).

use mm_core::PAGE_SIZE;
use mm_vma::{
    Errno, Id, Layout, Limits, MapFile, MapFlags, Mapping, Mm, MmapRequest, ProtFlags, Space, VmFlags,
};

use crate::arch::trap::TrapFrame;
use crate::arch::user;
use crate::elf::{self, Program, Segment};
use crate::mm::layout::levels;
use crate::mm::space::{self, Spaces};
use crate::task::Current;
use crate::uaccess;

/// What a stack has from the start (Linux: `stack_expand` in `setup_arg_pages`, and the page of arguments).
const STACK_LEN: u64 = (128 << 10) + PAGE_SIZE;

/// First address past the stack (Linux: `STACK_TOP`): programs stay below 2^47 until they ask for more.
pub const STACK_TOP: u64 = (1 << 47) - PAGE_SIZE;

const fn page_start(addr: u64) -> u64 {
    addr & !(PAGE_SIZE - 1)
}

/// Gives the current task the program of the kernel image; returns the registers that it begins with. `argument` arrives in RDI.
///
/// # Errors
/// Those of [`load`].
pub fn run(task: &Current, argument: u64) -> Result<TrapFrame, Errno> {
    let program = elf::program();
    let limits = task.limits();
    let mm = space::mm_alloc(Layout::new(levels(), limits.stack, 0))?;
    load(mm, &limits, &program).inspect_err(|_| space::mm_put(mm))?;
    task.exec_mm(mm);
    // The ABI wants RSP + 8 to be a multiple of 16 at a function's entry.
    let mut frame = user::start_frame(program.entry, STACK_TOP - 8);
    frame.rdi = argument;
    Ok(frame)
}

/// Maps the program's segments, its zeroes, its heap of no bytes and its stack.
///
/// # Errors
/// Those of mmap; the address space is to be thrown away then. `EFAULT` if the zeroes behind a segment cannot be written.
pub fn load(mm: Id<Mm>, limits: &Limits, program: &Program) -> Result<(), Errno> {
    let mapping = space::program_mapping()?;
    let mapped = map(&Space::lock(&Spaces, mm, *limits), mapping, program);
    // The VMAs have references of their own.
    mm_vma::Kernel::mapping_put(&Spaces, mapping);
    mapped?;
    for segment in program.loaded().filter(|segment| segment.end > segment.file_end) {
        // The last page of the file's bytes goes on with what follows in the file (Linux: `padzero`).
        let rest = segment.file_end.next_multiple_of(PAGE_SIZE) - segment.file_end;
        uaccess::clear_user(mm, limits, segment.file_end, rest).ok_or(Errno::Efault)?;
    }
    Ok(())
}

fn map(space: &Space<'_, Spaces>, mapping: Id<Mapping>, program: &Program) -> Result<(), Errno> {
    let file = MapFile { mapping, readable: true, writable: false, noexec: false, flags: VmFlags::empty() };
    let (mut start_data, mut end_data, mut start_brk) = (0, 0, 0);
    for segment in program.loaded() {
        elf_map(space, segment, file)?;
        start_data = segment.start.max(start_data);
        end_data = segment.file_end.max(end_data);
        start_brk = segment.end.max(start_brk);
    }
    space.mm().set_program(start_data, end_data, start_brk.next_multiple_of(PAGE_SIZE));
    let stack = STACK_TOP - STACK_LEN;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    fixed(space, (stack, STACK_TOP), prot, MapFlags::ANONYMOUS | MapFlags::GROWSDOWN, None)
}

/// Linux: `elf_map` for the file's part, `set_brk` for the pages of zeroes.
fn elf_map(space: &Space<'_, Spaces>, segment: &Segment, file: MapFile) -> Result<(), Errno> {
    let start = page_start(segment.start);
    let mut zeroes = start;
    if segment.file_end > segment.start {
        zeroes = segment.file_end.next_multiple_of(PAGE_SIZE);
        let offset = segment.offset.checked_sub(segment.start - start).ok_or(Errno::Einval)?;
        fixed(space, (start, zeroes), segment.prot, MapFlags::empty(), Some((file, offset)))?;
    }
    let end = segment.end.next_multiple_of(PAGE_SIZE);
    if end > zeroes {
        fixed(space, (zeroes, end), segment.prot, MapFlags::ANONYMOUS, None)?;
    }
    Ok(())
}

/// A private mapping of exactly `range`.
fn fixed(
    space: &Space<'_, Spaces>,
    range: (u64, u64),
    prot: ProtFlags,
    flags: MapFlags,
    file: Option<(MapFile, u64)>,
) -> Result<(), Errno> {
    let flags = flags | MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
    let (file, offset) = file.unzip();
    let (addr, len) = (range.0, range.1 - range.0);
    // Nothing is locked or populated before the program runs.
    let (_, _populate) =
        space.mmap(&MmapRequest { addr, len, prot, flags, file, offset: offset.unwrap_or(0) })?;
    Ok(())
}
