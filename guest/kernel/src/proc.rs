//! What Linux's /proc says about memory, in its words: `proc=NAME,...` on the command line prints those files on the
//! console before the last checkpoint, from the kernel's own counters. Readers compare it with what they see from outside.
//!
//! A file stands between the lines `proc: /proc/NAME` and `proc: end`. Names: meminfo, zoneinfo, buddyinfo, pagetypeinfo, vmstat, swaps,
//! slabinfo, vmallocinfo, or `all`.
//!
//! Differs from Linux: lines that cannot be said truly are left out (docs/files.md has the list); vmstat has, behind Linux's lines, events that
//! Linux does not count; vmallocinfo names a caller by its place in the source.

mod iomem;
mod objects;
mod vmstat;
mod zones;

use alloc::vec::Vec;
use core::fmt::{self, Write};

use guest_fs::proc::SystemFile;

use crate::fs::source::Kernel;
use crate::mm::swap;
use crate::{cmdline, print, println};

pub use iomem::iomem;

/// A file.
type File = fn(&mut Out<'_>);

const FILES: [(&str, File); 8] = [
    ("meminfo", meminfo),
    ("zoneinfo", zones::zoneinfo),
    ("buddyinfo", zones::buddyinfo),
    ("pagetypeinfo", zones::pagetypeinfo),
    ("vmstat", vmstat::vmstat),
    ("swaps", swaps),
    ("slabinfo", objects::slabinfo),
    ("vmallocinfo", objects::vmallocinfo),
];

/// Where a text goes. The first failure ends it. Locks of the memory manager are held meanwhile: nothing may be allocated.
pub struct Out<'a> {
    inner: &'a mut dyn Write,
    result: fmt::Result,
}

impl Out<'_> {
    fn put(&mut self, text: fmt::Arguments<'_>) {
        if self.result.is_ok() {
            self.result = self.inner.write_fmt(text);
        }
    }
}

macro_rules! put {
    ($out:expr, $($argument:tt)*) => { $out.put(format_args!($($argument)*)) };
}
macro_rules! line {
    ($out:expr) => { $out.put(format_args!("\n")) };
    ($out:expr, $($argument:tt)*) => { $out.put(format_args!("{}\n", format_args!($($argument)*))) };
}
use {line, put};

impl Write for Out<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(format_args!("{text}"));
        self.result
    }
}

/// What is wrong with `out` shows in itself.
fn meminfo(out: &mut Out<'_>) {
    let _ = guest_fs::proc::show(SystemFile::Meminfo, &Kernel, out);
}

fn swaps(out: &mut Out<'_>) {
    let _ = swap::write_swaps(out);
}

/// The console as a place for text.
struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        print!("{text}");
        Ok(())
    }
}

/// Memory that was taken before.
struct Room {
    bytes: Vec<u8>,
}

impl Write for Room {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.bytes.capacity() - self.bytes.len() < text.len() {
            return Err(fmt::Error);
        }
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Writes a file, for those who read it in /proc.
///
/// # Errors
/// Those of `out`; no such file; no memory.
pub fn write(name: &str, out: &mut dyn Write) -> fmt::Result {
    const LARGEST: usize = 4 << 20;
    let (_, file) = FILES.iter().find(|(known, _)| *known == name).ok_or(fmt::Error)?;
    let mut size = 16 << 10;
    while size <= LARGEST {
        let mut room = Room { bytes: Vec::new() };
        room.bytes.try_reserve_exact(size).map_err(|_| fmt::Error)?;
        let mut text = Out { inner: &mut room, result: Ok(()) };
        file(&mut text);
        if text.result.is_ok() {
            return out.write_str(core::str::from_utf8(&room.bytes).unwrap_or("?"));
        }
        size *= 4;
    }
    Err(fmt::Error)
}

/// Prints the files that the command line asks for. Nothing is allocated.
pub fn print() {
    let wanted = |name: &str| {
        cmdline::value("proc", |words| words.split(',').any(|word| word == name || word == "all"))
            == Some(true)
    };
    for (name, file) in FILES {
        // The command line is locked while it is looked at, and files may look at it too.
        if wanted(name) {
            println!("proc: /proc/{name}");
            file(&mut Out { inner: &mut Console, result: Ok(()) });
            println!("proc: end");
        }
    }
}
