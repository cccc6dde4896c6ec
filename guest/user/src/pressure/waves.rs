//! Free memory goes up and down: kswapd, and what happens when it does not keep up.

use core::fmt::Write;
use core::sync::atomic::Ordering::SeqCst;

use super::disks::{Disks, remove, sparse};
use super::vmstat::{Events, Marks, set_boosts};
use super::{cpus, holds_page, is_small, latency, ram, write_page};
use crate::memory::{PRIVATE, Pages, READ_WRITE, SHARED};
use crate::processes::{ANY, child, wait};
use crate::program::{Checks, free_pages};
use crate::shared::{close, pread};
use crate::sys::{self, Out};

/// Pages that CPUs may move at once.
const SLACK: u64 = 96;

/// What free pages did while something took them.
#[derive(Debug)]
struct Saw {
    marks: Marks,
    lowest: u64,
    highest: u64,
    was_low: bool,
    is_down: bool,
    teeth: u64,
}

impl Saw {
    fn new(marks: Marks) -> Saw {
        Saw { marks, lowest: u64::MAX, highest: 0, was_low: false, is_down: false, teeth: 0 }
    }

    /// Looks once more. A tooth is a way down to the low mark and up again by half of the way to the high one.
    fn look(&mut self, free: u64) {
        let Marks { low, high, reserve, .. } = self.marks;
        self.lowest = self.lowest.min(free);
        let down = low + reserve + SLACK;
        if free <= down {
            (self.was_low, self.is_down) = (true, true);
        }
        if self.was_low {
            self.highest = self.highest.max(free);
        }
        if self.is_down && free >= (low + high.saturating_sub(low) / 2 + SLACK).max(down + SLACK / 3) {
            self.is_down = false;
            self.teeth += 1;
        }
    }
}

/// kswapd: a file that is larger than memory is read, and free pages are looked at after every page. Where memory is large most of it is taken before, because a page of a program costs much less than one of a file.
pub fn kswapd(checks: &mut Checks) {
    let disks = Disks::begin(checks);
    checks.check("a disk with files", disks.mounted);
    // Free pages go up and down between marks that stay where they are.
    checks.check("no boosts", set_boosts(false));
    let ram = ram();
    let is_large = ram > 1 << 15;
    let taken = Pages::map(if is_large { ram / 8 * 7 } else { 1 }, READ_WRITE, PRIVATE);
    (0..taken.count).for_each(|page| write_page(&taken, page, 0));
    let left = if is_large { ram / 8 } else { ram };
    let pages = if is_small() { left + left / 4 } else { left + left / 2 };
    let fd = sparse(checks, c"/mnt/holes", pages);
    let before = Events::now();
    let mut saw = Saw::new(Marks::now(None));
    let (mut word, mut wrong) = ([1_u8; 8], 0_u64);
    let teeth = if is_small() { 1 } else { 3 };
    // Every node has teeth of its own, and their sum none: there kswapd's runs are counted, each of which ends at the high mark.
    let is_one = saw.marks.nodes == 1;
    let mut turn = 0;
    // On a busy host kswapd's CPU may stand still while others free pages: then all is read again.
    while turn < pages || is_one && cpus() > 1 && saw.teeth < teeth && turn < 4 * pages {
        let got = latency::time(|| pread(fd, &mut word, turn % pages * 4096));
        wrong += u64::from(got != 8 || word != [0; 8]);
        saw.look(free_pages());
        turn += 1;
    }
    // It is given time to come to rest.
    let mut rest = free_pages();
    for _ in 0..100 {
        sys::nanosleep(0, 10_000_000);
        let now = free_pages();
        if now == rest && now > saw.marks.low {
            break;
        }
        rest = now;
    }
    let now = Events::now();
    let Marks { min, low, high, boost, .. } = saw.marks;
    let _ = writeln!(
        Out,
        "kswapd: RAM {ram} pages, a file of {pages}; min {min} low {low} high {high}: free went down to {}, up to {}, {} teeth, rests at {rest}",
        saw.lowest, saw.highest, saw.teeth
    );
    let since = |name: &str| now.of(name) - before.of(name);
    checks.check("every page is read as zeroes", wrong == 0);
    checks.check("kswapd was woken, and freed pages", since("pageoutrun") > 0 && since("pgsteal_kswapd") > 0);
    // On one CPU kswapd runs while nobody looks: who reads gives way at the end of a slice only.
    if cpus() > 1 {
        checks.check("free pages came down to the low mark", saw.was_low);
        // On a busy host kswapd's CPU gets little, and who reads takes back at once what it frees: of its runs few are seen as teeth.
        checks.check("and went up and down", !is_one || saw.teeth > 0);
        checks.check("as often as kswapd ran", since("pageoutrun") / saw.marks.nodes >= teeth);
        checks.check("kswapd did most of it", since("pgsteal_kswapd") > since("pgsteal_direct"));
    }
    checks.check("they never went below the min mark", saw.lowest + SLACK >= min);
    // A run frees as many pages as the high mark has, and then looks whether that is enough; who allocates may free some, too.
    checks.check("kswapd frees no more than it has to", saw.highest <= low + 3 * (high + boost) + SLACK);
    checks.check("it sleeps above the low mark", rest >= low);
    // Some of what is read again is still there.
    let read = turn.min(pages) + since("workingset_refault_file");
    checks.check("what was read was freed", since("pgsteal_kswapd") + since("pgsteal_direct") + ram >= read);
    close(fd);
    checks.check("the file goes", remove(c"/mnt/holes"));
    checks.check(
        "nothing of a program is taken without swap",
        (0..taken.count).all(|page| holds_page(&taken, page, 0)),
    );
    taken.unmap();
    checks.check("boosts again", set_boosts(true));
    disks.end(checks);
}

