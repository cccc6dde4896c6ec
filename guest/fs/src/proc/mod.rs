//! /proc: its tree, and the texts of its files (Linux: fs/proc/).
//!
//! The tree is computed from [`Processes`] at every call, so a process's directory is there as long as the process is. Texts
//! are printed from [`Source`], which is asked outside of the file system's lock.

mod node;
mod numa_maps;
mod process;
mod source;
mod system;
#[cfg(test)]
mod tests;

pub use node::{
    Access, KernelFile, Link, NoProcesses, Node, PidFile, Processes, SystemFile, Target, VmFile, Who,
};
pub use numa_maps::{NumaMap, NumaPlace};
pub use source::{
    CpuInfo, CpuTime, Detail, MapInfo, MapPages, MemInfo, Names, ProcessInfo, Rlimit, Source, SystemInfo,
    VmInfo,
};

use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::Errno;

/// Text that grows until there is no memory.
struct Text {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.bytes.try_reserve(text.len()).is_err() {
            self.full = true;
            return Err(fmt::Error);
        }
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// What a file of /proc says now.
///
/// # Errors
/// `ESRCH` if the process is gone, `ENOMEM`.
pub fn render(node: Node, source: &dyn Source) -> Result<Vec<u8>, Errno> {
    let mut text = Text { bytes: Vec::new(), full: false };
    let result = match node {
        Node::System(file) => system::show(file, source, &mut text),
        Node::SysvShm => source.sysvipc_shm(&mut text),
        Node::Vm(file) => source.vm(file, &mut text),
        Node::Kernel(file) => kernel(file, source, &mut text),
        Node::File(who, PidFile::Cmdline) => return source.cmdline_of(who),
        Node::File(who, PidFile::Environ) => return source.environ_of(who),
        Node::File(who, file) => {
            let info = source.process(who).ok_or(Errno::Esrch)?;
            process::show(file, who, &info, source, &mut text)
        }
        _ => return Err(Errno::Einval),
    };
    // Who writes a file can only say that it could not: because the process ended, or, if it is there still, for want of memory.
    let is_gone = || matches!(node, Node::File(who, _) if source.process(who).is_none());
    match result {
        Ok(()) => Ok(text.bytes),
        Err(_) if !text.full && is_gone() => Err(Errno::Esrch),
        Err(_) => Err(Errno::Enomem),
    }
}

/// Writes numbers with tabs between them (Linux: `proc_dointvec`).
///
/// # Errors
/// Those of `out`.
pub fn numbers<T: fmt::Display>(values: &[T], out: &mut dyn Write) -> fmt::Result {
    for (index, value) in values.iter().enumerate() {
        write!(out, "{}{value}", if index == 0 { "" } else { "\t" })?;
    }
    out.write_char('\n')
}

fn kernel(file: KernelFile, source: &dyn Source, out: &mut dyn Write) -> fmt::Result {
    let names = source.names();
    let name = match file {
        KernelFile::Printk => return numbers(&source.printk(), out),
        KernelFile::ThreadsMax => return numbers(&[source.threads_max()], out),
        KernelFile::PidMax => return numbers(&[source.pid_max()], out),
        KernelFile::Hostname => names.nodename,
        KernelFile::Osrelease => names.release,
        KernelFile::Ostype => names.sysname,
        KernelFile::Version => names.version,
    };
    writeln!(out, "{name}")
}

/// As many levels as are there, the first ones (Linux: `proc_dointvec`).
fn set_printk(source: &dyn Source, text: &str) -> Result<(), Errno> {
    let mut levels = source.printk();
    let mut words = text.split_ascii_whitespace();
    for (level, word) in levels.iter_mut().zip(&mut words) {
        *level = word.parse().map_err(|_| Errno::Einval)?;
    }
    source.set_printk(levels);
    Ok(())
}

/// Writes a file of /proc without allocating.
///
/// # Errors
/// Those of `out` and `source`.
pub fn show(file: SystemFile, source: &dyn Source, out: &mut dyn Write) -> fmt::Result {
    system::show(file, source, out)
}

/// Most threads that an administrator may ask for (Linux: `FUTEX_TID_MASK`).
const THREADS_MAX: u32 = 0x3fff_ffff;

/// Longest text that a number can be written as (Linux: `PROC_NUMBUF`).
const NUMBER_LEN: usize = 24;

/// Writes to a file of /proc.
///
/// # Errors
/// `EINVAL` for what it cannot take, `ESRCH` if the process is gone, `EIO` for what nobody may write to.
pub fn store(node: Node, source: &dyn Source, bytes: &[u8]) -> Result<(), Errno> {
    let text = core::str::from_utf8(bytes).map_err(|_| Errno::Einval)?.trim_matches([' ', '\t', '\n', '\0']);
    if text.len() > NUMBER_LEN {
        return Err(Errno::Einval);
    }
    let number = || text.parse::<i64>().map_err(|_| Errno::Einval);
    match node {
        Node::Vm(file) => source.set_vm(file, number()?),
        Node::Kernel(KernelFile::Printk) => set_printk(source, text),
        Node::Kernel(KernelFile::ThreadsMax) => {
            let threads = u32::try_from(number()?).ok().filter(|threads| (1..=THREADS_MAX).contains(threads));
            source.set_threads_max(threads.ok_or(Errno::Einval)?);
            Ok(())
        }
        Node::File(who, PidFile::OomScoreAdj) => {
            let adj = i16::try_from(number()?).ok().filter(|adj| (-1000..=1000).contains(adj));
            source.set_oom_score_adj(who, adj.ok_or(Errno::Einval)?)
        }
        Node::File(who, PidFile::FailNth) => {
            let nth = u32::try_from(number()?).ok().filter(|nth| i32::try_from(*nth).is_ok());
            source.set_fail_nth(who, nth.ok_or(Errno::Einval)?)
        }
        Node::File(who, PidFile::OomAdj) => {
            // -17 is never, 15 is first (Linux: `oom_adj_write`).
            let adj = match number()? {
                15 => 1000,
                adj @ -17..15 => i16::try_from(adj * 1000 / 17).unwrap_or(0),
                _ => return Err(Errno::Einval),
            };
            source.set_oom_score_adj(who, adj)
        }
        _ => Err(Errno::Eio),
    }
}
