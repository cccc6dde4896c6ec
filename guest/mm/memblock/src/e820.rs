//! The firmware's memory map (Linux: arch/x86/kernel/e820.c).
//!
//! A raw map may be unsorted, overlapping, duplicated, empty in places, wrapping round the end of
//! the address space, and of types nobody knows. [`E820Table::sanitize`] makes a map of it in
//! which, as in Linux's `e820__update_table`:
//!
//! 1. entries ascend and do not overlap;
//! 2. an address has the numerically highest type of all raw entries that cover it, known or not;
//! 3. neighbours of one type are one entry, except of type [`SOFT_RESERVED`];
//! 4. no entry is empty, and none has type 0, which Linux uses for "nothing here".

use core::fmt;

use memvisor_abi::{E820Entry, E820Type};

/// Entries a table holds (Linux: `E820_MAX_ENTRIES` with `MAX_NUMNODES` 64: 128 of the zero page
/// and three a node).
pub const E820_MAX_ENTRIES: usize = 128 + 3 * 64;

/// Linux's `E820_TYPE_SOFT_RESERVED`: memory for a dedicated purpose, of which every entry stays
/// a device of its own (`e820_nomerge`).
const SOFT_RESERVED: u32 = 0xefff_ffff;

/// The table has no room for another entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Full;

impl fmt::Display for E820Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e820 table is full at {E820_MAX_ENTRIES} entries: the entry is ignored")
    }
}

/// An E820 map (Linux: `struct e820_table`).
///
/// ```
/// use mm_memblock::{E820Entry, E820Table};
/// let entry = |addr, size, kind| E820Entry { addr, size, kind, reserved: 0 };
/// let mut raw = E820Table::new();
/// raw.push(entry(0, 0x10_0000, 1)).unwrap();
/// raw.push(entry(0x9_fc00, 0x400, 2)).unwrap();
/// let map = raw.sanitize(46);
/// assert_eq!(
///     map.entries(),
///     [entry(0, 0x9_fc00, 1), entry(0x9_fc00, 0x400, 2), entry(0xa_0000, 0x6_0000, 1)]
/// );
/// ```
#[derive(Clone, Debug)]
pub struct E820Table {
    len: usize,
    entries: [E820Entry; E820_MAX_ENTRIES],
}

impl E820Table {
    /// An empty table.
    pub const fn new() -> E820Table {
        const EMPTY: E820Entry = E820Entry { addr: 0, size: 0, kind: 0, reserved: 0 };
        E820Table { len: 0, entries: [EMPTY; E820_MAX_ENTRIES] }
    }

    /// Appends an entry as the firmware gave it.
    ///
    /// # Errors
    /// [`E820Full`] past [`E820_MAX_ENTRIES`]; the table is unchanged.
    pub fn push(&mut self, entry: E820Entry) -> Result<(), E820Full> {
        let slot = self.entries.get_mut(self.len).ok_or(E820Full)?;
        *slot = entry;
        self.len += 1;
        Ok(())
    }

    /// The entries in table order.
    pub fn entries(&self) -> &[E820Entry] {
        self.entries.get(..self.len).unwrap_or(&[])
    }

    /// The sanitized map: the module header's rules, then RAM that does not fit into `phys_bits`
    /// of physical address cut off (64 or more keeps all).
    ///
    /// If a hostile map has more pieces than a table holds, the ones past that are missing, lowest
    /// addresses first, as in Linux.
    ///
    /// Differs from Linux: an entry that wraps makes `e820__update_table` give up on the whole map,
    /// which is then used raw; here only that entry is ignored. Linux leaves the map at full width
    /// and limits `max_pfn` (`e820__end_of_ram_pfn`); here RAM that no CPU can address goes at once,
    /// so that no later reader has to remember it.
    #[must_use]
    pub fn sanitize(&self, phys_bits: u32) -> E820Table {
        let mut out = E820Table::new();
        self.sanitize_into(phys_bits, &mut out);
        out
    }

    /// [`E820Table::sanitize`] into a table that exists already, for callers with small stacks.
    pub fn sanitize_into(&self, phys_bits: u32, out: &mut E820Table) {
        out.len = 0;
        self.update_table(out);
        out.trim_ram(phys_bits);
    }

