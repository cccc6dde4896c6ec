//! Walkthroughs of the memory manager: what one operation did, from its trace records and from the structures that
//! it touched.
//!
//! The guest runs the operation (`guest/kernel/src/explain`), part by part, between checkpoints. Nothing here knows
//! how it comes out: the call tree is made of records, before and after are read from guest memory while
//! the guest stands at a checkpoint, and a sentence of [`sentence`] is filled with a record's arguments.

mod agree;
mod fold;
mod sentences;
mod snapshot;
mod walks;

use std::fmt;

use memvisor_abi::EventId;
use memvisor_inspect::{
    Guest, MemorySource,
    trace::{EventText, Names, TraceEntry, TraceReader},
};
use memvisor_report::Table;
use serde::Serialize;

pub use agree::{Agreement, Cost};
pub use sentences::sentence;
pub use snapshot::{Change, Snapshot};
pub use walks::{Stage, WALKS, Walk, find};

/// A step of the call tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Steps around it.
    pub depth: u8,
    /// CPU.
    pub cpu: u32,
    /// Who did it: a process, a thread of the kernel, or the kernel.
    pub task: String,
    /// Nanoseconds since tracing began; none where the clock's rate is not known.
    pub time_ns: Option<u64>,
    /// Whether an interrupt handler did it.
    pub in_interrupt: bool,
    /// How many such steps it stands for: 1, but for those that are summed up.
    pub times: u64,
    /// Event.
    pub event: String,
    /// The record in the notation of a call tree.
    pub line: String,
    /// What that means.
    pub sentence: String,
}

/// What one part of the operation did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Which call it was.
    pub title: String,
    /// Its steps in the order of time.
    pub steps: Vec<Step>,
    /// Records that the ring lost; 0 unless the operation had more steps than a ring holds.
    pub lost: u64,
    /// What differs afterwards, as read from outside.
    pub changes: Vec<Change>,
    /// Whether what the records say is what is found outside.
    pub agreements: Vec<Agreement>,
    /// How often what costs happened: copies, switches between the rings, requests to disks.
    pub costs: Vec<Cost>,
}

/// An operation, told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Its name.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// Its parts in order.
    pub parts: Vec<Part>,
}

/// Collects parts at the guest's checkpoints.
#[derive(Debug, Default)]
pub struct Collector {
    /// Steps that come again are summed up, and those of each task stand together.
    folds: bool,
    open: Option<(String, Snapshot)>,
    reader: Option<TraceReader>,
    lost: u64,
    /// Parts that are complete.
    pub parts: Vec<Part>,
}

impl Collector {
    /// For a walkthrough.
    pub fn new(walk: &Walk) -> Collector {
        Collector { folds: walk.stage.is_some(), ..Collector::default() }
    }

    /// The guest stands at the checkpoint `name`. Checkpoints of anything else are none of ours.
    ///
    /// # Errors
    /// If the guest's structures cannot be read.
    pub fn checkpoint<S: MemorySource + ?Sized>(
        &mut self,
        name: &str,
        guest: &Guest<'_, S>,
        names: &Names,
    ) -> anyhow::Result<()> {
        if let Some(title) = name.strip_prefix("before: ") {
            if self.reader.is_none() {
                self.reader = TraceReader::attach(guest)?;
            }
            self.records(guest)?;
            self.open = Some((title.to_owned(), Snapshot::read(guest)?));
        } else if let Some(title) = name.strip_prefix("after: ")
            && let Some((_, before)) = self.open.take_if(|(open, _)| open == title)
        {
            let (entries, lost) = self.records(guest)?;
            let after = Snapshot::read(guest)?;
            let changes = before.changes(&after);
            let steps = if self.folds {
                fold::steps(&entries, names)
            } else {
                entries.iter().filter(is_step).map(|entry| step(entry, names)).collect()
            };
            // What was lost is in no sum.
            let agreements = if lost == 0 {
                agree::compare(guest, &entries, (&before, &after), self.folds)
            } else {
                Vec::new()
            };
            let costs = if self.folds { agree::costs(&entries) } else { Vec::new() };
            self.parts.push(Part { title: title.to_owned(), steps, lost, changes, agreements, costs });
        }
        Ok(())
    }

