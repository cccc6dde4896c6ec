//! The text of a page-table dump (Linux: /sys/kernel/debug/page_tables/kernel).

use std::fmt;

use crate::PageSize;
use crate::ptdump::PtDump;

impl fmt::Display for PtDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: u64 = PageSize::ALL
            .iter()
            .zip(self.pages)
            .fold(0, |sum, (size, pages)| sum.saturating_add(pages.saturating_mul(size.bytes())));
        let tables = self.tables.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
        writeln!(
            f,
            "page tables at guest-physical {:#x}, {} levels: {} KiB mapped in {} ranges, {tables} tables",
            self.root,
            self.levels.count(),
            bytes >> 10,
            self.ranges.len()
        )?;
        let mut mark = None;
        for range in &self.ranges {
            if mark != Some(range.mark) {
                mark = Some(range.mark);
                if let Some(name) = range.mark {
                    writeln!(f, "---[ {name} ]---")?;
                }
            }
            writeln!(f, "{range}")?;
        }
        write!(f, "pages:")?;
        for (size, pages) in PageSize::ALL.iter().zip(self.pages) {
            write!(f, " {pages} of {size}")?;
        }
        write!(f, "; tables:")?;
        for (level, count) in (1..=self.levels.count()).zip(self.tables) {
            write!(f, " {count} {}", self.levels.name(level))?;
        }
        writeln!(f)?;
        if !self.complete {
            writeln!(f, "! not everything is listed: there are too many tables, ranges or findings")?;
        }
        for finding in &self.findings {
            writeln!(f, "! {finding}")?;
        }
        writeln!(f, "{} findings", self.findings.len())
    }
}
