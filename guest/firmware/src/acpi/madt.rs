//! Multiple APIC Description Table (ACPI 6.5 section 5.2.12).

use super::Table;
use crate::{Memory, Say};

/// Most CPUs the guest kernel starts (Linux: `NR_CPUS`): every id that an xAPIC can have.
pub const MAX_CPUS: usize = 255;
/// Where the local APICs' registers are when nobody says otherwise (SDM 3A 11.4.1).
pub const DEFAULT_APIC_BASE: u64 = 0xfee0_0000;

/// Enabled CPUs, in the order of the table.
#[derive(Clone, Copy, Debug)]
pub struct Madt {
    /// Physical address of the local APICs' registers.
    pub apic_base: u64,
    apic_ids: [u32; MAX_CPUS],
    count: usize,
}

impl Madt {
    /// Reads the table; without one nothing is known but the usual APIC base.
    pub fn read<M: Memory>(table: Option<&Table<'_, M>>, say: Say<'_>) -> Madt {
        const LOCAL_APIC: u8 = 0;
        const LOCAL_APIC_ADDRESS: u8 = 5;
        const LOCAL_X2APIC: u8 = 9;
        let mut madt = Madt { apic_base: DEFAULT_APIC_BASE, apic_ids: [0; MAX_CPUS], count: 0 };
        let Some(table) = table else { return madt };
        madt.apic_base = table.bytes.u32(36).map_or(DEFAULT_APIC_BASE, u64::from);
        table.for_each_entry(44, say, |kind, entry, say| match kind {
            LOCAL_APIC => madt.add(entry.u8(3).map(u32::from).zip(entry.u32(4)), say),
            LOCAL_X2APIC => madt.add(entry.u32(4).zip(entry.u32(8)), say),
            LOCAL_APIC_ADDRESS => madt.apic_base = entry.u64(4).unwrap_or(madt.apic_base),
            _ => {}
        });
        madt
    }

    /// Local APIC ids.
    pub fn apic_ids(&self) -> &[u32] {
        &self.apic_ids[..self.count]
    }

    fn add(&mut self, id_and_flags: Option<(u32, u32)>, say: Say<'_>) {
        const ENABLED: u32 = 1;
        let Some((id, _)) = id_and_flags.filter(|(_, flags)| flags & ENABLED != 0) else { return };
        if id >= 255 {
            say(format_args!(
                "ACPI: APIC: CPU with id {id} needs x2APIC mode, which this kernel lacks; ignored"
            ));
        } else if self.apic_ids().contains(&id) {
            say(format_args!("ACPI: APIC: CPU with id {id} is listed twice; ignored"));
        } else if self.count == MAX_CPUS {
            say(format_args!("ACPI: APIC: more than {MAX_CPUS} CPUs; id {id} ignored"));
        } else {
            self.apic_ids[self.count] = id;
            self.count += 1;
        }
    }
}
