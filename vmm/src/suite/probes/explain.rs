//! `explain-complete`, `explain-long`: every walkthrough, run in a guest of its own, comes to a clean end, has steps, changes and no lost
//! record in each part, balanced call trees, and the steps that it is about.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use serde_json::Value;

use super::super::command::memvisor;
use super::{Held, Outcome};
use crate::explain::WALKS;

/// The same where memvisor made the RAM, and so it is known to be zero.
const FRESH_RAM: (&str, &[(usize, &str)]) = ("get-zeroed-page", &[(1, "zeroed=no known_zero=yes")]);

/// Steps that each walkthrough cannot do without: part (from 1) and text of a line.
const STEPS: &[(&str, &[(usize, &str)])] = &[
    (
        "alloc-pages",
        &[(1, "alloc_pages(gfp=GFP_KERNEL order=2"), (1, "zone_watermark_ok: "), (2, "__free_pages(")],
    ),
    (
        "get-zeroed-page",
        &[
            (1, "__get_free_pages(gfp=GFP_KERNEL|__GFP_ZERO order=0)"),
            (2, "__free_pages("),
            (3, "zeroed=yes known_zero=no"),
        ],
    ),
    (
        "atomic-in-interrupt",
        &[
            (1, "irq_handler(irq="),
            (1, "alloc_pages(gfp=GFP_ATOMIC order=0"),
            (1, "kmem:mm_page_alloc: "),
            (2, "prepare_alloc_pages = ok=no"),
            (3, "__alloc_pages_slowpath = pfn=NULL"),
            (4, "ALLOC_WMARK_MIN|ALLOC_HARDER|ALLOC_HIGH"),
            (4, "kmem:mm_page_alloc: "),
        ],
    ),
    (
        "highuser",
        &[
            (1, "highest_zone=HighMem"),
            (2, "kmap_local: "),
            (3, "kunmap_local: "),
            (4, "ok=no"),
            (4, "ok=yes"),
            (4, "kmem:mm_page_alloc: "),
        ],
    ),
    ("buddy-split", &[(1, "expand: "), (1, "found_order=10")]),
    ("buddy-merge", &[(1, "free_unref_page("), (2, "buddy_merge: ")]),
    ("zone-fallback", &[(1, "ok=no"), (1, "ok=yes")]),
    (
        "kmem-cache",
        &[(1, "kmem_cache_create("), (2, "new_slab("), (4, "slab_free("), (5, "kmem_cache_destroy(")],
    ),
    (
        "kmalloc-vs-vmalloc",
        &[
            (1, "cache=kmalloc-128"),
            (2, "kmalloc_large(bytes_req=16384 order=2"),
            (3, "vmalloc:alloc_vmap_area: "),
            (3, "vm_area_alloc_pages(nr_pages=4"),
            (3, "vmap_pages_range: "),
            (4, "kmem:kfree: "),
            (5, "vmalloc:free_vmap_area_noflush: "),
            (6, "vmalloc:purge_vmap_area_lazy: "),
        ],
    ),
    (
        "slow-path",
        &[
            (1, "__alloc_pages_slowpath("),
            (1, "vmscan:mm_vmscan_wakeup_kswapd: "),
            (1, "__alloc_pages_direct_compact("),
            (1, "__alloc_pages_direct_reclaim("),
            (1, "vmscan:mm_shrink_slab_start: "),
            (1, "vmscan:mm_shrink_slab_end: "),
            (1, "kmem:mm_page_alloc: "),
            (2, "out_of_memory("),
            (2, "warn_alloc: "),
            (2, "__alloc_pages_slowpath = pfn=NULL"),
        ],
    ),
    (
        "first-touch",
        &[
            (1, "mmap_region("),
            (2, "handle_mm_fault(address="),
            (2, "anon_vma_prepare: "),
            (2, "do_anonymous_page = pfn=0x"),
            (2, "set_pte_at: "),
            (3, "unmap_region: "),
        ],
    ),
    ("cow", &[(1, "do_wp_page = reused=no"), (2, "do_wp_page = reused=yes")]),
    ("fork", &[(1, "dup_mmap(vmas=1)"), (1, "copy_page_range: "), (1, "cow=yes"), (2, "unmap_region: ")]),
    ("stack-growth", &[(1, "expand_stack: "), (1, "ok=yes"), (2, "expand_stack: "), (2, "ok=no")]),
    (
        "mmap",
        &[
            (1, "mmap_region = ok=yes merged=no"),
            (2, "merged=yes"),
            (3, "split_vma: "),
            (4, "unmap_region: "),
        ],
    ),
    ("segv", &[(1, "handle_mm_fault = outcome=SEGV_MAPERR"), (2, "handle_mm_fault = outcome=SEGV_ACCERR")]),
    (
        "migrate-page",
        &[
            (1, "migrate:set_migration_pte: pid=100"),
            (1, "migrate:set_migration_pte: pid=101"),
            (1, "migrate:remove_migration_pte: pid=100"),
            (1, "migrate:remove_migration_pte: pid=101"),
            (1, "migrate_page: "),
            (1, "migrate:mm_migrate_pages: succeeded=1"),
        ],
    ),
    (
        "reclaim-then-oom",
        &[
            (2, "more zone_watermark_ok: "),
            (2, "vmscan:mm_vmscan_wakeup_kswapd: "),
            (2, "balance_pgdat("),
            (2, "shrink_node("),
            (2, "vmscan:mm_vmscan_lru_shrink_inactive: "),
            (2, "add_to_swap: "),
            (2, "__alloc_pages_direct_reclaim("),
            (2, "reclaim_retry_zone: "),
            (2, "out_of_memory("),
            (2, "oom_badness: "),
            (2, "exempt=yes"),
            (2, "oom:mark_victim: pid="),
            (2, "exit_mmap(pid="),
            (3, "zone_watermark_ok: "),
        ],
    ),
    (
        "slow-path-64m",
        &[
            (1, "ok=no"),
            (1, "__alloc_pages_slowpath("),
            (1, "gfp_to_alloc_flags: "),
            (1, "vmscan:mm_vmscan_wakeup_kswapd: "),
            (1, "__alloc_pages_direct_reclaim("),
            (1, "vmscan:mm_vmscan_direct_reclaim_begin: "),
            (1, "__alloc_pages_slowpath = pfn=0x"),
        ],
    ),
    (
        "kswapd",
        &[
            (1, "vmscan:mm_vmscan_wakeup_kswapd: "),
            (1, "vmscan:mm_vmscan_kswapd_wake: "),
            (1, "balance_pgdat("),
            (1, "vmscan:mm_vmscan_lru_isolate: "),
            (1, "vmscan:mm_vmscan_lru_shrink_inactive: "),
            (1, "balance_pgdat = nr_reclaimed="),
            (1, "vmscan:mm_vmscan_kswapd_sleep: "),
        ],
    ),
    (
        "swap-out-in",
        &[
            (1, "add_to_swap: "),
            (1, "try_to_unmap: "),
            (1, "write=yes"),
            (1, "block:block_rq_complete: write=yes"),
            (1, "mm_page_free: "),
            (2, "do_swap_page("),
            (2, "swap_cluster_readahead: "),
            (2, "do_swap_page = pfn=0x"),
            (2, "major=yes slot_kept=yes"),
            (2, "handle_mm_fault = outcome=major fault"),
            (3, "nr_pages=2"),
            (4, "do_swap_page = pfn=0x"),
            (4, "major=no"),
            (4, "handle_mm_fault = outcome=minor fault"),
            (5, "do_wp_page = reused=yes"),
            (6, "unmap_region: "),
        ],
    ),
    (
        "writeback",
        &[
            (1, "writeback:writeback_dirty_folio: "),
            (2, "write_cache_pages("),
            (2, "sync=yes"),
            (2, "block:block_rq_issue: disk=vda write=yes"),
            (2, "block:block_rq_complete: write=yes"),
            (3, "sync=no"),
            (3, "writeback:balance_dirty_pages: "),
        ],
    ),
    (
        "file-read",
        &[
            (1, "filemap_read("),
            (1, "page_cache_ra_order: "),
            (1, "filemap:mm_filemap_add_to_page_cache: "),
            (1, "block:block_rq_issue: disk=vda write=no"),
            (1, "copy_user: to_user=yes"),
            (2, "filemap_read = bytes=4096"),
            (3, "page_cache_ra_order: "),
            (4, "filemap_read = bytes=4096"),
        ],
    ),
    (
        "mmap-vs-read",
        &[
            (1, "syscall(id=17 "),
            (1, "copy_user: to_user=yes"),
            (2, "page_fault_user(address="),
            (2, "do_fault("),
            (2, "set_pte_at: "),
        ],
    ),
    ("load-program", &[(1, "mmap_region("), (2, "do_fault("), (3, "do_anonymous_page(")]),
];

