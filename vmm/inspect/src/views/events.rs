//! What the page allocator counted (Linux: /sys's `numastat`, /proc/vmstat).

use std::fmt;

use memvisor_abi::{NR_NUMA_EVENTS, NumaEvent};
use serde::Serialize;

use super::proc::ProcView;
use super::zones::zone_name;
use crate::{Guest, GuestError, MemorySource};

/// `inspect numastat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NumastatView {
    /// Zones with pages.
    pub zones: Vec<NumastatRow>,
}

/// A zone's events, summed over CPUs, in the order of [`NumaEvent`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NumastatRow {
    /// Node.
    pub node: u32,
    /// Zone.
    pub zone: &'static str,
    /// Events.
    pub events: [u64; NR_NUMA_EVENTS],
}

impl NumastatView {
    /// Reads the events.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<NumastatView, GuestError> {
        let zones = guest.zones()?;
        let pcps = guest.pcps()?;
        let rows = zones.iter().enumerate().filter(|(_, zone)| zone.managed_pages != 0);
        let rows = rows.map(|(index, zone)| {
            let mut events = [0_u64; NR_NUMA_EVENTS];
            for pcp in pcps.iter().skip(index).step_by(zones.len()) {
                for (sum, count) in events.iter_mut().zip(pcp.numa) {
                    *sum = sum.wrapping_add(count);
                }
            }
            NumastatRow { node: zone.node, zone: zone_name(zone.kind), events }
        });
        Ok(NumastatView { zones: rows.collect() })
    }
}

impl fmt::Display for NumastatView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "NUMA events of {} zones", self.zones.len())?;
        writeln!(f, "node zone      {}", NumaEvent::NAMES.map(|name| format!("{name:>16}")).join(""))?;
        for row in &self.zones {
            let events = row.events.map(|count| format!("{count:>16}")).join("");
            writeln!(f, "{:>4} {:<8}  {events}", row.node, row.zone)?;
        }
        Ok(())
    }
}

/// `inspect vmstat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VmstatView {
    /// The lines of /proc/vmstat that can be told from outside, in its order.
    pub events: Vec<EventRow>,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventRow {
    /// Name in /proc/vmstat.
    pub name: String,
    /// What there is of it now, or how often it happened on all CPUs.
    pub count: u64,
    /// Whether it only grows.
    pub grows: bool,
}

impl VmstatView {
    /// Reads everything.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<VmstatView, GuestError> {
        let text = ProcView::new(guest, "vmstat")?.map_or(String::new(), |view| view.text);
        let row = |line: &str| {
            let (name, count) = line.split_once(' ')?;
            let grows =
                !name.starts_with("nr_") || ["nr_vmscan_write", "nr_dirtied", "nr_written"].contains(&name);
            Some(EventRow { name: name.to_owned(), count: count.parse().ok()?, grows })
        };
        Ok(VmstatView { events: text.lines().filter_map(row).collect() })
    }

    /// What changed since `before`, `seconds` ago: name, what it is now, and by how much it changed a second.
    pub fn rates<'a>(&'a self, before: &'a VmstatView, seconds: f64) -> Vec<(&'a EventRow, f64)> {
        let pairs = self.events.iter().filter_map(|row| {
            let then = before.events.iter().find(|then| then.name == row.name)?;
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            let change = row.count as f64 - then.count as f64;
            // A torn look may count less than the one before.
            let is_change = change != 0.0 && !(row.grows && change < 0.0) && seconds > 0.0;
            is_change.then(|| (row, change / seconds))
        });
        pairs.collect()
    }
}

impl fmt::Display for VmstatView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "counts and events of memory: {}", self.events.len())?;
        self.events.iter().try_for_each(|event| writeln!(f, "{} {}", event.name, event.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_what_changed_and_events_never_go_back() {
        let view = |free, faults| {
            let row = |name: &str, count, grows| EventRow { name: name.to_owned(), count, grows };
            VmstatView { events: vec![row("nr_free_pages", free, false), row("pgfault", faults, true)] }
        };
        let (before, now) = (view(100, 50), view(80, 70));
        let names: Vec<_> =
            now.rates(&before, 2.0).iter().map(|(row, rate)| (row.name.clone(), *rate)).collect();
        assert_eq!(names, [("nr_free_pages".to_owned(), -10.0), ("pgfault".to_owned(), 10.0)]);
        assert!(view(100, 40).rates(&before, 2.0).is_empty());
    }
}
