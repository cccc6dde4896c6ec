//! On which nodes the pages of a process lie, and from where they are to come (Linux: /proc/PID/numa_maps, fs/proc/task_mmu.c).
//!
//! Pages are found in the page tables, and their nodes in the descriptors. What a task's policy is is not published: a VMA without one of its
//! own reads `default`.

use std::collections::BTreeMap;
use std::fmt;

use memvisor_abi::{PTE_SPECIAL, Page, PageFlags, Vma, mpol};
use serde::Serialize;

use super::MapsView;
use crate::{Entry, Guest, GuestError, MapCounts, MemorySource};

/// `inspect proc PID/numa_maps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NumaMapsView {
    /// VMAs, ascending.
    pub vmas: Vec<NumaMapsRow>,
}

/// A VMA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NumaMapsRow {
    /// First address.
    #[serde(serialize_with = "crate::hex")]
    pub start: u64,
    /// Its policy, as Linux writes it.
    pub policy: String,
    /// `file=PATH`, `heap`, `stack`, or nothing.
    pub place: String,
    /// Mapped pages, without the zero page and devices.
    pub pages: u64,
    /// Anonymous pages.
    pub anon: u64,
    /// Pages that were written.
    pub dirty: u64,
    /// The most entries that map one of them.
    pub mapcount_max: u32,
    /// Pages in the swap cache.
    pub swapcache: u64,
    /// Pages on an active list, or locked.
    pub active: u64,
    /// Pages on their way to a device.
    pub writeback: u64,
    /// Pages by node.
    pub nodes: BTreeMap<u32, u64>,
}

/// The policy of a VMA as Linux writes it (Linux: `mpol_to_str`).
pub(super) fn policy(vma: &Vma) -> String {
    let mode = match vma.policy {
        mpol::DEFAULT => "default".to_owned(),
        mpol::PREFERRED => "prefer".to_owned(),
        mpol::BIND => "bind".to_owned(),
        mpol::INTERLEAVE => "interleave".to_owned(),
        mpol::LOCAL => "local".to_owned(),
        mpol::PREFERRED_MANY => "prefer (many)".to_owned(),
        mode => format!("unknown ({mode})"),
    };
    if vma.policy_nodes == 0 { mode } else { format!("{mode}:{}", ranges(vma.policy_nodes)) }
}

/// Numbers and ranges of bits.
fn ranges(bits: u64) -> String {
    let set = |bit: &u32| bits.checked_shr(*bit).unwrap_or(0) & 1 != 0;
    let firsts = (0..u64::BITS).filter(|bit| set(bit) && (*bit == 0 || !set(&(bit - 1))));
    let parts = firsts.map(|first| match (first..u64::BITS).take_while(set).last() {
        Some(last) if last > first => format!("{first}-{last}"),
        _ => first.to_string(),
    });
    parts.collect::<Vec<_>>().join(",")
}

impl NumaMapsView {
    /// Reads the VMAs of the process with this number and walks the page tables of all; `None` if it has no published address space.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        pid: u32,
    ) -> Result<Option<NumaMapsView>, GuestError> {
        let Some(maps) = MapsView::new(guest, pid, false)? else { return Ok(None) };
        let spaces = guest.mm_spaces()?;
        let Some(space) = spaces.iter().find(|space| space.space.pid == pid) else { return Ok(None) };
        let limit = guest.entry_limit();
        let (mut counts, mut own) = (MapCounts::new(limit), Vec::new());
        for other in &spaces {
            let entries = guest.user_entries(other, limit);
            counts.add(&entries);
            if other.space.mm == space.space.mm {
                own = entries.entries;
            }
        }
        let zero = guest.zero_pfn();
        let mut vmas = Vec::new();
        for (at, named) in space.vmas.items.iter().zip(&maps.vmas) {
            let vma = &at.vma;
            let heap = vma.start <= space.mm.brk && vma.end >= space.mm.start_brk;
            let mut row = NumaMapsRow {
                start: vma.start,
                policy: policy(vma),
                place: match named.name.as_str() {
                    name if vma.mapping != 0 => format!("file={}", escaped(name)),
                    _ if heap => "heap".to_owned(),
                    "[stack]" => "stack".to_owned(),
                    _ => String::new(),
                },
                ..NumaMapsRow::default()
            };
            let from = own.partition_point(|entry| entry.va < vma.start);
            for entry in own.iter().skip(from).take_while(|entry| entry.va < vma.end) {
                let special = entry.entry.as_u64() & PTE_SPECIAL != 0;
                if entry.kind.is_mapping() && !special && Some(entry.pfn) != zero {
                    let page = guest.page(entry.pfn)?.unwrap_or_default();
                    row.add(&page, entry.entry, counts.of(entry.pfn));
                }
            }
            vmas.push(row);
        }
        Ok(Some(NumaMapsView { vmas }))
    }
}

