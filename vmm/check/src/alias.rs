//! Frames that are mapped twice in ways that exclude each other.

use std::collections::BTreeMap;

use crate::frames::Frames;
use crate::paging::Run;

/// Overlaps of runs of different classes, in physical memory. Every run that overlaps a run of
/// another class is named at least once; a run without a class overlaps nothing.
pub(crate) fn overlaps<C: Ord + Copy>(
    runs: &[Run],
    class: impl Fn(&Run) -> Option<C>,
) -> Vec<(Frames, &Run, &Run)> {
    let mut sorted: Vec<(C, &Run)> = runs.iter().filter_map(|run| Some((class(run)?, run))).collect();
    sorted.sort_by_key(|(_, run)| run.frames.start);
    // By class, the run that reaches furthest so far: a later run that overlaps any run of that
    // class overlaps this one.
    let mut reach: BTreeMap<C, &Run> = BTreeMap::new();
    let mut found = Vec::new();
    for (class, run) in sorted {
        for (_, other) in reach.iter().filter(|(other_class, _)| **other_class != class) {
            let common = other.frames.and(run.frames);
            if !common.is_empty() {
                found.push((common, *other, run));
            }
        }
        let best = reach.entry(class).or_insert(run);
        if best.frames.end < run.frames.end {
            *best = run;
        }
    }
    found
}
