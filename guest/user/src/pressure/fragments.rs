//! fragmentation: memory is taken to the last page that programs get, three of four pages go, here and there, and then somebody wants 2 MiB in a row.
//!
//! Who wants it is swapon: the words of an area of 1 GiB are one block of order 9. Where no disk is that large, compact_memory alone is asked.

use core::fmt::Write;

use super::disks::largest;
use super::vmstat::{Events, Marks, free_blocks, set_boosts};
use super::{holds_page, latency, write_page};
use crate::memory::{BYTES, PRIVATE, Pages, READ_WRITE};
use crate::program::{Checks, free_pages};
use crate::promises::put;
use crate::shared::{mount, unmount};
use crate::swaps::{mkswap, swapoff, swapon};
use crate::sys::{self, Out};

const HUGE: usize = 9;
const DONTNEED: u64 = 4;
/// MAP_NORESERVE.
const NORESERVE: u64 = 0x4000;
/// Slots whose words take 2^8 frames and one more.
const SLOTS: u64 = (512 << 8) + 512;

/// The suite.
pub fn run(checks: &mut Checks) {
    mount(checks);
    // Pieces raise the marks, for a moment above all that is left here, and without a swap area nothing can be freed (Linux: what
    // `boost_watermark` says of small machines).
    checks.check("no boosts", set_boosts(false));
    let marks = Marks::now(None);
    let (begin, free) = (free_blocks(HUGE), free_pages());
    let area = Pages::map(free, READ_WRITE, PRIVATE | NORESERVE);
    checks.check("an area of all free memory", area.is_mapped());
    // Until kswapd would have to work: there is nothing that it could free.
    let mut taken = 0;
    while taken < free && free_pages() > marks.high + marks.boost + marks.high / 4 + 256 {
        for page in taken..(taken + 32).min(free) {
            latency::time(|| write_page(&area, page, 1));
        }
        taken = (taken + 32).min(free);
    }
    let full = free_blocks(HUGE);
    // One of four stays, and which one is not always the same.
    let stays = |page: u64| page % 4 == page / 64 % 4;
    let mut first = 0;
    for page in 0..=taken {
        if page == taken || stays(page) {
            if first < page {
                sys::madvise(area.at(first), (page - first) * BYTES, DONTNEED);
            }
            first = page + 1;
        }
    }
    let (aged, aged_free) = (free_blocks(HUGE), free_pages());
    let before = Events::now();
    let huge = swap_area(checks);
    let direct = Events::now();
    checks.check("compact_memory", put(c"/proc/sys/vm/compact_memory", b"1\n") == 2);
    let compacted = free_blocks(HUGE);
    let moved = Events::now().of("pgmigrate_success") - before.of("pgmigrate_success");
    let wrong = (0..taken).filter(|page| stays(*page) && !holds_page(&area, *page, 1)).count();
    let _ = writeln!(
        Out,
        "fragmentation: {taken} of {free} free pages taken, {} stay; blocks of order 9: {begin} at first, {full} when full, {aged} with {aged_free} pages free, {compacted} compacted; {moved} pages moved",
        taken / 4
    );
    if let Some(took) = huge {
        let _ = writeln!(
            Out,
            "fragmentation: an allocation of order 9 took {} us, {} stalls, {} of them made a block",
            took / 1000,
            direct.of("compact_stall") - before.of("compact_stall"),
            direct.of("compact_success") - before.of("compact_success")
        );
        if aged == 0 {
            let stalls = direct.of("compact_stall") - before.of("compact_stall");
            checks.check("somebody compacted for it", stalls > 0);
        }
    }
    checks.check("most pages were taken", taken > free / 2);
    checks.check("free memory is in pieces", aged * 512 < aged_free / 4);
    // Of those that were there at first: others hold pages of the kernel's.
    checks.check("compaction makes half of the blocks of order 9 again", compacted * 2 >= begin);
    checks.check("pages were moved", moved > 0);
    checks.check("and hold what was written", wrong == 0);
    sys::pause();
    checks.check("all of it goes", area.unmap());
    put(c"/proc/sys/vm/compact_memory", b"1\n");
    let end = free_blocks(HUGE);
    checks.check("memory is in one piece again", end + begin / 8 + 2 >= begin);
    checks.check("boosts again", set_boosts(true));
    unmount(checks);
}

/// Adds an area whose words need a block of order 9, and takes it away again; how long adding took. `None` without a disk for it.
fn swap_area(checks: &mut Checks) -> Option<u64> {
    let (disk, pages) = largest()?;
    if pages < SLOTS {
        return None;
    }
    checks.check("a header", mkswap(disk, SLOTS));
    let begin = latency::now_ns();
    let added = swapon(disk, 0);
    let took = latency::now_ns() - begin;
    checks.check("a block of order 9 is had from fragmented memory", added == 0);
    checks.check("swapoff", added != 0 || swapoff(disk) == 0);
    Some(took)
}
