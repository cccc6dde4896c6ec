//! Moving the contents of allocated blocks elsewhere (Linux 6.1: mm/migrate.c).
//!
//! ```text
//! isolate_movable_page        reference, page lock, the owner lets go                        (M1)
//! migrate_pages               each block: a new one, both locked, the owner copies           (M2, M3)
//! putback_movable_pages       what stayed goes back to its owner                             (M1)
//! ```
//!
//! Owners mark their blocks, or they are pages of programs ([`mm_core::is_user_page`]): those of address spaces and the page cache, which
//! [`mm_core::Migrate::migrate_user_page`] moves under everybody who maps them.
//!
//! Invariants:
//! M1  a frame flagged `ISOLATED` is movable ([`mm_core::is_movable_page`]) too, unless its owner has freed it since, and has a reference
//!     of whoever isolated it;
//! M2  a block that moved: the new one has the old one's kind, owner fields, mark and the owner's references (one, but for pages of
//!     programs); the old one is free;
//! M3  a block that did not move is as it was, and the new one is back where it came from.
//!
//! A movable block of an order above 0 is a compound page. No function here takes a zone's lock but to free.

use memvisor_abi::VmEvent;
use mm_core::{
    Event, Gfp, MemMap, MigrateError, MigrateMode, Order, Page, PageFlags, PageKind, Pfn, Trace,
    is_movable_page, is_user_page,
};

use crate::alloc::{Machine, PageAllocator, PageList};
use crate::gfp::Context;
use crate::refcount;

/// Blocks that are isolated before they are migrated (Linux: `COMPACT_CLUSTER_MAX`).
pub const CLUSTER_MAX: usize = 32;

/// How often a block is tried while that may help (Linux: `NR_MAX_MIGRATE_PAGES_RETRY` and its like).
const PASSES: u32 = 10;
/// The pass from which on a synchronous migration waits for page locks.
const FORCE_AFTER: u32 = 2;

/// Where migrated blocks go (Linux: `new_page_t`, `free_page_t`).
pub trait NewPages {
    /// A block of `order` with one reference for the contents of the block at `from`.
    fn new_page(&mut self, from: Pfn, order: Order) -> Option<Pfn>;

    /// Takes a block back that was not used, with its reference.
    fn put_new_page(&mut self, pfn: Pfn, order: Order);
}

/// New blocks from the allocator (Linux: `alloc_migration_target`).
#[derive(Debug)]
pub struct AllocTarget<'a, M> {
    /// The allocator.
    pub pages: &'a PageAllocator<M>,
    /// Who asks.
    pub context: Context<'a>,
    /// Flags of the request; `COMP` is added for orders above 0.
    pub gfp: Gfp,
    /// The node to prefer; default: the old block's.
    pub node: Option<u32>,
}

impl<M: Machine> NewPages for AllocTarget<'_, M> {
    fn new_page(&mut self, from: Pfn, order: Order) -> Option<Pfn> {
        let gfp = if order > Order::ZERO { self.gfp | Gfp::COMP } else { self.gfp };
        let node = self.node.or_else(|| self.pages.machine.map().page(from).map(Page::node));
        self.pages.alloc_pages(self.context, gfp, order, node)
    }

    fn put_new_page(&mut self, pfn: Pfn, _: Order) {
        self.pages.release(pfn);
    }
}

/// What [`PageAllocator::migrate_pages`] did, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Moved, or free meanwhile.
    pub succeeded: u64,
    /// Still on the list.
    pub failed: u64,
    /// It ended early because there was no new block.
    pub no_memory: bool,
}

/// What [`PageAllocator::isolate_migratepages_range`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsolatedRange {
    /// The blocks, at most [`CLUSTER_MAX`].
    pub pages: PageList,
    /// Where to go on; `end` when the range is through.
    pub next: Pfn,
}

impl<M: Machine> PageAllocator<M> {
    /// Takes a movable block from its owner; `false` if it is not movable, isolated already, locked, or its owner
    /// declines (Linux: `isolate_movable_page`). The caller gets a reference and later either migrates the block or
    /// puts it back.
    pub fn isolate_movable_page(&self, pfn: Pfn, mode: MigrateMode) -> bool {
        let Some(page) = self.machine.map().page(pfn).filter(|page| is_isolatable(page)) else {
            return false;
        };
        if !refcount::try_get(page.references()) {
            return false;
        }
        // With the reference it stays somebody's; with the lock it stays its owner's.
        if is_isolatable(page) && page.try_lock() {
            let taken = is_isolatable(page) && self.machine.migrate().isolate_page(pfn, page, mode);
            if taken {
                page.insert(PageFlags::ISOLATED);
            }
            self.unlock(pfn, page);
            if taken {
                return true;
            }
        }
        self.release(pfn);
        false
    }

