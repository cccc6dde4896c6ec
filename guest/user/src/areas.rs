//! mempolicy: areas with policies of their own. Where their pages come to lie, what fork, mremap and mprotect make of them, what mbind refuses,
//! and pages that go to other nodes.

use core::fmt::Write;

use crate::memory::{BYTES, NONE, PRIVATE, Pages, READ_WRITE};
use crate::numa::{
    BIND, INTERLEAVE, LOCAL, MOVE, MOVE_ALL, PREFERRED, STRICT, bind, mbind, migrate_pages, move_page,
    node_of, nodes, policy, policy_at, set_policy,
};
use crate::pressure::vmstat::lines;
use crate::pressure::{at, is_there};
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::sys::{self, Out, call};

const EFAULT: u64 = 14_u64.wrapping_neg();
const EINVAL: u64 = 22_u64.wrapping_neg();
const EIO: u64 = 5_u64.wrapping_neg();
const ENODEV: u64 = 19_u64.wrapping_neg();
const ESRCH: u64 = 3_u64.wrapping_neg();
const DEFAULT: u64 = 0;
/// Pages of an area.
const COUNT: u64 = 64;

/// All of it.
pub fn run(checks: &mut Checks) {
    call(83, [at(c"/proc"), 0o755, 0, 0, 0, 0]);
    let mounted =
        !is_there(c"/proc/zoneinfo") && call(165, [at(c"none"), at(c"/proc"), at(c"proc"), 0, 0, 0]) == 0;
    let (all, last) = nodes();
    let first = u64::from(all.trailing_zeros());
    let _ = writeln!(Out, "mempolicy: nodes {all:#x} have memory");
    refusals(checks, first);
    areas(checks, all, first);
    inherited(checks, last);
    if first != last {
        places(checks, first, last);
        moves(checks, first, last);
        others(checks, first, last);
    }
    numa_maps(checks, first, last);
    if mounted {
        call(166, [at(c"/proc"), 0, 0, 0, 0, 0]);
    }
}

fn refusals(checks: &mut Checks, node: u64) {
    let here = 1 << node;
    let pages = Pages::map(COUNT, READ_WRITE, PRIVATE);
    let errors = [
        ("an address inside a page", mbind(pages.start + 8, BYTES, BIND, here, 0), EINVAL),
        ("a flag that there is not", mbind(pages.start, BYTES, BIND, here, 8), EINVAL),
        ("a mode that there is not", mbind(pages.start, BYTES, 77, here, 0), EINVAL),
        ("no nodes to bind to", mbind(pages.start, BYTES, BIND, 0, 0), EINVAL),
        ("nodes without memory", mbind(pages.start, BYTES, INTERLEAVE, 1 << 61, 0), EINVAL),
        ("nodes for the default", mbind(pages.start, BYTES, DEFAULT, here, 0), EINVAL),
        ("a range that goes round", mbind(pages.start, u64::MAX - BYTES, BIND, here, 0), EINVAL),
        ("an empty range", mbind(pages.start, 0, BIND, here, 0), 0),
        ("an empty range without nodes", mbind(pages.start, 0, BIND, 0, 0), 0),
        ("nothing mapped", mbind(0x1000, BYTES, BIND, here, 0), EFAULT),
        ("nothing mapped, by default", mbind(0x1000, BYTES, DEFAULT, 0, 0), EFAULT),
        ("a mask that cannot be read", call(237, [pages.start, BYTES, BIND, 0x1000, 65, 0]), EFAULT),
    ];
    for (what, got, expected) in errors {
        checks.check(what, got == expected);
    }
    checks.check("a hole", sys::munmap(pages.at(8), BYTES) == 0);
    checks.check("is refused", bind(&pages, 0, 16, (BIND, here), 0) == EFAULT);
    checks.check("and the default passes over it", bind(&pages, 0, 16, (DEFAULT, 0), 0) == 0);
    checks.check("no area has no policy", policy_at(pages.at(8)) == Err(EFAULT));
    checks
        .check("move_pages of flags that there are not", move_page(0, pages.start, None, STRICT).0 == EINVAL);
    checks.check("of nobody", move_page(0x7fff_fff0, pages.start, None, 0).0 == ESRCH);
    checks.check("to no node", move_page(0, pages.start, Some(61), MOVE).0 == ENODEV);
    checks.check("of nothing", move_page(0, 0x1000, None, 0) == (0, -14));
    checks.check("of an untouched page", move_page(0, pages.start, None, 0) == (0, -2));
    checks.check("migrate_pages to nowhere", migrate_pages(0, here, 1 << 61) == EINVAL);
    checks.check("of nobody", migrate_pages(0x7fff_fff0, here, here) == ESRCH);
    // What was written lies somewhere, on the only node perhaps.
    pages.word(0).store(1, core::sync::atomic::Ordering::SeqCst);
    checks.check("a page with no node to lie on", bind(&pages, 0, 1, (LOCAL, 0), STRICT) == EIO);
    checks.check("changes nothing", policy_at(pages.start) == Ok((DEFAULT, 0)));
    pages.unmap();
}

