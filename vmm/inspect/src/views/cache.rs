//! The page cache: which pages of which files are in memory, and where on the LRU lists they are (Linux: what fincore(1) and page-types(1) tell).
//!
//! Files are found from the descriptors: what has no page in memory is not there.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use memvisor_abi::{Mapping, PAGE_SIZE, Page, PageFlags, PageKind};
use serde::Serialize;

use crate::{CachedPage, Guest, GuestError, MemorySource};

/// `inspect cache`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheView {
    /// Files with pages in memory, those with most pages first.
    pub files: Vec<CachedFile>,
    /// Pages of all.
    pub pages: u64,
}

/// A file, or another mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedFile {
    /// Path by which it was opened first; empty if nobody opened it.
    pub path: String,
    /// Where its pages belong: `disk`, `memory`, `sysv` or `device`.
    pub kind: &'static str,
    /// Address of the mapping.
    #[serde(serialize_with = "crate::hex")]
    pub mapping: u64,
    /// Number of the file system; 0 of what is no file.
    pub dev: u64,
    /// Number of the inode; 0 of what is no file.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Pages in memory.
    pub cached: u64,
    /// To be written.
    pub dirty: u64,
    /// Being written.
    pub writeback: u64,
    /// Mapped by programs.
    pub mapped: u64,
    /// On active lists.
    pub active: u64,
    /// On inactive lists.
    pub inactive: u64,
    /// Never reclaimed as they are.
    pub unevictable: u64,
}

/// `inspect cache FILE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheFileView {
    /// The file.
    pub file: CachedFile,
    /// Its pages, neighbours that are alike as one.
    pub ranges: Vec<CacheRange>,
}

/// Pages in a row that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheRange {
    /// First page of the file.
    pub first: u64,
    /// Pages.
    pub pages: u64,
    /// The first one's frame.
    pub pfn: u64,
    /// `dirty`, `writeback`, `mapped`, `referenced`, `locked` and the like.
    pub flags: Vec<&'static str>,
    /// The LRU list, or `-` for pages that are on none.
    pub list: &'static str,
    /// Pages that are reclaimed before the first and before the last to go of these, on their list.
    pub ahead: Option<(u64, u64)>,
}

const FLAGS: [(PageFlags, &str); 8] = [
    (PageFlags::DIRTY, "dirty"),
    (PageFlags::WRITEBACK, "writeback"),
    (PageFlags::REFERENCED, "referenced"),
    (PageFlags::ACTIVE, "active"),
    (PageFlags::UNEVICTABLE, "unevictable"),
    (PageFlags::WORKINGSET, "workingset"),
    (PageFlags::RECLAIM, "reclaim"),
    (PageFlags::LOCKED, "locked"),
];

/// Mappings that pages name, with their pages.
type Named = BTreeMap<u64, Vec<(u64, Page)>>;

fn named<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Named, GuestError> {
    let mut named = Named::new();
    guest.for_each_page(|pfn, page| {
        let is_file = page.kind == PageKind::User as u8 && page.mapping & Page::MAPPING_ANON == 0;
        if is_file && page.mapping != 0 && page.refcount > 0 {
            named.entry(page.mapping).or_default().push((pfn, *page));
        }
    })?;
    Ok(named)
}

/// The path of a file; of a long one the end.
pub(super) fn path(mapping: &Mapping) -> String {
    let len = mapping.name.iter().position(|byte| *byte == 0).unwrap_or(mapping.name.len());
    let text = String::from_utf8_lossy(mapping.name.get(..len).unwrap_or_default()).into_owned();
    // Only the end of a long one is there.
    if text.is_empty() || text.starts_with('/') { text } else { format!("...{text}") }
}

