//! `gib-pages`: the guest maps its RAM by 1 GiB pages where they fit. Every naturally aligned GiB that lies in one
//! RAM range must be covered by one leaf of that size, readable through the walk from outside.

use anyhow::bail;
use memvisor_inspect::ptdump::for_each_leaf;
use memvisor_inspect::{FactE820, Walker};

use super::{Held, Outcome};

const GIB: u64 = 1 << 30;
/// Usable RAM (ACPI: AddressRangeMemory).
const RAM: u32 = 1;

pub fn probe(held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let Some(cpu) = held.registers.first() else { bail!("the VMM gives no registers") };
    let Some(walker) = Walker::from_registers(cpu) else { bail!("CPU 0 is not in long mode with paging") };
    let wanted = whole_gibs(&held.facts.e820);
    if wanted.is_empty() {
        bail!("this machine has no aligned GiB of RAM: the case needs more memory");
    }
    let mut mapped = Vec::new();
    for_each_leaf(&walker, held.memory, |leaf| {
        if leaf.va >> 63 == 1 && leaf.size.bytes() == GIB {
            mapped.push(leaf.gpa);
        }
    });
    let missing = wanted.iter().filter(|gpa| !mapped.contains(gpa));
    Ok(Outcome::from_problems(
        missing.map(|gpa| format!("the GiB of RAM at {gpa:#x} is not mapped by a 1 GiB page")).collect(),
    ))
}

/// First bytes of the aligned GiBs inside RAM ranges.
fn whole_gibs(e820: &[FactE820]) -> Vec<u64> {
    e820.iter()
        .filter(|entry| entry.kind == RAM)
        .flat_map(|entry| {
            let first = entry.addr.div_ceil(GIB);
            let end = entry.addr.saturating_add(entry.size) / GIB;
            (first..end).map(|index| index * GIB)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(addr: u64, size: u64, kind: u32) -> FactE820 {
        FactE820 { addr, size, kind }
    }

    #[test]
    fn only_aligned_gibs_inside_ram_count() {
        let e820 = [
            entry(0, 0x9_f000, 1),
            entry(1 << 20, 5 * GIB / 2 - (1 << 20), 1),
            entry(3 * GIB, GIB, 2),
            entry(4 * GIB, 2 * GIB, 1),
        ];
        assert_eq!(whole_gibs(&e820), [GIB, 4 * GIB, 5 * GIB]);
    }
}
