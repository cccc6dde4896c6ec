//! zswap: pages that compress well, pages of one word and noise, out and in again; what the pool says of them. First a few by MADV_PAGEOUT, then,
//! if the disk is as large as memory, 1.3 times RAM, so that the pool fills and writes back.

use core::fmt::Write;
use core::sync::atomic::Ordering::{Release, SeqCst};

use super::{PREFER, mkswap, pageout, swapoff, swapon, used};
use crate::memory::{PRIVATE, Pages, READ_WRITE};
use crate::pressure::{latency, ram};
use crate::proc::number;
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::shared::{mount, unmount};
use crate::sys::{self, Out};

const WORDS: u64 = 512;
/// Words of noise in a page that compresses to less than half.
const NOISY: u64 = 180;
/// Pages of the first part: of each kind as many.
const FEW: u64 = 90;

/// What a page is like.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Noise, and then one word again and again.
    Packs,
    /// One word.
    Same,
    /// Noise.
    Noise,
}

/// By turns; half of the pages of the second part compress.
fn kind(page: u64) -> Kind {
    match page % 4 {
        0 | 1 => Kind::Packs,
        2 => Kind::Same,
        _ => Kind::Noise,
    }
}

/// What belongs into a word of a page in a round.
fn value(kind: Kind, page: u64, word: u64, round: u64) -> u64 {
    let seed = |word: u64| {
        let mixed = (page << 20 | word << 8 | round).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Of a product alone the low bits say little.
        (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ mixed >> 32
    };
    match kind {
        Kind::Noise => seed(word),
        Kind::Packs if word < NOISY => seed(word),
        Kind::Packs | Kind::Same => seed(WORDS),
    }
}

fn write(pages: &Pages, page: u64, kind: Kind, round: u64) {
    for word in 0..WORDS {
        pages.word_at(page, word).store(value(kind, page, word, round), Release);
    }
}

/// Words of a page that are not what was written in a round.
fn wrong(pages: &Pages, page: u64, kind: Kind, round: u64) -> u64 {
    let is_wrong = |word: &u64| pages.word_at(page, *word).load(SeqCst) != value(kind, page, *word, round);
    (0..WORDS).filter(is_wrong).count() as u64
}

/// A line of /proc/zswap.
fn count(name: &[u8]) -> u64 {
    number(c"/proc/zswap", name)
}

fn event(name: &[u8]) -> u64 {
    number(c"/proc/vmstat", name)
}

pub fn run(checks: &mut Checks) {
    mount(checks);
    let on = |slots| mkswap(c"/dev/vda", slots + 1) && swapon(c"/dev/vda", PREFER) == 0;
    // A disk as large as memory says that there is time.
    let is_large = on(ram());
    // An area that is more than half full takes its slots back from pages that are read.
    checks.check("swapon", is_large || on(8 * FEW));
    few(checks);
    if is_large {
        many(checks);
    }
    checks.check("swapoff", swapoff(c"/dev/vda") == 0);
    checks.check("no slot is in use after it", used() == 0);
    let left = (count(b"stored_pages"), count(b"same_filled_pages"), count(b"pool_total_size"));
    checks.check("and the pool is empty", left == (0, 0, 0));
    let meminfo = (number(c"/proc/meminfo", b"Zswap:"), number(c"/proc/meminfo", b"Zswapped:"));
    checks.check("/proc/meminfo says so, too", meminfo == (0, 0));
    unmount(checks);
}

/// Pages of one kind go out and come back.
fn few(checks: &mut Checks) {
    let pages =
        [Kind::Packs, Kind::Same, Kind::Noise].map(|kind| (Pages::map(FEW, READ_WRITE, PRIVATE), kind));
    let written = || event(b"pswpout");
    for (pages, kind) in &pages {
        let before = (count(b"stored_pages"), count(b"same_filled_pages"), written(), event(b"zswpout"));
        let poor = count(b"reject_compress_poor");
        (0..FEW).for_each(|page| write(pages, page, *kind, 0));
        checks.check("MADV_PAGEOUT", pageout(pages) == 0);
        let stored = count(b"stored_pages") - before.0;
        let same = count(b"same_filled_pages") - before.1;
        let (out, kept) = (written() - before.2, event(b"zswpout") - before.3);
        match kind {
            Kind::Packs => {
                checks.check("what compresses is kept", (stored, kept, same, out) == (FEW, FEW, 0, 0));
                // Two share a frame.
                let bytes = count(b"pool_total_size");
                checks.check("in half as many frames", bytes == FEW / 2 * 4096);
                checks.check("Zswap", number(c"/proc/meminfo", b"Zswap:") == bytes / 1024);
                checks.check("Zswapped", number(c"/proc/meminfo", b"Zswapped:") == FEW * 4);
            }
            Kind::Same => {
                let bytes = count(b"pool_total_size");
                checks.check("so is what has one word", (stored, kept, same, out) == (FEW, FEW, FEW, 0));
                checks.check("in no frame of the pool", bytes == FEW / 2 * 4096);
            }
            Kind::Noise => {
                checks.check("noise goes to the disk", (stored, kept, same, out) == (0, 0, 0, FEW));
                checks.check("as it does not compress", count(b"reject_compress_poor") - poor == FEW);
            }
        }
    }
    checks.check("all pages have slots", used() == 3 * FEW);
    // An audit of all of it.
    sys::pause();
    let before = (event(b"zswpin"), event(b"pswpin"));
    let wrong_of = |round| {
        pages
            .iter()
            .map(|(pages, kind)| (0..FEW).map(|page| wrong(pages, page, *kind, round)).sum::<u64>())
            .sum()
    };
    let pid = child(|| wrong_of(0));
    checks.check("a child finds every word", wait(pid, 0) == (pid, 0));
    let bad: u64 = wrong_of(0);
    checks.check("so does its parent", bad == 0);
    checks.check("the pool gave them back", event(b"zswpin") - before.0 >= 2 * FEW);
    checks.check("but for noise", event(b"pswpin") - before.1 >= FEW);
    checks.check("what is read stays there", count(b"stored_pages") == 2 * FEW);
    for (pages, kind) in &pages {
        (0..FEW).for_each(|page| write(pages, page, *kind, 1));
    }
    checks.check("what is written does not", (count(b"stored_pages"), used()) == (0, 0));
    for (pages, _) in &pages {
        pageout(pages);
    }
    checks.check("it goes out again", count(b"stored_pages") == 2 * FEW && wrong_of(1) == 0);
    pages.iter().for_each(|(pages, _)| {
        pages.unmap();
    });
    checks.check("and is gone with its pages", (count(b"stored_pages"), count(b"pool_total_size")) == (0, 0));
}

/// More than there is.
fn many(checks: &mut Checks) {
    let ram = ram();
    let pages = Pages::map(ram * 13 / 10, READ_WRITE, PRIVATE);
    checks.check("mmap of 1.3 times RAM", pages.is_mapped());
    let (mut bad, mut most) = (0, 0);
    for round in 0..2 {
        for page in 0..pages.count {
            latency::time(|| {
                if round > 0 {
                    bad += wrong(&pages, page, kind(page), round - 1);
                }
                write(&pages, page, kind(page), round);
            });
        }
        most = most.max(count(b"pool_total_size"));
        sys::pause();
    }
    // Backwards and by strides, so that no order of slots helps.
    for step in 0..pages.count {
        let page = (pages.count - 1 - step) * 7 % pages.count;
        bad += wrong(&pages, page, kind(page), 1);
    }
    checks.check("every word is what was written there last", bad == 0);
    let [stored, same, limit, back, poor] = [
        &b"stored_pages"[..],
        b"same_filled_pages",
        b"pool_limit_hit",
        b"written_back_pages",
        b"reject_compress_poor",
    ]
    .map(count);
    let (kept, loaded) = (event(b"zswpout"), event(b"zswpin"));
    let _ = writeln!(
        Out,
        "zswap: RAM {ram} pages, touched {} three times, {} in swap, {stored} of them kept, {same} of one word, pool of {} KiB at most; {kept} stored, {loaded} loaded, {poor} poor, {limit} refused when full, {back} written back, {bad} words wrong",
        pages.count,
        used(),
        most / 1024
    );
    checks.check("pages were stored", kept > 0 && stored > 0 && same > 0);
    checks.check("and loaded", loaded > 0);
    checks.check("noise was refused", poor > 0);
    checks.check("the pool was full", limit > 0);
    checks.check("and wrote pages back", back > 0);
    checks.check("the disk was written", event(b"pswpout") > back);
    // The last checkpoint but one: all of it at its largest.
    sys::pause();
    pages.unmap();
}
