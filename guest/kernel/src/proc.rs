//! What Linux's /proc says about memory, in its words: `proc=NAME,...` on the command line prints those files on the
//! console before the last checkpoint, from the kernel's own counters. Readers compare it with what they see from outside.
//!
//! A file stands between the lines `proc: /proc/NAME` and `proc: end`. Names: zoneinfo, buddyinfo, pagetypeinfo, vmstat, slabinfo,
//! vmallocinfo, or `all`.
//!
//! Differs from Linux: counters of what this kernel does not have (LRU lists, per-node statistics, thresholds) are left
//! out; vmstat has events that Linux does not count; vmallocinfo names a caller by its place in the source.

mod objects;
mod zones;

use alloc::vec::Vec;
use core::fmt::{self, Write};

use memvisor_abi::{NR_NUMA_EVENTS, NumaEvent, VmEvent};
use mm_core::CpuLocal;

use crate::mm::{page_alloc, pcp};
use crate::{cmdline, print, println};

/// A file.
type File = fn(&mut Out<'_>);

const FILES: [(&str, File); 6] = [
    ("zoneinfo", zones::zoneinfo),
    ("buddyinfo", zones::buddyinfo),
    ("pagetypeinfo", zones::pagetypeinfo),
    ("vmstat", vmstat),
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

/// /proc/vmstat.
fn vmstat(out: &mut Out<'_>) {
    let (mut free, mut cma) = (0, 0);
    for zone in page_alloc::zones() {
        let zone = zone.lock();
        free += zone.info().free_pages;
        cma += zone.info().nr_free_cma;
    }
    line!(out, "nr_free_pages {free}");
    line!(out, "nr_free_cma {cma}");
    let mut numa = [0_u64; NR_NUMA_EVENTS];
    pcp::Local.for_each(|_, cpu| {
        for pcp in cpu.pcps.iter() {
            for (sum, count) in numa.iter_mut().zip(pcp.numa) {
                *sum = sum.wrapping_add(count);
            }
        }
    });
    for (name, count) in NumaEvent::NAMES.iter().zip(numa) {
        line!(out, "{name} {count}");
    }
    for (name, count) in VmEvent::NAMES.iter().zip(pcp::sum_events()) {
        line!(out, "{name} {count}");
    }
}
