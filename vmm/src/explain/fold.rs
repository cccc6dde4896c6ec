//! Long walkthroughs: the steps of each task as a tree of its own, and what comes again summed up.
//!
//! F1  a step of a kind that no step before it beside it had is told whole; the kind of a step is who did it and which events are in it;
//! F2  steps of kinds that were told are summed up, one line an event, until the next one of a new kind;
//! F3  each record is in exactly one step, told or summed up, but for returns whose call was not recorded.

use std::collections::{BTreeMap, BTreeSet};

use memvisor_abi::{EventId, Field, FieldKind, Phase};
use memvisor_inspect::trace::{Names, TraceEntry};

use super::{Step, step};

/// Fewer records than this are told again rather than summed up.
const FEW: usize = 6;

/// Who a step belongs to: a task, or the interrupts of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Lane {
    pid: u32,
    cpu: Option<u32>,
}

impl Lane {
    fn of(entry: &TraceEntry) -> Lane {
        let cpu = (entry.in_interrupt() || entry.record.pid == 0).then_some(entry.cpu);
        Lane { pid: if entry.in_interrupt() { 0 } else { entry.record.pid }, cpu }
    }
}

/// A step with what happened in it; indices of records.
struct Node {
    lane: Lane,
    begin: usize,
    end: Option<usize>,
    inside: Vec<usize>,
}

/// What makes two steps alike.
type Kind = (Lane, BTreeSet<u16>);

/// The steps of `entries`, which are in the order of time.
pub fn steps(entries: &[TraceEntry], names: &Names) -> Vec<Step> {
    let mut teller = Teller { entries, names, nodes: Vec::new(), told: Vec::new() };
    let roots = teller.plant();
    teller.tell(&roots, 0);
    teller.told
}

/// A program's call of pause, which marks the parts and is none of their steps; its return lies in the next part.
pub fn is_pause(entry: &TraceEntry) -> bool {
    const PAUSE: u64 = 34;
    entry.record.event == EventId::Syscall as u16 && entry.record.args[0] == PAUSE
}

struct Teller<'a> {
    entries: &'a [TraceEntry],
    names: &'a Names,
    nodes: Vec<Node>,
    told: Vec<Step>,
}

impl Teller<'_> {
    /// Makes the trees; those that stand in nothing.
    fn plant(&mut self) -> Vec<usize> {
        let mut roots = Vec::new();
        let mut open: BTreeMap<Lane, Vec<usize>> = BTreeMap::new();
        for (at, entry) in self.entries.iter().enumerate() {
            if entry.record.event == EventId::ExplainMark as u16 || is_pause(entry) {
                continue;
            }
            let lane = Lane::of(entry);
            let calls = open.entry(lane).or_default();
            if entry.phase() == Phase::Exit {
                // One that was entered before: nothing is known of it.
                let Some(&call) = calls.last() else { continue };
                if self.entries[self.nodes[call].begin].record.event + 1 == entry.record.event {
                    self.nodes[call].end = Some(at);
                    calls.pop();
                }
                continue;
            }
            let number = self.nodes.len();
            self.nodes.push(Node { lane, begin: at, end: None, inside: Vec::new() });
            match calls.last() {
                Some(&call) => self.nodes[call].inside.push(number),
                None => roots.push(number),
            }
            if entry.phase() == Phase::Enter {
                calls.push(number);
            }
        }
        roots
    }

    fn kind(&self, node: usize) -> Kind {
        let mut events = BTreeSet::new();
        self.for_each(node, &mut |entry| _ = events.insert(entry.record.event));
        (self.nodes[node].lane, events)
    }

    /// Calls `f` with the records of a step in their order.
    fn for_each(&self, node: usize, f: &mut impl FnMut(&TraceEntry)) {
        let node = &self.nodes[node];
        f(&self.entries[node.begin]);
        node.inside.iter().for_each(|inner| self.for_each(*inner, f));
        if let Some(end) = node.end {
            f(&self.entries[end]);
        }
    }

    fn tell(&mut self, nodes: &[usize], depth: u8) {
        let mut kinds: BTreeSet<Kind> = BTreeSet::new();
        let mut again = Vec::new();
        for &node in nodes {
            if kinds.insert(self.kind(node)) {
                self.sum_up(std::mem::take(&mut again), depth);
                self.tell_whole(node, depth);
            } else {
                again.push(node);
            }
        }
        self.sum_up(again, depth);
    }

    fn tell_whole(&mut self, node: usize, depth: u8) {
        let Node { begin, end, ref inside, .. } = self.nodes[node];
        let inside = inside.clone();
        let opens = self.entries[begin].phase() == Phase::Enter;
        self.push(&self.entries[begin], depth);
        self.tell(&inside, depth.saturating_add(1));
        match end {
            Some(end) => self.push(&self.entries[end], depth),
            None if opens => {
                let mut open = step(&self.entries[begin], self.names);
                open.depth = depth;
                open.line = format!("}} {} goes on", open.event);
                open.sentence = "It has not returned when the part ends.".to_owned();
                self.told.push(open);
            }
            None => {}
        }
    }

    fn push(&mut self, entry: &TraceEntry, depth: u8) {
        self.told.push(Step { depth, ..step(entry, self.names) });
    }

    fn sum_up(&mut self, nodes: Vec<usize>, depth: u8) {
        let mut sums: Vec<Sum> = Vec::new();
        let mut records = 0;
        for &node in &nodes {
            self.for_each(node, &mut |entry| {
                records += 1;
                // A call and its return are one line.
                let event = entry.record.event - u16::from(entry.phase() == Phase::Exit);
                let by = (entry.record.pid, event);
                let place = sums.iter().position(|sum| sum.by == by);
                let place = place.unwrap_or_else(|| {
                    sums.push(Sum::new(by, entry));
                    sums.len() - 1
                });
                sums[place].add(entry);
            });
        }
        if records < FEW {
            nodes.into_iter().for_each(|node| self.tell_whole(node, depth));
            return;
        }
        let sums = sums.into_iter().map(|sum| Step { depth, ..sum.step(self.names) });
        self.told.extend(sums);
    }
}

