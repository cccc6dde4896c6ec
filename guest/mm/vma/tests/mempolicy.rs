//! Memory policies of areas: which areas there are, where their pages come from, and where they go.

mod common;

use common::kernel::TestKernel;
use common::model::Model;
use common::op::{Op, PAGE, WINDOW};
use mm_core::{MemMap, NodeMask, VirtAddr};
use mm_vma::{Arena, Errno, Kernel, Mm, NumaPages, Policy, audit, migrate_nodes, move_page, page_node};

const AT: u64 = 300 * PAGE;
const READ_WRITE: u64 = 3;
const PRIVATE: u64 = 0x32;
const SHARED: u64 = 0x31;
const DEFAULT: u64 = 0;
const PREFERRED: u64 = 1;
const BIND: u64 = 2;
const INTERLEAVE: u64 = 3;
const LOCAL: u64 = 4;
const STRICT: u64 = 1;
const MOVE: u64 = 2;
const MOVE_ALL: u64 = 4;

fn two_nodes() -> Model {
    let mut model = Model::on(TestKernel::with_nodes(2));
    map(&mut model, 0, 8, PRIVATE);
    model
}

fn run(model: &mut Model, op: Op) -> i64 {
    let result = model.run(7, op).result;
    audit(&model.k, model.mm).unwrap();
    result
}

fn map(model: &mut Model, page: u64, pages: u64, flags: u64) {
    let op = Op::Mmap { addr: AT + page * PAGE, len: pages * PAGE, prot: READ_WRITE, flags };
    assert!(run(model, op) > 0);
}

/// mbind of `pages` from `page` on.
fn mbind(model: &mut Model, (page, pages): (u64, u64), (mode, nodes): (u64, u64), flags: u64) -> i64 {
    run(model, Op::Mbind { addr: AT + page * PAGE, len: pages * PAGE, mode, nodes, flags })
}

fn error(errno: Errno) -> i64 {
    -i64::from(errno.number())
}

/// The areas: pages, and the letter of the policy.
fn picture(model: &Model) -> String {
    let mm: &Mm = model.k.at(model.mm);
    let mut text = String::new();
    for (_, vma) in
        mm.vmas(&model.k).filter(|(_, vma)| (WINDOW + AT..WINDOW + AT + 64 * PAGE).contains(&vma.start()))
    {
        let letter = match vma.policy() {
            Policy::Default => 'd',
            Policy::Local => 'l',
            Policy::Bind(_) => 'b',
            Policy::Preferred(_) | Policy::PreferredMany(_) => 'p',
            Policy::Interleave(_) => 'i',
        };
        text.push_str(&format!("{}{letter} ", vma.pages()));
    }
    text.trim_end().to_owned()
}

/// The node of each of the first pages; `.` where none is.
fn placed(model: &Model, pages: u64) -> String {
    let mm: &Mm = model.k.at(model.mm);
    let at = |page| {
        let va = VirtAddr::new(WINDOW + AT + page * PAGE);
        let found = model.k.tables(mm, |tables| mm.page_table().translate(tables, va))?;
        model.k.page(found.phys.pfn()).map(|page| page.node())
    };
    (0..pages).map(|page| at(page).map_or(".".to_owned(), |node| node.to_string())).collect()
}

fn touch(model: &Model, pages: core::ops::Range<u64>) {
    for page in pages {
        assert_eq!(model.access(WINDOW + AT + page * PAGE, Some(page)), 0);
    }
}

fn holds(model: &Model, pages: core::ops::Range<u64>) -> bool {
    pages.into_iter().all(|page| model.access(WINDOW + AT + page * PAGE, None) == page.cast_signed())
}

#[test]
fn a_policy_splits_and_the_same_policy_merges() {
    let mut model = two_nodes();
    assert_eq!(mbind(&mut model, (2, 3), (BIND, 1), 0), 0);
    assert_eq!(picture(&model), "2d 3b 3d");
    mbind(&mut model, (5, 1), (BIND, 1), 0);
    assert_eq!(picture(&model), "2d 4b 2d");
    mbind(&mut model, (0, 2), (BIND, 2), 0);
    // The same mode of other nodes is another policy.
    assert_eq!(picture(&model), "2b 4b 2d");
    mbind(&mut model, (6, 2), (LOCAL, 0), 0);
    assert_eq!(picture(&model), "2b 4b 2l");
    mbind(&mut model, (0, 8), (DEFAULT, 0), 0);
    assert_eq!(picture(&model), "8d");
    model.finish();
}

