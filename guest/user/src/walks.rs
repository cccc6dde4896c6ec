//! Walkthroughs: programs whose work the kernel tells while they do it (`explain=NAME` on the kernel's command line).
//!
//! The kernel passes [`FIRST`] plus the place of the walkthrough in its own table. Each part of a walkthrough stands between two pauses: at
//! the first the kernel turns its tracing on, at the second off. Disks are /dev/vda, the data, and /dev/vdb, for swapping.

mod files;

use core::ffi::CStr;

use crate::memory::{PRIVATE, Pages, READ_WRITE};
use crate::proc::number;
use crate::processes::{child, wait};
use crate::program::{Checks, free_pages};
use crate::shared::{close, mount, open};
use crate::swaps::{mkswap, pageout, sizes, swapon, used};
use crate::sys;

/// The first number that means a walkthrough.
pub const FIRST: u64 = 1000;

/// In the order of the kernel's table.
const WALKS: &[fn(&mut Checks)] =
    &[reclaim_then_oom, slow_path, kswapd, swap_out_in, files::writeback, files::read, files::mmap_vs_read];

pub const DATA: &CStr = c"/dev/vda";
const SWAP: &CStr = c"/dev/vdb";
/// MAP_NORESERVE: a step may be more than a small machine promises.
const NORESERVE: u64 = 0x4000;
const MIB: u64 = (1 << 20) / 4096;
/// How a process ends that SIGKILL ended.
const KILLED: u32 = 9;

/// Runs the walkthrough of a number, and ends: status 0 if all checks held.
pub fn run(number: u64) -> ! {
    let mut checks = Checks::new();
    let walk = usize::try_from(number - FIRST).ok().and_then(|place| WALKS.get(place));
    mount(&mut checks);
    match walk {
        Some(walk) => walk(&mut checks),
        None => checks.check("there is such a walkthrough", false),
    }
    sys::exit_group(checks.failed())
}

/// What is told: the kernel traces from the first pause to the second.
pub fn part<R>(operation: impl FnOnce() -> R) -> R {
    sys::pause();
    let result = operation();
    sys::pause();
    result
}

/// Reads `pages` pages of the data disk from `first` on, which brings them into the page cache.
fn read_data(first: u64, pages: u64) {
    let fd = open(DATA, 0);
    let mut buffer = [0; 4096];
    for page in first..first + pages {
        crate::shared::pread(fd, &mut buffer, page * 4096);
    }
    close(fd);
}

/// Makes the second disk, or as many of its pages, an area for swapping.
fn begin_swapping(checks: &mut Checks, slots: u64) {
    checks.check("there is an area for swapping", mkswap(SWAP, slots + 1) && swapon(SWAP, 0) == 0);
}

/// Takes memory in steps of so many pages and writes to each page, until `is_enough`, which is asked now and then.
fn eat(step: u64, is_enough: impl Fn() -> bool) -> u64 {
    loop {
        let pages = Pages::map(step, READ_WRITE, PRIVATE | NORESERVE);
        if !pages.is_mapped() {
            return 1;
        }
        for page in 0..step {
            sys::store(pages.at(page), page + 1);
            if page % 8 == 7 && is_enough() {
                return 0;
            }
        }
    }
}

/// 100 MiB steps: kswapd, direct reclaim of the cache, swapping, and at the end the OOM killer.
fn reclaim_then_oom(checks: &mut Checks) {
    begin_swapping(checks, MIB / 4);
    part(|| read_data(0, MIB / 2));
    let before = number(c"/proc/vmstat", b"oom_kill ");
    let (eater, (who, status)) = part(|| {
        let eater = child(|| eat(100 * MIB, || false));
        (eater, wait(eater, 0))
    });
    checks.check("the eater is killed", (who, status) == (eater, KILLED));
    checks.check("once", number(c"/proc/vmstat", b"oom_kill ") == before + 1);
    let again = part(|| {
        let pages = Pages::map(8, READ_WRITE, PRIVATE);
        pages.fill(1);
        pages.holds(1)
    });
    checks.check("memory can be had again", again);
}

/// 64 MiB steps until the slow path has reclaimed for the one who allocates.
fn slow_path(checks: &mut Checks) {
    begin_swapping(checks, 3 * MIB);
    read_data(0, MIB);
    let stolen = || number(c"/proc/vmstat", b"pgsteal_direct");
    let before = stolen();
    let ended = part(|| {
        let eater = child(|| {
            // Asking costs more than a page does: not before memory is short.
            eat(64 * MIB, || free_pages() < sizes()[0] / 16 && stolen() > before)
        });
        wait(eater, 0)
    });
    checks.check("the slow path has reclaimed, and nobody was killed", ended.1 == 0 && stolen() > before);
}

/// The page cache fills memory; kswapd makes some free again, and sleeps.
fn kswapd(checks: &mut Checks) {
    // Few pages are left before it begins.
    let spare = 3 * MIB / 2;
    let count = free_pages().saturating_sub(spare);
    let taken = Pages::map(count, READ_WRITE, PRIVATE | NORESERVE);
    (0..count).for_each(|page| sys::store(taken.at(page), 1));
    let runs = || number(c"/proc/vmstat", b"pgsteal_kswapd");
    let before = runs();
    part(|| {
        read_data(0, 2 * spare);
        // Until it sleeps, lightly first.
        sys::nanosleep(0, 400_000_000);
    });
    checks.check("kswapd has freed pages", runs() > before);
    checks.check("what was taken is there", sys::load(taken.at(count / 2), 0) == 1);
}

/// Pages of a program go to a swap area and come back.
fn swap_out_in(checks: &mut Checks) {
    const COUNT: u64 = 4;
    begin_swapping(checks, 64);
    let pages = Pages::map(COUNT, READ_WRITE, PRIVATE);
    pages.fill(500);
    let out = part(|| pageout(&pages));
    checks.check("the pages have slots", out == 0 && used() == COUNT);
    let same = part(|| sys::load(pages.at(0), 0) == 500);
    checks.check("the first has what was written to it", same);
    let next = part(|| sys::load(pages.at(1), 0) == 501);
    checks.check("so has the second", next);
    let neighbour = part(|| sys::load(pages.at(2), 0) == 502);
    checks.check("and the third, which was read with it", neighbour);
    part(|| sys::store(pages.at(0), 600));
    checks.check(
        "the write took the page out of swap",
        sys::load(pages.at(0), 0) == 600 && used() == COUNT - 1,
    );
    part(|| pages.unmap());
    checks.check("no slot is in use any more", used() == 0 && sizes()[1] > 0);
}