    /// One past the last frame of RAM below `limit_pfn`; 0 without RAM (Linux: `e820_end_pfn`).
    pub fn end_of_ram_pfn(&self, limit_pfn: u64) -> u64 {
        self.entries()
            .iter()
            .filter(|entry| entry.kind == E820Type::Ram as u32)
            .filter(|entry| entry.addr >> memvisor_abi::PAGE_SHIFT < limit_pfn)
            .map(|entry| (entry.addr.saturating_add(entry.size) >> memvisor_abi::PAGE_SHIFT).min(limit_pfn))
            .max()
            .unwrap_or(0)
    }

    /// Sweeps over the starts and ends of the entries in address order, with the set of entries
    /// that cover the current address: n log n, times the depth of overlaps.
    fn update_table(&self, out: &mut E820Table) {
        let mut points = [0u16; 2 * E820_MAX_ENTRIES];
        let count = self.change_points(&mut points);
        let points = points.get_mut(..count).unwrap_or(&mut []);
        points.sort_unstable_by_key(|point| self.address(*point));

        let mut overlap = [0u16; E820_MAX_ENTRIES];
        let mut depth = 0;
        let mut open: Option<E820Entry> = None;
        let mut at = 0;
        while let Some(&first) = points.get(at) {
            let addr = self.address(first);
            // All points of one address count at once, so that an entry which ends where another of
            // its type starts does not end a region.
            while let Some(&point) = points.get(at).filter(|point| self.address(**point) == addr) {
                let index = point >> 1;
                if point & 1 == 0 {
                    if let Some(slot) = overlap.get_mut(depth) {
                        *slot = index;
                        depth += 1;
                    }
                } else if let Some(place) = overlap.iter().take(depth).position(|entry| *entry == index) {
                    depth -= 1;
                    overlap.swap(place, depth);
                }
                at += 1;
            }
            let kind =
                overlap.iter().take(depth).map(|index| self.entry(*index).kind).max().unwrap_or_default();
            if open.is_some_and(|region| region.kind == kind && kind != SOFT_RESERVED) {
                continue;
            }
            if let Some(mut region) = open.take() {
                region.size = addr - region.addr;
                if out.push(region).is_err() {
                    return;
                }
            }
            if kind != 0 {
                open = Some(E820Entry { addr, size: 0, kind, reserved: 0 });
            }
        }
    }

    /// Writes index * 2 for the start and index * 2 + 1 for the end of every usable entry; returns
    /// how many.
    fn change_points(&self, points: &mut [u16]) -> usize {
        let usable = self
            .entries()
            .iter()
            .zip(0u16..)
            .filter(|(entry, _)| entry.size != 0 && entry.addr.checked_add(entry.size).is_some());
        let mut count = 0;
        for (pair, (_, index)) in points.chunks_exact_mut(2).zip(usable) {
            pair.copy_from_slice(&[index << 1, index << 1 | 1]);
            count += 2;
        }
        count
    }

    fn address(&self, point: u16) -> u64 {
        let entry = self.entry(point >> 1);
        if point & 1 == 0 { entry.addr } else { entry.addr.wrapping_add(entry.size) }
    }

    fn entry(&self, index: u16) -> E820Entry {
        self.entries.get(usize::from(index)).copied().unwrap_or_default()
    }

    /// Cuts RAM at `1 << phys_bits`; other types describe what is no memory and stay.
    fn trim_ram(&mut self, phys_bits: u32) {
        let Some(limit) = 1u64.checked_shl(phys_bits) else { return };
        let mut kept = 0;
        for index in 0..self.len {
            let Some(mut entry) = self.entries.get(index).copied() else { break };
            if entry.kind == E820Type::Ram as u32 {
                entry.size = entry.size.min(limit.saturating_sub(entry.addr));
            }
            if entry.size != 0
                && let Some(slot) = self.entries.get_mut(kept)
            {
                *slot = entry;
                kept += 1;
            }
        }
        self.len = kept;
    }
}

impl Default for E820Table {
    fn default() -> E820Table {
        E820Table::new()
    }
}
