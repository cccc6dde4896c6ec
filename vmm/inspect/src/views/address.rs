//! What a virtual address is made of, with 48 and with 57 bits (SDM 3A 3.3.7.1, 4.5).

use std::fmt;

use memvisor_abi::PAGE_SHIFT;
use serde::Serialize;

use crate::{Levels, Translation};

/// `explain address VA`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddressView {
    /// The address.
    #[serde(serialize_with = "crate::hex")]
    pub va: u64,
    /// With 4 and with 5 levels.
    pub depths: Vec<AddressDepth>,
    /// The walk in a guest's tables, if there is one.
    pub walk: Option<Translation>,
}

/// The address at one depth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddressDepth {
    /// Levels of page tables.
    pub levels: u32,
    /// Bits that are translated.
    pub bits: u32,
    /// Whether the bits above are copies of the highest of them.
    pub canonical: bool,
    /// What the highest translated bit is, which those above must be, too.
    pub sign: bool,
    /// The address that sign extension makes of its translated bits.
    #[serde(serialize_with = "crate::hex")]
    pub extended: u64,
    /// Indices, from the top-level table down.
    pub indices: Vec<AddressIndex>,
    /// Byte in the page.
    pub offset: u64,
}

/// An index into a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddressIndex {
    /// 1 is pte.
    pub level: u32,
    /// Name of the table.
    pub name: &'static str,
    /// The index.
    pub index: u64,
    /// Highest and lowest bit of the address that it is made of.
    pub bits: (u32, u32),
    /// log2 of the bytes behind an entry.
    pub shift: u32,
}

impl AddressView {
    /// Takes the address apart; `walk` is its translation in a guest.
    pub fn new(va: u64, walk: Option<Translation>) -> AddressView {
        let depths = [4, 5].into_iter().filter_map(Levels::new).map(|levels| AddressDepth::new(va, levels));
        AddressView { va, depths: depths.collect(), walk }
    }
}

impl AddressDepth {
    fn new(va: u64, levels: Levels) -> AddressDepth {
        let indices = (1..=levels.count()).rev().map(|level| {
            let shift = PAGE_SHIFT + 9 * (level - 1);
            let index = va >> shift & 511;
            AddressIndex { level, name: levels.name(level), index, bits: (shift + 8, shift), shift }
        });
        AddressDepth {
            levels: levels.count(),
            bits: levels.va_bits(),
            canonical: levels.is_canonical(va),
            sign: va >> (levels.va_bits() - 1) & 1 == 1,
            extended: levels.canonical(va),
            indices: indices.collect(),
            offset: va & ((1 << PAGE_SHIFT) - 1),
        }
    }
}

/// 4 KiB, 2 MiB, 1 GiB, 512 GiB, 256 TiB.
fn size(shift: u32) -> String {
    let unit = ["B", "KiB", "MiB", "GiB", "TiB"];
    let name = unit.get(shift as usize / 10).unwrap_or(&"PiB");
    format!("{} {name}", 1_u64 << (shift % 10))
}

impl fmt::Display for AddressDepth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (top, sign) = (self.bits - 1, u8::from(self.sign));
        writeln!(f, "with {} levels, {} bits:", self.levels, self.bits)?;
        write!(f, "  bits 63..{} must be copies of bit {top}, which is {sign}: ", self.bits)?;
        if self.canonical {
            let half = if self.sign { "kernel's" } else { "user's" };
            writeln!(f, "they are; the address is canonical, in the {half} half")?;
        } else {
            writeln!(f, "they are not; the CPU refuses it (#GP), no table is read")?;
            writeln!(f, "  sign extension of its {} low bits would give {:#018x}", self.bits, self.extended)?;
        }
        for index in &self.indices {
            writeln!(
                f,
                "  {:<4} bits {:>2}..{:<2}  entry {:>3} of 512, each for {}",
                index.name,
                index.bits.0,
                index.bits.1,
                index.index,
                size(index.shift)
            )?;
        }
        writeln!(f, "  page bits 11..0   byte {:#x}", self.offset)
    }
}

impl fmt::Display for AddressView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "virtual address {:#018x}", self.va)?;
        self.depths.iter().try_for_each(|depth| write!(f, "{depth}"))?;
        let Some(walk) = &self.walk else { return Ok(()) };
        writeln!(
            f,
            "in this guest, with {} levels from guest-physical {:#x}:",
            walk.levels.count(),
            walk.root
        )?;
        for step in &walk.steps {
            writeln!(
                f,
                "  {:<4} entry {:>3} at {:#x}: {:?}  {}",
                step.level_name, step.index, step.entry_gpa, step.entry, step.flags
            )?;
        }
        writeln!(f, "  => {}", walk.outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_and_offset_put_together_are_the_address() {
        for va in [0, 0x7fff_ffff_f123, 0xffff_8880_1234_5678, 0xff11_0000_dead_beef, u64::MAX] {
            for depth in AddressView::new(va, None).depths {
                let sum = depth.indices.iter().fold(depth.offset, |sum, at| sum | at.index << at.shift);
                assert_eq!(sum, va & ((1 << depth.bits) - 1), "{va:#x}");
                assert_eq!(depth.extended == va, depth.canonical);
            }
        }
    }

    #[test]
    fn an_address_of_57_bits_is_not_canonical_with_48() {
        let view = AddressView::new(0xff11_0000_0000_0000, None);
        assert_eq!(view.depths.iter().map(|depth| depth.canonical).collect::<Vec<_>>(), [false, true]);
        let text = view.to_string();
        assert!(text.contains("#GP") && text.contains("pgd  bits 56..48"), "{text}");
    }

    #[test]
    fn entries_have_sizes() {
        assert_eq!([12, 21, 30, 39, 48].map(size), ["4 KiB", "2 MiB", "1 GiB", "512 GiB", "256 TiB"]);
    }
}
