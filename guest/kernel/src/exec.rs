//! Programs: from a file to an address space that runs it (Linux: fs/exec.c, fs/binfmt_elf.c).
//!
//! What a file says and what a stack looks like is `guest_process`'s; here segments are mapped and memory is written. Up to
//! [`exec`]'s point of no return nothing of the old program is touched.

use alloc::vec::Vec;

use guest_process::elf::{ElfError, HEADER_LEN, Header, Image, Kind, Segment};
use guest_process::frame::{FRAME_LEN, FXSAVE_LEN};
use guest_process::stack::{self, Facts, MAX_ARG_STRLEN, Strings};
use mm_core::PAGE_SIZE;
use mm_vma::{Errno, Id, Layout, Limits, MapFile, MapFlags, Mm, MmapRequest, ProtFlags, Space};

use crate::arch::trap::TrapFrame;
use crate::arch::{regs, user};
use crate::mm::layout::levels;
use crate::mm::space::{self, Spaces};
use crate::task::{self, Current};
use crate::{pr_warn, random, sched, uaccess};

/// What a stack has below the arguments from the start (Linux: `stack_expand` in `setup_arg_pages`).
const STACK_EXPAND: u64 = 128 << 10;
/// A path with its end (`PATH_MAX`).
const PATH_MAX: usize = 4096;

/// First address past the stack (Linux: `STACK_TOP`): programs stay below 2^47 until they ask for more.
pub const STACK_TOP: u64 = (1 << 47) - PAGE_SIZE;

/// A file that is a program.
pub trait Source {
    /// Reads from `offset` on; how many bytes, fewer at the end.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> usize;
    /// For mappings, which take references of their own.
    fn map(&self) -> MapFile;
}

/// Gives the current task another program, and returns the registers that it begins with (Linux: `begin_new_exec`,
/// `load_elf_binary`). Other tasks of the process end, and the current one has the process's number from then on.
///
/// # Errors
/// ENOEXEC, ELIBBAD, EINVAL: see [`ElfError::errno`]; those of mmap; E2BIG for arguments that the stack's limit has no room for;
/// EAGAIN if the process ends. The old program goes on then.
pub fn exec(task: &Current, source: &impl Source, strings: &Strings) -> Result<TrapFrame, Errno> {
    let limits = task.limits();
    let mm = space::mm_alloc(Layout::new(levels(), limits.stack, 0))?;
    let frame = load(mm, &limits, source, strings).inspect_err(|_| space::mm_put(mm))?;
    task::end_others(task).inspect_err(|_| space::mm_put(mm))?;
    task.exec_mm(mm);
    sched::set_comm(task.number(), comm(strings.path()));
    Ok(frame)
}

/// A program's name: the last part of its path, cut to 15 bytes (Linux: `__set_task_comm`).
fn comm(path: &[u8]) -> [u8; 16] {
    let mut name = [0; 16];
    let last = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    name.iter_mut().zip(last.iter().take(15)).for_each(|(to, from)| *to = *from);
    name
}

/// Reads what execve is given: the path and two lists of strings (Linux: `count`, `copy_strings`).
///
/// # Errors
/// EFAULT, ENOENT for an empty path, ENAMETOOLONG, E2BIG, ENOMEM.
pub fn read_strings(limits: &Limits, path: u64, argv: u64, envp: u64) -> Result<Strings, Errno> {
    let mut strings = Strings::new(limits.stack);
    let mut buffer = buffer(PATH_MAX)?;
    let len = uaccess::read_text(path, &mut buffer)?.ok_or(Errno::Enametoolong)?;
    if len == 0 {
        return Err(Errno::Enoent);
    }
    strings.set_path(buffer.get(..len).unwrap_or_default())?;
    for_each_string(argv, &mut buffer, |text| strings.push_arg(text))?;
    for_each_string(envp, &mut buffer, |text| strings.push_env(text))?;
    Ok(strings)
}

fn buffer(len: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).map_err(|_| Errno::Enomem)?;
    buffer.resize(len, 0);
    Ok(buffer)
}

fn for_each_string(
    list: u64,
    buffer: &mut Vec<u8>,
    mut f: impl FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    // No list is one without strings, as on Linux.
    let mut at = list;
    while at != 0 {
        let address = uaccess::get_user::<u64>(at)?;
        if address == 0 {
            break;
        }
        let len = match uaccess::read_text(address, buffer)? {
            Some(len) => len,
            None => {
                // Few strings are that long.
                *buffer = self::buffer(MAX_ARG_STRLEN)?;
                uaccess::read_text(address, buffer)?.ok_or(Errno::E2big)?
            }
        };
        f(buffer.get(..len).unwrap_or_default())?;
        at = at.checked_add(8).ok_or(Errno::Efault)?;
    }
    Ok(())
}

/// Reads what the file says of itself.
fn read_image(source: &impl Source, task_size: u64) -> Result<Image, ElfError> {
    let mut first = [0; HEADER_LEN];
    let len = source.read(0, &mut first);
    let header = Header::parse(first.get(..len).unwrap_or_default())?;
    let mut table = buffer(header.table_len()).map_err(|_| ElfError::NoMemory)?;
    let len = source.read(header.table_offset, &mut table);
    Image::parse(&header, table.get(..len).unwrap_or_default(), task_size)
}

