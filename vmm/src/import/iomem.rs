//! /proc/iomem: the kernel's view of the physical address space (Linux: kernel/resource.c).

use std::sync::Arc;

use memvisor_inspect::FactE820;

use super::ImportError;
use super::claims::{At, Claim, Claims, MapClaim, MapSource, e820_kind, hex, inclusive};
use crate::machine::Range;

/// Range and name of a line `00100000-bfffffff : System RAM`.
pub(super) fn parse(line: &str) -> Option<(Range, &str)> {
    let (range, name) = line.trim_start().split_once(" : ")?;
    let (first, rest) = hex(range)?;
    let (last, rest) = hex(rest.strip_prefix('-')?)?;
    // A hidden address is 0-0, one byte.
    rest.is_empty().then_some((inclusive(first, last)?, name))
}

/// Takes the top-level resources that have E820 types; the rest are devices.
pub(super) fn read(file: &Arc<str>, text: &str, claims: &mut Claims) -> Result<(), ImportError> {
    let mut entries = Vec::new();
    let mut hidden = None;
    for (number, line) in (1..).zip(text.lines()) {
        let at = At { file: file.clone(), line: number };
        let Some((range, name)) = parse(line) else { continue };
        if range.end() <= 1 {
            hidden.get_or_insert(at);
            continue;
        }
        if let Some(kind) = e820_kind(name).filter(|_| !line.starts_with(' ')) {
            entries.push(Claim { value: FactE820 { addr: range.base, size: range.len, kind }, at });
        }
    }
    if let (true, Some(at)) = (entries.is_empty(), hidden) {
        let problem = "the addresses are hidden; read /proc/iomem as root".to_owned();
        return Err(ImportError::Unusable { at, problem });
    }
    claims.maps.push(MapClaim { source: MapSource::Kernel, entries });
    Ok(())
}
