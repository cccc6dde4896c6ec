//! /proc/vmstat.

use std::fmt::{self, Write};

use memvisor_abi::proc_text::{EVENT_LINES, is_linux_event};
use memvisor_abi::{NumaEvent, VmEvent};

use super::counts::Counts;
use crate::views::{NumastatView, ZonesView};
use crate::{Guest, GuestError, MemorySource};

/// What it is made of.
pub(super) struct Vmstat {
    zones: ZonesView,
    numa: NumastatView,
    counts: Option<Counts>,
    events: Vec<u64>,
}

impl Vmstat {
    pub(super) fn read<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Vmstat, GuestError> {
        Ok(Vmstat {
            zones: ZonesView::new(guest)?,
            numa: NumastatView::new(guest)?,
            counts: Counts::read(guest)?,
            events: guest.vm_events()?.map_or(Vec::new(), Vec::from),
        })
    }
}

/// Without the limits of dirty pages and what disks moved, which nothing outside derives.
pub(super) fn vmstat(text: &mut String, all: &Vmstat) -> fmt::Result {
    let zones = &all.zones.zones;
    let sum = |of: &dyn Fn(usize) -> u64| (0..zones.len()).map(of).fold(0, u64::saturating_add);
    let free = sum(&|zone| zones.get(zone).map_or(0, |zone| zone.free));
    let cma = sum(&|zone| zones.get(zone).map_or(0, |zone| zone.free_cma));
    writeln!(text, "nr_free_pages {free}")?;
    for (name, value) in all.counts.iter().flat_map(Counts::all_zones) {
        writeln!(text, "{name} {value}")?;
    }
    writeln!(text, "nr_free_cma {cma}")?;
    for (index, name) in NumaEvent::NAMES.iter().enumerate() {
        let counts = all.numa.zones.iter().filter_map(|zone| zone.events.get(index));
        writeln!(text, "{name} {}", counts.fold(0, |sum: u64, &count| sum.saturating_add(count)))?;
    }
    for (name, value) in all.counts.iter().flat_map(Counts::all_nodes) {
        writeln!(text, "{name} {value}")?;
    }
    if all.events.is_empty() {
        return Ok(());
    }
    let count = |event: VmEvent| all.events.get(event as usize).copied().unwrap_or(0);
    for (name, event) in EVENT_LINES {
        writeln!(text, "{name} {}", event.map_or(0, count))?;
    }
    writeln!(text, "nr_unstable 0")?;
    let own = VmEvent::NAMES.iter().zip(&all.events).filter(|(name, _)| !is_linux_event(name));
    own.into_iter().try_for_each(|(name, count)| writeln!(text, "{name} {count}"))
}
