//! The kernel's address-space layout, and the hash that pins all layouts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A range of virtual addresses with one purpose (Linux: Documentation/arch/x86/x86_64/mm.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LayoutRange {
    /// First address.
    pub start: u64,
    /// Last address, inclusive: the topmost range ends at 2^64 - 1.
    pub last: u64,
    /// See [`LayoutKind`].
    pub kind: u32,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<LayoutRange>() == 24);

/// Values of [`LayoutRange::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LayoutKind {
    /// The lower half: user space.
    User = 1,
    /// Addresses that are not canonical at this depth.
    NonCanonical = 2,
    /// Never mapped.
    Guard = 3,
    /// All of RAM at `PAGE_OFFSET`.
    DirectMap = 4,
    /// vmalloc and ioremap.
    Vmalloc = 5,
    /// The array of `struct page`.
    Vmemmap = 6,
    /// The kernel image.
    KernelImage = 7,
    /// Modules.
    Modules = 8,
    /// Fixmap slots.
    Fixmap = 9,
    /// Per-CPU areas.
    PerCpu = 10,
    /// Upper-half addresses without an assignment.
    Unused = 11,
}

impl LayoutKind {
    /// The kind of a raw number, or `None`.
    pub const fn from_raw(raw: u32) -> Option<LayoutKind> {
        Some(match raw {
            1 => LayoutKind::User,
            2 => LayoutKind::NonCanonical,
            3 => LayoutKind::Guard,
            4 => LayoutKind::DirectMap,
            5 => LayoutKind::Vmalloc,
            6 => LayoutKind::Vmemmap,
            7 => LayoutKind::KernelImage,
            8 => LayoutKind::Modules,
            9 => LayoutKind::Fixmap,
            10 => LayoutKind::PerCpu,
            11 => LayoutKind::Unused,
            _ => return None,
        })
    }

    /// Name used by every view.
    pub const fn name(self) -> &'static str {
        match self {
            LayoutKind::User => "user space",
            LayoutKind::NonCanonical => "non-canonical",
            LayoutKind::Guard => "guard hole",
            LayoutKind::DirectMap => "direct map",
            LayoutKind::Vmalloc => "vmalloc/ioremap",
            LayoutKind::Vmemmap => "vmemmap",
            LayoutKind::KernelImage => "kernel image",
            LayoutKind::Modules => "modules",
            LayoutKind::Fixmap => "fixmap",
            LayoutKind::PerCpu => "per-CPU areas",
            LayoutKind::Unused => "unused",
        }
    }
}

/// FNV-1a over little-endian words; used for the layout hash only.
pub const fn fnv1a(words: &[u64]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < words.len() {
        let bytes = words[i].to_le_bytes();
        let mut j = 0;
        while j < bytes.len() {
            hash = (hash ^ bytes[j] as u64).wrapping_mul(0x0100_0000_01b3);
            j += 1;
        }
        i += 1;
    }
    hash
}