/// An event that came again and again.
struct Sum {
    by: (u32, u16),
    times: u64,
    first: TraceEntry,
    fields: Vec<FieldSum>,
}

struct FieldSum {
    event: u16,
    field: Field,
    first: u64,
    last: u64,
    sum: u64,
    values: BTreeSet<u64>,
}

/// Values that a line lists before it only says the first and the last.
const VALUES: usize = 3;

impl Sum {
    fn new(by: (u32, u16), entry: &TraceEntry) -> Sum {
        Sum { by, times: 0, first: *entry, fields: Vec::new() }
    }

    fn add(&mut self, entry: &TraceEntry) {
        let Some(info) = entry.info() else { return };
        self.times += u64::from(info.phase != Phase::Exit);
        for (field, raw) in info.values(&entry.record) {
            let same = |sum: &&mut FieldSum| sum.event == info.number && sum.field.name == field.name;
            match self.fields.iter_mut().find(same) {
                Some(sum) => {
                    sum.last = raw;
                    sum.sum = sum.sum.saturating_add(raw);
                    if sum.values.len() <= VALUES {
                        sum.values.insert(raw);
                    }
                }
                None => self.fields.push(FieldSum {
                    event: info.number,
                    field,
                    first: raw,
                    last: raw,
                    sum: raw,
                    values: BTreeSet::from([raw]),
                }),
            }
        }
    }

    fn step(&self, names: &Names) -> Step {
        let one = step(&self.first, names);
        let fields: Vec<String> = self.fields.iter().filter_map(|field| field.text(names)).collect();
        let line = format!("{} more {}: {}", self.times, one.event, fields.join(" "));
        let all: Vec<String> = self.fields.iter().filter_map(FieldSum::all).collect();
        let sentence = if all.is_empty() {
            format!("The like {} times more.", self.times)
        } else {
            format!("The like {} times more, in all {}.", self.times, all.join(", "))
        };
        Step { line: line.trim_end_matches([':', ' ']).to_owned(), sentence, times: self.times, ..one }
    }
}

impl FieldSum {
    /// Whether it counts what was done, so that a sum of it means something.
    fn is_amount(&self) -> bool {
        let is_number = matches!(
            self.field.kind,
            FieldKind::Pages | FieldKind::Count | FieldKind::Bytes | FieldKind::Int
        );
        is_number
            && (self.field.name.starts_with("nr_")
                || ["progress", "freed", "bytes"].contains(&self.field.name))
    }

    fn all(&self) -> Option<String> {
        self.is_amount().then(|| format!("{}={}", self.field.name, self.sum))
    }

    fn text(&self, names: &Names) -> Option<String> {
        let FieldSum { event, field, .. } = *self;
        let value = |raw| names.value(event, field, raw);
        let name = field.name;
        if self.values.len() == 1 {
            return Some(format!("{name}={}", value(self.first)));
        }
        match field.kind {
            // Which ones says nothing.
            FieldKind::Pfn | FieldKind::Addr | FieldKind::Phys => None,
            FieldKind::Pages | FieldKind::Count | FieldKind::Bytes | FieldKind::Int => {
                Some(format!("{name}={}..{}", value(self.first), value(self.last)))
            }
            _ if self.values.len() <= VALUES => {
                let values: Vec<String> = self.values.iter().map(|raw| value(*raw)).collect();
                Some(format!("{name}={}", values.join("/")))
            }
            _ => Some(format!("{name}={}..{}", value(self.first), value(self.last))),
        }
    }
}

#[cfg(test)]
mod tests;
