//! Pages in the hands of reclaim, linked as on a list (Linux: `LIST_HEAD(folio_list)`).

use memvisor_abi::LruList;
use mm_core::{MemMap, Page, Pfn};

use crate::list::{self, End};

/// Pages that are on no list of a node, each with a reference of whoever holds this.
#[derive(Debug)]
#[must_use]
pub(crate) struct PageList(LruList);

impl PageList {
    pub(crate) const EMPTY: PageList = PageList(LruList::EMPTY);

    /// Pages.
    pub(crate) fn len(&self) -> u64 {
        self.0.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.count == 0
    }

    /// Adds a page, to be popped last.
    pub(crate) fn push<M: MemMap>(&mut self, m: &M, page: (Pfn, &Page)) {
        list::push(m, &mut self.0, page, End::Head);
    }

    /// Takes the page that came first.
    pub(crate) fn pop<'m, M: MemMap>(&mut self, m: &'m M) -> Option<(Pfn, &'m Page)> {
        let pfn = list::last(&self.0)?;
        let page = m.page(pfn)?;
        list::unlink(m, &mut self.0, page);
        Some((pfn, page))
    }
}
