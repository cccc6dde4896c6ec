//! What the guest was told about physical memory, and what its early allocator made of it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An E820 entry as published by the guest (Linux: `struct e820_entry`, padded to eight bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct E820Entry {
    /// First byte, guest-physical.
    pub addr: u64,
    /// Length in bytes. `addr + size` may wrap in a raw map.
    pub size: u64,
    /// See [`E820Type`]; raw maps may hold any number.
    pub kind: u32,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<E820Entry>() == 24);

/// Types of E820 entries (ACPI 6.5 section 15, Linux: `enum e820_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum E820Type {
    /// Usable RAM.
    Ram = 1,
    /// Reserved by firmware.
    Reserved = 2,
    /// ACPI tables, reclaimable after they are read.
    Acpi = 3,
    /// ACPI non-volatile storage.
    Nvs = 4,
    /// RAM in which errors were detected.
    Unusable = 5,
    /// Persistent memory.
    Pmem = 7,
}

impl E820Type {
    /// The type of a raw number; `None` for numbers that the specification does not define.
    pub const fn from_raw(raw: u32) -> Option<E820Type> {
        Some(match raw {
            1 => E820Type::Ram,
            2 => E820Type::Reserved,
            3 => E820Type::Acpi,
            4 => E820Type::Nvs,
            5 => E820Type::Unusable,
            7 => E820Type::Pmem,
            _ => return None,
        })
    }

    /// The words of /proc/iomem for a raw type (Linux: `e820_type_to_string`).
    pub const fn iomem_name(raw: u32) -> &'static str {
        match E820Type::from_raw(raw) {
            Some(E820Type::Ram) => "System RAM",
            Some(E820Type::Acpi) => "ACPI Tables",
            Some(E820Type::Nvs) => "ACPI Non-volatile Storage",
            Some(E820Type::Unusable) => "Unusable memory",
            Some(E820Type::Pmem) => "Persistent Memory",
            Some(E820Type::Reserved) | None => "Reserved",
        }
    }

    /// The words that Linux prints for a raw type in its boot log.
    pub const fn name(raw: u32) -> &'static str {
        match E820Type::from_raw(raw) {
            Some(E820Type::Ram) => "usable",
            Some(E820Type::Reserved) => "reserved",
            Some(E820Type::Acpi) => "ACPI data",
            Some(E820Type::Nvs) => "ACPI NVS",
            Some(E820Type::Unusable) => "unusable",
            Some(E820Type::Pmem) => "persistent (type 7)",
            None => "unknown",
        }
    }
}

/// A region of memblock (Linux: `struct memblock_region`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemblockRegion {
    /// First byte, guest-physical.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
    /// NUMA node, or [`crate::NODE_NONE`].
    pub node: u32,
    /// 0; room for Linux's `enum memblock_flags`.
    pub flags: u32,
}
const _: () = assert!(size_of::<MemblockRegion>() == 24);
