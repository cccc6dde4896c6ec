//! mlock-pressure: locked pages stay whatever happens, and are like any others once they are unlocked.

use core::fmt::Write;

use super::disks::{Disks, read_through, remove, sparse};
use super::vmstat::Events;
use super::{holds_page, is_small, latency, ram, resident, write_page};
use crate::memory::{PRIVATE, Pages, READ_WRITE};
use crate::proc::number;
use crate::program::Checks;
use crate::shared::close;
use crate::sys::{self, Out, call};

const MLOCK_ONFAULT: u64 = 1;
const MCL_FUTURE: u64 = 2;
/// RLIMIT_MEMLOCK.
const MEMLOCK: u64 = 8;

/// Pages on the lists that nobody scans.
fn unevictable() -> u64 {
    number(c"/proc/vmstat", b"nr_unevictable ")
}

/// Fills all of memory with other pages: those of a file, then private ones that are given back.
fn squeeze(checks: &mut Checks, fd: u64, pages: u64, owner: u64) {
    checks.check("the file is read as zeroes", read_through(fd, 0..pages) == 0);
    let other = Pages::map(pages / 2, READ_WRITE, PRIVATE);
    (0..other.count).for_each(|page| latency::time(|| write_page(&other, page, owner)));
    let wrong = (0..other.count).filter(|page| !holds_page(&other, *page, owner)).count();
    checks.check("other pages hold what was written", wrong == 0);
    other.unmap();
}

/// Whether a new file in memory of that many pages reads as zeroes: it may have the place of a file whose pages were reclaimed.
fn is_empty(pages: u64) -> bool {
    let fd = call(319, [c"after".as_ptr() as u64, 0, 0, 0, 0, 0]);
    let long = call(77, [fd, pages * 4096, 0, 0, 0, 0]) == 0;
    let zeroes = read_through(fd, 0..pages) == 0;
    close(fd);
    long && zeroes
}

/// The suite.
pub fn run(checks: &mut Checks) {
    let disks = Disks::begin(checks);
    checks.check("a disk with files", disks.mounted);
    let (ram, small) = (ram(), is_small());
    let locked = Pages::map(ram / 4, READ_WRITE, PRIVATE);
    let lazy = Pages::map(ram / 16, READ_WRITE, PRIVATE);
    let pages = if small { ram } else { ram * 3 / 2 };
    let fd = sparse(checks, c"/mnt/holes", pages);
    checks.check("who may raise it has no limit of locked memory", sys::set_limits(MEMLOCK, u64::MAX) == 0);
    let before = unevictable();
    checks.check("mlock", sys::mlock(locked.start, locked.count * 4096) == 0);
    checks.check("mlock brings all in", resident(&locked) == locked.count);
    let onfault = call(325, [lazy.start, lazy.count * 4096, MLOCK_ONFAULT, 0, 0, 0]);
    checks.check("mlock2 by MLOCK_ONFAULT brings nothing in", onfault == 0 && resident(&lazy) == 0);
    (0..locked.count).for_each(|page| write_page(&locked, page, 1));
    (0..lazy.count / 2).for_each(|page| write_page(&lazy, page, 2));
    let all = locked.count + lazy.count / 2;
    let locked_kb = number(c"/proc/self/status", b"VmLck:");
    checks.check("VmLck counts both areas", locked_kb == (locked.count + lazy.count) * 4);
    let since = Events::now();
    squeeze(checks, fd, pages, 3);
    let (stayed, during) = (resident(&locked) + resident(&lazy), unevictable());
    let wrong = (0..locked.count).filter(|page| !holds_page(&locked, *page, 1)).count()
        + (0..lazy.count / 2).filter(|page| !holds_page(&lazy, *page, 2)).count();
    checks.check("all locked pages stay", stayed == all);
    checks.check("they are unevictable", during >= before + all);
    checks.check("and hold what was written", wrong == 0);
    let reclaimed = Events::now();
    let stolen = |now: &Events, before: &Events| {
        ["pgsteal_kswapd", "pgsteal_direct"].map(|name| now.of(name) - before.of(name))
    };
    let freed: u64 = stolen(&reclaimed, &since).iter().sum();
    checks.check("others were reclaimed meanwhile", freed > 0);
    // Everybody sees them here.
    sys::pause();
    let unlocked = sys::munlock(locked.start, locked.count * 4096) == 0
        && sys::munlock(lazy.start, lazy.count * 4096) == 0;
    checks.check("munlock", unlocked && number(c"/proc/self/status", b"VmLck:") == 0);
    let after = unevictable();
    checks.check("none is unevictable any more", after <= before + all / 16);
    let mut left = resident(&locked);
    if disks.swap.is_some() {
        // They were used, and are at the other end of the list: it goes round more than once.
        for round in 0..4 {
            if left < locked.count {
                break;
            }
            squeeze(checks, fd, pages, 4 + round);
            left = resident(&locked);
        }
        checks.check("unlocked pages go out", left < locked.count);
        let wrong = (0..locked.count).filter(|page| !holds_page(&locked, *page, 1)).count();
        checks.check("and come back as they were", wrong == 0);
    }
    let _ = writeln!(
        Out,
        "mlock-pressure: RAM {ram} pages, {all} locked, {stayed} stayed while {freed} others were reclaimed; unevictable {before}, {during}, unlocked {after}; then {left} of {} stayed",
        locked.count
    );
    checks.check("mlockall for what is mapped later", call(151, [MCL_FUTURE, 0, 0, 0, 0, 0]) == 0);
    let later = Pages::map(16, READ_WRITE, PRIVATE);
    checks.check("it is in memory at once", resident(&later) == 16);
    checks.check("munlockall", call(152, [0; 6]) == 0 && number(c"/proc/self/status", b"VmLck:") == 0);
    later.unmap();
    locked.unmap();
    lazy.unmap();
    close(fd);
    checks.check("the file goes", remove(c"/mnt/holes"));
    checks.check("a file in memory after it has nothing of it", is_empty(pages));
    disks.end(checks);
}
