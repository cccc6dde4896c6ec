//! Leaves merged into ranges (Linux: `note_page`).

use std::fmt;

use memvisor_abi::{LayoutKind, LayoutRange};
use serde::Serialize;

use super::findings::{AliasFinder, findings_of_range};
use super::{Coverage, Finding, FindingKind, Leaf, Table, TreeProblem, Visitor, walk_tree};
use crate::{Access, Entry, Levels, MemorySource, PageSize, Walker};

/// Most ranges kept: a tree made to have more is cut off, and says so.
const RANGES_MAX: usize = 1 << 18;
/// Most findings and problems kept of each kind.
const FINDINGS_MAX: usize = 256;

/// Virtual addresses to look at, both ends included: the topmost byte has no successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// First address.
    #[serde(serialize_with = "crate::hex")]
    pub start: u64,
    /// Last address.
    #[serde(serialize_with = "crate::hex")]
    pub last: u64,
}

impl Span {
    /// Everything.
    pub const ALL: Span = Span { start: 0, last: u64::MAX };
}

/// Contiguous virtual addresses mapped with the same attributes and page size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// First address.
    #[serde(serialize_with = "crate::hex")]
    pub start: u64,
    /// Last address, inclusive.
    #[serde(serialize_with = "crate::hex")]
    pub last: u64,
    /// Size of every mapping in the range.
    pub page_size: PageSize,
    /// What the entries together allow.
    pub access: Access,
    /// The leaves are global.
    pub global: bool,
    /// Index into the PAT register.
    pub pat: u8,
    /// Guest-physical address of the first page.
    #[serde(serialize_with = "crate::hex")]
    pub gpa: u64,
    /// The physical addresses are contiguous, too.
    pub contiguous: bool,
    /// Purpose of these addresses, if a layout is known.
    pub mark: Option<&'static str>,
}

impl Range {
    /// Pages of [`Range::page_size`] in the range.
    pub const fn pages(&self) -> u64 {
        ((self.last - self.start) >> self.page_size.shift()) + 1
    }
}

/// A tree in words.
#[derive(Clone, Debug, Serialize)]
pub struct PtDump {
    /// Guest-physical address of the top-level table.
    #[serde(serialize_with = "crate::hex")]
    pub root: u64,
    /// Depth.
    pub levels: Levels,
    /// What was looked at.
    pub span: Span,
    /// Ranges, ascending.
    pub ranges: Vec<Range>,
    /// Mapped pages of 4 KiB, 2 MiB and 1 GiB.
    pub pages: [u64; 3],
    /// Tables visited by level; pte first.
    pub tables: [u64; 5],
    /// What is wrong, ascending by kind; at most 256 of each.
    pub findings: Vec<Finding>,
    /// Whether all is listed; if not, there was too much of it.
    pub complete: bool,
}

impl PtDump {
    /// Enumerates `span` and merges. `layout` may be empty; where it is known, ranges end at its
    /// borders and carry its names.
    pub fn new<S: MemorySource + ?Sized>(
        walker: &Walker,
        source: &S,
        span: Span,
        layout: &[LayoutRange],
    ) -> PtDump {
        let mut layout = layout.to_vec();
        layout.sort_by_key(|range| range.start);
        let mut merger = Merger {
            layout,
            ranges: Vec::new(),
            open: None,
            mark_last: 0,
            mark: None,
            pages: [0; 3],
            tables: [0; 5],
            problems: Vec::new(),
            aliases: AliasFinder::default(),
            cut: false,
        };
        let Coverage { complete, .. } = walk_tree(walker, source, span, &mut merger);
        merger.close();
        let (aliases, aliases_complete) = merger.aliases.finish(FINDINGS_MAX);
        let mut findings: Vec<_> = merger.problems.iter().map(Finding::of_problem).collect();
        for range in &merger.ranges {
            for finding in findings_of_range(range, walker.levels()) {
                let same = findings.iter().filter(|other| other.kind == finding.kind).count();
                if same < FINDINGS_MAX {
                    findings.push(finding);
                } else {
                    merger.cut = true;
                }
            }
        }
        findings.extend(aliases);
        findings.sort_by_key(|finding| (finding.kind, finding.start));
        PtDump {
            root: walker.root(),
            levels: walker.levels(),
            span,
            ranges: merger.ranges,
            pages: merger.pages,
            tables: merger.tables,
            findings,
            complete: complete && aliases_complete && !merger.cut,
        }
    }

    /// Findings of one kind.
    pub fn findings_of(&self, kind: FindingKind) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.kind == kind)
    }
}

