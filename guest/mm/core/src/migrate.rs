//! Pages whose contents can go elsewhere, and their owners (Linux: include/linux/migrate.h).
//!
//! An owner of movable pages implements [`Migrate`]. It marks each page with [`Page::set_movable`] once the page holds
//! what is to be kept, and ends that with [`Page::clear_movable`] before it frees the page. Migration goes through three
//! steps, each a call of the owner under the page's lock ([`Page::try_lock`]):
//!
//! ```text
//! isolate_page   the owner takes the page off its own lists; from here on migration links it by next and prev
//! migrate_page   the owner copies the contents and, from now on, uses the new page   (or: not now, not at all)
//! putback_page   the owner takes an isolated page back that did not move
//! ```
//!
//! Whoever marks, unmarks or moves a page holds its lock, so an owner that frees a page locks it, clears the mark and
//! unlocks it first. Nobody sleeps with a page locked.
//!
//! Pages of programs ([`PageKind::User`]) are movable without a mark: who maps them is found through their owner (Linux: pages of the LRU
//! lists). They are isolated and put back by the same calls, and moved by [`Migrate::migrate_user_page`].

use crate::{Page, PageFlags, PageKind, Pfn};

/// Whether the frame is a page of programs that says who finds its entries: an anonymous page, or one of a mapping (Linux: `PageLRU`).
/// Only a look: whoever acts on it looks again with a reference.
pub fn is_user_page(page: &Page) -> bool {
    page.kind() == PageKind::User && page.mapping() != 0
}

/// Whether the frame's contents could go elsewhere, as far as its descriptor says (Linux: `PageLRU` or `__PageMovable`).
pub fn is_movable_page(page: &Page) -> bool {
    page.has(PageFlags::MOVABLE) || is_user_page(page)
}

/// How far a migration may go (Linux: `enum migrate_mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MigrateMode {
    /// Waits for nobody (Linux: `MIGRATE_ASYNC`).
    Async,
    /// Waits for locks, not for writes (Linux: `MIGRATE_SYNC_LIGHT`).
    SyncLight,
    /// Waits for everything (Linux: `MIGRATE_SYNC`).
    Sync,
}

impl MigrateMode {
    /// Whether it waits at all.
    pub const fn is_sync(self) -> bool {
        !matches!(self, MigrateMode::Async)
    }
}

/// Why a page was not moved (Linux: a negative errno).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrateError {
    /// Somebody uses it just now: worth another try (Linux: `-EAGAIN`).
    Again,
    /// It cannot be moved: its owner says so, or has gone (Linux: `-EBUSY`).
    Busy,
    /// There is no page to move it to (Linux: `-ENOMEM`).
    NoMemory,
}

impl MigrateError {
    /// Linux's number.
    pub const fn errno(self) -> i32 {
        match self {
            MigrateError::Again => -11,
            MigrateError::Busy => -16,
            MigrateError::NoMemory => -12,
        }
    }
}

/// Owners of movable pages, called with the page locked; none of these may sleep or take a reference (Linux: `struct
/// movable_operations`). One implementation stands for all owners of a machine and tells them apart by
/// [`Page::mapping`], which [`Page::set_movable`] sets.
pub trait Migrate {
    /// Takes the page off its owner's lists for a migration; `false` leaves it where it is. The page has a reference of the
    /// caller's, is marked movable and is not isolated.
    fn isolate_page(&self, pfn: Pfn, page: &Page, mode: MigrateMode) -> bool;

    /// Copies the contents of the block `from`, which is isolated, to `to`, a block of the same order, and makes the owner
    /// use `to` from now on. With `Ok` the owner has forgotten `from`.
    ///
    /// Differs from Linux: references, marks and the fields `kind`, `mapping`, `index` and `private` go over by
    /// themselves afterwards, and nobody else has a reference of `from` meanwhile.
    ///
    /// # Errors
    /// [`MigrateError::Again`] or [`MigrateError::Busy`]; then nothing has changed.
    fn migrate_page(&self, to: Pfn, from: Pfn, page: &Page, mode: MigrateMode) -> Result<(), MigrateError>;

    /// Takes a page back that was isolated and stays where it is.
    fn putback_page(&self, pfn: Pfn, page: &Page);

    /// The last reference of a page of programs is about to go: it is on no list any more, and has no mark of one (Linux:
    /// `__page_cache_release`).
    fn release_user_page(&self, _page: &Page) {}

    /// Opens the lock of a page, for which somebody may sleep if it is one of programs (Linux: `folio_unlock`).
    fn unlock_page(&self, _pfn: Pfn, page: &Page) {
        page.unlock();
    }

    /// Moves a page of programs, of which the caller has a reference, to the fresh page `to`, and makes everybody who maps `from` map `to`
    /// (Linux: `migrate_folio_unmap`, `migrate_folio_move`). With `Ok` the caller's reference is the last one of `from`, and that of `to`
    /// was spent.
    ///
    /// # Errors
    /// [`MigrateError::Again`] if somebody holds the page besides, [`MigrateError::Busy`] if it never moves; then nothing has changed.
    fn migrate_user_page(&self, _to: Pfn, _from: Pfn, _mode: MigrateMode) -> Result<(), MigrateError> {
        Err(MigrateError::Busy)
    }
}

/// A machine without movable pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMigrate;

impl Migrate for NoMigrate {
    fn isolate_page(&self, _: Pfn, _: &Page, _: MigrateMode) -> bool {
        false
    }

    fn migrate_page(&self, _: Pfn, _: Pfn, _: &Page, _: MigrateMode) -> Result<(), MigrateError> {
        Err(MigrateError::Busy)
    }

    fn putback_page(&self, _: Pfn, _: &Page) {}
}
