//! Every entry that maps a frame, found twice: by a walk of all page tables, and by the lists that the guest itself follows.

use std::collections::BTreeMap;
use std::fmt;

use memvisor_abi::Page;
use serde::Serialize;

use crate::{EntryKind, Guest, GuestError, MemorySource, RmapIndex};

/// `inspect page PFN --rmap`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RmapView {
    /// Frame.
    pub pfn: u64,
    /// Whether it is the shared frame of zeroes, which nobody counts.
    pub zero_page: bool,
    /// References, as the descriptor says; `None` without descriptor.
    pub refcount: Option<i32>,
    /// Entries that map it, as the descriptor says.
    pub mapcount: Option<i32>,
    /// Whom the descriptor names as owner, in words.
    pub owner: String,
    /// Entries, by process and address.
    pub entries: Vec<RmapEntry>,
    /// What is wrong with the lists or the page tables, in words.
    pub problems: Vec<String>,
}

/// An entry, or a place where the lists lead to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RmapEntry {
    /// Process.
    pub pid: u32,
    /// Address.
    #[serde(serialize_with = "crate::hex")]
    pub va: u64,
    /// present, no access, migration; `None` if only the lists lead here.
    pub kind: Option<&'static str>,
    /// Flags of the entry, in words.
    pub flags: String,
    /// A walk of the process's page tables found it.
    pub by_walk: bool,
    /// The lists lead to it.
    pub by_lists: bool,
}

impl RmapView {
    /// Looks for `pfn` in all published address spaces.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, pfn: u64) -> Result<RmapView, GuestError> {
        let page = guest.page(pfn)?;
        let spaces = guest.mm_spaces()?;
        let mut problems = Vec::new();
        let mut found: BTreeMap<(u32, u64), RmapEntry> = BTreeMap::new();
        let row = |pid, va| RmapEntry {
            pid,
            va,
            kind: None,
            flags: String::new(),
            by_walk: false,
            by_lists: false,
        };
        for space in &spaces {
            let pid = space.space.pid;
            let walked = guest.user_entries(space, guest.entry_limit());
            if !walked.complete {
                problems.push(format!("the page tables of pid {pid} cannot be walked whole"));
            }
            for entry in walked
                .entries
                .iter()
                .filter(|entry| !matches!(entry.kind, EntryKind::Unknown | EntryKind::Swap))
            {
                let Some(offset) = pfn.checked_sub(entry.pfn).filter(|offset| *offset < entry.frames) else {
                    continue;
                };
                let va = entry.va.wrapping_add(offset << memvisor_abi::PAGE_SHIFT);
                let row = found.entry((pid, va)).or_insert_with(|| row(pid, va));
                (row.kind, row.flags) = (Some(entry.kind.name()), entry.entry.describe(1));
                row.by_walk = true;
            }
        }
        let owner = match page {
            None => "no descriptor".to_owned(),
            Some(page) if page.mapping == 0 => "nobody".to_owned(),
            Some(page) if page.mapping & Page::MAPPING_ANON != 0 => {
                format!("anon_vma {:#x}, index {:#x}", page.mapping & !Page::MAPPING_ANON, page.index)
            }
            Some(page) => format!("mapping {:#x}, index {:#x}", page.mapping, page.index),
        };
        let user = page.filter(|page| page.kind == memvisor_abi::PageKind::User as u8 && page.mapping != 0);
        if let Some(page) = user {
            let mut index = RmapIndex::new(&spaces);
            let list = index.list(guest, page.mapping);
            problems.extend(list.problem.map(|problem| problem.to_string()));
            for gpa in list.items.clone() {
                if index.vma(gpa).is_none() {
                    problems.push(format!(
                        "the VMA at {gpa:#x} is on the list, and in no published address space"
                    ));
                }
            }
            for place in index.places(guest, &page) {
                let Some(space) = spaces.get(place.space) else { continue };
                let key = (space.space.pid, place.va);
                found.entry(key).or_insert_with(|| row(key.0, key.1)).by_lists = true;
            }
        }
        // A VMA on the list in which the page is not mapped now is no difference: the page may be copied or not there yet.
        found.retain(|_, row| row.by_walk);
        Ok(RmapView {
            pfn,
            zero_page: guest.zero_pfn() == Some(pfn),
            refcount: page.map(|page| page.refcount),
            mapcount: page.map(|page| page.mapcount),
            owner,
            entries: found.into_values().collect(),
            problems,
        })
    }
}

impl fmt::Display for RmapView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.entries.len();
        writeln!(f, "page frame {:#x}: {count} entries of user space, owner {}", self.pfn, self.owner)?;
        if let (Some(refcount), Some(mapcount)) = (self.refcount, self.mapcount) {
            writeln!(
                f,
                "  refcount {refcount}, mapcount {mapcount} (one less than the entries that map it)"
            )?;
        }
        for entry in &self.entries {
            let kind = entry.kind.unwrap_or("-");
            writeln!(f, "  pid {:>5} {:#018x} {kind:<9} {}", entry.pid, entry.va, entry.flags)?;
            if !entry.by_lists && !self.zero_page {
                writeln!(f, "    ! the guest's own lists do not lead here")?;
            }
        }
        self.problems.iter().try_for_each(|problem| writeln!(f, "! {problem}"))
    }
}