/// Lines of /proc/self/maps in a range.
fn maps_in(pages: &Pages) -> u64 {
    let mut count = 0;
    lines(c"/proc/self/maps", |line| {
        let hex = |byte: &u8| char::from(*byte).to_digit(16);
        let start = line.iter().map_while(hex).fold(0, |all, digit| all << 4 | u64::from(digit));
        count += u64::from(!line.is_empty() && (pages.start..pages.at(pages.count)).contains(&start));
    });
    count
}

fn areas(checks: &mut Checks, all: u64, node: u64) {
    // Between pages that cannot be used, so that nothing merges with what is beside them.
    let around = Pages::map(COUNT + 2, NONE, PRIVATE);
    let pages = Pages { start: around.at(1), count: COUNT };
    checks.check("pages of a range", pages.replace() && maps_in(&pages) == 1);
    let here = 1 << node;
    checks.check("a policy", bind(&pages, 16, 16, (BIND, here), 0) == 0);
    checks.check("makes an area", maps_in(&pages) == 3 && policy_at(pages.at(16)) == Ok((BIND, here)));
    checks.check(
        "and no other",
        policy_at(pages.at(15)) == Ok((0, 0)) && policy_at(pages.at(32)) == Ok((0, 0)),
    );
    checks.check("the task has none", policy() == (0, 0));
    checks.check(
        "the same beside it merges",
        bind(&pages, 32, 16, (BIND, here), 0) == 0 && maps_in(&pages) == 3,
    );
    checks.check("another does not", bind(&pages, 48, 16, (LOCAL, 0), 0) == 0 && maps_in(&pages) == 3);
    checks.check("local it is", policy_at(pages.at(63)) == Ok((LOCAL, 0)));
    checks.check("nodes without memory are left out", bind(&pages, 0, 16, (INTERLEAVE, u64::MAX), 0) == 0);
    checks.check("of interleaving", policy_at(pages.start) == Ok((INTERLEAVE, all)));
    checks.check("preferred without a node is local", bind(&pages, 0, 16, (PREFERRED, 0), 0) == 0);
    checks.check("says the area", policy_at(pages.start) == Ok((LOCAL, 0)));
    checks.check("preferred takes one node", bind(&pages, 0, 16, (PREFERRED, u64::MAX), 0) == 0);
    checks.check("the first", policy_at(pages.start) == Ok((PREFERRED, here)));
    checks.check(
        "the task's does not matter",
        set_policy(BIND, here) == 0 && policy_at(around.start) == Ok((0, 0)),
    );
    checks.check("the task's is gone", set_policy(DEFAULT, 0) == 0);
    checks.check(
        "the default makes one area",
        bind(&pages, 0, COUNT, (DEFAULT, 0), 0) == 0 && maps_in(&pages) == 1,
    );
    around.unmap();
}