/// Parts that change nothing: the kernel refuses, or all is in memory already.
const UNCHANGED: [(&str, usize); 6] =
    [("stack-growth", 2), ("segv", 1), ("segv", 2), ("file-read", 2), ("file-read", 4), ("mmap-vs-read", 1)];

/// Parts without a step: nothing of what is told has to happen.
const QUIET: [(&str, usize); 1] = [("mmap-vs-read", 3)];

pub fn probe(_held: &mut Held<'_>, long: bool) -> anyhow::Result<Outcome> {
    let mut problems = Vec::new();
    for walk in WALKS.iter().filter(|walk| walk.is_long() == long) {
        let told = memvisor(&["explain", walk.name, "--json"])?;
        let json: Value = serde_json::from_str(told.succeed().with_context(|| walk.name)?)?;
        problems.extend(examine(walk.name, &json, steps_of(walk.name)));
        if walk.name == FRESH_RAM.0 {
            problems.extend(examine(walk.name, &json, FRESH_RAM.1));
        }
    }
    Ok(Outcome::from_problems(problems))
}

/// Whether an explanation, as JSON, has all that its walkthrough is about.
pub fn is_complete(name: &str, explanation: &Value) -> Outcome {
    Outcome::from_problems(examine(name, explanation, steps_of(name)))
}

