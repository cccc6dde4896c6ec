//! What the records of a part say, against what is read from outside before and after it.

use std::collections::BTreeMap;

use memvisor_abi::{EventId, Page};
use memvisor_inspect::{Guest, MemorySource, trace::TraceEntry};
use serde::Serialize;

use super::{Snapshot, fold};

/// A number that the records and the guest's memory both have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Agreement {
    /// What it counts.
    pub what: String,
    /// By the records.
    pub told: u64,
    /// By memory, read from outside.
    pub found: u64,
}

/// Something that costs time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// What.
    pub what: String,
    /// How often, or how much.
    pub count: u64,
}

/// A sum over an event, and the counters that must have grown as much.
struct Counted {
    what: &'static str,
    event: EventId,
    /// The field to sum; the events are counted without one.
    field: Option<&'static str>,
    counters: &'static [&'static str],
}

const COUNTED: &[Counted] = &[
    Counted {
        what: "pages scanned on inactive lists",
        event: EventId::MmVmscanLruShrinkInactive,
        field: Some("nr_scanned"),
        counters: &["vm events: pgscan_kswapd", "vm events: pgscan_direct"],
    },
    Counted {
        what: "pages reclaimed",
        event: EventId::MmVmscanLruShrinkInactive,
        field: Some("nr_reclaimed"),
        counters: &["vm events: pgsteal_kswapd", "vm events: pgsteal_direct"],
    },
    Counted {
        what: "pages deactivated",
        event: EventId::MmVmscanLruShrinkActive,
        field: Some("nr_deactivated"),
        counters: &["vm events: pgdeactivate"],
    },
    Counted {
        what: "runs of kswapd",
        event: EventId::MmVmscanKswapdWake,
        field: None,
        counters: &["vm events: pageoutrun"],
    },
    Counted {
        what: "processes killed for memory",
        event: EventId::MarkVictim,
        field: None,
        counters: &["vm events: oom_kill"],
    },
    Counted {
        what: "direct reclaims",
        event: EventId::MmVmscanDirectReclaimBegin,
        field: None,
        counters: &[
            "vm events: allocstall_dma",
            "vm events: allocstall_dma32",
            "vm events: allocstall_normal",
            "vm events: allocstall_high",
            "vm events: allocstall_movable",
        ],
    },
    Counted {
        what: "pages migrated",
        event: EventId::MmMigratePages,
        field: Some("succeeded"),
        counters: &["vm events: pgmigrate_success"],
    },
];

/// What can be compared. `counters`: records begin and end with the snapshots, so that counts are equal.
pub fn compare<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    entries: &[TraceEntry],
    (before, after): (&Snapshot, &Snapshot),
    counters: bool,
) -> Vec<Agreement> {
    let mut found = Vec::new();
    for counted in COUNTED.iter().filter(|_| counters) {
        let of_event = || entries.iter().filter(|entry| entry.record.event == counted.event as u16);
        if of_event().next().is_none() {
            continue;
        }
        let told = of_event().map(|entry| counted.field.map_or(1, |field| value(entry, field))).sum();
        let grown = |name: &&str| after.number(name).saturating_sub(before.number(name));
        found.push(Agreement {
            what: counted.what.to_owned(),
            told,
            found: counted.counters.iter().map(grown).sum(),
        });
    }
    found.extend(entries_of_programs(guest, entries));
    found.extend(cached(guest, entries));
    found
}

/// An argument; 0 if there is none of that name.
fn value(entry: &TraceEntry, name: &str) -> u64 {
    let Some(info) = entry.info() else { return 0 };
    info.values(&entry.record).find(|(field, _)| field.name == name).map_or(0, |(_, raw)| raw)
}

fn is(entry: &TraceEntry, event: EventId) -> bool {
    entry.record.event == event as u16
}

