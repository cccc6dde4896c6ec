//! execve: a file becomes the program of the current task (Linux: fs/exec.c, fs/binfmt_elf.c, fs/binfmt_script.c).

use alloc::vec::Vec;

use guest_fs::{Follow, Place};
use guest_process::elf::{DYN_BASE, Header, Image, Kind, Segment};
use guest_process::stack::{Facts, Layout as StackLayout, Strings};
use mm_core::PAGE_SIZE;
use mm_vma::{Errno, Id, Layout, Limits, MapFile, MapFlags, Mm, MmapRequest, ProtFlags, Space};

use super::{ExecFile, context, open_exec, random};
use crate::arch::trap::TrapFrame;
use crate::arch::user;
use crate::exec::STACK_TOP;
use crate::mm::layout::levels;
use crate::mm::space::{self, Spaces};
use crate::task::{self, Current};
use crate::{sched, uaccess};

/// What a program gets.
#[derive(Debug, Default)]
pub struct Arguments {
    /// Arguments, its name first.
    pub args: Vec<Vec<u8>>,
    /// Environment.
    pub env: Vec<Vec<u8>>,
}

/// Bytes of a file that say what it is (Linux: `BINPRM_BUF_SIZE`).
const HEAD: usize = 256;
/// Scripts of scripts (Linux: `exec_binprm`).
const DEPTH: u32 = 5;
/// What a stack has from the start (Linux: `stack_expand` in `setup_arg_pages`).
const STACK_EXPAND: u64 = 128 << 10;

/// Gives the current task the program at `path`; returns the registers that it begins with.
///
/// # Errors
/// Those of execve(2); the old program goes on.
pub fn run(task: &Current, base: Place, path: &[u8], mut arguments: Arguments) -> Result<TrapFrame, Errno> {
    let mut file = open_exec(base, path, Follow::Yes)?;
    let mut path = copy(path)?;
    let name = copy(&path)?;
    let mut head = [0; HEAD];
    let mut depth = 0;
    let len = loop {
        let len = file.read(0, &mut head);
        let Some(script) = head.get(..len).and_then(|head| head.strip_prefix(b"#!")) else { break len };
        depth += 1;
        if depth > DEPTH {
            return Err(Errno::Eloop);
        }
        let (interpreter, option) = interpreter(script).ok_or(Errno::Enoexec)?;
        let mut args = Vec::new();
        args.try_reserve(arguments.args.len() + 2).map_err(|_| Errno::Enomem)?;
        args.push(copy(interpreter)?);
        if let Some(option) = option {
            args.push(copy(option)?);
        }
        args.push(path);
        args.extend(arguments.args.into_iter().skip(1));
        arguments.args = args;
        path = copy(interpreter)?;
        file = open_exec(context()?.cwd, &path, Follow::Yes)?;
    };
    let header = Header::parse(head.get(..len).unwrap_or(&[])).map_err(|error| error.errno())?;
    let mut table = Vec::new();
    table.try_reserve_exact(header.table_len()).map_err(|_| Errno::Enomem)?;
    table.resize(header.table_len(), 0);
    let got = file.read(header.table_offset, &mut table);
    let table = table.get(..got).unwrap_or(&[]);
    let image = Image::parse(&header, table, STACK_TOP).map_err(|error| error.errno())?;
    let limits = task.limits();
    let mut strings = Strings::new(limits.stack);
    let pushed = strings.set_path(&name).and_then(|()| {
        arguments.args.iter().try_for_each(|arg| strings.push_arg(arg))?;
        arguments.env.iter().try_for_each(|variable| strings.push_env(variable))
    });
    pushed?;
    let mm = space::mm_alloc(Layout::new(levels(), limits.stack, 0))?;
    let loaded = load(mm, &limits, &file, &image, &strings).inspect_err(|_| space::mm_put(mm))?;
    task::end_other_threads(task);
    task.exec_mm(mm);
    task.files.exec(file.place(), copy(strings.args()).unwrap_or_default());
    set_name(task, &name);
    Ok(user::start_frame(loaded.0, loaded.1))
}

