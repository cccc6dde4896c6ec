//! SLIT: distances between nodes (ACPI 6.5 section 5.2.17).

use super::super::Machine;
use super::table;

/// `None` with one node: there is nothing to say.
pub(super) fn build(machine: &Machine) -> Option<Vec<u8>> {
    if machine.nodes.len() < 2 {
        return None;
    }
    let mut body = Vec::new();
    body.extend((machine.nodes.len() as u64).to_le_bytes());
    body.extend(machine.distances.iter().flatten());
    Some(table(*b"SLIT", 1, &body))
}
