//! The structures that operations touch, as numbers with names, read from outside.

use std::collections::BTreeMap;

use memvisor_abi::{FreeArea, LruKind, NR_VM_EVENTS, VmEvent, Zone, ZoneKind};
use memvisor_inspect::{
    Guest, GuestError, MemorySource, MmSpace,
    views::{PcpRow, PcpView, SlabView, VmallocView},
};
use serde::Serialize;

/// Numbers by name, in the order of the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, u64>);

/// A number that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What it counts.
    pub what: String,
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
}

impl Snapshot {
    /// Reads zones with their free lists, per-CPU lists, caches, vmalloc areas, windows, and the event counters.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn read<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Snapshot, GuestError> {
        let mut numbers = BTreeMap::new();
        for zone in guest.zones()?.iter().filter(|zone| zone.managed_pages != 0) {
            add_zone(&mut numbers, zone);
        }
        for (name, count) in VmEvent::NAMES.iter().zip(guest.vm_events()?.unwrap_or([0; NR_VM_EVENTS])) {
            numbers.insert(format!("vm events: {name}"), count);
        }
        add_pressure(&mut numbers, guest)?;
        for row in PcpView::new(guest)?.pagesets {
            let PcpRow { cpu, node, zone, count, .. } = row;
            numbers.insert(format!("node {node} zone {zone}: pages on CPU {cpu}'s lists"), count.into());
        }
        add_vmalloc(&mut numbers, &VmallocView::new(guest)?);
        add_spaces(&mut numbers, &guest.mm_spaces()?);
        for cache in SlabView::new(guest, None, false)?.caches {
            let mut add = |what: &str, value| numbers.insert(format!("cache {}: {what}", cache.name), value);
            add("slabs", cache.num_slabs);
            add("objects", cache.num_objs);
            add("objects in use", cache.active_objs);
            add("free objects that CPUs hold", cache.cpu_free);
            add("users", cache.refcount.into());
        }
        Ok(Snapshot(numbers))
    }

    /// A number by its name; 0 if there is none.
    pub fn number(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Numbers that are not the same in `after`. A number that one of them lacks counts as 0.
    pub fn changes(&self, after: &Snapshot) -> Vec<Change> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(after.0.keys()).collect();
        names
            .into_iter()
            .map(|what| Change {
                what: what.clone(),
                before: self.0.get(what).copied().unwrap_or(0),
                after: after.0.get(what).copied().unwrap_or(0),
            })
            .filter(|change| change.before != change.after)
            .collect()
    }
}

fn add_zone(numbers: &mut BTreeMap<String, u64>, zone: &Zone) {
    let kind = ZoneKind::from_raw(zone.kind).map_or("undefined", ZoneKind::name);
    let name = format!("node {} zone {kind}", zone.node);
    numbers.insert(format!("{name}: free pages"), zone.free_pages);
    numbers.insert(format!("{name}: pages that boost its watermarks"), zone.watermark_boost);
    numbers.insert(format!("{name}: pages reserved for high orders"), zone.nr_reserved_highatomic);
    numbers.insert(format!("{name}: pages whose descriptors are deferred"), zone.deferred_pages);
    for (order, area) in zone.free_area.iter().enumerate() {
        // Two digits, so that names sort as orders do.
        numbers.insert(format!("{name}: free blocks of order {order:>2}"), nr_free(area));
    }
}

/// LRU lists, pages of files, swap areas.
fn add_pressure<S: MemorySource + ?Sized>(
    numbers: &mut BTreeMap<String, u64>,
    guest: &Guest<'_, S>,
) -> Result<(), GuestError> {
    for (node, lruvec) in guest.lruvecs()?.iter().enumerate() {
        for kind in LruKind::ALL {
            numbers.insert(format!("node {node}: pages {}", kind.name()), lruvec.lists[kind as usize].count);
        }
    }
    for counts in guest.file_counts()? {
        numbers.insert("pages of files".to_owned(), counts.nr_file_pages);
        numbers.insert("pages of files, dirty".to_owned(), counts.nr_file_dirty);
        numbers.insert("pages of files, being written".to_owned(), counts.nr_writeback);
    }
    for (number, area) in guest.swap_areas()?.iter().enumerate().filter(|(_, area)| area.max != 0) {
        numbers.insert(format!("swap area {number}: slots in use"), area.inuse);
        numbers.insert(format!("swap area {number}: pages read"), area.reads);
        numbers.insert(format!("swap area {number}: pages written"), area.writes);
    }
    Ok(())
}

fn add_vmalloc(numbers: &mut BTreeMap<String, u64>, view: &VmallocView) {
    for state in ["busy", "lazy"] {
        let of_state = view.areas.iter().filter(|area| area.state == state);
        numbers.insert(format!("vmalloc: {state} areas"), of_state.count() as u64);
    }
    numbers.insert("vmalloc: pages mapped".to_owned(), view.areas.iter().map(|area| area.pages).sum());
    for window in &view.windows {
        let cpu = window.cpu.map_or(String::new(), |cpu| format!(" of CPU {cpu}"));
        let mut add = |what: &str, slots: usize| {
            numbers.insert(format!("{}{cpu}: slots {what}", window.kind), slots as u64);
        };
        add("mapped", window.mapped);
        add("in use", window.used);
    }
}

fn add_spaces(numbers: &mut BTreeMap<String, u64>, spaces: &[MmSpace]) {
    for space in spaces {
        let mm = &space.mm;
        let mut add = |what: &str, value| numbers.insert(format!("pid {}: {what}", space.space.pid), value);
        add("VMAs", mm.map_count.into());
        add("pages of address space", mm.total_vm);
        add("resident pages, anonymous", mm.rss.first().copied().unwrap_or(0));
        add("resident pages, of mappings", mm.rss.last().copied().unwrap_or(0));
        add("page tables", mm.table_pages);
        add("minor faults", mm.min_flt);
    }
}

/// Blocks of an order.
fn nr_free(area: &FreeArea) -> u64 {
    area.nr_free()
}

#[cfg(test)]
mod tests {
    use memvisor_inspect::{
        Levels,
        testing::{Machine, SyntheticGuest},
    };

    use super::*;

    #[test]
    fn only_what_differs_is_a_change() {
        let mut guest = SyntheticGuest::new(&Machine::pc(64 << 20, Levels::Four));
        let read = |guest: &SyntheticGuest| {
            Snapshot::read(&Guest::attach(&guest.memory, guest.root_gpa).expect("a root")).expect("zones")
        };
        let before = read(&guest);
        assert_eq!(before.changes(&before), []);
        guest.edit_zone(1, |zone| zone.free_pages -= 4);
        let changes = before.changes(&read(&guest));
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].what, "node 0 zone DMA32: free pages");
        assert_eq!(changes[0].before - changes[0].after, 4);
    }
}