/// Fills an empty address space with the program; returns the registers that it begins with (Linux: `load_elf_binary`).
///
/// # Errors
/// As [`exec`]; the address space is to be thrown away then.
pub fn load(
    mm: Id<Mm>,
    limits: &Limits,
    source: &impl Source,
    strings: &Strings,
) -> Result<TrapFrame, Errno> {
    let image = read_image(source, STACK_TOP).map_err(|error| {
        if let ElfError::Interpreter { .. } | ElfError::Machine { .. } = error {
            pr_warn!("task[{}]: exec: {error}", task::current_pid());
        }
        error.errno()
    })?;
    let layout = stack::Layout::plan(strings, STACK_TOP, 0)?;
    let bias = map(&Space::lock(&Spaces, mm, *limits), &image, source.map(), &layout)?;
    for segment in image.segments.iter().map(|segment| segment.moved(bias)) {
        // The last page of the file's bytes goes on with what follows in the file (Linux: `padzero`).
        if segment.end > segment.file_end && segment.prot.contains(ProtFlags::WRITE) {
            let rest = segment.file_end.next_multiple_of(PAGE_SIZE) - segment.file_end;
            uaccess::clear_user(mm, limits, segment.file_end, rest).ok_or(Errno::Efault)?;
        }
    }
    let entry = image.entry.wrapping_add(bias);
    let mut facts = Facts {
        program_headers: if image.table_at == 0 { 0 } else { image.table_at.wrapping_add(bias) },
        program_header_count: image.table_entries,
        entry,
        hwcap: u64::from(regs::cpuid(1, 0)[3]),
        min_signal_stack: FRAME_LEN as u64 + FXSAVE_LEN + 64 + 16,
        ..Facts::default()
    };
    random::fill(&mut facts.random);
    layout.write(strings, &facts, |at, bytes| {
        uaccess::copy_to_user(mm, limits, at, bytes).ok_or(Errno::Efault)
    })?;
    Ok(user::start_frame(entry, layout.sp))
}

/// Maps the program's segments, its heap of no bytes and its stack; returns the bias.
fn map(
    space: &Space<'_, Spaces>,
    image: &Image,
    file: MapFile,
    layout: &stack::Layout,
) -> Result<u64, Errno> {
    let bias = match image.kind {
        Kind::Fixed => 0,
        Kind::Anywhere => image.bias(find_room(space, image)?),
    };
    let (mut start_data, mut end_data) = (0, 0);
    let (mut start_code, mut end_code) = (u64::MAX, 0);
    for segment in image.segments.iter().map(|segment| segment.moved(bias)) {
        elf_map(space, &segment, file)?;
        start_data = segment.start.max(start_data);
        end_data = segment.file_end.max(end_data);
        // Linux: the lowest address of all, and the end of what may be run.
        start_code = segment.start.min(start_code);
        if segment.prot.contains(ProtFlags::EXEC) {
            end_code = segment.file_end.max(end_code);
        }
    }
    space.mm().set_program(start_data, end_data, image.brk_start());
    space.mm().set_code(if start_code == u64::MAX { 0 } else { start_code }, end_code);
    space::set_start_stack(space.mm(), layout.sp);
    let len = (layout.len_below(STACK_TOP) + STACK_EXPAND).next_multiple_of(PAGE_SIZE);
    let mut prot = ProtFlags::READ | ProtFlags::WRITE;
    prot.set(ProtFlags::EXEC, image.exec_stack);
    let range = (STACK_TOP - len, STACK_TOP);
    fixed(space, range, prot, MapFlags::ANONYMOUS | MapFlags::GROWSDOWN, None)?;
    Ok(bias)
}

/// Where all segments of a program fit that can be anywhere, aligned as it asks (Linux: `elf_load` of a static PIE).
fn find_room(space: &Space<'_, Spaces>, image: &Image) -> Result<u64, Errno> {
    let len = image.span().checked_add(image.align - PAGE_SIZE).ok_or(Errno::Enomem)?;
    let request = MmapRequest {
        addr: 0,
        len,
        prot: ProtFlags::empty(),
        flags: MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::NORESERVE,
        file: None,
        offset: 0,
    };
    let (found, _nothing) = space.mmap(&request)?;
    space.munmap(found, len)?;
    Ok(found.next_multiple_of(image.align))
}

/// Linux: `elf_map` for the file's part, `set_brk` for the pages of zeroes.
fn elf_map(space: &Space<'_, Spaces>, segment: &Segment, file: MapFile) -> Result<(), Errno> {
    let start = segment.page_start();
    let mut zeroes = start;
    if segment.file_end > segment.start {
        zeroes = segment.file_end.next_multiple_of(PAGE_SIZE);
        let offset = segment.offset.checked_sub(segment.start - start).ok_or(Errno::Einval)?;
        fixed(space, (start, zeroes), segment.prot, MapFlags::empty(), Some((file, offset)))?;
    }
    let end = segment.page_end();
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
