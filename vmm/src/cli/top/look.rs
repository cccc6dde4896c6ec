//! One look at a guest, with what changed since the one before.

use std::{fmt, time::Instant};

use memvisor_abi::{LruKind, VmEvent};
use memvisor_inspect::views::{MemoryKind, PsRow, PsView, Sample};
use memvisor_report::{Align, Table};
use serde::Serialize;

use crate::cli::source::Source;

/// Looks at a guest again and again.
pub(super) struct Watch<'a> {
    source: &'a Source,
    begin: Instant,
    before: Option<(f64, Sample)>,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Look {
    /// The guest's name; empty for a memory file.
    pub name: String,
    /// Seconds since the first look.
    pub seconds: f64,
    /// Memory and zones.
    #[serde(flatten)]
    pub sample: Sample,
    /// Events by second since the look before, those that happened, most first.
    pub rates: Vec<Rate>,
    /// Processes, and tasks of the kernel.
    pub tasks: Vec<PsRow>,
}

/// How often something happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Rate {
    /// Name in /proc/vmstat.
    pub name: &'static str,
    /// By second.
    pub per_second: f64,
}

/// What processes are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Resident memory, most first.
    Memory,
    /// Page tables, most first.
    Tables,
    /// Faults, most first.
    Faults,
    /// Number.
    Number,
}

impl Order {
    /// The order that a key asks for.
    pub(super) const fn of_key(key: char) -> Option<Order> {
        Some(match key {
            'm' => Order::Memory,
            't' => Order::Tables,
            'f' => Order::Faults,
            'p' => Order::Number,
            _ => return None,
        })
    }
}

impl<'a> Watch<'a> {
    pub(super) fn new(source: &'a Source) -> Watch<'a> {
        Watch { source, begin: Instant::now(), before: None }
    }

    /// Looks.
    ///
    /// # Errors
    /// If the guest publishes nothing, or not yet.
    pub(super) fn look(&mut self, order: Order) -> anyhow::Result<Look> {
        let guest = self.source.guest()?;
        let seconds = self.begin.elapsed().as_secs_f64();
        let sample = Sample::new(&guest)?;
        // A process that ends meanwhile may not be readable at this moment.
        let tasks = PsView::new(&guest).map_or(Vec::new(), |view| view.tasks);
        let before = self.before.replace((seconds, sample.clone()));
        let rates = before.map_or(Vec::new(), |(then, before)| rates(&before, &sample, seconds - then));
        let mut look = Look { name: self.source.name(), seconds, sample, rates, tasks };
        look.sort(order);
        Ok(look)
    }
}

impl Look {
    /// Sorts the processes.
    pub(super) fn sort(&mut self, order: Order) {
        self.tasks.sort_by_key(|row| match order {
            Order::Memory => u64::MAX - row.rss_kib,
            Order::Tables => u64::MAX - row.tables_kib,
            Order::Faults => u64::MAX - row.min_flt.saturating_add(row.maj_flt),
            Order::Number => row.pid.into(),
        });
    }

    /// LRU lists, and swap if there is any, in pages.
    pub(super) fn lists(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let [slots, used] = self.sample.swap;
        let swap = [("swap, in use", used), ("swap", slots)].into_iter().filter(move |_| slots > 0);
        LruKind::ALL.into_iter().map(|kind| (kind.name(), self.sample.list(kind))).chain(swap)
    }