    /// Gives an isolated block back to its owner (Linux: `putback_movable_page`).
    pub fn putback_movable_page(&self, pfn: Pfn) {
        let Some(page) = self.machine.map().page(pfn) else { return };
        // A page that left its file meanwhile is no user page any more, and was isolated as one.
        if page.kind() == PageKind::User && !page.has(PageFlags::MOVABLE) {
            // Its lock may be held for long.
            self.machine.migrate().putback_page(pfn, page);
            page.remove(PageFlags::ISOLATED);
            return self.release(pfn);
        }
        page.lock();
        if is_movable_page(page) {
            self.machine.migrate().putback_page(pfn, page);
        }
        page.remove(PageFlags::ISOLATED);
        self.unlock(pfn, page);
        self.release(pfn);
    }

    /// [`PageAllocator::putback_movable_page`] for all of a list, which is empty then.
    pub fn putback_movable_pages(&self, list: &mut PageList) {
        while let Some(pfn) = list.pop(self.machine.map()) {
            self.putback_movable_page(pfn);
        }
    }

    /// Isolates the movable blocks that begin in `start..end`, compound pages included, up to [`CLUSTER_MAX`] of them
    /// (Linux: `isolate_migratepages_range`). Frames that cannot be isolated are passed over. Blocks on per-CPU lists
    /// are not seen: drain them before.
    pub fn isolate_migratepages_range(&self, start: Pfn, end: Pfn, mode: MigrateMode) -> IsolatedRange {
        let map = self.machine.map();
        let mut found = IsolatedRange { pages: PageList::EMPTY, next: start };
        let (mut scanned, mut taken) = (0, 0);
        while found.next < end && found.pages.len < CLUSTER_MAX {
            let pfn = found.next;
            scanned += 1;
            let Some(page) = map.page(pfn) else {
                found.next = pfn.offset(1);
                continue;
            };
            let pages = frames_of(page);
            if self.isolate_movable_page(pfn, mode) {
                found.pages.push(map, pfn);
                taken += pages;
            }
            found.next = pfn.offset(pages);
        }
        found.next = found.next.min(end);
        map.emit(Event::MmCompactionIsolateMigratepages {
            start_pfn: start,
            end_pfn: found.next,
            nr_scanned: scanned,
            nr_taken: taken,
        });
        self.count(VmEvent::CompactMigrateScanned, scanned);
        if taken > 0 {
            self.count(VmEvent::CompactIsolated, taken);
        }
        found
    }

    /// Moves the isolated blocks of a list to new ones (Linux: `migrate_pages`). What could not be moved stays on the
    /// list, for another try or to be put back.
    pub fn migrate_pages(
        &self,
        list: &mut PageList,
        mode: MigrateMode,
        targets: &mut dyn NewPages,
    ) -> Migrated {
        let map = self.machine.map();
        let mut done = Migrated::default();
        let mut failed = PageList::EMPTY;
        for pass in 0..PASSES {
            let mut again = PageList::EMPTY;
            while let Some(pfn) = list.pop(map) {
                match self.unmap_and_move(pfn, mode, pass > FORCE_AFTER, targets) {
                    Ok(()) => done.succeeded += 1,
                    Err(MigrateError::Again) => again.push(map, pfn),
                    Err(MigrateError::Busy) => failed.push(map, pfn),
                    Err(MigrateError::NoMemory) => {
                        failed.push(map, pfn);
                        done.no_memory = true;
                        break;
                    }
                }
            }
            list.append(map, again);
            if done.no_memory || list.len == 0 {
                break;
            }
        }
        list.append(map, failed);
        done.failed = list.len as u64;
        if done.succeeded > 0 {
            self.count(VmEvent::PgmigrateSuccess, done.succeeded);
        }
        if done.failed > 0 {
            self.count(VmEvent::PgmigrateFail, done.failed);
        }
        map.emit(Event::MmMigratePages { succeeded: done.succeeded, failed: done.failed });
        done
    }

