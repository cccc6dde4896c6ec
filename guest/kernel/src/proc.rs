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

use memvisor_abi::{NR_NUMA_EVENTS, NumaEvent, VmEvent};
use mm_core::CpuLocal;

use crate::mm::{page_alloc, pcp};
use crate::{cmdline, println};

/// A file.
type File = fn();

const FILES: [(&str, File); 6] = [
    ("zoneinfo", zones::zoneinfo),
    ("buddyinfo", zones::buddyinfo),
    ("pagetypeinfo", zones::pagetypeinfo),
    ("vmstat", vmstat),
    ("slabinfo", objects::slabinfo),
    ("vmallocinfo", objects::vmallocinfo),
];

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
            file();
            println!("proc: end");
        }
    }
}

/// /proc/vmstat.
fn vmstat() {
    let (mut free, mut cma) = (0, 0);
    for zone in page_alloc::zones() {
        let zone = zone.lock();
        free += zone.info().free_pages;
        cma += zone.info().nr_free_cma;
    }
    println!("nr_free_pages {free}");
    println!("nr_free_cma {cma}");
    let mut numa = [0_u64; NR_NUMA_EVENTS];
    pcp::Local.for_each(|_, cpu| {
        for pcp in cpu.pcps.iter() {
            for (sum, count) in numa.iter_mut().zip(pcp.numa) {
                *sum = sum.wrapping_add(count);
            }
        }
    });
    for (name, count) in NumaEvent::NAMES.iter().zip(numa) {
        println!("{name} {count}");
    }
    for (name, count) in VmEvent::NAMES.iter().zip(pcp::sum_events()) {
        println!("{name} {count}");
    }
}
