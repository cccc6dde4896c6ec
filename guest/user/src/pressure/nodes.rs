//! numa-pressure: one node is full while another has memory; what a task's policy says decides whether pages go to swap or to the other node.

use core::fmt::Write;
use core::sync::atomic::Ordering::SeqCst;

use super::disks::Disks;
use super::vmstat::{Events, Marks, lines, numbers};
use super::{holds_page, latency, write_page};
use crate::memory::{PRIVATE, Pages, READ_WRITE, SHARED};
use crate::processes::{child, wait};
use crate::program::Checks;
use crate::sys::{Out, call};

const PREFERRED: u64 = 1;
const BIND: u64 = 2;
const INTERLEAVE: u64 = 3;
const EINVAL: u64 = 22_u64.wrapping_neg();

fn set_policy(mode: u64, nodes: u64) -> u64 {
    call(238, [mode, &raw const nodes as u64, 65, 0, 0, 0])
}

/// Mode and nodes of this task.
fn policy() -> (u64, u64) {
    let (mut mode, mut nodes) = (0_u32, 0_u64);
    call(239, [&raw mut mode as u64, &raw mut nodes as u64, 64, 0, 0, 0]);
    (mode.into(), nodes)
}

/// The node that a page of this process lies on.
fn node_of(addr: u64) -> u64 {
    let mut node = u32::MAX;
    call(239, [&raw mut node as u64, 0, 0, addr, 3, 0]);
    node.into()
}

/// Nodes with memory, as bits, and the last of them.
fn nodes() -> (u64, u64) {
    let (mut bits, mut last, mut here) = (0_u64, 0, 0);
    lines(c"/proc/zoneinfo", |line| {
        if line.starts_with(b"Node ") {
            here = numbers(line).next().unwrap_or(0);
        } else if line.starts_with(b"        managed ") && numbers(line).next() > Some(0) {
            bits |= 1 << here;
            last = here;
        }
    });
    (bits, last)
}

/// What a task found that touched pages by a policy.
struct Touched {
    /// Pages that lay on each node when they were touched: on the one of interest, and elsewhere.
    here: u64,
    elsewhere: u64,
    wrong: u64,
}

/// A child touches pages by a policy and looks where each came to lie.
fn touch(mode: u64, mask: u64, node: u64, count: u64) -> Touched {
    let told = Pages::map(1, READ_WRITE, SHARED);
    let kid = child(|| {
        if set_policy(mode, mask) != 0 || policy() != (mode, mask) {
            return 1;
        }
        let mine = Pages::map(count, READ_WRITE, PRIVATE);
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
    let events = Events::now();
    let bound = touch(BIND, 1 << full, full, count);
    let after_bind = Events::now();
    let preferred = touch(PREFERRED, 1 << full, full, count);
    let after_preferred = Events::now();
    let turns = touch(INTERLEAVE, 1 << full | 1 << other, full, free / 4);
    let swapped = |now: &Events, before: &Events| now.of("pswpout") - before.of("pswpout");
    let _ = writeln!(
        Out,
        "numa-pressure: node {full} has {free} pages free, node {other} {there}; {count} pages touched: bound {} here, {} elsewhere, {} to swap; preferred {} here, {} elsewhere, {} to swap; in turns {} and {}",
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
    checks.check("every page holds what was written", bound.wrong + preferred.wrong + turns.wrong == 0);
    checks.check("a policy is its task's", policy() == (0, 0));
    checks.check(
        "and goes with MPOL_DEFAULT",
        set_policy(PREFERRED, 1 << full) == 0 && set_policy(0, 0) == 0 && policy() == (0, 0),
    );
    disks.end(checks);
}
