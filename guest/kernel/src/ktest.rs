//! Tests inside the kernel, run by `ktest` on the command line and reported as KTAP version 1.

mod alloc;
pub mod atomic;
mod bad_input;
mod bench;
mod buddy;
mod cma;
mod disk;
mod dma;
mod fragmentation;
mod highmem;
mod page_wait;
mod paging;
mod reclaim;
mod shm;
mod slab;
mod slab_debug;
mod space;
mod stacks;
mod vmalloc;
mod watermark;

use crate::{cmdline, println};

/// A test: `Err` says what was wrong; a skip says why it cannot run here.
pub enum Failure {
    /// The kernel is wrong.
    Wrong(&'static str),
    /// This machine cannot show it.
    Skip(&'static str),
}

type Test = fn() -> Result<(), Failure>;

const TESTS: [(&str, Test); 19] = [
    ("text_cannot_be_written", paging::text_cannot_be_written),
    ("pcid_is_refused", paging::pcid_is_refused),
    ("text_cannot_be_written_through_the_direct_map", paging::text_cannot_be_written_through_the_direct_map),
    ("rodata_cannot_be_written", paging::rodata_cannot_be_written),
    ("data_cannot_be_executed", paging::data_cannot_be_executed),
    ("direct_map_cannot_be_executed", paging::direct_map_cannot_be_executed),
    ("the_lower_half_is_unmapped", paging::the_lower_half_is_unmapped),
    ("stack_guards_fault", paging::stack_guards_fault),
    ("non_canonical_addresses_raise_gp", paging::non_canonical_addresses_raise_gp),
    ("a_mapping_reaches_its_frame", paging::a_mapping_reaches_its_frame),
    ("an_unmapped_page_faults", paging::an_unmapped_page_faults),
    ("protect_takes_effect", paging::protect_takes_effect),
    ("remapping_reaches_every_cpu", paging::remapping_reaches_every_cpu),
    ("a_missing_flush_shows_a_stale_translation", paging::a_missing_flush_shows_a_stale_translation),
    ("smep_stops_execution_of_user_pages", paging::smep_stops_execution_of_user_pages),
    ("smap_stops_reads_of_user_pages", paging::smap_stops_reads_of_user_pages),
    ("blocks_of_every_order_come_and_go", buddy::blocks_of_every_order_come_and_go),
    (
        "exhaustion_ends_at_the_watermark_and_gives_all_back",
        buddy::exhaustion_ends_at_the_watermark_and_gives_all_back,
    ),
    ("every_zone_passes_its_own_audit", buddy::every_zone_passes_its_own_audit),
];

/// Groups that `ktest=NAME` runs; plain `ktest` runs [`TESTS`].
const GROUPS: &[(&str, &[(&str, Test)])] = &[
    ("fragmentation", &fragmentation::TESTS),
    ("slab", &slab::TESTS),
    ("slab-debug", &slab_debug::TESTS),
    ("vmalloc", &vmalloc::TESTS),
    ("highmem", &highmem::TESTS),
    ("space", &space::TESTS),
    ("shm", &shm::TESTS),
    ("stacks", &stacks::TESTS),
    ("alloc", &alloc::ALLOC),
    ("bad-input", &bad_input::TESTS),
    ("gfp", &alloc::GFP),
    ("numa-alloc", &alloc::NUMA),
    ("watermark", &watermark::TESTS),
    ("cma", &cma::TESTS),
    ("disk", &disk::TESTS),
    ("dma", &dma::TESTS),
    ("page-wait", &page_wait::TESTS),
    ("reclaim", &reclaim::TESTS),
    ("bench", &bench::TESTS),
];

/// Runs the tests that the command line asks for; `false` if one failed.
pub fn run() -> bool {
    let named =
        cmdline::value("ktest", |name| GROUPS.iter().find(|group| group.0 == name).map(|group| group.1));
    let tests: &[(&str, Test)] = match named {
        Some(Some(tests)) => tests,
        Some(None) => {
            println!("ktest: no such group");
            return false;
        }
        None if cmdline::flag("ktest") => &TESTS,
        None => return true,
    };
    println!("KTAP version 1");
    println!("1..{}", tests.len());
    let mut passed = true;
    for (number, (name, test)) in (1..).zip(tests) {
        match test() {
            Ok(()) => println!("ok {number} {name}"),
            Err(Failure::Skip(reason)) => println!("ok {number} {name} # SKIP {reason}"),
            Err(Failure::Wrong(what)) => {
                passed = false;
                println!("not ok {number} {name}");
                println!("# {what}");
            }
        }
    }
    passed
}

/// `Wrong(what)` unless `holds`.
fn check(holds: bool, what: &'static str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::Wrong(what)) }
}
