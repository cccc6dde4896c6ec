//! Owners of movable pages (Linux: `struct movable_operations`).
//!
//! An owner registers once and gets a number, which its pages carry in `mapping`. The counts that are published follow
//! each mark, so that an audit can compare them with the descriptors.
//!
//! Pages of programs have no number: [`mm_vma::migrate_page`] finds everybody who maps them.

use memvisor_abi::{MAX_MOVABLE_OWNERS, MovableOwner, TableRef};
use mm_core::{MemMap, Migrate, MigrateError, MigrateMode, Page, PageFlags, PageKind, Pfn, is_user_page};
use mm_vmscan::{folio_del_lru, folio_isolate_lru, folio_putback_lru};

use crate::mm::memmap::Vmemmap;
use crate::mm::page_wait;
use crate::mm::phys;
use crate::mm::space::Spaces;
use crate::sync::Lock;

/// What an owner can do with its pages.
pub type Operations = &'static (dyn Migrate + Sync);

static INFO: Lock<[MovableOwner; MAX_MOVABLE_OWNERS]> = Lock::new([MovableOwner::UNUSED; MAX_MOVABLE_OWNERS]);
static OPERATIONS: Lock<[Option<Operations>; MAX_MOVABLE_OWNERS]> = Lock::new([None; MAX_MOVABLE_OWNERS]);

/// The published table.
pub fn table() -> TableRef {
    TableRef {
        gpa: phys::of_image(INFO.as_ptr() as u64).as_u64(),
        count: u32::try_from(MAX_MOVABLE_OWNERS).unwrap_or(0),
        stride: u32::try_from(size_of::<MovableOwner>()).unwrap_or(0),
    }
}

/// Registers an owner for ever; its number, or `None` if there are too many.
pub fn register(name: &str, operations: Operations) -> Option<u64> {
    let mut all = OPERATIONS.lock();
    let index = all.iter().position(Option::is_none)?;
    all[index] = Some(operations);
    let mut info = INFO.lock();
    for (to, from) in info[index].name.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    Some(index as u64 + 1)
}

/// Changes what is published of an owner.
fn note(owner: u64, change: impl FnOnce(&mut MovableOwner)) {
    let index = usize::try_from(owner.wrapping_sub(1)).unwrap_or(usize::MAX);
    if let Some(info) = INFO.lock().get_mut(index) {
        change(info);
    }
}

fn operations(page: &Page) -> Option<Operations> {
    let index = usize::try_from(page.mapping().wrapping_sub(1)).ok()?;
    OPERATIONS.lock().get(index).copied().flatten()
}

/// Marks a block that nobody else knows yet as a movable one of `owner` (Linux: `__SetPageMovable`).
pub fn set_movable(pfn: Pfn, owner: u64) {
    let Some(page) = Vmemmap.page(pfn) else { return };
    page.set_movable(owner);
    note(owner, |info| info.pages += 1);
}

/// Ends that, before the owner frees the block (Linux: `__ClearPageMovable` under the page's lock).
pub fn clear_movable(pfn: Pfn) {
    let Some(page) = Vmemmap.page(pfn) else { return };
    page.lock();
    let isolated = u64::from(page.has(PageFlags::ISOLATED));
    note(page.mapping(), |info| {
        info.pages -= 1;
        info.isolated -= isolated;
    });
    page.clear_movable();
    page.unlock();
}

/// All owners as one.
#[derive(Clone, Copy, Debug)]
pub struct Owners;

impl Migrate for Owners {
    fn isolate_page(&self, pfn: Pfn, page: &Page, mode: MigrateMode) -> bool {
        if is_user_page(page) {
            // Who uses it goes on until it moves.
            return folio_isolate_lru(&Spaces, page);
        }
        let taken = operations(page).is_some_and(|owner| owner.isolate_page(pfn, page, mode));
        if taken {
            note(page.mapping(), |info| info.isolated += 1);
        }
        taken
    }

    fn migrate_page(&self, to: Pfn, from: Pfn, page: &Page, mode: MigrateMode) -> Result<(), MigrateError> {
        operations(page).ok_or(MigrateError::Busy)?.migrate_page(to, from, page, mode)?;
        note(page.mapping(), |info| {
            info.isolated -= 1;
            info.moved += 1;
        });
        Ok(())
    }

    fn migrate_user_page(&self, to: Pfn, from: Pfn, _mode: MigrateMode) -> Result<(), MigrateError> {
        mm_vma::migrate_page(&Spaces, from, to)
    }

    fn release_user_page(&self, page: &Page) {
        folio_del_lru(&Spaces, page);
    }

    fn unlock_page(&self, pfn: Pfn, page: &Page) {
        page_wait::unlock_page(pfn, page);
    }

    fn putback_page(&self, pfn: Pfn, page: &Page) {
        if page.kind() == PageKind::User && !page.has(PageFlags::MOVABLE) {
            folio_putback_lru(&Spaces, pfn, page);
            return;
        }
        if let Some(owner) = operations(page) {
            owner.putback_page(pfn, page);
        }
        note(page.mapping(), |info| info.isolated -= 1);
    }
}
