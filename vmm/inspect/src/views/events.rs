//! What the page allocator counted (Linux: /sys's `numastat`, /proc/vmstat).

use std::fmt;

use memvisor_abi::{NR_NUMA_EVENTS, NumaEvent, VmEvent};
use serde::Serialize;

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
    /// Events in the order of [`VmEvent`]; empty if the guest publishes none.
    pub events: Vec<EventRow>,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventRow {
    /// Name in /proc/vmstat.
    pub name: &'static str,
    /// How often, on all CPUs.
    pub count: u64,
}

impl VmstatView {
    /// Reads the events.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<VmstatView, GuestError> {
        let counts = guest.vm_events()?.map_or(Vec::new(), Vec::from);
        let events = VmEvent::NAMES.into_iter().zip(counts).map(|(name, count)| EventRow { name, count });
        Ok(VmstatView { events: events.collect() })
    }
}

impl fmt::Display for VmstatView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "events of the page allocator: {}", self.events.len())?;
        self.events.iter().try_for_each(|event| writeln!(f, "{} {}", event.name, event.count))
    }
}
