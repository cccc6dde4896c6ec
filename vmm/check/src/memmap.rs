//! Page descriptors.
//!
//! M1  `memmap.node`: the node bits of every initialised descriptor of RAM are the node whose range
//!     holds the frame.
//! M2  `memmap.zone`: the zone bits are the zone that the frame's address belongs to.
//! M3  `memmap.refcount`: a free frame has no references; a user frame has at least one, and its
//!     mapcount + 1 is the number of user page-table entries that map it.
//! M4  `memmap.reserved`: `PG_reserved` is set exactly on frames that memblock reserved.
//! M5  `memmap.flags`: a free frame has no mark of a list, of a cache or of a swap area: the next page in it would be taken for what the last
//!     one was (Linux: `PAGE_FLAGS_CHECK_AT_FREE`).

use memvisor_abi::{Page, PageFlags};

use crate::Rule;
use crate::claims::Owner;
use crate::context::Context;
use crate::frames::{Frames, find};
use crate::ledger::{Ledger, finding};
use crate::owner::{Owners, for_each_ram_page};
use crate::paging::Paging;

pub(crate) const NODE: Rule = Rule {
    name: "memmap.node",
    invariant: "node bits of descriptors follow from the nodes' ranges",
    reads: "descriptors; E820 map, Facts.node_memory",
    seeded: &["memmap-node"],
    hint: "memmap_init: set_page_links",
};
pub(crate) const ZONE: Rule = Rule {
    name: "memmap.zone",
    invariant: "zone bits of descriptors follow from the address",
    reads: "descriptors; E820 map",
    seeded: &[],
    hint: "memmap_init: set_page_links",
};
pub(crate) const REFCOUNT: Rule = Rule {
    name: "memmap.refcount",
    invariant: "free: 0 references; user: mapcount + 1 = user PTEs",
    reads: "descriptors, page tables, free lists",
    seeded: &["user-refcount", "mapcount-lost", "mapcount-extra", "migration-mapcount"],
    hint: "get_page and put_page, page_add_rmap and page_remove_rmap",
};
pub(crate) const RESERVED: Rule = Rule {
    name: "memmap.reserved",
    invariant: "PG_reserved is set on exactly what memblock reserved",
    reads: "descriptors, memblock_reserved",
    seeded: &[],
    hint: "memmap_init_reserved_pages, freeing of reserved memory",
};

pub(crate) const FLAGS: Rule = Rule {
    name: "memmap.flags",
    invariant: "a free frame has no marks of its last page",
    reads: "descriptors, free lists",
    seeded: &["free-swapbacked"],
    hint: "put_page, migration: who freed the page left its marks in place",
};

/// What a page is on a list, in a cache or in a swap area by. Its age may stay. (`movable.owner` has MOVABLE.)
const OF_PAGES: PageFlags = PageFlags::LRU
    .union(PageFlags::LRU_ADD)
    .union(PageFlags::ACTIVE)
    .union(PageFlags::UNEVICTABLE)
    .union(PageFlags::SWAPBACKED)
    .union(PageFlags::SWAPCACHE)
    .union(PageFlags::DIRTY)
    .union(PageFlags::WRITEBACK)
    .union(PageFlags::RECLAIM)
    .union(PageFlags::UNWRITTEN)
    .union(PageFlags::PGD_PAIR);

/// Runs M1 to M5.
pub(crate) fn run(context: &Context<'_>, paging: &Paging, owners: Option<&Owners>, ledger: &mut Ledger) {
    if !context.needs_zones(ledger, &[&NODE, &ZONE, &REFCOUNT, &RESERVED, &FLAGS]) {
        return;
    }
    let Some(owners) = owners else { return };
    let mut pass = Pass { context, paging, owners, book: Book::default(), part: 0 };
    for_each_ram_page(context, &mut |pfn, page| pass.page(pfn, page));
    let book = pass.book.close();
    for rule in [&NODE, &ZONE, &RESERVED] {
        ledger.checked(rule, book.pages);
    }
    ledger.checked(&REFCOUNT, book.counted);
    ledger.checked(&FLAGS, book.free);
    for (rule, frames, claim, outside) in book.wrong {
        ledger.report(rule, finding(rule, frames, claim, outside).frame(frames.start));
    }
}