/// A range that may still grow.
#[derive(Clone, Copy)]
struct Open {
    start: u64,
    /// First address past it, wrapping to 0 at the very end.
    end: u64,
    gpa: u64,
    /// Where the last physically contiguous run starts.
    run_va: u64,
    run_gpa: u64,
    next_gpa: u64,
    key: Key,
    contiguous: bool,
    mark: Option<&'static str>,
}

/// What must be equal for two leaves to be in one range. Accessed and dirty are history, not
/// attributes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    size: PageSize,
    access: Access,
    global: bool,
    pat: u8,
}

struct Merger {
    layout: Vec<LayoutRange>,
    ranges: Vec<Range>,
    open: Option<Open>,
    /// Up to here [`Merger::mark`] holds.
    mark_last: u64,
    mark: Option<&'static str>,
    pages: [u64; 3],
    tables: [u64; 5],
    problems: Vec<TreeProblem>,
    aliases: AliasFinder,
    cut: bool,
}

impl Open {
    fn end_run(&self, aliases: &mut AliasFinder) {
        aliases.run(self.run_gpa, self.next_gpa, self.key.pat, self.run_va);
    }
}

impl Visitor for Merger {
    #[inline]
    fn leaf(&mut self, leaf: &Leaf) {
        if let Some(count) = self.pages.get_mut(leaf.size as usize) {
            *count += 1;
        }
        let key = Key {
            size: leaf.size,
            access: leaf.access,
            global: leaf.entry.has(Entry::GLOBAL),
            pat: leaf.entry.pat_index(leaf.size),
        };
        let bytes = leaf.size.bytes();
        if let Some(open) = &mut self.open
            && open.end == leaf.va
            && open.key == key
            && leaf.va <= self.mark_last
        {
            if open.next_gpa != leaf.gpa {
                open.contiguous = false;
                open.end_run(&mut self.aliases);
                (open.run_va, open.run_gpa) = (leaf.va, leaf.gpa);
            }
            open.end = leaf.va.wrapping_add(bytes);
            open.next_gpa = leaf.gpa + bytes;
            return;
        }
        self.close();
        self.find_mark(leaf.va);
        self.open = Some(Open {
            start: leaf.va,
            end: leaf.va.wrapping_add(bytes),
            gpa: leaf.gpa,
            run_va: leaf.va,
            run_gpa: leaf.gpa,
            next_gpa: leaf.gpa + bytes,
            key,
            contiguous: true,
            mark: self.mark,
        });
    }

    fn table(&mut self, table: &Table) {
        if let Some(count) = self.tables.get_mut(table.level as usize - 1) {
            *count += 1;
        }
    }

    fn problem(&mut self, problem: &TreeProblem) {
        if self.problems.len() < FINDINGS_MAX {
            self.problems.push(*problem);
        } else {
            self.cut = true;
        }
    }
}

impl Merger {
    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        open.end_run(&mut self.aliases);
        if self.ranges.len() >= RANGES_MAX {
            self.cut = true;
            return;
        }
        self.ranges.push(Range {
            start: open.start,
            last: open.end.wrapping_sub(1),
            page_size: open.key.size,
            access: open.key.access,
            global: open.key.global,
            pat: open.key.pat,
            gpa: open.gpa,
            contiguous: open.contiguous,
            mark: open.mark,
        });
    }

    /// Finds the layout range of `va` and how far it goes.
    fn find_mark(&mut self, va: u64) {
        if va <= self.mark_last && self.mark_last != 0 {
            return;
        }
        let next = self.layout.partition_point(|range| range.start <= va);
        let holder = next.checked_sub(1).and_then(|index| self.layout.get(index)).filter(|r| va <= r.last);
        match holder {
            Some(range) => {
                self.mark = Some(LayoutKind::from_raw(range.kind).map_or("unknown", LayoutKind::name));
                self.mark_last = range.last;
            }
            None => {
                self.mark = None;
                self.mark_last =
                    self.layout.get(next).map_or(u64::MAX, |range| range.start.saturating_sub(1));
            }
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (amount, unit) = human(self.last.wrapping_sub(self.start).wrapping_add(1));
        write!(
            f,
            "{:#018x}-{:#018x} {amount:>5}{unit} {:>2} {}{} {} {:#014x}{}",
            self.start,
            self.last,
            self.page_size,
            self.access,
            if self.global { " global" } else { "       " },
            if self.pat == 0 { "pat0".to_owned() } else { format!("PAT{}", self.pat) },
            self.gpa,
            if self.contiguous { "" } else { " scattered" },
        )
    }
}

/// Bytes as the largest unit that divides them.
pub(crate) fn human(bytes: u64) -> (u64, char) {
    for (shift, unit) in [(40, 'T'), (30, 'G'), (20, 'M')] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return (bytes >> shift, unit);
        }
    }
    (bytes >> 10, 'K')
}