fn steps_of(walk: &str) -> &'static [(usize, &'static str)] {
    STEPS.iter().find(|(name, _)| *name == walk).map_or(&[], |(_, steps)| steps)
}

/// What is wrong with a walkthrough.
fn examine(name: &str, json: &Value, wanted: &[(usize, &str)]) -> Vec<String> {
    let mut problems = Vec::new();
    let parts = json["parts"].as_array().map_or(&[][..], Vec::as_slice);
    if parts.is_empty() {
        problems.push(format!("explain {name}: it has no parts"));
    }
    for (number, part) in (1..).zip(parts) {
        let list = |key: &str| part[key].as_array().map_or(&[][..], Vec::as_slice);
        let lines: Vec<&str> = list("steps").iter().filter_map(|step| step["line"].as_str()).collect();
        let changed = !list("changes").is_empty() || UNCHANGED.contains(&(name, number));
        let quiet = QUIET.contains(&(name, number));
        if (lines.is_empty() || !changed) && !quiet || part["lost"] != 0 {
            problems.push(format!("explain {name}, part {number}: it lacks steps, changes or records"));
        }
        let missing = wanted
            .iter()
            .filter(|(part, text)| *part == number && !lines.iter().any(|line| line.contains(text)));
        problems.extend(missing.map(|(_, text)| format!("explain {name}, part {number}: no step {text:?}")));
        problems
            .extend(unbalanced(list("steps")).map(|what| format!("explain {name}, part {number}: {what}")));
        problems.extend(list("agreements").iter().filter(|both| both["told"] != both["found"]).map(|both| {
            format!(
                "explain {name}, part {number}: {}: {} told, {} found",
                both["what"], both["told"], both["found"]
            )
        }));
        let sentences: BTreeSet<&str> =
            list("steps").iter().filter_map(|step| step["sentence"].as_str()).collect();
        if sentences.iter().any(|sentence| sentence.is_empty() || sentence.contains(['{', '}'])) {
            problems.push(format!("explain {name}, part {number}: a step without a sentence"));
        }
    }
    let last = wanted.iter().map(|(part, _)| *part).max().unwrap_or(0);
    if parts.len() < last {
        problems.push(format!("explain {name}: {} parts, of which {last} are needed", parts.len()));
    }
    problems
}

