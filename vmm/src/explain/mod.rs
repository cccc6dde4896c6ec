//! Walkthroughs of the memory manager: what one operation did, from its trace records and from the structures that
//! it touched.
//!
//! The guest runs the operation (`guest/kernel/src/explain`), part by part, between checkpoints. Nothing here knows
//! how it comes out: the call tree is made of records, before and after are read from guest memory while
//! the guest stands at a checkpoint, and a sentence of [`sentence`] is filled with a record's arguments.

mod sentences;
mod snapshot;

use std::fmt;

use memvisor_abi::EventId;
use memvisor_inspect::{
    Guest, MemorySource,
    trace::{EventText, Names, TraceEntry, TraceReader},
};
use serde::Serialize;

pub use sentences::sentence;
pub use snapshot::{Change, Snapshot};

/// An operation that the guest can show.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Walk {
    /// Name, on the guest's command line too.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Events that belong to it.
    pub events: &'static str,
}

/// All operations, as the guest's kernel lists them.
pub const WALKS: &[Walk] = &[
    Walk {
        name: "alloc-pages",
        about: "alloc_pages(GFP_KERNEL, 2) and __free_pages: zonelist, watermark, buddy lists, and the way back",
        events: "alloc,reclaim,explain",
    },
    Walk {
        name: "get-zeroed-page",
        about: "get_zeroed_page(GFP_KERNEL) of fresh RAM, which is known to be zero, and of a frame that was in use",
        events: "alloc,reclaim,explain",
    },
    Walk {
        name: "atomic-in-interrupt",
        about: "allocations in an interrupt handler: GFP_ATOMIC, GFP_KERNEL refused, and the reserve when memory is low",
        events: "alloc,reclaim,irq_handler,explain",
    },
    Walk {
        name: "highuser",
        about: "alloc_pages(GFP_HIGHUSER, 0): the highest zone first, a window onto the frame, and down the zonelist",
        events: "alloc,reclaim,kmap*,kunmap*,explain",
    },
    Walk {
        name: "buddy-split",
        about: "one frame when only blocks of 1,024 frames are free: expand splits ten times",
        events: "alloc,explain",
    },
    Walk {
        name: "buddy-merge",
        about: "that frame given back: to the CPU's list, and when that is drained, ten merges with its buddies",
        events: "alloc,explain",
    },
    Walk {
        name: "zone-fallback",
        about: "the preferred zone is at its watermark: the next zone of the list gives the frame",
        events: "alloc,reclaim,explain",
    },
    Walk {
        name: "kmem-cache",
        about: "a cache of 64-byte objects: made, two objects taken and given back, unmade",
        events: "alloc,slab,explain",
    },
    Walk {
        name: "kmalloc-vs-vmalloc",
        about: "100 bytes and 16 KiB by kmalloc, 16 KiB by vmalloc: frames, addresses, page tables, and the way back",
        events: "alloc,slab,vmalloc,explain",
    },
    Walk {
        name: "slow-path",
        about: "alloc_pages(GFP_KERNEL, 2) below the min watermarks: kswapd, compaction, reclaim, retry; then the failure",
        events: "reclaim,compaction,alloc,explain,!__free*,!free_*,!mm_page_free*,!buddy_*,!mm_page_pcpu_drain",
    },
    Walk {
        name: "first-touch",
        about: "malloc(4096): brk makes a VMA and no page; the first write faults, and a frame of zeroes is mapped",
        events: "fault,alloc_pages,mm_page_alloc,mm_page_free,explain",
    },
    Walk {
        name: "cow",
        about: "a page that a child shares after fork: its write copies it, the parent's finds it alone",
        events: "fault,alloc_pages,mm_page_alloc,mm_page_free,explain",
    },
    Walk {
        name: "fork",
        about: "dup_mmap: VMAs and entries are copied and lose the right to write, pages stay; the child ends",
        events: "fault,mm_page_alloc,mm_page_free,explain",
    },
    Walk {
        name: "stack-growth",
        about: "a write below the stack moves its start down; one below RLIMIT_STACK is refused",
        events: "fault,mm_page_alloc,explain",
    },
    Walk {
        name: "mmap",
        about: "two mappings side by side are one VMA; mprotect of one page splits it; munmap takes all",
        events: "fault,explain",
    },
    Walk {
        name: "segv",
        about: "a read where nothing is mapped (SEGV_MAPERR), a write to read-only memory (SEGV_ACCERR)",
        events: "fault,explain",
    },
    Walk {
        name: "load-program",
        about: "execve: segments of the file become VMAs, and pages come with the first instruction and the first use of the stack",
        events: "fault,mm_page_alloc,explain",
    },
];

/// The operation of a name.
pub fn find(name: &str) -> Option<&'static Walk> {
    WALKS.iter().find(|walk| walk.name == name)
}

/// A step of the call tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Steps around it.
    pub depth: u8,
    /// CPU.
    pub cpu: u32,
    /// Whether an interrupt handler did it.
    pub in_interrupt: bool,
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
    open: Option<(String, Snapshot)>,
    reader: Option<TraceReader>,
    lost: u64,
    /// Parts that are complete.
    pub parts: Vec<Part>,
}

impl Collector {
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
            let changes = before.changes(&Snapshot::read(guest)?);
            let steps = entries.iter().filter(is_step).map(|entry| step(entry, names)).collect();
            self.parts.push(Part { title: title.to_owned(), steps, lost, changes });
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
        in_interrupt: entry.in_interrupt(),
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
            for step in &part.steps {
                let indent = usize::from(step.depth) * 4;
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
        }
        Ok(())
    }
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
