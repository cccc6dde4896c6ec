//! vm-patterns: what testers of memory write, to more memory than there is, so that every page leaves and comes back between two looks.
//! In spirit of stress-ng's vm class, LTP's swapping01 and Linux's selftests/mm; the patterns are our own.

use core::fmt::Write;
use core::sync::atomic::Ordering::SeqCst;

use super::disks::Disks;
use super::vmstat::Events;
use super::{latency, ram, resident};
use crate::memory::{BYTES, PRIVATE, Pages, READ, READ_WRITE, SHARED};
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::swaps::{pageout, used};
use crate::sys::{self, Out};

const COLD: u64 = 20;
const DONTNEED: u64 = 4;

/// Name, and the word that belongs to a page and a place in it in a round.
type Pattern = (&'static str, fn(u64, u64) -> u64);

const PATTERNS: [Pattern; 6] = [
    ("address", |page, word| page << 12 | word << 3),
    ("walking one", |page, word| 1_u64.rotate_left((page + word).to_le_bytes()[0].into())),
    ("walking zero", |page, word| !1_u64.rotate_left((page * 3 + word).to_le_bytes()[0].into())),
    ("Gray code", |page, word| (page << 9 | word) ^ (page << 9 | word) >> 1),
    (
        "stripes",
        |page, word| if (page + word) % 2 == 0 { 0x5555_5555_5555_5555 } else { 0xaaaa_aaaa_aaaa_aaaa },
    ),
    ("mixed", |page, word| (page << 9 | word).wrapping_mul(0xd134_2543_de82_ef95).rotate_left(31)),
];
/// Words of a page that are written.
const STEP: usize = 73;

fn write(area: &Pages, of: fn(u64, u64) -> u64) {
    for page in 0..area.count {
        latency::time(|| {
            (0..512).step_by(STEP).for_each(|word| area.word_at(page, word).store(of(page, word), SeqCst))
        });
    }
}

fn wrong(area: &Pages, pages: impl Iterator<Item = u64>, of: fn(u64, u64) -> u64) -> u64 {
    let bad = |page: u64| {
        (0..512).step_by(STEP).any(|word| area.word_at(page, word).load(SeqCst) != of(page, word))
    };
    pages.filter(|page| bad(*page)).count() as u64
}

/// Each page has a pattern of its own, the next page the next one.
fn any(page: u64, word: u64) -> u64 {
    let number = usize::try_from(page).unwrap_or(0) % PATTERNS.len();
    PATTERNS.get(number).map_or(0, |(_, of)| of(page, word))
}

/// The same, and every bit is the other one.
fn inverted(page: u64, word: u64) -> u64 {
    !any(page, word)
}

/// The suite.
pub fn run(checks: &mut Checks) {
    let disks = Disks::begin(checks);
    let slots = disks.swap.map_or(0, |(_, slots)| slots);
    checks.check("a disk for swapping", slots > 0);
    let ram = ram();
    let count = (ram + ram / 8).min(ram / 2 + slots) / 2;
    let before = Events::now();
    // Machines with more than 64 MiB have the time for both.
    let rounds = if ram > (64 << 20) / 4096 { 2 } else { 1 };
    let areas = [Pages::map(count, READ_WRITE, PRIVATE), Pages::map(count, READ_WRITE, SHARED)];
    checks.check("areas of more than memory", areas.iter().all(Pages::is_mapped));
    let mut all = 0;
    for round in 0..rounds {
        let of = if round == 0 { any } else { inverted };
        areas.iter().for_each(|area| write(area, of));
        let mut bad = 0;
        // The first area upwards and the second downwards, then both by strides.
        let [first, second] = &areas;
        bad += wrong(first, 0..count, of) + wrong(second, (0..count).rev(), of);
        bad += areas.iter().map(|area| wrong(area, (0..count / 8).map(|step| step * 8), of)).sum::<u64>();
        for (number, (name, _)) in PATTERNS.iter().enumerate().filter(|_| bad > 0) {
            let of_it = |page: &u64| usize::try_from(*page).unwrap_or(0) % PATTERNS.len() == number;
            let here: u64 = areas.iter().map(|area| wrong(area, (0..count).filter(of_it), of)).sum();
            let _ = writeln!(Out, "vm-patterns: {name}: {here} pages are wrong");
        }
        all += bad;
    }
    let out = used();
    checks.check("every page holds every pattern", all == 0);
    checks.check("some of it is in swap", out > 0);
    areas.into_iter().for_each(|area| {
        area.unmap();
    });
    hints(checks);
    copies(checks);
    let now = Events::now();
    let _ = writeln!(
        Out,
        "vm-patterns: RAM {ram} pages, {} patterns on twice {count} pages, {all} wrong; {out} in swap, {} written, {} read",
        PATTERNS.len(),
        now.of("pswpout") - before.of("pswpout"),
        now.of("pswpin") - before.of("pswpin")
    );
    disks.end(checks);
}

/// What programs say of their memory changes when it goes, and never what is in it; what was thrown away is zero.
fn hints(checks: &mut Checks) {
    let (_, of) = PATTERNS[5];
    let area = Pages::map(128, READ_WRITE, PRIVATE);
    write(&area, of);
    let all = area.count * BYTES;
    checks.check(
        "MADV_COLD changes nothing",
        sys::madvise(area.start, all, COLD) == 0 && wrong(&area, 0..128, of) == 0,
    );
    checks.check("MADV_PAGEOUT takes pages out", pageout(&area) == 0 && resident(&area) < 128);
    let away = sys::madvise(area.at(32), 32 * BYTES, DONTNEED) == 0;
    checks.check(
        "MADV_DONTNEED frees slots too",
        away && wrong(&area, 0..32, of) == 0 && wrong(&area, 64..128, of) == 0,
    );
    checks.check("and leaves zeroes", (32..64).all(|page| area.word(page).load(SeqCst) == 0));
    pageout(&area);
    checks.check("a right that is taken away in swap", area.protect(READ) && wrong(&area, 64..128, of) == 0);
    checks.check("and given back", area.protect(READ_WRITE));
    let moved = sys::mremap(area.start, all, all, 3 | 4);
    checks.check(
        "without a new address mremap by DONTUNMAP is done or refused",
        moved.is_multiple_of(BYTES) || moved > u64::MAX - 4096,
    );
    if moved.is_multiple_of(BYTES) {
        let there = Pages { start: moved, count: area.count };
        checks.check(
            "pages move, and zeroes stay",
            wrong(&there, 64..128, of) == 0 && area.word(64).load(SeqCst) == 0,
        );
        there.unmap();
    }
    area.unmap();
}

/// A family of processes reads and writes pages that are in memory, in swap, or both.
fn copies(checks: &mut Checks) {
    let ((_, mine), (_, theirs)) = (PATTERNS[0], PATTERNS[3]);
    let area = Pages::map(256, READ_WRITE, PRIVATE);
    write(&area, mine);
    pageout(&area);
    let kids = [0_u64, 1, 2, 3].map(|kid| {
        child(|| {
            let before = wrong(&area, 0..256, mine);
            for page in (kid..256).step_by(4) {
                (0..512)
                    .step_by(STEP)
                    .for_each(|word| area.word_at(page, word).store(theirs(page, word), SeqCst));
            }
            pageout(&area);
            let own = wrong(&area, (kid..256).step_by(4), theirs);
            let others = wrong(&area, (0..256).filter(|page| page % 4 != kid), mine);
            (before + own + others).min(100)
        })
    });
    checks.check("children find and change their own", kids.iter().all(|kid| wait(*kid, 0) == (*kid, 0)));
    checks.check("their parent's pages are as they were", wrong(&area, 0..256, mine) == 0);
    area.unmap();
}
