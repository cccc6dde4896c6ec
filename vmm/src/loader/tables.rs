//! The GDT and the identity map with which the kernel is entered.

use super::LoadError;
use crate::{machine::layout, memory::Memory};

/// A flat segment, as the GDT holds it and as the vCPU's hidden registers must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlatSegment {
    /// Selector.
    pub selector: u16,
    /// Segment type with the accessed bit (SDM 3A 3.4.5.1).
    pub kind: u8,
}

/// `__BOOT_CS`: execute, read, accessed.
pub const BOOT_CODE: FlatSegment = FlatSegment { selector: 0x10, kind: 0xb };
/// `__BOOT_DS`: read, write, accessed.
pub const BOOT_DATA: FlatSegment = FlatSegment { selector: 0x18, kind: 0x3 };

impl FlatSegment {
    /// The descriptor: base 0, limit 4 GiB, present, ring 0. Code is 64-bit if `long`, else 32-bit;
    /// data is always 32-bit.
    /// ```
    /// use memvisor::loader::{BOOT_CODE, BOOT_DATA};
    /// assert_eq!(BOOT_CODE.descriptor(true), 0x00af_9b00_0000_ffff);
    /// assert_eq!(BOOT_CODE.descriptor(false), 0x00cf_9b00_0000_ffff);
    /// assert_eq!(BOOT_DATA.descriptor(true), 0x00cf_9300_0000_ffff);
    /// ```
    pub const fn descriptor(self, long: bool) -> u64 {
        const LIMIT: u64 = 0x000f_0000_0000_ffff;
        const GRANULAR: u64 = 1 << 55;
        const PRESENT_SYSTEM: u64 = 0b1001 << 44;
        let is_code = self.kind & 8 != 0;
        let size = if long && is_code { 1 << 53 } else { 1 << 54 };
        LIMIT | GRANULAR | PRESENT_SYSTEM | size | ((self.kind as u64) << 40)
    }
}

/// Bytes of the GDT: two null descriptors, code, data.
pub const GDT_BYTES: u64 = 32;
const _: () = assert!(layout::BOOT_GDT + GDT_BYTES <= layout::BOOT_IDT);

/// Writes the GDT at [`layout::BOOT_GDT`].
pub(super) fn write_gdt(memory: &Memory, long: bool) -> Result<(), LoadError> {
    let gdt = [0, 0, BOOT_CODE.descriptor(long), BOOT_DATA.descriptor(long)];
    memory.write(layout::BOOT_GDT, gdt.map(u64::to_le_bytes).as_flattened())?;
    Ok(())
}

const GIB: u64 = 1 << 30;
const PRESENT_WRITE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// Writes an identity map of the first 4 GiB and of `image`, in 2 MiB pages (1 GiB pages are not
/// everywhere), and returns the address of its top-level table.
pub(super) fn write_identity_map(memory: &Memory, levels: u32, image: (u64, u64)) -> Result<u64, LoadError> {
    let mut map = IdentityMap { memory, next: layout::BOOT_PAGE_TABLES };
    let top = map.take_table()?;
    let end = image.0.saturating_add(image.1);
    let mut bases: Vec<u64> = (0..4).map(|number| number * GIB).collect();
    bases.extend(
        (image.0 / GIB..end.div_ceil(GIB)).map(|number| number * GIB).filter(|base| *base >= 4 * GIB),
    );
    for base in bases {
        let mut table = top;
        for level in (3..=levels).rev() {
            table = map.child(table, base, level)?;
        }
        let entries: Vec<u8> = (0..512u64)
            .flat_map(|index| ((base + index * super::MOVE_STEP) | PRESENT_WRITE | LARGE).to_le_bytes())
            .collect();
        memory.write(table, &entries)?;
    }
    Ok(top)
}

struct IdentityMap<'a> {
    memory: &'a Memory,
    next: u64,
}

impl IdentityMap<'_> {
    fn take_table(&mut self) -> Result<u64, LoadError> {
        let table = self.next;
        self.next += layout::PAGE_SIZE;
        if self.next > layout::BOOT_PAGE_TABLES_END {
            return Err(LoadError::NoRoom {
                what: "boot page tables".into(),
                len: self.next - layout::BOOT_PAGE_TABLES,
                place: "in the boot data area",
                largest: layout::BOOT_PAGE_TABLES_END - layout::BOOT_PAGE_TABLES,
            });
        }
        self.memory.write(table, &[0; 4096])?;
        Ok(table)
    }

    /// The table below `table`'s entry for `va`; made if there is none.
    fn child(&mut self, table: u64, va: u64, level: u32) -> Result<u64, LoadError> {
        use memvisor_inspect::MemorySource;
        let slot = table + ((va >> (12 + 9 * (level - 1))) & 511) * 8;
        let missing = |_| LoadError::Memory(crate::memory::MemoryError::NotRam { gpa: slot, len: 8 });
        let entry = self.memory.read_u64(slot).map_err(missing)?;
        if entry & 1 != 0 {
            return Ok(entry & !0xfff);
        }
        let child = self.take_table()?;
        self.memory.write(slot, &(child | PRESENT_WRITE).to_le_bytes())?;
        Ok(child)
    }
}