    /// Records since the last call, and how many were lost.
    fn records<S: MemorySource + ?Sized>(
        &mut self,
        guest: &Guest<'_, S>,
    ) -> anyhow::Result<(Vec<TraceEntry>, u64)> {
        let mut entries = Vec::new();
        let Some(reader) = &mut self.reader else { return Ok((entries, 0)) };
        reader.poll(guest.source(), &mut entries)?;
        let lost: u64 = reader.counts().fold(0, |sum, ring| sum.saturating_add(ring.lost));
        let new = lost.saturating_sub(self.lost);
        self.lost = lost;
        Ok((entries, new))
    }
}

fn is_step(entry: &&TraceEntry) -> bool {
    entry.record.event != EventId::ExplainMark as u16
}

fn step(entry: &TraceEntry, names: &Names) -> Step {
    Step {
        depth: entry.record.depth,
        cpu: entry.cpu,
        task: names.task(entry.record.pid),
        time_ns: names.nanoseconds(entry.cycles),
        in_interrupt: entry.in_interrupt(),
        times: 1,
        event: entry.info().map_or_else(|| "unknown".to_owned(), |info| info.name.to_owned()),
        line: EventText { entry, names }.step(),
        sentence: sentence(entry, names),
    }
}

impl Step {
    /// Whether the step opens a level of the tree.
    fn opens(&self) -> bool {
        self.line.ends_with('{')
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.name, self.about)?;
        for (number, part) in (1..).zip(&self.parts) {
            writeln!(f, "\n{number}. {}\n", part.title)?;
            let mut task = None;
            for step in &part.steps {
                let indent = usize::from(step.depth) * 4;
                if step.depth == 0 && task.replace(&step.task).is_some_and(|last| *last != step.task) {
                    let at = step.time_ns.map_or_else(String::new, |ns| format!(", {} ms", ns / 1_000_000));
                    writeln!(f, "  -- {}{at} --", step.task)?;
                }
                let irq = if step.in_interrupt { " (in an interrupt)" } else { "" };
                writeln!(f, "  {:indent$}{}{irq}", "", step.line)?;
                // Below the step, and inside what it opens.
                let indent = indent + if step.opens() { 4 } else { 0 };
                writeln!(f, "  {:indent$}  # {}", "", step.sentence)?;
            }
            if part.lost != 0 {
                writeln!(f, "  ! {} records were overwritten before they were read", part.lost)?;
            }
            write_changes(f, &part.changes)?;
            for Cost { what, count } in &part.costs {
                writeln!(f, "    {count:>8} {what}")?;
            }
            for Agreement { what, told, found } in &part.agreements {
                let verdict = if told == found { "agree" } else { "DISAGREE" };
                writeln!(f, "  Records and memory {verdict}: {what}: {told} told, {found} found")?;
            }
        }
        write_costs(f, &self.parts)
    }
}

/// What parts cost, side by side.
fn write_costs(f: &mut fmt::Formatter<'_>, parts: &[Part]) -> fmt::Result {
    let costly: Vec<&Part> = parts.iter().filter(|part| !part.costs.is_empty()).collect();
    if costly.len() < 2 {
        return Ok(());
    }
    let what: std::collections::BTreeSet<&str> =
        costly.iter().flat_map(|part| part.costs.iter().map(|cost| cost.what.as_str())).collect();
    let mut table = Table::new(std::iter::once("").chain(costly.iter().map(|part| part.title.as_str())));
    for what in what {
        let counts = costly.iter().map(|part| {
            part.costs.iter().find(|cost| cost.what == what).map_or(0, |cost| cost.count).to_string()
        });
        table.row(std::iter::once(what.to_owned()).chain(counts));
    }
    writeln!(f, "\nSide by side:\n\n{table}")
}

fn write_changes(f: &mut fmt::Formatter<'_>, changes: &[Change]) -> fmt::Result {
    if changes.is_empty() {
        return writeln!(f, "\n  Seen from outside, nothing changed.");
    }
    writeln!(f, "\n  Seen from outside, before and after:")?;
    let width = changes.iter().map(|change| change.what.chars().count()).max().unwrap_or(0);
    for change in changes {
        let Change { what, before, after } = change;
        let delta = i128::from(*after) - i128::from(*before);
        writeln!(f, "    {what:<width$}  {before:>8} -> {after:<8} {delta:+}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
