//! `memvisor inspect disks`: the disks of a running guest, from the VMM's side.

use std::fmt;

use serde::Serialize;

use crate::{devices::virtio::DiskStats, machine::Size};

/// All disks, in the order of their slots.
#[derive(Debug, Serialize)]
pub(super) struct DisksView {
    disks: Vec<DiskStats>,
}

impl DisksView {
    pub(super) fn new(disks: Vec<DiskStats>) -> DisksView {
        DisksView { disks }
    }
}

impl fmt::Display for DisksView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.disks.is_empty() {
            return writeln!(f, "the machine has no disks ([[disk]] in its file, or --disk)");
        }
        writeln!(
            f,
            "{:8} {:20} {:>8} {:>9} {:>10} {:>9} {:>10} {:>8} {:>7} {:>10}  source",
            "slot", "name", "size", "reads", "sectors", "writes", "sectors", "flushes", "errors", "in flight"
        )?;
        for (slot, disk) in (1..).zip(&self.disks) {
            let errors = disk.injected + disk.refused + disk.host_errors + disk.malformed;
            writeln!(
                f,
                "00:{slot:02x}.0  {:20} {:>8} {:>9} {:>10} {:>9} {:>10} {:>8} {errors:>7} {:>10}  {}{}{}",
                disk.name,
                Size::new(disk.sectors.saturating_mul(512)),
                disk.reads,
                disk.sectors_read,
                disk.writes,
                disk.sectors_written,
                disk.flushes,
                disk.in_flight,
                disk.source,
                if disk.read_only { ", read-only" } else { "" },
                if disk.active { "" } else { ", no driver" },
            )?;
            if errors > 0 {
                writeln!(
                    f,
                    "         errors: {} asked for by the machine file, {} refused, {} of the host, {} malformed",
                    disk.injected, disk.refused, disk.host_errors, disk.malformed
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_line_and_its_errors_another() {
        let disk = DiskStats {
            name: "data".into(),
            source: "temporary".into(),
            sectors: 32768,
            reads: 7,
            injected: 2,
            ..DiskStats::default()
        };
        let text = DisksView::new(vec![disk]).to_string();
        assert!(text.contains("00:01.0  data") && text.contains("16 MiB"), "{text}");
        assert!(text.contains("temporary, no driver"), "{text}");
        assert!(text.contains("2 asked for by the machine file, 0 refused"), "{text}");
        assert!(DisksView::new(Vec::new()).to_string().contains("no disks"));
    }
}
