//! Programs that eat memory until the OOM killer takes them, and those that must live on.

use core::ffi::CStr;
use core::fmt::Write;

use crate::memory::{BYTES, PRIVATE, Pages, READ_WRITE};
use crate::pressure::latency::{self, now_ns};
use crate::proc::number;
use crate::processes::{ANY, child, wait};
use crate::program::{Checks, free_pages};
use crate::promises::put;
use crate::shared::{mount, unmount};
use crate::sys::{self, Out};

/// MAP_NORESERVE: a step may be more than a small machine promises.
const NORESERVE: u64 = 0x4000;

/// What an eater asks for at once: 100 MiB.
const STEP: u64 = (100 << 20) / BYTES;
/// How a process ends that SIGKILL ended, as wait4 tells it.
const KILLED: u32 = 9;
const MIB: u64 = (1 << 20) / BYTES;

/// Locks the pages of the program. One instruction may need two of them, its own and a constant's: where one frame is left for both, each takes
/// the other's for ever, reclaim gets somewhere each time, and nobody is killed (docs/reclaim.md).
pub fn lock_program() {
    const MCL_CURRENT: u64 = 1;
    sys::call(151, [MCL_CURRENT, 0, 0, 0, 0, 0]);
}

/// Takes memory in steps and writes to each page, for ever; says so at each step.
fn eat(name: &str, step: u64) -> u64 {
    lock_program();
    let mut eaten = 0;
    loop {
        let pages = Pages::map(step, READ_WRITE, PRIVATE | NORESERVE);
        if !pages.is_mapped() {
            let _ = writeln!(Out, "{name}: refused after {} MiB", eaten / MIB);
            return 1;
        }
        for page in 0..step {
            latency::time(|| sys::store(pages.at(page), page + 1));
        }
        eaten += step;
        let _ = writeln!(Out, "{name}: {} MiB written", eaten / MIB);
    }
}

/// A child that waits until it is killed.
fn bystander() -> u64 {
    child(|| {
        let mine = Pages::map(16, READ_WRITE, PRIVATE);
        (0..16).for_each(|page| sys::store(mine.at(page), 7));
        loop {
            sys::nanosleep(1, 0);
        }
    })
}

/// Whether a child is still there.
fn lives(pid: u64) -> bool {
    wait(pid, 1).0 == 0
}

fn end(pid: u64) {
    sys::kill(pid, 9);
    wait(pid, 0);
}

/// oom-basic: the one who eats is killed, and nobody else.
pub fn basic(checks: &mut Checks) {
    let before = free_pages();
    let other = bystander();
    let begin = now_ns();
    let eater = child(|| eat("eater", STEP));
    let (who, status) = wait(ANY, 0);
    let took = now_ns() - begin;
    checks.check("the eater is killed", (who, status) == (eater, KILLED));
    checks.check("the other process lives", lives(other));
    let free = free_pages();
    let _ = writeln!(
        Out,
        "oom-basic: {} MiB free before, process {who} ended by signal {} after {} ms, {} MiB free afterwards",
        before / MIB,
        status & 0x7f,
        took / 1_000_000,
        free / MIB
    );
    checks.check("its memory is free when wait4 returns", free + before / 16 > before);
    end(other);
    // Again, so that nothing of the first is in the way of the second.
    let eater = child(|| eat("second eater", STEP));
    checks.check("a second eater is killed too", wait(ANY, 0) == (eater, KILLED));
}

/// oom-score: `oom_score_adj` decides before size does.
pub fn score(checks: &mut Checks) {
    mount(checks);
    const ADJ: &CStr = c"/proc/self/oom_score_adj";
    checks.check("nothing is added at first", number(ADJ, b"") == 0);
    checks.check("more than 1000 is EINVAL", put(ADJ, b"1001\n") == 22_u64.wrapping_neg());
    let pipe = sys::pipe();
    let tell = |word: bool| {
        let word = [u8::from(word)];
        sys::call(1, [pipe[1], word.as_ptr() as u64, 1, 0, 0, 0]);
        loop {
            sys::nanosleep(1, 0);
        }
    };
    let told = || {
        let mut word = [0_u8];
        sys::read_raw(pipe[0], word.as_mut_ptr() as u64, 1) == 1 && word == [1]
    };
    // The largest of all, and never killed.
    let most = free_pages() * 5 / 8;
    let spared = child(|| {
        put(ADJ, b"-1000\n");
        let mine = Pages::map(most, READ_WRITE, PRIVATE | NORESERVE);
        (0..most).for_each(|page| sys::store(mine.at(page), 7));
        tell(mine.is_mapped())
    });
    checks.check("one has most of memory", told());
    let first = child(|| {
        put(ADJ, b"1000\n");
        // Its child inherits it, and has nothing.
        let heir = child(|| number(ADJ, b""));
        tell(wait(heir, 0).1 >> 8 == 1000 & 0xff)
    });
    checks.check("fork inherits it", told());
    let eater = child(|| eat("eater", STEP));
    let (who, status) = wait(ANY, 0);
    checks.check("1000 is killed before who is large", (who, status) == (first, KILLED));
    let (who, status) = wait(ANY, 0);
    checks.check("then the eater", (who, status) == (eater, KILLED));
    checks.check("-1000 is never killed", lives(spared));
    let _ = writeln!(
        Out,
        "oom-score: killed in order: {first} (adj 1000), {eater} (adj 0); {spared} (adj -1000) lives"
    );
    end(spared);
    pipe.into_iter().for_each(sys::close);
    unmount(checks);
}

/// Processes that eat one inside the other.
const DEPTH: u64 = 6;

/// oom-nested-forks: each generation makes the next, and all eat; one after the other is killed, and the first parent lives.
pub fn nested_forks(checks: &mut Checks) {
    mount(checks);
    let before = free_pages();
    let kills = || number(c"/proc/vmstat", b"oom_kill ");
    let begin = kills();
    let top = child(|| generation(DEPTH));
    let (who, status) = wait(top, 0);
    checks.check(
        "the eldest is killed or ends with its last child",
        who == top && (status == KILLED || status & 0x7f == 0),
    );
    // Orphans are init's, which this is.
    let mut orphans = 0;
    while wait(ANY, 0).0.wrapping_sub(1) < 1 << 32 {
        orphans += 1;
    }
    let killed = kills() - begin;
    let _ = writeln!(
        Out,
        "oom-nested-forks: {DEPTH} generations, {killed} killed, {orphans} orphans waited for, {} MiB free of {}",
        free_pages() / MIB,
        before / MIB
    );
    checks.check("as many are killed as ate", (1..=DEPTH + 1).contains(&killed));
    checks.check("all memory is free again", free_pages() + before / 16 > before);
    unmount(checks);
}

fn generation(left: u64) -> u64 {
    if left > 0 {
        child(|| generation(left - 1));
    }
    eat("generation", STEP / 10)
}

/// oom-atomic: three eat at once, while the kernel allocates from its timer's interrupt (`atomic_from_tick` on its command line).
pub fn atomic(checks: &mut Checks) {
    const EATERS: u64 = 3;
    for _ in 0..EATERS {
        child(|| eat("eater", STEP / 4));
    }
    for _ in 0..EATERS {
        checks.check("each eater is killed", wait(ANY, 0).1 == KILLED);
    }
    checks.check("a page can be had afterwards", Pages::map(1, READ_WRITE, PRIVATE).is_mapped());
}
