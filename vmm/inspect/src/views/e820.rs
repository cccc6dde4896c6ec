//! The physical memory map: as built, as handed over, as sanitized.

use std::fmt;

use memvisor_abi::{E820Entry, E820Type};
use serde::Serialize;

use super::MemRange;
use crate::{Facts, Guest, GuestError, MemorySource};

/// `inspect e820`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct E820View {
    /// As the VMM built it; `None` without its facts.
    pub built: Option<Vec<E820Row>>,
    /// As the guest got it; empty if it publishes nothing.
    pub raw: Vec<E820Row>,
    /// As the guest sanitized it; empty if it publishes nothing.
    pub sanitized: Vec<E820Row>,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct E820Row {
    /// The bytes.
    #[serde(flatten)]
    pub range: MemRange,
    /// Length in bytes.
    pub size: u64,
    /// Type number.
    pub kind: u32,
    /// Linux's word for it.
    pub name: &'static str,
}

impl E820View {
    /// Reads both maps of the guest.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        facts: Option<&Facts>,
    ) -> Result<E820View, GuestError> {
        let rows = |entries: Vec<E820Entry>| {
            entries.iter().map(|entry| E820Row::new(entry.addr, entry.size, entry.kind)).collect()
        };
        let built = facts.map(built_rows);
        Ok(E820View { built, raw: rows(guest.e820_raw()?), sanitized: rows(guest.e820()?) })
    }
}

impl E820View {
    /// The map of a guest that publishes none, as the VMM built it.
    pub fn from_facts(facts: &Facts) -> E820View {
        E820View { built: Some(built_rows(facts)), raw: Vec::new(), sanitized: Vec::new() }
    }
}

fn built_rows(facts: &Facts) -> Vec<E820Row> {
    facts.e820.iter().map(|entry| E820Row::new(entry.addr, entry.size, entry.kind)).collect()
}

impl E820Row {
    fn new(addr: u64, size: u64, kind: u32) -> E820Row {
        E820Row { range: MemRange::new(addr, size), size, kind, name: E820Type::name(kind) }
    }
}

impl fmt::Display for E820View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(built), true) = (&self.built, self.raw.is_empty() && self.sanitized.is_empty()) {
            writeln!(
                f,
                "E820 map: {} entries, as the VMM built it (the guest publishes nothing)",
                built.len()
            )?;
            return write_rows(f, built);
        }
        let ram: u64 = self
            .sanitized
            .iter()
            .filter(|row| row.kind == E820Type::Ram as u32)
            .fold(0, |sum, row| sum.saturating_add(row.size));
        writeln!(
            f,
            "E820 map: {} entries handed over, {} after sanitizing, {} KiB usable",
            self.raw.len(),
            self.sanitized.len(),
            ram >> 10
        )?;
        match &self.built {
            Some(built) if *built == self.raw => {
                writeln!(f, "handed over (as the VMM built it):")?;
            }
            Some(built) => {
                writeln!(f, "built by the VMM (the guest got another one):")?;
                write_rows(f, built)?;
                writeln!(f, "handed over:")?;
            }
            None => writeln!(f, "handed over:")?,
        }
        write_rows(f, &self.raw)?;
        writeln!(f, "sanitized:")?;
        write_rows(f, &self.sanitized)
    }
}

fn write_rows(f: &mut fmt::Formatter<'_>, rows: &[E820Row]) -> fmt::Result {
    for row in rows {
        write!(f, "  {} {:>12} KiB  {}", row.range, row.size >> 10, row.name)?;
        if E820Type::from_raw(row.kind).is_none() {
            write!(f, " (type {})", row.kind)?;
        }
        if row.size == 0 {
            write!(f, ", empty")?;
        } else if row.range.last < row.range.start {
            write!(f, ", wraps")?;
        }
        writeln!(f)?;
    }
    Ok(())
}
