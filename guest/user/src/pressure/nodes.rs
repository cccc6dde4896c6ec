//! numa-pressure: one node is full while another has memory; what a policy says, a task's or an area's, decides whether pages go to swap or to
//! the other node.

use core::fmt::Write;
use core::sync::atomic::Ordering::SeqCst;

use super::disks::Disks;
use super::vmstat::{Events, Marks};
use super::{holds_page, latency, write_page};
use crate::memory::{PRIVATE, Pages, READ_WRITE, SHARED};
use crate::numa::{BIND, INTERLEAVE, PREFERRED, bind, node_of, nodes, policy, set_policy};
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::sys::Out;

const EINVAL: u64 = 22_u64.wrapping_neg();

/// What a task found that touched pages by a policy.
struct Touched {
    /// Pages that lay on each node when they were touched: on the one of interest, and elsewhere.
    here: u64,
    elsewhere: u64,
    wrong: u64,
}

/// Whose policy it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Task,
    Area,
}

/// A child touches pages by a policy and looks where each came to lie.
fn touch(of: Of, (mode, mask): (u64, u64), node: u64, count: u64) -> Touched {
    let told = Pages::map(1, READ_WRITE, SHARED);
    let kid = child(|| {
        let mine = Pages::map(count, READ_WRITE, PRIVATE);
        let (own, set) = match of {
            Of::Task => ((mode, mask), set_policy(mode, mask)),
            Of::Area => ((0, 0), bind(&mine, 0, count, (mode, mask), 0)),
        };
        if set != 0 || policy() != own {
            return 1;
        }
        for page in 0..count {
            latency::time(|| write_page(&mine, page, 7));
            let counted = told.word_at(0, u64::from(node_of(mine.at(page)) != node));
            counted.fetch_add(1, SeqCst);
        }
        let wrong = (0..count).filter(|page| !holds_page(&mine, *page, 7)).count();
        told.word_at(0, 2).store(wrong as u64, SeqCst);
        0
    });
    let status = wait(kid, 0).1;
    let word = |index: u64| told.word_at(0, index).load(SeqCst);
    let wrong = if status == 0 { word(2) } else { u64::MAX };
    let touched = Touched { here: word(0), elsewhere: word(1), wrong };
    told.unmap();
    touched
}

/// The node that is filled, one that has memory left, and what is touched.
#[derive(Clone, Copy)]
struct Around {
    full: u64,
    other: u64,
    count: u64,
}

/// Bound, preferred and interleaved pages, of a task's policy or of an area's; pages that do not hold what was written.
fn policies(checks: &mut Checks, of: Of, around: Around, free: u64) -> u64 {
    let Around { full, other, count } = around;
    let events = Events::now();
    let bound = touch(of, (BIND, 1 << full), full, count);
    let after_bind = Events::now();
    let preferred = touch(of, (PREFERRED, 1 << full), full, count);
    let after_preferred = Events::now();
    let turns = touch(of, (INTERLEAVE, 1 << full | 1 << other), full, free / 4);
    let swapped = |now: &Events, before: &Events| now.of("pswpout") - before.of("pswpout");
    let _ = writeln!(
        Out,
        "numa-pressure: by {}: bound {} here, {} elsewhere, {} to swap; preferred {} here, {} elsewhere, {} to swap; in turns {} and {}",
        if of == Of::Task { "the task's policy" } else { "the area's policy" },
        bound.here,
        bound.elsewhere,
        swapped(&after_bind, &events),
        preferred.here,
        preferred.elsewhere,
        swapped(&after_preferred, &after_bind),
        turns.here,
        turns.elsewhere
    );
    checks.check("bound pages lie on their node, all of them", bound.elsewhere == 0 && bound.here == count);
    checks.check("what that node has no room for goes to swap", swapped(&after_bind, &events) >= free / 8);
    checks.check("nobody is killed", after_preferred.of("oom_kill") == events.of("oom_kill"));
    checks.check(
        "preferred pages go elsewhere when it is full",
        preferred.here > free / 2 && preferred.elsewhere > free / 8,
    );
    checks.check("and not to swap", swapped(&after_preferred, &after_bind) < free / 16);
    checks.check("interleaved pages take turns", turns.here.abs_diff(turns.elsewhere) <= 2);
    bound.wrong.max(preferred.wrong).max(turns.wrong)
}

/// The suite.
pub fn run(checks: &mut Checks) {
    let disks = Disks::begin(checks);
    let (all, full) = nodes();
    let other = (all & !(1 << full)).trailing_zeros().into();
    checks.check("two nodes with memory, and a swap disk", all.count_ones() >= 2 && disks.swap.is_some());
    checks.check("a task begins without a policy", policy() == (0, 0));
    checks.check("no node", set_policy(BIND, 0) == EINVAL && set_policy(INTERLEAVE, 0) == EINVAL);
    checks.check("a node that there is not", set_policy(BIND, 1 << 60) == EINVAL);
    checks.check("a mode that there is not", set_policy(9, 1) == EINVAL && set_policy(0, 1) == EINVAL);
    let free = Marks::now(Some(full)).free;
    let there = Marks::now(Some(other)).free;
    let count = free + (free / 3).min(there / 2);
    let around = Around { full, other, count };
    let _ = writeln!(
        Out,
        "numa-pressure: node {full} has {free} pages free, node {other} {there}; {count} pages are touched each time"
    );
    let task = policies(checks, Of::Task, around, free);
    let area = policies(checks, Of::Area, around, free);
    checks.check("every page holds what was written", task.max(area) == 0);
    checks.check("a policy is its task's", policy() == (0, 0));
    checks.check(
        "and goes with MPOL_DEFAULT",
        set_policy(PREFERRED, 1 << full) == 0 && set_policy(0, 0) == 0 && policy() == (0, 0),
    );
    disks.end(checks);
}
