//! Pages of programs that go to other nodes (Linux: mm/mempolicy.c, `new_page`; mm/migrate.c, `alloc_migration_target`). The move itself is
//! `mm_page_alloc`'s and `mm_vma`'s, the same as compaction's.

use mm_core::{Gfp, MemMap, MigrateMode, Order, Page, Pfn, PolicyAt};
use mm_page_alloc::{Context, NewPages, PageList, Policy};
use mm_vma::{Kernel, MoveTo, put_page};

use crate::mm::memmap::Vmemmap;
use crate::mm::page_alloc::{self, PAGES};
use crate::mm::space::Spaces;
use crate::sched;

/// How often a page is tried that somebody else works on just now.
const TRIES: u32 = 10;

/// New pages where the old ones are to go. Nobody is killed for them, and nothing is reported.
struct Target<'a> {
    context: Context<'a>,
    to: MoveTo,
}

impl NewPages for Target<'_> {
    fn new_page(&mut self, from: Pfn, order: Order) -> Option<Pfn> {
        let gfp = Gfp::HIGHUSER_MOVABLE | Gfp::RETRY_MAYFAIL | Gfp::NOWARN;
        match self.to {
            MoveTo::Node(node) => PAGES.alloc_pages(self.context, gfp | Gfp::THISNODE, order, Some(node)),
            // The page's offset is its place in the area, too.
            MoveTo::Policy(policy) => {
                let index = Vmemmap.page(from).map_or(0, Page::index);
                PAGES.alloc_page_at(self.context, gfp, PolicyAt { policy, index })
            }
        }
    }

    fn put_new_page(&mut self, pfn: Pfn, _: Order) {
        put_page(&Spaces, pfn);
    }
}

/// Moves pages, as far as that can be done, and drops the caller's references; how many stayed. May sleep.
pub fn migrate_pages(pages: &[Pfn], to: MoveTo) -> u64 {
    let to = match to {
        MoveTo::Policy(Policy::Default) => MoveTo::Policy(page_alloc::task_policy()),
        to => to,
    };
    let (mut list, mut stayed) = (PageList::EMPTY, 0);
    for pfn in pages {
        if isolate(*pfn) {
            list.push(&Vmemmap, *pfn);
        } else {
            // Nobody maps it any more: it is gone, and nowhere.
            stayed += u64::from(Vmemmap.page(*pfn).is_some_and(|page| page.mapcount() >= 0));
        }
        put_page(&Spaces, *pfn);
    }
    if list.len == 0 {
        return stayed;
    }
    let token = sched::might_sleep();
    let context = match &token {
        Some(token) => Context { may_sleep: Some(token), task: page_alloc::task_flags() },
        None => Context::ATOMIC,
    };
    let done = PAGES.migrate_pages(&mut list, MigrateMode::Sync, &mut Target { context, to });
    PAGES.putback_movable_pages(&mut list);
    stayed + done.failed
}

/// Takes a page off its list; reclaim may have it locked or off the list for a moment.
fn isolate(pfn: Pfn) -> bool {
    (0..TRIES).any(|tried| {
        if tried > 0 {
            Spaces.relax();
        }
        PAGES.isolate_movable_page(pfn, MigrateMode::Sync)
    })
}
