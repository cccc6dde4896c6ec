//! Levels, indices and sizes.

use mm_core::{PAGE_SHIFT, PAGE_SIZE, VirtAddr};

/// Entries of a table at every level (Linux: `PTRS_PER_PTE`).
pub const TABLE_ENTRIES: usize = 512;
/// log2 of [`TABLE_ENTRIES`].
const TABLE_SHIFT: u32 = 9;

/// Paging depth, decided at boot. Levels are numbered from the bottom as the SDM draws them:
/// 1 holds 4 KiB leaves, [`Levels::count`] is the root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Levels {
    /// 48-bit addresses.
    Four = 4,
    /// 57-bit addresses (CR4.LA57).
    Five = 5,
}

impl Levels {
    /// Number of levels, also the level of the root table.
    pub const fn count(self) -> u8 {
        self as u8
    }

    /// Bits of a virtual address that are translated: 48 or 57.
    pub const fn va_bits(self) -> u32 {
        PAGE_SHIFT + TABLE_SHIFT * self as u32
    }

    /// Whether bits from `va_bits() - 1` to 63 are all equal (SDM 1, 3.3.7.1).
    pub const fn is_canonical(self, va: VirtAddr) -> bool {
        sign_extended(va.as_u64(), self.va_bits())
    }

    /// First address of the upper, kernel half.
    pub const fn upper_half(self) -> VirtAddr {
        VirtAddr::new(u64::MAX << (self.va_bits() - 1))
    }

    /// Bytes of each half.
    pub const fn half_len(self) -> u64 {
        1 << (self.va_bits() - 1)
    }

    /// Index of `va` in its table of `level` (Linux: `pte_index` to `pgd_index`). `level` is 1..=5.
    pub const fn index(va: VirtAddr, level: u8) -> usize {
        (va.as_u64() >> Levels::page_shift(level) & 511) as usize
    }

    /// Bytes that one entry of a table of `level` covers. `level` is 1..=5.
    pub const fn page_size(level: u8) -> u64 {
        1 << Levels::page_shift(level)
    }

    /// log2 of [`Levels::page_size`].
    pub const fn page_shift(level: u8) -> u32 {
        PAGE_SHIFT + TABLE_SHIFT * (level as u32 - 1)
    }

    /// Linux's name of an entry of `level`. With four levels p4d is folded into pgd, so the root
    /// of either depth is the pgd. Levels that do not exist are "none".
    pub const fn level_name(self, level: u8) -> &'static str {
        match (self, level) {
            (_, 1) => "pte",
            (_, 2) => "pmd",
            (_, 3) => "pud",
            (Levels::Five, 4) => "p4d",
            (Levels::Four, 4) | (Levels::Five, 5) => "pgd",
            _ => "none",
        }
    }
}

/// Whether `raw` is its own low `bits` bits sign-extended. `bits` is 1..=64.
const fn sign_extended(raw: u64, bits: u32) -> bool {
    let top = raw >> (bits - 1);
    top == 0 || top == u64::MAX >> (bits - 1)
}

/// Sizes of leaves. 1 GiB leaves need CPUID 0x80000001 EDX bit 26.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum LeafSize {
    /// pte, 4 KiB.
    Size4K = 1,
    /// pmd, 2 MiB.
    Size2M = 2,
    /// pud, 1 GiB.
    Size1G = 3,
}

impl LeafSize {
    /// All sizes, smallest first.
    pub const ALL: [LeafSize; 3] = [LeafSize::Size4K, LeafSize::Size2M, LeafSize::Size1G];

    /// Level of the entries that are leaves of this size.
    pub const fn level(self) -> u8 {
        self as u8
    }

    /// Bytes of a leaf.
    pub const fn bytes(self) -> u64 {
        Levels::page_size(self as u8)
    }
}

const _: () = assert!(LeafSize::Size4K.bytes() == PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_means_fits_a_signed_number_of_that_width() {
        for bits in 1..=12 {
            let half = 1_i64 << (bits - 1);
            for value in -8192..8192_i64 {
                let expect = (-half..half).contains(&value);
                assert_eq!(sign_extended(value.cast_unsigned(), bits), expect, "{value} in {bits} bits");
            }
        }
    }

    #[test]
    fn canonical_edges_of_both_depths() {
        for (levels, low_last, high_first) in [
            (Levels::Four, 0x0000_7fff_ffff_ffff, 0xffff_8000_0000_0000),
            (Levels::Five, 0x00ff_ffff_ffff_ffff, 0xff00_0000_0000_0000),
        ] {
            let canonical = |raw| levels.is_canonical(VirtAddr::new(raw));
            assert!(canonical(0) && canonical(low_last) && !canonical(low_last + 1));
            assert!(canonical(u64::MAX) && canonical(high_first) && !canonical(high_first - 1));
            assert_eq!(levels.upper_half().as_u64(), high_first);
            assert_eq!(levels.half_len(), low_last + 1);
        }
    }

    #[test]
    fn every_index_of_every_level_is_its_own_bits() {
        for level in 1..=5 {
            for index in 0..TABLE_ENTRIES {
                for noise in [0, Levels::page_size(level) - 1] {
                    let raw = (index as u64) << Levels::page_shift(level) | noise;
                    assert_eq!(Levels::index(VirtAddr::new(raw), level), index);
                    for above in level + 1..=5 {
                        assert_eq!(Levels::index(VirtAddr::new(raw), above), 0);
                    }
                }
            }
        }
    }

    #[test]
    fn sizes_and_widths() {
        assert_eq!(LeafSize::ALL.map(LeafSize::bytes), [4 << 10, 2 << 20, 1 << 30]);
        assert_eq!((Levels::page_size(4), Levels::page_size(5)), (512 << 30, 256 << 40));
        assert_eq!((Levels::Four.va_bits(), Levels::Five.va_bits()), (48, 57));
    }

    #[test]
    fn four_levels_fold_the_p4d() {
        let names = |levels: Levels| [1, 2, 3, 4, 5].map(|level| levels.level_name(level));
        assert_eq!(names(Levels::Four), ["pte", "pmd", "pud", "pgd", "none"]);
        assert_eq!(names(Levels::Five), ["pte", "pmd", "pud", "p4d", "pgd"]);
    }
}