    /// Linux: `unmap_and_move`. With `Ok` the block is gone.
    fn unmap_and_move(
        &self,
        from: Pfn,
        mode: MigrateMode,
        force: bool,
        targets: &mut dyn NewPages,
    ) -> Result<(), MigrateError> {
        let map = self.machine.map();
        let page = map.page(from).ok_or(MigrateError::Busy)?;
        // Only the isolation's reference: the owner freed it meanwhile.
        if page.refcount() == 1 {
            self.forget(from, page);
            return Ok(());
        }
        let order = page.order();
        let to = targets.new_page(from, order).ok_or(MigrateError::NoMemory)?;
        let outcome = match map.page(to) {
            Some(new) => self.move_to_new_page((to, new), (from, page), mode, force),
            None => Err(MigrateError::Busy),
        };
        let ret = outcome.err().map_or(0, MigrateError::errno);
        map.emit(Event::MigratePage { from, to, order, ret });
        match outcome {
            Ok(true) => self.release(from),
            Ok(false) => {
                targets.put_new_page(to, order);
                self.release(from);
            }
            Err(error) => {
                targets.put_new_page(to, order);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets the owner copy, and moves what the descriptors say. `Ok(false)` if the owner freed the block meanwhile
    /// (Linux: `__unmap_and_move`, `move_to_new_folio`).
    fn move_to_new_page(
        &self,
        (to, new): (Pfn, &Page),
        (from, page): (Pfn, &Page),
        mode: MigrateMode,
        force: bool,
    ) -> Result<bool, MigrateError> {
        if !page.try_lock() {
            // Whoever has a page of a program locked may wait for a disk (Linux sleeps here).
            if !force || !mode.is_sync() || is_user_page(page) {
                return Err(MigrateError::Again);
            }
            page.lock();
        }
        if is_user_page(page) {
            // Who maps it holds references, so the counting is the owner's.
            let moved = self.machine.migrate().migrate_user_page(to, from, mode);
            if moved.is_ok() {
                page.remove(PageFlags::ISOLATED);
            }
            self.unlock(from, page);
            return moved.map(|()| true);
        }
        if !page.has(PageFlags::MOVABLE) {
            page.remove(PageFlags::ISOLATED);
            self.unlock(from, page);
            return Ok(false);
        }
        // The owner's reference and ours; with a third somebody looks at the contents.
        if !refcount::freeze(page.references(), 2) {
            self.unlock(from, page);
            return Err(MigrateError::Again);
        }
        new.lock();
        let moved = self.machine.migrate().migrate_page(to, from, page, mode);
        if moved.is_ok() {
            hand_on(page, new);
        }
        new.unlock();
        // The owner's reference goes with the contents: the new page's only one.
        refcount::unfreeze(page.references(), if moved.is_ok() { 1 } else { 2 });
        self.unlock(from, page);
        moved.map(|()| true)
    }

    /// The owner has freed an isolated block: so does migration.
    fn forget(&self, pfn: Pfn, page: &Page) {
        if page.kind() == PageKind::User {
            page.remove(PageFlags::ISOLATED);
        } else {
            page.lock();
            page.remove(PageFlags::ISOLATED);
            self.unlock(pfn, page);
        }
        self.release(pfn);
    }

    fn unlock(&self, pfn: Pfn, page: &Page) {
        self.machine.migrate().unlock_page(pfn, page);
    }

    /// Drops a reference that migration holds.
    pub(crate) fn release(&self, pfn: Pfn) {
        let Some(page) = self.machine.map().page(pfn) else { return };
        if page.kind() == PageKind::User || page.has_any(PageFlags::LRU | PageFlags::LRU_ADD) {
            // As `put_page` of mm-filemap.
            while !refcount::freeze(page.references(), 1) {
                if refcount::put_unless_last(page.references()) || page.refcount() < 1 {
                    return;
                }
            }
            // Its users have gone meanwhile (Linux: `__page_cache_release`).
            self.machine.migrate().release_user_page(page);
            page.set_owner(0, 0);
            page.remove(PageFlags::DIRTY | PageFlags::UNWRITTEN | PageFlags::UPTODATE);
            page.set_kind(PageKind::Allocated);
            refcount::unfreeze(page.references(), 1);
        } else if page.refcount() == 1 {
            // It moved: what named its list must not be taken for marks of the frame's next page.
            self.machine.migrate().release_user_page(page);
        }
        if let Err(error) = self.put_page(pfn)
            && self.machine.may_report()
        {
            self.machine.report(format_args!("page migration: {error}"));
        }
    }
}

/// What the descriptor of a moved block says, the new block's says from now on (Linux: `folio_migrate_flags`,
/// `folio_migrate_mapping`).
fn hand_on(page: &Page, new: &Page) {
    new.set_index(page.index());
    new.set_private(page.private());
    new.set_kind(page.kind());
    new.set_movable(page.mapping());
    page.clear_movable();
    page.remove(PageFlags::ISOLATED);
}

/// Whether isolation may succeed; to be looked at again under the page's lock.
fn is_isolatable(page: &Page) -> bool {
    is_movable_page(page) && !page.has(PageFlags::ISOLATED)
}

/// Frames to step over: those of the block that starts here, as far as the descriptor says.
pub(crate) fn frames_of(page: &Page) -> u64 {
    match page.kind() {
        PageKind::None | PageKind::Tail => 1,
        _ => page.order().pages(),
    }
}
