//! slab-pressure: pages far apart, which reclaim forgets, leave nodes of the page cache behind that nobody needs; the shrinker of these gives
//! their memory back before it is all of it.

use core::ffi::CStr;
use core::fmt::Write;

use super::disks::{Disks, remove, sparse};
use super::vmstat::Events;
use super::{holds_page, is_small, latency, ram, write_page};
use crate::memory::{PRIVATE, Pages, READ_WRITE};
use crate::proc::number;
use crate::program::Checks;
use crate::promises::put;
use crate::shared::{close, pread, pwrite};
use crate::sys::Out;

/// Pages that a node of the page cache holds.
const NODE: u64 = 64;
/// Files, each below 2 GiB: a page in 256 KiB is read.
const FILES: [&CStr; 8] =
    [c"/mnt/0", c"/mnt/1", c"/mnt/2", c"/mnt/3", c"/mnt/4", c"/mnt/5", c"/mnt/6", c"/mnt/7"];
/// Of the pages that are read, one in so many is written first.
const WRITTEN: u64 = 512;
/// Times that caches are dropped before what is left counts as kept.
const DROPS: u64 = 16;

fn nodes() -> u64 {
    number(c"/proc/vmstat", b"workingset_nodes ")
}

fn reclaimable_kb() -> u64 {
    number(c"/proc/meminfo", b"SReclaimable:")
}

/// What is in the first byte of a page.
fn content(file: u64, page: u64) -> u8 {
    if page.is_multiple_of(WRITTEN) { (file * 31 + page / WRITTEN).to_le_bytes()[0] | 1 } else { 0 }
}

fn offset(page: u64) -> u64 {
    page * NODE * 4096
}

/// Reads the pages of a file; how many have something else.
fn read(fd: u64, file: u64, pages: u64) -> u64 {
    let mut byte = [0];
    let wrong = (0..pages).filter(|&page| {
        let got = latency::time(|| pread(fd, &mut byte, offset(page)));
        got != 1 || byte[0] != content(file, page)
    });
    wrong.count() as u64
}

/// The suite.
pub fn run(checks: &mut Checks) {
    let disks = Disks::begin(checks);
    checks.check("a disk with files", disks.mounted);
    let ram = ram();
    // More nodes than an eighth of the pages may have, by far; fewer where every instruction counts.
    let each = if is_small() { ram / 8 } else { ram / 4 };
    let files = || (0_u64..).zip(FILES);
    let fds = FILES.map(|path| sparse(checks, path, each * NODE));
    let before = (nodes(), Events::now(), number(c"/proc/vmstat", b"workingset_nodereclaim "));
    for ((file, _), fd) in files().zip(fds) {
        let pages = (0..each).filter(|page| page.is_multiple_of(WRITTEN));
        let bad = pages.filter(|&page| pwrite(fd, &[content(file, page)], offset(page)) != 1).count();
        checks.check("some pages are written", bad == 0);
    }
    let (mut most, mut most_kb, mut wrong) = (0, 0, 0);
    for ((file, _), fd) in files().zip(fds) {
        wrong += read(fd, file, each);
        (most, most_kb) = (most.max(nodes()), most_kb.max(reclaimable_kb()));
    }
    checks.check("all files are read as they are", wrong == 0);
    checks.check("what was evicted leaves nodes behind", most > before.0);
    // Somebody else wants the memory.
    let other = Pages::map(ram / 2, READ_WRITE, PRIVATE);
    (0..other.count).for_each(|page| latency::time(|| write_page(&other, page, 9)));
    let wrong = (0..other.count).filter(|page| !holds_page(&other, *page, 9)).count();
    checks.check("other pages hold what was written", wrong == 0);
    other.unmap();
    let (left, left_kb) = (nodes(), reclaimable_kb());
    let freed = number(c"/proc/vmstat", b"workingset_nodereclaim ") - before.2;
    let now = Events::now();
    let scanned = now.of("slabs_scanned") - before.1.of("slabs_scanned");
    let _ = writeln!(
        Out,
        "slab-pressure: RAM {ram} pages, {} nodes needed; {most} with nothing but shadows at most, {freed} freed of {scanned} scanned, {left} left; SReclaimable {most_kb} KiB, then {left_kb}",
        each * FILES.len() as u64
    );
    checks.check("shrinkers were asked", scanned > 0);
    checks.check("and gave nodes back", freed > 0);
    checks.check("few are left", left < each * FILES.len() as u64 / 2);
    checks.check("nobody was killed", now.of("oom_kill") == before.1.of("oom_kill"));
    let wrong: u64 = files().zip(fds).map(|((file, _), fd)| read(fd, file, each)).sum();
    checks.check("all files are read as they are afterwards", wrong == 0);
    // kswapd may be at its end of the work still, and leave shadows of its own behind: who drops again takes them, too.
    let dropped = (0..DROPS).find(|_| {
        checks.check("drop_caches", put(c"/proc/sys/vm/drop_caches", b"3\n") == 2);
        nodes() <= left / 64
    });
    checks.check("takes shadows with it", dropped.is_some());
    checks.check("they are closed", fds.into_iter().all(|fd| close(fd) == 0));
    checks.check("the files go", FILES.into_iter().all(remove));
    checks.check("and with them their nodes", nodes() <= before.0);
    disks.end(checks);
}