fn row(gpa: u64, mapping: &Mapping, pages: &[(u64, Page)]) -> CachedFile {
    let count = |is: &dyn Fn(&Page) -> bool| pages.iter().filter(|(_, page)| is(page)).count() as u64;
    let with = |flag| count(&|page: &Page| page.page_flags().contains(flag));
    let on_list = |active| {
        count(&|page: &Page| {
            let flags = page.page_flags();
            flags.contains(PageFlags::LRU)
                && !flags.contains(PageFlags::UNEVICTABLE)
                && flags.contains(PageFlags::ACTIVE) == active
        })
    };
    let written_back = mapping.flags & Mapping::WRITTEN_BACK != 0;
    CachedFile {
        path: path(mapping),
        kind: match mapping.flags {
            flags if flags & Mapping::DEVICE != 0 => "device",
            flags if flags & Mapping::SYSV != 0 => "sysv",
            _ if written_back => "disk",
            _ => "memory",
        },
        mapping: gpa,
        dev: mapping.dev,
        ino: mapping.ino,
        size: mapping.size,
        cached: pages.len() as u64,
        // In memory alone a page is never clean.
        dirty: if written_back { with(PageFlags::DIRTY) } else { 0 },
        writeback: with(PageFlags::WRITEBACK),
        mapped: count(&|page: &Page| page.mapcount >= 0),
        active: on_list(true),
        inactive: on_list(false),
        unevictable: with(PageFlags::UNEVICTABLE),
    }
}

impl CacheView {
    /// Looks at every descriptor.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<CacheView, GuestError> {
        let mut files = Vec::new();
        for (gpa, pages) in named(guest)? {
            // What is no mapping is an audit's matter.
            if let Ok(mapping) = guest.mapping(gpa) {
                files.push(row(gpa, &mapping, &pages));
            }
        }
        files.sort_by_key(|file| (u64::MAX - file.cached, file.mapping));
        let pages = files.iter().map(|file| file.cached).sum();
        Ok(CacheView { files, pages })
    }
}

impl CacheFileView {
    /// The file with that path, or the mapping with that address; `None` if it has no pages in memory.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        file: &str,
    ) -> Result<Option<CacheFileView>, GuestError> {
        let address = file.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        for (gpa, pages) in named(guest)? {
            let Ok(mapping) = guest.mapping(gpa) else { continue };
            if address != Some(gpa) && path(&mapping) != file {
                continue;
            }
            let found = guest.cached_pages(&mapping);
            let lru = Positions::read(guest)?;
            let by_frame: HashMap<u64, &Page> = pages.iter().map(|(pfn, page)| (*pfn, page)).collect();
            let ranges = ranges(&found, &by_frame, &lru);
            return Ok(Some(CacheFileView { file: row(gpa, &mapping, &pages), ranges }));
        }
        Ok(None)
    }
}

/// Where pages stand on the LRU lists: the list, and how many are reclaimed before.
struct Positions(HashMap<u64, (&'static str, u64)>);

impl Positions {
    fn read<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Positions, GuestError> {
        let mut positions = HashMap::new();
        for (node, lruvec) in guest.lruvecs()?.iter().enumerate() {
            for walk in guest.lru_lists(node, lruvec)? {
                for (ahead, pfn) in (0..).zip(walk.pfns.iter().rev()) {
                    positions.insert(*pfn, (walk.kind.name(), ahead));
                }
            }
        }
        Ok(Positions(positions))
    }
}

fn ranges(found: &[CachedPage], pages: &HashMap<u64, &Page>, lru: &Positions) -> Vec<CacheRange> {
    let mut ranges: Vec<CacheRange> = Vec::new();
    for cached in found {
        let Some(page) = pages.get(&cached.pfn) else { continue };
        let mut flags: Vec<&'static str> = FLAGS
            .iter()
            .filter(|(flag, _)| page.page_flags().contains(*flag))
            .map(|(_, name)| *name)
            .collect();
        if page.mapcount >= 0 {
            flags.push("mapped");
        }
        let place = lru.0.get(&cached.pfn);
        let (list, ahead) = place.map_or(("-", None), |(list, ahead)| (*list, Some((*ahead, *ahead))));
        if let Some(last) = ranges.last_mut()
            && last.first + last.pages == cached.index
            && last.flags == flags
            && last.list == list
        {
            last.pages += 1;
            last.ahead = last.ahead.zip(ahead).map(|(all, one)| (all.0.min(one.0), all.1.max(one.1)));
        } else {
            ranges.push(CacheRange { first: cached.index, pages: 1, pfn: cached.pfn, flags, list, ahead });
        }
    }
    ranges
}

impl fmt::Display for CachedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            if self.path.is_empty() { format!("mapping {:#x}", self.mapping) } else { self.path.clone() };
        writeln!(
            f,
            "{:<6} {:>12} {:>8} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8}  {name}",
            self.kind,
            self.size,
            self.cached,
            self.dirty,
            self.writeback,
            self.mapped,
            self.active,
            self.inactive,
            self.unevictable
        )
    }
}

