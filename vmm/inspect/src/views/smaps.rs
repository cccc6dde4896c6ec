//! What is resident of a VMA, counted from the page tables (Linux: `struct mem_size_stats`, `smaps_account`).

use std::fmt;

use memvisor_abi::{Page, PageFlags, Vma, vm_flags};
use serde::Serialize;

use crate::{Entry, EntryKind, Guest, GuestError, MapCounts, MemorySource, UserEntry};

/// KiB, as /proc/PID/smaps has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Smaps {
    /// Size of the VMA.
    pub size: u64,
    /// Mapped pages; pages on the move included, the zero page not.
    pub rss: u64,
    /// Mapped pages, each divided by the entries that map it.
    pub pss: u64,
    /// Of `pss`, what is dirty.
    pub pss_dirty: u64,
    /// Pages that several entries map, clean.
    pub shared_clean: u64,
    /// Pages that several entries map, dirty.
    pub shared_dirty: u64,
    /// Pages that one entry maps, clean.
    pub private_clean: u64,
    /// Pages that one entry maps, dirty.
    pub private_dirty: u64,
    /// Pages with the accessed bit or PG_referenced.
    pub referenced: u64,
    /// Anonymous pages.
    pub anonymous: u64,
    /// Of those, given away by MADV_FREE, and not written to since.
    pub lazyfree: u64,
    /// `pss` if the VMA is locked.
    pub locked: u64,
    /// In swap areas.
    pub swap: u64,
    /// Two letters a flag.
    pub vm_flags: String,
}

/// Flags in Linux's order (Linux: `show_smap_vma_flags`).
const MNEMONICS: [(u64, &str); 22] = [
    (vm_flags::READ, "rd"),
    (vm_flags::WRITE, "wr"),
    (vm_flags::EXEC, "ex"),
    (vm_flags::SHARED, "sh"),
    (vm_flags::MAYREAD, "mr"),
    (vm_flags::MAYWRITE, "mw"),
    (vm_flags::MAYEXEC, "me"),
    (vm_flags::MAYSHARE, "ms"),
    (vm_flags::GROWSDOWN, "gd"),
    (vm_flags::PFNMAP, "pf"),
    (vm_flags::LOCKED, "lo"),
    (vm_flags::IO, "io"),
    (vm_flags::SEQ_READ, "sr"),
    (vm_flags::RAND_READ, "rr"),
    (vm_flags::DONTCOPY, "dc"),
    (vm_flags::DONTEXPAND, "de"),
    (vm_flags::ACCOUNT, "ac"),
    (vm_flags::NORESERVE, "nr"),
    (vm_flags::WIPEONFORK, "wf"),
    (vm_flags::DONTDUMP, "dd"),
    (vm_flags::MIXEDMAP, "mm"),
    (vm_flags::HUGEPAGE, "hg"),
];

/// Bits below a page that `pss` is kept in (Linux: `PSS_SHIFT`).
const PSS_SHIFT: u32 = 12;
const KIB: u64 = 4;

impl Smaps {
    /// Counts the entries of a VMA; `counts` has those of all address spaces.
    pub(super) fn new<'e, S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        vma: &Vma,
        entries: impl Iterator<Item = &'e UserEntry>,
        counts: &MapCounts,
    ) -> Result<Smaps, GuestError> {
        let letters = MNEMONICS.iter().filter(|(bit, _)| vma.flags & bit != 0).map(|(_, letters)| *letters);
        let mut sums = Smaps {
            size: vma.end.saturating_sub(vma.start) >> 10,
            vm_flags: letters.collect::<Vec<_>>().join(" "),
            ..Smaps::default()
        };
        let (mut pss, mut pss_dirty) = (0, 0);
        let zero = guest.zero_pfn();
        for entry in entries.filter(|entry| Some(entry.pfn) != zero && entry.kind != EntryKind::Unknown) {
            if entry.kind == EntryKind::Swap {
                sums.swap += KIB;
                continue;
            }
            let page = guest.page(entry.pfn)?.unwrap_or_default();
            let moving = entry.kind == EntryKind::Migration;
            let maps = if moving { 1 } else { counts.of(entry.pfn).max(1) };
            let kib = KIB.saturating_mul(entry.frames);
            let dirty = entry.entry.has(Entry::DIRTY) || page.page_flags().contains(PageFlags::DIRTY);
            let touched =
                entry.entry.has(Entry::ACCESSED) || page.page_flags().contains(PageFlags::REFERENCED);
            sums.rss += kib;
            let anon = page.mapping & Page::MAPPING_ANON != 0;
            let lazy = anon && !dirty && !page.page_flags().contains(PageFlags::SWAPBACKED);
            sums.anonymous += if anon { kib } else { 0 };
            sums.lazyfree += if lazy { kib } else { 0 };
            sums.referenced += if touched { kib } else { 0 };
            let share = (kib << (10 + PSS_SHIFT)) / u64::from(maps);
            pss += share;
            pss_dirty += if dirty { share } else { 0 };
            *match (maps > 1, dirty) {
                (true, false) => &mut sums.shared_clean,
                (true, true) => &mut sums.shared_dirty,
                (false, false) => &mut sums.private_clean,
                (false, true) => &mut sums.private_dirty,
            } += kib;
        }
        (sums.pss, sums.pss_dirty) = (pss >> (10 + PSS_SHIFT), pss_dirty >> (10 + PSS_SHIFT));
        sums.locked = if vma.flags & vm_flags::LOCKED != 0 { sums.pss } else { 0 };
        Ok(sums)
    }
}

impl fmt::Display for Smaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("Size", self.size),
            ("KernelPageSize", KIB),
            ("MMUPageSize", KIB),
            ("Rss", self.rss),
            ("Pss", self.pss),
            ("Pss_Dirty", self.pss_dirty),
            ("Shared_Clean", self.shared_clean),
            ("Shared_Dirty", self.shared_dirty),
            ("Private_Clean", self.private_clean),
            ("Private_Dirty", self.private_dirty),
            ("Referenced", self.referenced),
            ("Anonymous", self.anonymous),
            ("LazyFree", self.lazyfree),
            // What this kernel has not.
            ("AnonHugePages", 0),
            ("ShmemPmdMapped", 0),
            ("FilePmdMapped", 0),
            ("Shared_Hugetlb", 0),
            ("Private_Hugetlb", 0),
            ("Swap", self.swap),
            ("Locked", self.locked),
        ];
        for (name, kib) in rows {
            writeln!(f, "{:<16}{kib:>8} kB", format!("{name}:"))?;
        }
        writeln!(f, "THPeligible:    0\nVmFlags: {} ", self.vm_flags)
    }
}
