//! A disk that cannot read sector 64 and cannot write sector 128: slots 8 and 16 of /dev/vdd.

use core::fmt::Write;
use core::sync::atomic::Ordering::SeqCst;

use super::{mkswap, pageout, swapoff, swapon, used};
use crate::memory::{PRIVATE, Pages, READ_WRITE};
use crate::proc::number;
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::shared::{mount, unmount};
use crate::sys::{self, Out};

const PAGES: u64 = 60;
const BUS: u32 = 7;
const EIO: u64 = 5_u64.wrapping_neg();

pub fn run(checks: &mut Checks) {
    mount(checks);
    checks.check("a header", mkswap(c"/dev/vdd", 256));
    checks.check("swapon", swapon(c"/dev/vdd", 0) == 0);
    let pages = Pages::map(PAGES, READ_WRITE, PRIVATE);
    pages.fill(1000);
    checks.check("MADV_PAGEOUT", pageout(&pages) == 0);
    let out = used();
    checks.check("all pages have slots", out == PAGES);
    // One child a page: who needs the page that cannot be read gets SIGBUS, and nobody else does.
    let (mut killed, mut right) = (0, 0);
    for page in 0..PAGES {
        let pid = child(|| u64::from(pages.word(page).load(SeqCst) != 1000 + page));
        match wait(pid, 0).1 {
            0 => right += 1,
            status if status & 0x7f == BUS => killed += 1,
            _ => {}
        }
    }
    checks.check("one page is lost", killed == 1);
    checks.check("all others are as they were", right == PAGES - 1);
    checks.check("swapoff says that a page cannot be read", swapoff(c"/dev/vdd") == EIO);
    let [reads, writes] = [number(c"/proc/vmstat", b"pswpin"), number(c"/proc/vmstat", b"pswpout")];
    let _ = writeln!(
        Out,
        "swap-errors: {PAGES} pages out, {writes} written, {reads} read, {killed} SIGBUS, {right} as they were"
    );
    pages.unmap();
    checks.check("no slot is in use", used() == 0);
    checks.check("swapoff", swapoff(c"/dev/vdd") == 0);
    let more = Pages::map(PAGES, READ_WRITE, PRIVATE);
    more.fill(1);
    checks.check("without an area nothing goes out", pageout(&more) == 0 && more.holds(1));
    more.unmap();
    sys::sched_yield();
    unmount(checks);
}