const HEADING: &str =
    "kind          bytes   cached    dirty writeback   mapped   active inactive   locked  file";

impl fmt::Display for CacheView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "page cache: {} pages of {} files", self.pages, self.files.len())?;
        writeln!(f, "{HEADING}")?;
        self.files.iter().try_for_each(|file| write!(f, "{file}"))
    }
}

impl fmt::Display for CacheFileView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.file.size.div_ceil(PAGE_SIZE);
        writeln!(f, "{} of {all} pages are in memory, in {} ranges", self.file.cached, self.ranges.len())?;
        writeln!(f, "{HEADING}\n{}", self.file)?;
        writeln!(f, "     offset    pages  first frame  list            reclaimed after  flags")?;
        for range in &self.ranges {
            let ahead = match range.ahead {
                Some((first, last)) if first == last => first.to_string(),
                Some((first, last)) => format!("{first} to {last}"),
                None => "-".to_owned(),
            };
            writeln!(
                f,
                "{:>#11x} {:>8}  {:>#11x}  {:<15} {ahead:>15}  {}",
                range.first * PAGE_SIZE,
                range.pages,
                range.pfn,
                range.list,
                range.flags.join(" ")
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(flags: PageFlags, mapcount: i32) -> Page {
        Page { flags: flags.bits(), mapcount, refcount: 1, kind: PageKind::User as u8, ..Page::default() }
    }

    #[test]
    fn neighbours_that_are_alike_are_one_range() {
        let clean = page(PageFlags::LRU, -1);
        let dirty = page(PageFlags::LRU | PageFlags::DIRTY, -1);
        let pages = HashMap::from([(10, &clean), (11, &clean), (12, &dirty), (13, &clean)]);
        let cached = |index, pfn| CachedPage { index, pfn, marks: 0 };
        let lru = Positions(HashMap::from([(10, ("inactive_file", 7)), (11, ("inactive_file", 3))]));
        let found = [cached(0, 10), cached(1, 11), cached(2, 12), cached(9, 13)];
        let ranges = ranges(&found, &pages, &lru);
        let shape: Vec<_> = ranges.iter().map(|range| (range.first, range.pages, range.list)).collect();
        assert_eq!(shape, [(0, 2, "inactive_file"), (2, 1, "-"), (9, 1, "-")]);
        assert_eq!(ranges[0].ahead, Some((3, 7)));
        assert_eq!(ranges[1].flags, ["dirty"]);
    }

    #[test]
    fn a_row_counts_what_its_pages_say() {
        let pages = [
            (1, page(PageFlags::LRU | PageFlags::DIRTY | PageFlags::ACTIVE, 0)),
            (2, page(PageFlags::LRU | PageFlags::WRITEBACK, -1)),
            (3, page(PageFlags::LRU | PageFlags::UNEVICTABLE, 0)),
        ];
        let mut mapping =
            Mapping { flags: Mapping::HOLDS_PAGES | Mapping::WRITTEN_BACK, ..Mapping::default() };
        mapping.name[..6].copy_from_slice(b"/data/");
        let row = row(0x1000, &mapping, &pages);
        assert_eq!((row.path.as_str(), row.kind, row.cached), ("/data/", "disk", 3));
        assert_eq!((row.dirty, row.writeback, row.mapped), (1, 1, 2));
        assert_eq!((row.active, row.inactive, row.unevictable), (1, 1, 1));
    }
}