type Wrong = (&'static Rule, Frames, String, String);

/// Contradictions, with equal ones of consecutive frames joined.
#[derive(Default)]
struct Book {
    pages: u64,
    counted: u64,
    free: u64,
    open: Vec<Wrong>,
    wrong: Vec<Wrong>,
}

impl Book {
    fn add(&mut self, rule: &'static Rule, pfn: u64, claim: String, outside: String) {
        let same = self.open.iter().position(|open| open.0.name == rule.name);
        match same.and_then(|index| self.open.get_mut(index)) {
            Some(open) if open.1.end == pfn && open.2 == claim && open.3 == outside => open.1.end += 1,
            Some(open) => {
                let next = (rule, Frames::from_count(pfn, 1), claim, outside);
                self.wrong.push(std::mem::replace(open, next));
            }
            None => self.open.push((rule, Frames::from_count(pfn, 1), claim, outside)),
        }
    }

    fn close(mut self) -> Book {
        self.wrong.append(&mut self.open);
        self
    }
}

struct Pass<'p, 'a> {
    context: &'p Context<'a>,
    paging: &'p Paging,
    owners: &'p Owners,
    book: Book,
    /// Position of the last frame's part: frames come in order.
    part: usize,
}

impl Pass<'_, '_> {
    fn page(&mut self, pfn: u64, page: &Page) {
        self.book.pages += 1;
        self.links(pfn, page);
        self.references(pfn, page);
        let reserved = find(&self.context.reserved, pfn).is_some();
        if page.page_flags().contains(PageFlags::RESERVED) != reserved {
            let text = |reserved| if reserved { "reserved" } else { "not reserved" }.to_owned();
            self.book.add(&RESERVED, pfn, text(!reserved), text(reserved));
        }
    }

    fn links(&mut self, pfn: u64, page: &Page) {
        let parts = &self.context.machine.parts;
        while parts.get(self.part).is_some_and(|part| part.frames.end <= pfn) {
            self.part += 1;
        }
        let Some(part) = parts.get(self.part).filter(|part| part.frames.contains(pfn)) else { return };
        if page.node() != part.node {
            self.book.add(&NODE, pfn, format!("node {}", page.node()), format!("node {}", part.node));
        }
        if page.zone() != part.zone as u32 {
            let claim = memvisor_abi::ZoneKind::from_raw(page.zone()).map_or("no zone", |zone| zone.name());
            self.book.add(&ZONE, pfn, claim.to_owned(), part.zone.name().to_owned());
        }
    }

    fn references(&mut self, pfn: u64, page: &Page) {
        // A frame with two owners cannot have both counts.
        if find(&self.owners.disputed, pfn).is_some() {
            return;
        }
        let owner = self.owners.map.owner(pfn);
        if matches!(owner, Owner::Buddy | Owner::Pcp) {
            self.book.free += 1;
            let stale = page.page_flags() & OF_PAGES;
            if !stale.is_empty() {
                self.book.add(&FLAGS, pfn, format!("{stale:?}"), "free".to_owned());
            }
        }
        match owner {
            Owner::Buddy => {
                self.book.counted += 1;
                if page.refcount != 0 {
                    let claim = format!("{} references", page.refcount);
                    self.book.add(&REFCOUNT, pfn, claim, "free".to_owned());
                }
            }
            Owner::User => {
                self.book.counted += 1;
                let ptes = self.paging.user_ptes.get(&pfn).copied().unwrap_or(0);
                if page.refcount < 1 || i64::from(page.mapcount) + 1 != i64::from(ptes) {
                    let claim = format!("refcount {} mapcount {}", page.refcount, page.mapcount);
                    let outside = format!("{ptes} user page-table entries map it");
                    self.book.add(&REFCOUNT, pfn, claim, outside);
                }
            }
            _ => {}
        }
    }
}