/// Waits until so many have come here.
fn meet(shared: &Pages, wanted: u64) {
    shared.word(0).fetch_add(1, SeqCst);
    while shared.word(0).load(SeqCst) < wanted {
        sys::nanosleep(0, 1_000_000);
    }
}

/// direct-reclaim: more processes than CPUs touch more memory than there is, all at once, and nobody is killed.
pub fn direct_reclaim(checks: &mut Checks) {
    let disks = Disks::begin(checks);
    let slots = disks.swap.map_or(0, |(_, slots)| slots);
    let (ram, tasks) = (ram(), cpus() * 2 + 2);
    let each = (ram + ram / 4).min(ram / 2 + slots) / tasks;
    checks.check("a disk for swapping", slots > ram / 2);
    let before = Events::now();
    let shared = Pages::map(1, READ_WRITE, SHARED);
    shared.word(0).store(0, SeqCst);
    for task in 0..tasks {
        child(|| {
            let mine = Pages::map(each, READ_WRITE, PRIVATE);
            // All begin together, and nobody ends before all have written everything.
            meet(&shared, tasks);
            (0..each).for_each(|page| latency::time(|| write_page(&mine, page, task)));
            meet(&shared, 2 * tasks);
            let wrong = (0..each).filter(|page| !holds_page(&mine, *page, task)).count();
            u64::from(wrong > 0 || !mine.is_mapped())
        });
    }
    let (mut right, mut killed) = (0, 0);
    for _ in 0..tasks {
        match wait(ANY, 0).1 {
            0 => right += 1,
            _ => killed += 1,
        }
    }
    shared.unmap();
    let now = Events::now();
    let since = |name: &str| now.of(name) - before.of(name);
    let _ = writeln!(
        Out,
        "direct-reclaim: RAM {ram} pages, {tasks} processes of {each} each, {right} right, {killed} not; {} stalls, {} pages reclaimed by who allocated",
        since("allocstall"),
        since("pgsteal_direct")
    );
    checks.check("every process finds what it wrote", right == tasks);
    checks.check("nobody is killed", since("oom_kill") == 0);
    checks.check("who allocates reclaims", since("allocstall") > 0 && since("pgsteal_direct") > 0);
    checks.check("no more is reclaimed than was looked at", {
        since("pgsteal_direct") <= since("pgscan_direct") && since("pgsteal_kswapd") <= since("pgscan_kswapd")
    });
    checks.check("pages went to the disk", since("pswpout") > 0);
    disks.end(checks);
}
