//! Pages that go to other nodes though no policy says so: migrate_pages and move_pages (Linux 6.1: mm/mempolicy.c, `do_migrate_pages`;
//! mm/migrate.c, `do_pages_move`, `do_pages_stat`).

use mm_core::{MemMap, NodeMask, PAGE_SIZE, Page, Pfn};

use crate::held::hold;
use crate::id::Id;
use crate::mempolicy::is_migratable;
use crate::pte::{self, Pte};
use crate::{Arena, Errno, Kernel, Mm, MoveTo, Vma, page};

/// Moves the pages of an address space from the nodes of one set to those of another, each node's to one; how many stayed. mmap_lock is not
/// held; `all` takes pages that others map, too (Linux: `do_migrate_pages`).
pub fn migrate_nodes<K: Kernel>(k: &K, mm: Id<Mm>, from: NodeMask, to: NodeMask, all: bool) -> u64 {
    let (mut left, mut stayed) = (from, 0);
    loop {
        let mut pair = None;
        for source in left.iter() {
            // With as many nodes as before each keeps its neighbours; else what is where it may be stays.
            if from.len() != to.len() && to.contains(source) {
                continue;
            }
            let dest = NodeMask::remap(source, from, to);
            if dest == source {
                continue;
            }
            pair = Some((source, dest));
            // First those whose place is not to be left by others yet.
            if !left.contains(dest) {
                break;
            }
        }
        let Some((source, dest)) = pair else { return stayed };
        left = left.without(source);
        stayed += migrate_to_node(k, k.at(mm), source, dest, all);
    }
}

/// Linux: the same name.
fn migrate_to_node<K: Kernel>(k: &K, mm: &Mm, source: u32, dest: u32, all: bool) -> u64 {
    let (mut va, mut stayed) = (0, 0);
    loop {
        k.mmap_read_lock(mm);
        let found = mm.find(k, va).map(|id| {
            let vma: &Vma = k.at(id);
            let from = va.max(vma.start());
            is_migratable(vma)
                .then(|| {
                    let wanted = |page: &Page| page.node() == source && (all || page.mapcount() == 0);
                    hold(k, mm, from..vma.end(), |_, _, page| wanted(page))
                })
                .ok_or(vma.end())
        });
        k.mmap_read_unlock(mm);
        match found {
            None => return stayed,
            Some(Err(next)) => va = next,
            Some(Ok(held)) => {
                va = held.next;
                stayed += k.migrate_pages(held.pages(), MoveTo::Node(dest));
            }
        }
    }
}

/// The node of the page at an address (Linux: `do_pages_stat_array`).
///
/// # Errors
/// `EFAULT` where nothing is mapped, or the page of zeroes; `ENOENT` where no page is. (6.1 says `EFAULT` for an untouched page of anonymous
/// memory; the manual and later releases say this.)
pub fn page_node<K: Kernel>(k: &K, mm: Id<Mm>, addr: u64) -> Result<u32, Errno> {
    let at: &Mm = k.at(mm);
    k.mmap_read_lock(at);
    let node = page_at(k, at, addr, |_, page| Ok(page.node()));
    k.mmap_read_unlock(at);
    node
}

/// Moves the page at an address to a node; `false` if it lies there already (Linux: `add_page_for_migration`, `do_move_pages_to_node`).
///
/// # Errors
/// As [`page_node`]; `EACCES` for a page that others map, without `all`; `EBUSY` if it could not be moved.
pub fn move_page<K: Kernel>(k: &K, mm: Id<Mm>, addr: u64, node: u32, all: bool) -> Result<bool, Errno> {
    let at: &Mm = k.at(mm);
    k.mmap_read_lock(at);
    let held = page_at(k, at, addr, |pfn, page| {
        if page.node() == node {
            return Ok(None);
        }
        if page.mapcount() > 0 && !all {
            return Err(Errno::Eacces);
        }
        page::get(k, pfn);
        Ok(Some(pfn))
    });
    k.mmap_read_unlock(at);
    let Some(pfn) = held? else { return Ok(false) };
    if k.migrate_pages(&[pfn], MoveTo::Node(node)) > 0 { Err(Errno::Ebusy) } else { Ok(true) }
}

/// Calls `f` with the page at an address, which stays mapped there meanwhile; mmap_lock is held.
fn page_at<K: Kernel, R>(
    k: &K,
    mm: &Mm,
    addr: u64,
    f: impl FnOnce(Pfn, &Page) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let vma = mm.find(k, addr).map(|id| Arena::<Vma>::at(k, id)).filter(|vma| vma.start() <= addr);
    vma.filter(|vma| is_migratable(vma)).ok_or(Errno::Efault)?;
    k.tables(mm, |tables| match pte::decode(pte::read(tables, mm.page_table(), addr & !(PAGE_SIZE - 1))) {
        Pte::Page(pfn) if !k.is_zero_page(pfn) => {
            MemMap::page(k, pfn).ok_or(Errno::Efault).and_then(|page| f(pfn, page))
        }
        Pte::Page(_) | Pte::Special(_) => Err(Errno::Efault),
        Pte::Empty | Pte::Migration(_) | Pte::Swap(_) => Err(Errno::Enoent),
    })
}
