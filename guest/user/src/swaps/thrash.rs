//! More memory than there is: 1.3 times RAM, checked by sums, on the largest disk.

use core::fmt::Write;
use core::sync::atomic::Ordering::SeqCst;

use super::{PREFER, mkswap, sizes, swapoff, swapon, used};
use crate::memory::{PRIVATE, Pages, READ_WRITE};
use crate::pressure::disks::largest;
use crate::pressure::latency;
use crate::proc::number;
use crate::program::Checks;
use crate::shared::{mount, unmount};
use crate::sys::Out;

/// Words of a page that are written.
const WORDS: u64 = 8;
/// Pages from one to the next in the last pass.
const STRIDE: u64 = 7;

pub fn run(checks: &mut Checks) {
    mount(checks);
    let [ram, ..] = sizes();
    // No multiple of the stride of the last pass, which so comes to every page.
    let count = ram * 13 / 10 / STRIDE * STRIDE + 1;
    let Some((disk, slots)) = largest() else { return checks.check("a disk", false) };
    checks.check("a header", mkswap(disk, slots.min(ram + 1)));
    checks.check("swapon", swapon(disk, PREFER) == 0);
    let pages = Pages::map(count, READ_WRITE, PRIVATE);
    checks.check("mmap of 1.3 times RAM", pages.is_mapped());
    let value =
        |page: u64, word: u64, round: u64| page.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word << 8 ^ round;
    let mut wrong = 0;
    for round in 0..2 {
        for page in 0..count {
            let begin = latency::now_ns();
            for word in 0..WORDS {
                let at = pages.word_at(page, word * 64);
                if round > 0 && at.load(SeqCst) != value(page, word, round - 1) {
                    wrong += 1;
                }
                at.store(value(page, word, round), SeqCst);
            }
            latency::record(latency::now_ns() - begin);
        }
    }
    // Backwards and by strides, so that no order of slots helps.
    for step in 0..count {
        let page = (count - 1 - step) * STRIDE % count;
        wrong += (0..WORDS)
            .filter(|word| pages.word_at(page, word * 64).load(SeqCst) != value(page, *word, 1))
            .count();
    }
    checks.check("every word is what was written there last", wrong == 0);
    let slots = used();
    checks.check("some of it is in swap", slots > 0);
    let [reads, writes] = [number(c"/proc/vmstat", b"pswpin"), number(c"/proc/vmstat", b"pswpout")];
    let _ = writeln!(
        Out,
        "swap-thrash: RAM {ram} pages, touched {count} three times, {slots} in swap, {writes} written, {reads} read, {wrong} wrong"
    );
    pages.unmap();
    // Pages that were being written keep their slots for a while.
    checks.check("swapoff", swapoff(disk) == 0);
    checks.check("no slot is in use after it", used() == 0);
    unmount(checks);
}