/// fork, mremap, mprotect.
fn inherited(checks: &mut Checks, node: u64) {
    let there = 1 << node;
    let pages = Pages::map(COUNT, READ_WRITE, PRIVATE);
    checks.check("a bound area", bind(&pages, 0, COUNT, (BIND, there), 0) == 0);
    let kid = child(|| {
        let bound = policy_at(pages.start) == Ok((BIND, there));
        pages.fill(3);
        let there = (0..COUNT).all(|page| node_of(pages.at(page)) == node);
        u64::from(!(bound && there && bind(&pages, 0, COUNT, (DEFAULT, 0), 0) == 0))
    });
    checks.check("a child's area is bound, too", wait(kid, 0).1 == 0);
    checks.check("its own was changed", policy_at(pages.start) == Ok((BIND, there)));
    checks.check("a part is protected", sys::mprotect(pages.at(8), 8 * BYTES, 1) == 0);
    checks.check("and bound", policy_at(pages.at(8)) == Ok((BIND, there)));
    let moved = sys::mremap(pages.at(16), 16 * BYTES, 32 * BYTES, 1);
    checks.check("what mremap moved is bound", policy_at(moved + 31 * BYTES) == Ok((BIND, there)));
    let moved = Pages { start: moved, count: 32 };
    moved.fill(5);
    let placed = (0..32).all(|page| node_of(moved.at(page)) == node);
    checks.check("its pages lie where they are to", placed && moved.holds(5));
    moved.unmap();
    pages.unmap();
}

/// Pages that lie on a node.
fn count_on(pages: &Pages, node: u64) -> u64 {
    (0..pages.count)
        .filter(|page| move_page(0, pages.at(*page), None, 0) == (0, i32::try_from(node).unwrap_or(-1)))
        .count() as u64
}

/// Faults follow the area, and not the task.
fn places(checks: &mut Checks, first: u64, last: u64) {
    let areas =
        [(BIND, 1 << last), (PREFERRED, 1 << last), (INTERLEAVE, 1 << first | 1 << last), (BIND, 1 << first)];
    checks.check("a task that is bound elsewhere", set_policy(BIND, 1 << first) == 0);
    let mapped = areas.map(|policy| {
        let pages = Pages::map(COUNT, READ_WRITE, PRIVATE);
        checks.check("an area", bind(&pages, 0, COUNT, policy, 0) == 0);
        pages.fill(9);
        pages
    });
    checks.check("the task's policy ends", set_policy(DEFAULT, 0) == 0);
    let there = mapped.map(|pages| count_on(&pages, last));
    let _ = writeln!(
        Out,
        "mempolicy: of {COUNT} pages each, on node {last}: bound {}, preferred {}, interleaved {}, bound to node {first} {}",
        there[0], there[1], there[2], there[3]
    );
    checks.check("bound pages lie on their node", there[0] == COUNT && there[3] == 0);
    checks.check("preferred ones, too", there[1] == COUNT);
    checks.check("interleaved ones take turns", there[2] == COUNT / 2);
    let turns = (0..COUNT - 1).all(|page| node_of(mapped[2].at(page)) != node_of(mapped[2].at(page + 1)));
    checks.check("by their places", turns);
    for pages in mapped {
        checks.check("and hold what was written", pages.holds(9));
        pages.unmap();
    }
}

/// Pages go where a policy or a call says.
fn moves(checks: &mut Checks, first: u64, last: u64) {
    let pages = Pages::map(COUNT, READ_WRITE, PRIVATE);
    checks.check("pages on the first node", bind(&pages, 0, COUNT, (BIND, 1 << first), 0) == 0);
    pages.fill(11);
    checks.check("lie there", count_on(&pages, first) == COUNT);
    checks.check("strict says so", bind(&pages, 0, COUNT, (BIND, 1 << last), STRICT) == EIO);
    checks.check("and changes nothing", policy_at(pages.start) == Ok((BIND, 1 << first)));
    checks.check("without flags they stay", bind(&pages, 0, COUNT, (BIND, 1 << last), 0) == 0);
    checks.check("where they are", count_on(&pages, first) == COUNT);
    checks.check("a policy of both nodes", bind(&pages, 0, COUNT, (BIND, 1 << first | 1 << last), 0) == 0);
    let moved = bind(&pages, 0, COUNT, (BIND, 1 << last), MOVE | STRICT);
    checks.check("those that are misplaced move", moved == 0 && count_on(&pages, last) == COUNT);
    checks.check("get_mempolicy says the same", (0..COUNT).all(|page| node_of(pages.at(page)) == last));
    checks.check("they hold what was written", pages.holds(11));
    checks.check(
        "interleaved by a move",
        bind(&pages, 0, COUNT, (INTERLEAVE, 1 << first | 1 << last), MOVE_ALL) == 0,
    );
    checks.check("those stay that are not misplaced", count_on(&pages, last) == COUNT);
    checks.check(
        "one by one",
        (0..COUNT).all(|page| {
            move_page(0, pages.at(page), Some(first), MOVE) == (0, i32::try_from(first).unwrap_or(-1))
        }),
    );
    checks.check("to the first node", count_on(&pages, first) == COUNT && pages.holds(11));
    checks.check("all of the process's", migrate_pages(0, 1 << first, 1 << last) == 0);
    checks.check("to the last", count_on(&pages, last) == COUNT && pages.holds(11));
    checks.check("and back", migrate_pages(0, 1 << last, 1 << first) == 0);
    checks.check("they are", count_on(&pages, first) == COUNT && pages.holds(11));
    pages.unmap();
}