/// Linux: `seq_file_path` with its set of characters.
fn escaped(path: &str) -> String {
    path.replace(' ', "\\040").replace('=', "\\075").replace('\t', "\\011").replace('\n', "\\012")
}

impl NumaMapsRow {
    fn add(&mut self, page: &Page, entry: Entry, mappers: u32) {
        let flags = page.page_flags();
        self.pages += 1;
        self.anon += u64::from(page.mapping & Page::MAPPING_ANON != 0);
        self.dirty += u64::from(entry.has(Entry::DIRTY) || flags.contains(PageFlags::DIRTY));
        self.mapcount_max = self.mapcount_max.max(mappers);
        self.swapcache += u64::from(flags.contains(PageFlags::SWAPCACHE));
        self.active += u64::from(flags.intersects(PageFlags::ACTIVE | PageFlags::UNEVICTABLE));
        self.writeback += u64::from(flags.contains(PageFlags::WRITEBACK));
        *self.nodes.entry(page.node()).or_default() += 1;
    }
}

impl fmt::Display for NumaMapsRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x} {}", self.start, self.policy)?;
        if !self.place.is_empty() {
            write!(f, " {}", self.place)?;
        }
        if self.pages > 0 {
            let fields = [
                ("anon", self.anon, self.anon > 0),
                ("dirty", self.dirty, self.dirty > 0),
                ("mapped", self.pages, self.pages != self.anon && self.pages != self.dirty),
                ("mapmax", self.mapcount_max.into(), self.mapcount_max > 1),
                ("swapcache", self.swapcache, self.swapcache > 0),
                ("active", self.active, self.active < self.pages),
                ("writeback", self.writeback, self.writeback > 0),
            ];
            for (name, value, _) in fields.iter().filter(|(_, _, shown)| *shown) {
                write!(f, " {name}={value}")?;
            }
            self.nodes.iter().try_for_each(|(node, pages)| write!(f, " N{node}={pages}"))?;
            write!(f, " kernelpagesize_kB=4")?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_and_pages_read_as_on_linux() {
        let vma = |policy, policy_nodes| Vma { policy, policy_nodes, ..Vma::default() };
        assert_eq!(policy(&vma(mpol::BIND, 0b10_0111 | 1 << 63)), "bind:0-2,5,63");
        assert_eq!(policy(&vma(mpol::DEFAULT, 0)), "default");
        assert_eq!(policy(&vma(mpol::PREFERRED, 8)), "prefer:3");
        assert_eq!(policy(&vma(9, 1)), "unknown (9):0");
        let row = NumaMapsRow {
            start: 0x7f00_0000_0000,
            policy: "interleave:0-1".to_owned(),
            place: format!("file={}", escaped("/dev/zero (deleted)")),
            pages: 4,
            dirty: 4,
            mapcount_max: 2,
            active: 4,
            nodes: BTreeMap::from([(0, 2), (1, 2)]),
            ..NumaMapsRow::default()
        };
        assert_eq!(
            row.to_string(),
            "7f0000000000 interleave:0-1 file=/dev/zero\\040(deleted) dirty=4 mapmax=2 N0=2 N1=2 kernelpagesize_kB=4\n"
        );
    }
}