fn copy(bytes: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(|_| Errno::Enomem)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// The last part of the path is the task's name (Linux: `begin_new_exec`).
fn set_name(task: &Current, path: &[u8]) {
    let last = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let mut name = [0; 16];
    name.iter_mut().take(15).zip(last).for_each(|(to, from)| *to = *from);
    sched::set_comm(task.number(), name);
}

/// Interpreter and its only argument, from what follows `#!` (Linux: `load_script`).
fn interpreter(script: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let end = script.iter().position(|byte| *byte == b'\n');
    let line = script.get(..end.unwrap_or(script.len()))?.trim_ascii();
    let len = line.iter().position(|byte| is_blank(byte) || *byte == 0).unwrap_or(line.len());
    // A name that goes on behind what was read is not the interpreter's.
    if len == 0 || end.is_none() && len == line.len() && script.len() >= HEAD - 2 {
        return None;
    }
    let (name, rest) = line.split_at(len);
    let rest = rest.trim_ascii();
    Some((name, (!rest.is_empty()).then_some(rest)))
}

/// Maps the program and writes its stack; entry and stack pointer.
fn load(
    mm: Id<Mm>,
    limits: &Limits,
    file: &ExecFile,
    image: &Image,
    strings: &Strings,
) -> Result<(u64, u64), Errno> {
    let bias = match image.kind {
        Kind::Fixed => 0,
        Kind::Anywhere => image.bias(DYN_BASE & !(image.align - 1)),
    };
    let layout = StackLayout::plan(strings, STACK_TOP, 0)?;
    {
        let space = Space::lock(&Spaces, mm, *limits);
        let mut data = (0, 0);
        for segment in &image.segments {
            let segment = segment.moved(bias);
            map(&space, &segment, file.map())?;
            data = (data.0.max(segment.start), data.1.max(segment.file_end));
        }
        let start_brk = image.brk_start();
        space.mm().set_program(data.0, data.1, start_brk);
        let len = layout.len_below(STACK_TOP).next_multiple_of(PAGE_SIZE) + STACK_EXPAND;
        let mut prot = ProtFlags::READ | ProtFlags::WRITE;
        prot.set(ProtFlags::EXEC, image.exec_stack);
        let flags = MapFlags::ANONYMOUS | MapFlags::GROWSDOWN;
        fixed(&space, (STACK_TOP - len, STACK_TOP), prot, flags, None)?;
    }
    for segment in image.segments.iter().map(|segment| segment.moved(bias)) {
        // Linux: `padzero`.
        let rest = segment.file_end.next_multiple_of(PAGE_SIZE) - segment.file_end;
        if segment.end > segment.file_end && segment.prot.contains(ProtFlags::WRITE) {
            uaccess::clear_user(mm, limits, segment.file_end, rest).ok_or(Errno::Efault)?;
        }
    }
    let mut facts = Facts {
        program_headers: if image.table_at == 0 { 0 } else { image.table_at.wrapping_add(bias) },
        program_header_count: image.table_entries,
        entry: image.entry.wrapping_add(bias),
        hwcap: u64::from(crate::arch::regs::cpuid(1, 0)[3]),
        hwcap2: 0,
        min_signal_stack: 2048,
        ids: [0; 4],
        random: [0; 16],
    };
    random(&mut facts.random);
    layout.write(strings, &facts, |at, bytes| {
        uaccess::copy_to_user(mm, limits, at, bytes).ok_or(Errno::Efault)
    })?;
    Ok((facts.entry, layout.sp))
}

/// Linux: `elf_map`, `set_brk`.
fn map(space: &Space<'_, Spaces>, segment: &Segment, file: MapFile) -> Result<(), Errno> {
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
    let request = MmapRequest { addr, len, prot, flags, file, offset: offset.unwrap_or(0) };
    // Nothing is locked or populated before the program runs.
    space.mmap(&request).map(drop)
}