/// Entries that were written last and not taken away again, against the page tables of the process.
fn entries_of_programs<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    entries: &[TraceEntry],
) -> Option<Agreement> {
    // By process and page: the frame.
    let mut wanted: BTreeMap<(u32, u64), u64> = BTreeMap::new();
    for entry in entries {
        let pid = entry.record.pid;
        let page = |name| value(entry, name) & !0xfff;
        if is(entry, EventId::SetPte) && pid != 0 {
            wanted.insert((pid, page("address")), value(entry, "pfn"));
        } else if is(entry, EventId::RemoveMigrationPte) {
            let pid = u32::try_from(value(entry, "pid")).unwrap_or(0);
            wanted.insert((pid, page("addr")), value(entry, "pfn"));
        } else if is(entry, EventId::TryToUnmap) {
            wanted.retain(|_, pfn| *pfn != value(entry, "pfn"));
        } else if is(entry, EventId::UnmapRegion) {
            wanted.retain(|(of, va), _| {
                *of != pid || *va < value(entry, "start") || *va >= value(entry, "end")
            });
        } else if is(entry, EventId::ExitMmap) {
            wanted.retain(|(of, _), _| u64::from(*of) != value(entry, "pid"));
        }
    }
    let spaces = guest.address_spaces().ok()?;
    wanted.retain(|(pid, _), _| spaces.iter().any(|space| space.pid == *pid));
    if wanted.is_empty() {
        return None;
    }
    let is_there = |(pid, va): (u32, u64), pfn: u64| {
        let space = spaces.iter().find(|space| space.pid == pid)?;
        let walk = guest.space_walker(space.pgd_pfn).translate(guest.source(), va);
        Some(walk.mapped()?.gpa >> 12 == pfn)
    };
    let found = wanted.iter().filter(|(at, pfn)| is_there(**at, **pfn) == Some(true)).count();
    Some(Agreement {
        what: "entries of page tables that lead where they were set to".to_owned(),
        told: wanted.len() as u64,
        found: found as u64,
    })
}

/// Pages that came into the page cache and did not leave it, against their descriptors.
fn cached<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, entries: &[TraceEntry]) -> Option<Agreement> {
    let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
    for entry in entries {
        if is(entry, EventId::MmFilemapAdd) {
            wanted.insert(value(entry, "pfn"), value(entry, "index"));
        } else if is(entry, EventId::MmFilemapDelete) {
            wanted.remove(&value(entry, "pfn"));
        }
    }
    if wanted.is_empty() {
        return None;
    }
    let is_cached = |(pfn, index): (&u64, &u64)| {
        let page: Page = guest.page(*pfn).ok()??;
        Some(page.mapping != 0 && guest.cached_page(page.mapping, *index)? == *pfn)
    };
    let found = wanted.iter().filter(|page| is_cached(*page) == Some(true)).count();
    Some(Agreement {
        what: "pages of files that the page cache has".to_owned(),
        told: wanted.len() as u64,
        found: found as u64,
    })
}

/// What happened that costs.
pub fn costs(entries: &[TraceEntry]) -> Vec<Cost> {
    let count = |event| entries.iter().filter(|entry| is(entry, event)).count() as u64;
    let sum =
        |event, field| entries.iter().filter(|entry| is(entry, event)).map(|entry| value(entry, field)).sum();
    let pauses = entries.iter().filter(|entry| fold::is_pause(entry)).count() as u64;
    let calls = count(EventId::Syscall) - pauses;
    let faults = count(EventId::PageFault);
    let all: [(&str, u64); 7] = [
        ("system calls", calls),
        ("page faults", faults),
        ("switches to ring 0 and back", calls + faults),
        ("copies between kernel and program", count(EventId::CopyUser)),
        ("bytes copied between kernel and program", sum(EventId::CopyUser, "bytes")),
        ("requests to disks", count(EventId::BlockRqIssue)),
        ("bytes to and from disks", sum(EventId::BlockRqIssue, "bytes")),
    ];
    all.into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| Cost { what: what.to_owned(), count })
        .collect()
}
