//! Multiple APIC Description Table (ACPI 6.5 section 5.2.12).

use super::Table;
use crate::arch::apic;
use crate::println;

/// Most CPUs this kernel starts (Linux: `NR_CPUS`).
pub const MAX_CPUS: usize = 64;

/// Enabled CPUs, in the order of the table.
#[derive(Clone, Copy, Debug)]
pub struct Madt {
    /// Physical address of the local APICs' registers.
    pub apic_base: u64,
    /// Local APIC ids; the first `count` are valid.
    pub apic_ids: [u32; MAX_CPUS],
    /// Enabled CPUs.
    pub count: usize,
}

/// Reads the table; without one there is one CPU with the id it says it has.
pub fn madt(table: Option<&Table>) -> Madt {
    const LOCAL_APIC: u8 = 0;
    const LOCAL_APIC_ADDRESS: u8 = 5;
    const LOCAL_X2APIC: u8 = 9;
    let mut madt = Madt { apic_base: apic::DEFAULT_BASE, apic_ids: [0; MAX_CPUS], count: 0 };
    let add = |madt: &mut Madt, id: Option<u32>, flags: Option<u32>| {
        let (Some(id), Some(flags)) = (id, flags) else { return };
        if flags & 1 == 0 {
            return;
        }
        if id >= 255 {
            println!("ACPI: APIC: CPU with id {id} needs x2APIC mode, which this kernel lacks; ignored");
        } else if madt.count == MAX_CPUS {
            println!("ACPI: APIC: more than {MAX_CPUS} CPUs; id {id} ignored");
        } else {
            madt.apic_ids[madt.count] = id;
            madt.count += 1;
        }
    };
    if let Some(table) = table {
        madt.apic_base = table.bytes.u32(36).map_or(apic::DEFAULT_BASE, u64::from);
        table.for_each_subtable(44, |kind, entry| match kind {
            LOCAL_APIC => add(&mut madt, entry.u8(3).map(u32::from), entry.u32(4)),
            LOCAL_X2APIC => add(&mut madt, entry.u32(4), entry.u32(8)),
            LOCAL_APIC_ADDRESS => madt.apic_base = entry.u64(4).unwrap_or(madt.apic_base),
            _ => {}
        });
    }
    madt.count = madt.count.max(1);
    madt
}
