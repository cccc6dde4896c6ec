//! Migration in the kernel on the host.

use mm_core::{Gfp, MemMap, MigrateError, NodeMask, PageAlloc, Pfn, PolicyAt};
use mm_vma::{MoveTo, migrate_page, put_page};

use super::TestKernel;

impl TestKernel {
    /// Moves a page of which the caller has no reference but its own.
    pub(super) fn move_held(&self, from: Pfn, to: MoveTo) -> bool {
        let index = MemMap::page(self, from).unwrap().index();
        let new = match to {
            MoveTo::Node(node) => self.alloc_from(Gfp::HIGHUSER_MOVABLE, NodeMask::of([node])),
            MoveTo::Policy(policy) => {
                self.alloc_page_policy(Gfp::HIGHUSER_MOVABLE, PolicyAt { policy, index })
            }
        };
        new.is_some_and(|new| self.migrate_to(from, new).is_ok())
    }

    /// Moves a page that the caller has a reference of, as the page allocator's migration does: locked.
    pub fn migrate_to(&self, from: Pfn, to: Pfn) -> Result<(), MigrateError> {
        let page = MemMap::page(self, from).unwrap();
        page.lock();
        let moved = migrate_page(self, from, to);
        page.unlock();
        if moved.is_err() {
            put_page(self, to);
        }
        moved
    }

    /// Moves a page as whoever isolated it does; where it is now.
    pub fn migrate(&self, from: Pfn) -> Result<Pfn, MigrateError> {
        let page = MemMap::page(self, from).unwrap();
        mm_core::refcount::get(page.references());
        let to = self.alloc_from(Gfp::HIGHUSER_MOVABLE, NodeMask::ALL).unwrap();
        let moved = self.migrate_to(from, to);
        if moved.is_ok() {
            assert_eq!((page.refcount(), page.mapcount(), page.mapping()), (1, -1, 0));
        }
        put_page(self, from);
        moved.map(|()| to)
    }
}