#[test]
fn new_areas_merge_with_those_without_a_policy_only() {
    let mut model = two_nodes();
    map(&mut model, 8, 2, PRIVATE);
    assert_eq!(picture(&model), "10d");
    mbind(&mut model, (0, 10), (PREFERRED, 2), 0);
    map(&mut model, 10, 2, PRIVATE);
    assert_eq!(picture(&model), "10p 2d");
    // What a change of protection splits, it merges again.
    let protect = |prot| Op::Mprotect { addr: AT + 2 * PAGE, len: 2 * PAGE, prot };
    run(&mut model, protect(1));
    assert_eq!(picture(&model), "2p 2p 6p 2d");
    run(&mut model, protect(3));
    assert_eq!(picture(&model), "10p 2d");
    model.finish();
}

#[test]
fn a_policy_goes_with_the_area_through_fork_and_mremap() {
    let mut model = two_nodes();
    mbind(&mut model, (0, 4), (BIND, 2), 0);
    let moved =
        Op::Mremap { addr: AT, old_len: 4 * PAGE, new_len: 6 * PAGE, flags: 3, new_addr: AT + 20 * PAGE };
    assert!(run(&mut model, moved) > 0);
    assert_eq!(picture(&model), "4d 6b");
    run(&mut model, Op::Fork);
    assert_eq!(picture(&model), "4d 6b");
    touch(&model, 20..26);
    assert_eq!(placed(&model, 26), "....................111111");
    // The child's is its own.
    mbind(&mut model, (20, 6), (DEFAULT, 0), 0);
    let parent: &Mm = model.k.at(model.parents[0]);
    let bound = |vma: &mm_vma::Vma| vma.policy() == Policy::Bind(NodeMask::of([1]));
    assert_eq!(parent.vmas(&model.k).filter(|(_, vma)| bound(vma)).count(), 1);
    model.finish();
}

#[test]
fn faults_follow_the_area() {
    let mut model = two_nodes();
    mbind(&mut model, (0, 2), (BIND, 2), 0);
    mbind(&mut model, (2, 2), (PREFERRED, 1), 0);
    mbind(&mut model, (4, 4), (INTERLEAVE, 3), 0);
    // In any order: an area's page has its turn by its place.
    touch(&model, 6..8);
    touch(&model, 0..6);
    let place = |page: u64| (((WINDOW + AT) / PAGE + page) % 2).to_string();
    let turns: String = (4..8).map(place).collect();
    assert_eq!(placed(&model, 8), format!("1100{turns}"));
    // A copy on write is the area's page, too.
    run(&mut model, Op::Fork);
    touch(&model, 0..8);
    assert_eq!(placed(&model, 8), format!("1100{turns}"));
    model.finish();
}

#[test]
fn faults_on_shared_memory_follow_the_area_that_they_come_through() {
    let mut model = two_nodes();
    map(&mut model, 0, 8, SHARED);
    mbind(&mut model, (0, 4), (BIND, 2), 0);
    mbind(&mut model, (4, 4), (BIND, 1), 0);
    assert_eq!(picture(&model), "4b 4b");
    touch(&model, 0..8);
    assert_eq!(placed(&model, 8), "11110000");
    model.finish();
}

#[test]
fn strict_fails_where_pages_lie_elsewhere_and_changes_nothing() {
    let mut model = two_nodes();
    mbind(&mut model, (0, 8), (BIND, 1), 0);
    touch(&model, 0..4);
    assert_eq!(mbind(&mut model, (0, 8), (BIND, 2), STRICT), error(Errno::Eio));
    assert_eq!(picture(&model), "8b");
    assert_eq!(mbind(&mut model, (4, 4), (BIND, 2), STRICT), 0);
    assert_eq!(mbind(&mut model, (0, 4), (BIND, 3), STRICT), 0);
    // DEFAULT has no nodes to be strict about.
    assert_eq!(mbind(&mut model, (0, 8), (DEFAULT, 0), STRICT), 0);
    assert_eq!((picture(&model).as_str(), placed(&model, 8).as_str()), ("8d", "0000...."));
    model.finish();
}

#[test]
fn pages_move_to_where_the_policy_says() {
    let mut model = two_nodes();
    mbind(&mut model, (0, 8), (BIND, 1), 0);
    touch(&model, 0..8);
    assert_eq!(mbind(&mut model, (0, 4), (BIND, 2), MOVE | STRICT), 0);
    assert_eq!(placed(&model, 8), "11110000");
    assert!(holds(&model, 0..8));
    audit(&model.k, model.mm).unwrap();
    // Shared with a child, they stay, unless all are to go.
    run(&mut model, Op::Fork);
    assert_eq!(mbind(&mut model, (0, 4), (BIND, 1), MOVE), 0);
    assert_eq!(placed(&model, 8), "11110000");
    assert_eq!(mbind(&mut model, (0, 8), (BIND, 2), MOVE_ALL), 0);
    assert_eq!(placed(&model, 8), "11111111");
    assert!(holds(&model, 0..8));
    model.finish();
}