    /// What reclaim and swap do, by second, if they do anything: pages scanned, reclaimed, swapped in and out, refaulted.
    pub(super) fn reclaim(&self) -> [(&'static str, f64); 5] {
        const PARTS: [(&str, [&str; 2]); 5] = [
            ("scanned", ["pgscan_kswapd", "pgscan_direct"]),
            ("reclaimed", ["pgsteal_kswapd", "pgsteal_direct"]),
            ("swapped in", ["pswpin", ""]),
            ("swapped out", ["pswpout", ""]),
            ("refaulted", ["workingset_refault_anon", "workingset_refault_file"]),
        ];
        PARTS.map(|(name, events)| {
            let rates = self.rates.iter().filter(|rate| events.contains(&rate.name));
            (name, rates.map(|rate| rate.per_second).sum())
        })
    }

    /// Processes: a thread's memory is its process's.
    pub(super) fn processes(&self) -> impl Iterator<Item = &PsRow> {
        self.tasks.iter().filter(|row| row.mm != 0 && row.pid == row.tgid)
    }
}

/// Events by second, those that happened.
fn rates(before: &Sample, now: &Sample, seconds: f64) -> Vec<Rate> {
    let changed = VmEvent::NAMES.into_iter().zip(before.events.iter().zip(&now.events));
    let mut rates: Vec<Rate> = changed
        .filter_map(|(name, (before, now))| {
            // A torn look may count less than the one before.
            let count = now.checked_sub(*before).filter(|count| *count > 0 && seconds > 0.0)?;
            Some(Rate { name, per_second: number(count) / seconds })
        })
        .collect();
    rates.sort_by(|one, other| other.per_second.total_cmp(&one.per_second));
    rates
}

/// MiB of pages.
pub(super) fn mib(pages: u64) -> f64 {
    number(pages) / 256.0
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) const fn number(count: u64) -> f64 {
    count as f64
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages: u64 = self.sample.pages.iter().sum();
        writeln!(f, "guest {}: {:.1} MiB", self.name, mib(pages))?;
        let mut kinds = Table::new(["kind", "MiB"]).align(1, Align::Right);
        for kind in MemoryKind::ALL {
            kinds.row([kind.name().to_owned(), format!("{:.1}", mib(self.sample.of(kind)))]);
        }
        writeln!(f, "{kinds}")?;
        let mut zones = Table::new(["node", "zone", "managed", "free", "min", "low", "high"]);
        for column in [0, 2, 3, 4, 5, 6] {
            zones = zones.align(column, Align::Right);
        }
        for zone in &self.sample.zones {
            let [min, low, high] = zone.watermarks;
            let pages = [zone.managed, zone.free, min, low, high].map(|pages| pages.to_string());
            zones.row([zone.node.to_string(), zone.zone.to_string()].into_iter().chain(pages));
        }
        writeln!(f, "{zones}")?;
        let mut lists = Table::new(["list", "MiB"]).align(1, Align::Right);
        for (name, pages) in self.lists() {
            lists.row([name.to_owned(), format!("{:.1}", mib(pages))]);
        }
        writeln!(f, "{lists}")?;
        let mut rates = Table::new(["event", "per second"]).align(1, Align::Right);
        for rate in &self.rates {
            rates.row([rate.name.to_owned(), format!("{:.0}", rate.per_second)]);
        }
        writeln!(f, "{rates}")?;
        let mut tasks = Table::new(["pid", "name", "state", "RSS KiB", "swap KiB", "tables KiB", "faults"]);
        for column in [0, 3, 4, 5, 6] {
            tasks = tasks.align(column, Align::Right);
        }
        for row in self.processes() {
            tasks.row([
                row.pid.to_string(),
                row.name.clone(),
                row.state.unwrap_or("-").to_owned(),
                row.rss_kib.to_string(),
                row.swap_kib.to_string(),
                row.tables_kib.to_string(),
                row.min_flt.saturating_add(row.maj_flt).to_string(),
            ]);
        }
        write!(f, "{tasks}")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use memvisor_inspect::views::ZoneSample;

    pub(in crate::cli::top) fn look() -> Look {
        let mut pages = [256; MemoryKind::ALL.len()];
        pages[MemoryKind::Free as usize] = 10 * 256;
        let zone = ZoneSample {
            node: 1,
            zone: "Normal".into(),
            managed: 4000,
            free: 1000,
            watermarks: [100, 125, 150],
        };
        let row = |pid, name: &str, rss_kib| PsRow {
            pid,
            tgid: pid,
            ppid: 0,
            name: name.to_owned(),
            state: Some("sleeping"),
            cpu: Some(0),
            mm: 0x1000,
            vsz_kib: 2 * rss_kib,
            rss_kib,
            swap_kib: 12,
            tables_kib: 16,
            min_flt: 7,
            maj_flt: 1,
        };
        Look {
            name: "lab".to_owned(),
            seconds: 1.5,
            sample: Sample {
                pages,
                zones: vec![zone],
                lists: [256, 512, 0, 0, 0],
                swap: [1000, 256],
                events: Vec::new(),
            },
            rates: vec![
                Rate { name: "pgfree", per_second: 12.4 },
                Rate { name: "pgscan_kswapd", per_second: 77.0 },
                Rate { name: "pgscan_direct", per_second: 11.0 },
            ],
            tasks: vec![row(1, "init", 300), row(9, "eater", 90_000)],
        }
    }

    #[test]
    fn text_has_every_part() {
        let text = look().to_string();
        for part in [
            "guest lab: 17.0 MiB",
            "anonymous",
            "Normal",
            "pgfree",
            "eater",
            "90000",
            "active_anon",
            "swap, in use",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn both_ways_of_reclaim_are_one_rate() {
        assert_eq!(look().reclaim()[0], ("scanned", 88.0));
        assert_eq!(look().reclaim()[2], ("swapped in", 0.0));
    }

    #[test]
    fn processes_are_sorted_as_asked() {
        let mut look = look();
        let first = |look: &Look| look.processes().next().map(|row| row.pid);
        look.sort(Order::Memory);
        assert_eq!(first(&look), Some(9));
        look.sort(Order::Number);
        assert_eq!(first(&look), Some(1));
    }

    #[test]
    fn rates_are_of_events_that_happened() {
        let sample = |free| {
            let mut events = vec![5; VmEvent::NAMES.len()];
            events[VmEvent::Pgfree as usize] = free;
            Sample { events, ..Sample::default() }
        };
        assert_eq!(rates(&sample(10), &sample(30), 2.0), [Rate { name: "pgfree", per_second: 10.0 }]);
        assert!(rates(&sample(30), &sample(10), 2.0).is_empty());
    }
}