/// A call that does not return, or a return without its call, of one task or of the interrupts that came in it.
fn unbalanced(steps: &[Value]) -> Option<String> {
    let mut open: BTreeMap<(&str, bool), Vec<&str>> = BTreeMap::new();
    for step in steps {
        let Some(line) = step["line"].as_str() else { continue };
        let task = step["task"].as_str().unwrap_or_default();
        let calls = open.entry((task, step["in_interrupt"] == true)).or_default();
        if let Some(rest) = line.strip_prefix("} ") {
            let name = rest.split(' ').next().unwrap_or(rest);
            let entered = calls.pop();
            if entered != Some(name) && !(entered.is_none() && works_on(task)) {
                return Some(format!("{name} returns without having been entered"));
            }
        } else if line.ends_with('{') {
            calls.push(line.split('(').next().unwrap_or(line));
        }
    }
    open.retain(|(task, _), calls| !works_on(task) && !calls.is_empty());
    open.into_values().next()?.pop().map(|name| format!("{name} never returns"))
}

/// Whether a task works on when a part ends: what it is in then was entered in one part and returns in another, or in none.
fn works_on(task: &str) -> bool {
    task.starts_with("kswapd")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(lines: &[&str]) -> Value {
        let steps: Vec<Value> =
            lines.iter().map(|line| json!({ "task": "init-1", "line": line, "sentence": "So." })).collect();
        json!({ "parts": [{ "steps": steps, "changes": [1], "lost": 0 }] })
    }

    #[test]
    fn a_walkthrough_needs_its_steps_and_whole_trees() {
        let whole = ["alloc_pages(gfp=GFP_KERNEL) {", "expand: pfn=0x1", "} alloc_pages = pfn=0x2"];
        assert_eq!(examine("x", &told(&whole), &[(1, "expand: ")]), Vec::<String>::new());
        assert!(examine("x", &told(&whole), &[(1, "buddy_merge: ")])[0].contains("no step"));
        assert!(examine("x", &told(&whole), &[(2, "expand: ")])[0].contains("of which 2"));
        assert!(examine("x", &told(&whole[..2]), &[])[0].contains("never returns"));
        assert!(examine("x", &told(&whole[1..]), &[])[0].contains("without having been entered"));
        assert!(examine("x", &json!({ "parts": [] }), &[])[0].contains("no parts"));
    }

    #[test]
    fn each_task_has_a_tree_of_its_own() {
        let step = |task: &str, line: &str| json!({ "task": task, "line": line });
        let woken = [
            step("init-1", "alloc_pages(order=0) {"),
            step("kswapd0-9", "} shrink_node = 3"),
            step("kswapd0-9", "balance_pgdat(order=0) {"),
            step("init-1", "} alloc_pages = pfn=0x2"),
        ];
        assert_eq!(unbalanced(&woken), None);
        let crossed = [step("init-1", "alloc_pages(order=0) {"), step("init-2", "} alloc_pages = pfn=0x2")];
        assert!(unbalanced(&crossed).unwrap().contains("without having been entered"));
        assert!(unbalanced(&crossed[..1]).unwrap().contains("never returns"));
    }

    #[test]
    fn every_walkthrough_has_steps_that_are_looked_for() {
        for walk in WALKS {
            assert!(
                STEPS.iter().any(|(name, steps)| *name == walk.name && !steps.is_empty()),
                "{}",
                walk.name
            );
        }
    }
}