/// Pages that two processes map, and pages of another process.
fn others(checks: &mut Checks, first: u64, last: u64) {
    let pages = Pages::map(COUNT, READ_WRITE, PRIVATE);
    bind(&pages, 0, COUNT, (BIND, 1 << first), 0);
    pages.fill(13);
    let ends = sys::pipe();
    let kid = child(|| {
        // Until the parent wrote, and closed its end.
        let mut byte = [0_u8; 1];
        sys::close(ends[1]);
        let read = sys::read_raw(ends[0], byte.as_mut_ptr() as u64, 1);
        u64::from(!(read == 1 && pages.holds(13)))
    });
    checks.check("shared pages stay", bind(&pages, 0, COUNT, (BIND, 1 << last), MOVE) == 0);
    checks.check("for whoever shares them", count_on(&pages, first) == COUNT);
    checks.check("and say so", move_page(0, pages.start, Some(last), MOVE) == (0, -13));
    checks.check("all are moved", bind(&pages, 0, COUNT, (BIND, 1 << first), MOVE_ALL) == 0);
    checks.check("another's, too", move_page(kid, pages.start, Some(last), MOVE_ALL).0 == 0);
    checks.check("it is one page", node_of(pages.start) == last);
    checks.check("all of another's", migrate_pages(kid, 1 << first, 1 << last) == 0);
    checks.check("which are also its parent's", count_on(&pages, last) == COUNT && pages.holds(13));
    call(1, [ends[1], b"x".as_ptr() as u64, 1, 0, 0, 0]);
    checks.check("the child finds what was written", wait(kid, 0).1 == 0);
    sys::close(ends[0]);
    sys::close(ends[1]);
    pages.unmap();
}

/// The line of /proc/self/numa_maps.
fn numa_maps(checks: &mut Checks, first: u64, last: u64) {
    let pages = Pages::map(COUNT, READ_WRITE, PRIVATE);
    let nodes = 1 << first | 1 << last;
    bind(&pages, 0, 1, (BIND, 1 << last), 0);
    bind(&pages, 1, COUNT - 1, (INTERLEAVE, nodes), 0);
    pages.fill(1);
    let mut seen = [false; 2];
    let ends = |line: &[u8], with: &[u8]| line.windows(with.len()).any(|part| part == with);
    lines(c"/proc/self/numa_maps", |line| {
        let hex = |byte: &u8| char::from(*byte).to_digit(16);
        let start = line.iter().map_while(hex).fold(0, |all, digit| all << 4 | u64::from(digit));
        if start == pages.start {
            seen[0] = ends(line, b" bind:")
                && ends(line, b" anon=1 dirty=1 ")
                && ends(line, b" kernelpagesize_kB=4");
        }
        if start == pages.at(1) {
            seen[1] = ends(line, b" interleave:") && ends(line, b" anon=63 dirty=63 ");
        }
    });
    checks.check("numa_maps has the bound page", seen[0]);
    checks.check("and those that take turns", seen[1]);
    pages.unmap();
}
