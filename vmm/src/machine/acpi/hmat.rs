//! HMAT: latency and bandwidth between nodes (ACPI 6.5 section 5.2.28).
//!
//! Revision 2: the base unit of latencies is picoseconds, that of bandwidths MB/s.

use acpi_tables::Aml;
use acpi_tables::hmat::{DataType, LocalityType, MemoryProximityDomain, MinTransferSize, SystemLocality};

use super::super::{Hmat, HmatKind, HmatMatrix, Machine};
use super::table;

/// `None` without figures.
pub(super) fn build(machine: &Machine) -> Option<Vec<u8>> {
    let hmat = machine.hmat.as_ref()?;
    let mut body = vec![0; 4];
    for target in &hmat.targets {
        if let Some(initiator) = nearest_initiator(machine, hmat, *target) {
            MemoryProximityDomain::new(initiator, *target).to_aml_bytes(&mut body);
        }
    }
    for matrix in &hmat.matrices {
        locality(hmat, matrix).to_aml_bytes(&mut body);
    }
    Some(table(*b"HMAT", 2, &body))
}

/// The node with CPUs to which the memory of `target` is attached: itself, or the nearest.
fn nearest_initiator(machine: &Machine, hmat: &Hmat, target: u32) -> Option<u32> {
    let distance = |initiator: &u32| {
        let row = machine.distances.get(usize::try_from(*initiator).ok()?)?;
        row.get(usize::try_from(target).ok()?).copied()
    };
    hmat.initiators.iter().copied().min_by_key(|initiator| distance(initiator).unwrap_or(u8::MAX))
}

fn locality(hmat: &Hmat, matrix: &HmatMatrix) -> SystemLocality {
    let unit = matrix.unit().max(1);
    let base_unit = if matrix.kind.is_latency() { unit * 1000 } else { unit };
    let mut locality = SystemLocality::new(
        LocalityType::Memory,
        data_type(matrix.kind),
        MinTransferSize::SizeByteAligned,
        base_unit,
        hmat.initiators.len(),
        hmat.targets.len(),
    );
    for (index, node) in hmat.initiators.iter().enumerate() {
        locality.set_initiator_value(index, *node);
    }
    for (index, node) in hmat.targets.iter().enumerate() {
        locality.set_target_value(index, *node);
    }
    // The crate's row stride is the number of initiators, which is wrong unless it is the number of
    // targets too; row 0 reaches every entry by its position in the matrix.
    for (index, figure) in matrix.figures.iter().flatten().enumerate() {
        let entry = u16::try_from(u64::from(*figure) / unit).unwrap_or(HmatMatrix::UNREACHABLE);
        locality.set_entry_value(0, index, entry);
    }
    locality
}

fn data_type(kind: HmatKind) -> DataType {
    match kind {
        HmatKind::AccessLatency => DataType::AccessLatency,
        HmatKind::ReadLatency => DataType::ReadLatency,
        HmatKind::WriteLatency => DataType::WriteLatency,
        HmatKind::AccessBandwidth => DataType::AccessBandwidth,
        HmatKind::ReadBandwidth => DataType::ReadBandwidth,
        HmatKind::WriteBandwidth => DataType::WriteBandwidth,
    }
}
