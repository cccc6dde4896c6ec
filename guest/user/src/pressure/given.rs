//! lazyfree: memory that a program gave away by MADV_FREE goes when somebody else wants it, without swap; what is written to it since stays.

use core::fmt::Write;
use core::sync::atomic::Ordering::SeqCst;

use super::vmstat::{Events, lines, numbers};
use super::{WORDS, holds_page, latency, ram, resident, write_page};
use crate::memory::{PRIVATE, Pages, READ_WRITE};
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::shared::{mount, unmount};
use crate::sys::{self, Out, call};

const MADV_FREE: u64 = 8;
/// uname, which writes to memory of its caller.
const UNAME: u64 = 63;
/// The begin of what it writes.
const LINUX: u64 = u64::from_le_bytes(*b"Linux\0\0\0");
/// Pages that a CPU has noted and not moved yet, at most, on all CPUs that this process may have been on.
const NOTED: u64 = 4 * 31;
/// Of this many pages one is written again, and one by the kernel.
const EVERY: u64 = 8;

fn is_zero(pages: &Pages, page: u64) -> bool {
    WORDS.iter().all(|word| pages.word_at(page, *word).load(SeqCst) == 0)
}

fn give_away(pages: &Pages) -> bool {
    sys::madvise(pages.start, pages.count * 4096, MADV_FREE) == 0
}

/// Uses memory until nothing that was given away is needed for it; whether it holds what was written.
fn squeeze(pages: u64) -> bool {
    let other = Pages::map(pages, READ_WRITE, PRIVATE);
    (0..pages).for_each(|page| latency::time(|| write_page(&other, page, 3)));
    (0..pages).all(|page| holds_page(&other, page, 3)) & other.unmap()
}

/// What smaps says of all of this process, in pages.
fn lazyfree() -> u64 {
    let mut kib = 0;
    lines(c"/proc/self/smaps_rollup", |line| {
        if line.starts_with(b"LazyFree:") {
            kib = numbers(line).next().unwrap_or(0);
        }
    });
    kib / 4
}

/// The suite.
pub fn run(checks: &mut Checks) {
    mount(checks);
    let ram = ram();
    let area = Pages::map(ram / 2, READ_WRITE, PRIVATE);
    (0..area.count).for_each(|page| write_page(&area, page, 1));
    let since = Events::now();
    checks.check("MADV_FREE", give_away(&area));
    let told = lazyfree();
    checks.check("smaps tells it", told + NOTED >= area.count && told <= area.count);
    checks.check("it is in memory", resident(&area) == area.count);
    let (written, by_kernel) = (|page| page % EVERY == 0, |page| page % EVERY == EVERY / 2);
    for page in 0..area.count {
        if written(page) {
            write_page(&area, page, 2);
        } else if by_kernel(page) {
            checks.check("uname", call(UNAME, [area.at(page), 0, 0, 0, 0, 0]) == 0);
        }
    }
    // Everybody sees them here.
    sys::pause();
    checks.check("what somebody else writes is there", squeeze(ram * 5 / 8));
    let dropped = |now: &Events| now.of("pglazyfreed") - since.of("pglazyfreed");
    let least = dropped(&Events::now());
    let (mut gone, mut wrong) = (0, 0);
    for page in 0..area.count {
        let holds = if written(page) {
            holds_page(&area, page, 2)
        } else if by_kernel(page) {
            area.word(page).load(SeqCst) == LINUX
        } else {
            let is_gone = is_zero(&area, page);
            gone += u64::from(is_gone);
            is_gone || holds_page(&area, page, 1)
        };
        wrong += u64::from(!holds);
    }
    // kswapd may go on meanwhile.
    let now = Events::now();
    let most = dropped(&now);
    let given = now.of("pglazyfree") - since.of("pglazyfree");
    checks.check("they were given away", given + NOTED >= area.count);
    checks.check("what was written since stays, the rest is as it was or zero", wrong == 0);
    checks.check("somebody else got it", gone >= area.count / 8 && (least..=most).contains(&gone));
    checks.check("without swap, and nobody was killed", now.of("oom_kill") == since.of("oom_kill"));
    let _ = writeln!(
        Out,
        "lazyfree: RAM {ram} pages, {} given away, {told} by smaps, {most} dropped, {gone} read as zeroes; {} written to since stayed",
        area.count,
        2 * area.count / EVERY
    );
    area.unmap();
    inherited(checks, ram);
    unmount(checks);
}

/// What a child gives away is still its parent's.
fn inherited(checks: &mut Checks, ram: u64) {
    let shared = Pages::map(64, READ_WRITE, PRIVATE);
    (0..shared.count).for_each(|page| write_page(&shared, page, 4));
    let kid = child(|| {
        let given = give_away(&shared);
        u64::from(!(given && squeeze(ram * 3 / 4)))
    });
    checks.check("a child gives away what it has of its parent", wait(kid, 0) == (kid, 0));
    let kept = (0..shared.count).all(|page| holds_page(&shared, page, 4));
    checks.check("its parent still has it", kept && shared.unmap());
}
