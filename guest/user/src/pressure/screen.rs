//! What a suite says of itself at its end, on one screen: what it did, what the memory manager did meanwhile, how long things took, and
//! whether all checks held.

use core::fmt::Write;

use super::latency::{self, now_ns};
use super::vmstat::Events;
use crate::program::Checks;
use crate::sys::Out;

/// Suites that say so, and what each does.
const SUITES: &[(&str, &str)] = &[
    ("swap", "areas of swap come, hold pages of several processes, and go"),
    ("swap-errors", "a swap disk cannot read one sector"),
    ("swap-thrash", "one process uses 1.3 times the memory, in two orders"),
    ("oom-basic", "a process eats memory in steps of 100 MiB until it is killed, twice"),
    ("oom-score", "a process eats beside one with oom_score_adj 1000 and one with -1000"),
    ("oom-nested-forks", "six generations eat at once"),
    ("oom-atomic", "three processes eat while an interrupt allocates"),
    ("overcommit", "promises in modes 0, 1 and 2"),
    ("min-free", "a process eats while 8 MiB are to be kept free"),
    ("fork-bomb-limit", "processes fork for ever"),
    ("mmap-shared-file", "two processes share a file"),
    ("file-cache", "a file is read in order, backwards and by a mapping"),
    ("dirty-throttle", "a file is written faster than the disk takes it"),
    ("kswapd", "a file without blocks, larger than memory, is read page by page"),
    ("direct-reclaim", "processes touch more memory than there is, all at once"),
    ("mlock-pressure", "a quarter of memory is locked while the rest is reclaimed"),
    ("lazyfree", "half of memory is given away by MADV_FREE, and taken by somebody else"),
    ("slab-pressure", "objects of the kernel fill memory, and somebody else wants it"),
    ("failslab", "calls run while requests for memory fail on purpose"),
    ("fragmentation", "three of four pages go, here and there, and a block of order 9 is asked for"),
    ("numa-pressure", "one node is filled by policies while the others have memory"),
    ("max-map-count", "a process has as many areas as it may"),
    ("vm-patterns", "patterns are written to more memory than there is, by several kinds of mapping"),
    ("everything-at-once", "eaters, writers of files, shared mappings, swapping, forks and signals together"),
    ("everything-long", "the same for 15 minutes"),
];

/// A suite that is under way.
#[derive(Debug)]
pub struct Screen {
    name: &'static str,
    what: &'static str,
    before: Events,
    begin: u64,
}

impl Screen {
    /// Begins to count, if the mode is one of the suites.
    pub fn begin(name: &str) -> Option<Screen> {
        let (name, what) = SUITES.iter().find(|(known, _)| *known == name)?;
        latency::begin();
        Some(Screen { name, what, before: Events::now(), begin: now_ns() })
    }

    /// Says what happened.
    pub fn end(self, checks: &Checks) {
        let took = now_ns() - self.begin;
        let now = Events::now();
        let since = |name: &str| now.of(name) - self.before.of(name).min(now.of(name));
        let name = self.name;
        let _ = writeln!(Out, "{name}: {}", self.what);
        let _ = writeln!(
            Out,
            "{name}: pages allocated {}, scanned by kswapd {} and directly {}, reclaimed {} and {}, in {} and {} runs",
            since("pgalloc"),
            since("pgscan_kswapd"),
            since("pgscan_direct"),
            since("pgsteal_kswapd"),
            since("pgsteal_direct"),
            since("pageoutrun"),
            since("allocstall"),
        );
        let _ = writeln!(
            Out,
            "{name}: swapped out {}, in {}, refaulted {} anonymous and {} of files, slab objects scanned {}, migrated {}, killed {}",
            since("pswpout"),
            since("pswpin"),
            since("workingset_refault_anon"),
            since("workingset_refault_file"),
            since("slabs_scanned"),
            since("pgmigrate_success"),
            since("oom_kill"),
        );
        let times = latency::summary();
        if times.count > 0 {
            let _ = writeln!(
                Out,
                "{name}: {} latencies: p50 {} us, p99 {} us, max {} us",
                times.count,
                times.p50 / 1000,
                times.p99 / 1000,
                times.most / 1000
            );
        }
        latency::end();
        let verdict = if checks.failed() == 0 { "passed" } else { "FAILED" };
        let _ = writeln!(Out, "{name}: verdict: {verdict} after {} ms", took / 1_000_000);
    }
}