#[test]
fn without_memory_pages_stay_and_strict_says_so() {
    let mut model = two_nodes();
    mbind(&mut model, (0, 4), (BIND, 1), 0);
    touch(&model, 0..4);
    let budget = |model: &Model, left| model.k.ram.budget.store(left, std::sync::atomic::Ordering::Relaxed);
    budget(&model, 2);
    assert_eq!(mbind(&mut model, (0, 4), (BIND, 2), MOVE | STRICT), error(Errno::Eio));
    budget(&model, usize::MAX);
    // The policy holds all the same.
    assert_eq!(placed(&model, 4).matches('0').count(), 4 - placed(&model, 4).matches('1').count());
    assert!(placed(&model, 4).contains('0') && holds(&model, 0..4));
    assert_eq!(mbind(&mut model, (0, 4), (BIND, 2), MOVE | STRICT), 0);
    assert_eq!(placed(&model, 4), "1111");
    model.finish();
}

#[test]
fn holes_are_for_default_only() {
    let mut model = two_nodes();
    run(&mut model, Op::Munmap { addr: AT + 3 * PAGE, len: PAGE });
    assert_eq!(mbind(&mut model, (0, 8), (BIND, 1), 0), error(Errno::Efault));
    assert_eq!(picture(&model), "3d 4d");
    assert_eq!(mbind(&mut model, (3, 2), (BIND, 1), 0), error(Errno::Efault));
    assert_eq!(mbind(&mut model, (4, 8), (BIND, 1), 0), error(Errno::Efault));
    mbind(&mut model, (0, 3), (BIND, 1), 0);
    assert_eq!(mbind(&mut model, (0, 12), (DEFAULT, 0), 0), 0);
    assert_eq!(mbind(&mut model, (20, 2), (DEFAULT, 0), 0), error(Errno::Efault));
    assert_eq!(picture(&model), "3d 4d");
    model.finish();
}

#[test]
fn move_pages_moves_one_and_tells_where_it_is() {
    let mut model = two_nodes();
    map(&mut model, 8, 1, SHARED);
    touch(&model, 0..1);
    let at = |page: u64| WINDOW + AT + page * PAGE;
    let (k, mm) = (&model.k, model.mm);
    let here = page_node(k, mm, at(0)).unwrap();
    assert_eq!(move_page(k, mm, at(0), here, false), Ok(false));
    assert_eq!(move_page(k, mm, at(0), 1 - here, false), Ok(true));
    assert_eq!(page_node(k, mm, at(0)), Ok(1 - here));
    assert_eq!(move_page(k, mm, at(1), 1, false), Err(Errno::Enoent));
    // A read maps the page of zeroes.
    assert_eq!(model.access(at(2), None), 0);
    let k = &model.k;
    assert_eq!(page_node(k, mm, at(2)), Err(Errno::Efault));
    assert_eq!(page_node(k, mm, at(40)), Err(Errno::Efault));
    assert_eq!(model.access(at(8), Some(3)), 0);
    run(&mut model, Op::Fork);
    assert_eq!(model.access(at(8), None), 3);
    let there = page_node(&model.k, mm, at(8)).unwrap();
    assert_eq!(move_page(&model.k, mm, at(8), 1 - there, false), Err(Errno::Eacces));
    assert_eq!(move_page(&model.k, mm, at(8), 1 - there, true), Ok(true));
    assert_eq!(model.access(at(8), None), 3);
    model.finish();
}

#[test]
fn migrate_nodes_swaps_and_gathers() {
    let mut model = two_nodes();
    mbind(&mut model, (0, 4), (BIND, 1), 0);
    mbind(&mut model, (4, 4), (BIND, 2), 0);
    touch(&model, 0..8);
    let (first, second) = (NodeMask::of([0]), NodeMask::of([1]));
    assert_eq!(migrate_nodes(&model.k, model.mm, first, second, false), 0);
    assert_eq!(placed(&model, 8), "11111111");
    assert_eq!(migrate_nodes(&model.k, model.mm, second, first, false), 0);
    assert_eq!(placed(&model, 8), "00000000");
    assert!(holds(&model, 0..8));
    let space = model.space();
    let id = space.vma_at(WINDOW + AT).unwrap();
    let mut sum = NumaPages::default();
    space.numa_pages(Arena::<mm_vma::Vma>::at(&model.k, id), &mut sum);
    assert_eq!((sum.pages, sum.anon, sum.nodes[0], sum.mapcount_max), (4, 4, 4, 1));
    drop(space);
    model.finish();
}
