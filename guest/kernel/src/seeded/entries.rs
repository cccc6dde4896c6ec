//! Corruptions of the entries of a process's page tables, and of what leads from a page to them.

use core::mem::offset_of;

use memvisor_abi as abi;
use memvisor_abi::PTE_PROTNONE;
use mm_core::{Gfp, Order, PAGE_SIZE, PageAlloc, Pfn};
use mm_pgtable::PteFlags;
use mm_vma::{ProtFlags, Unmapped, dup_mmap, migrate_page, put_page, try_to_migrate};

use super::victim::{Outcome, PAGES, Victim, add, page, read, victim, write};
use crate::mm::space::{self, Spaces};

const PRESENT: u64 = PteFlags::PRESENT.bits();
const WRITE: u64 = PteFlags::WRITE.bits();
const NX: u64 = PteFlags::NX.bits();

/// A page that moved to where no VMA is.
pub fn outside_vma() -> Outcome {
    let victim = victim()?;
    let va = victim.touched()?;
    let hole = va + PAGE_SIZE;
    victim.unmap(hole, 1)?;
    let entry = victim.entry(va)?;
    victim.edit(va, |_| 0)?;
    victim.edit(hole, |_| entry)
}

/// An entry that is neither present nor empty, and has no mark.
pub fn meaningless() -> Outcome {
    let victim = victim()?;
    let va = victim.touched()?;
    victim.unmap(va + PAGE_SIZE, 1)?;
    victim.edit(va + PAGE_SIZE, |_| 0x0bad_b000)
}

/// An entry that allows writes in a VMA that does not.
pub fn writable() -> Outcome {
    let victim = victim()?;
    let va = victim.touched()?;
    victim.protect(va, PAGES, ProtFlags::READ)?;
    victim.edit(va, |entry| entry | WRITE)
}

/// An entry that allows fetches in a VMA that does not.
pub fn executable() -> Outcome {
    let victim = victim()?;
    victim.edit(victim.touched()?, |entry| entry & !NX)
}

/// A page that can be read in a VMA without access.
pub fn no_access() -> Outcome {
    let victim = victim()?;
    let va = victim.touched()?;
    victim.protect(va, PAGES, ProtFlags::empty())?;
    victim.edit(va, |entry| entry & !PTE_PROTNONE | PRESENT)
}

fn count(mappings: i32, references: i32) -> Outcome {
    let victim = victim()?;
    let page = page(victim.frame(victim.touched()?)?)?;
    page.set_mapcount(page.mapcount() + mappings);
    page.set_refcount(page.refcount() + references);
    Ok(())
}

/// A page that counts an entry too few.
pub fn mapcount_lost() -> Outcome {
    count(-1, 0)
}

/// A page that counts an entry too many.
pub fn mapcount_extra() -> Outcome {
    count(1, 0)
}

/// A page that is freed while it is mapped once more: a reference is missing.
pub fn refcount_lost() -> Outcome {
    count(0, -1)
}

/// A page that is never freed: a reference too many.
pub fn refcount_leaked() -> Outcome {
    count(0, 1)
}

/// A page that says it is somewhere else in its VMA.
pub fn anon_index() -> Outcome {
    let victim = victim()?;
    let page = page(victim.frame(victim.touched()?)?)?;
    page.set_index(page.index() + PAGES);
    Ok(())
}

/// An anon_vma whose list has not the VMA that its pages are mapped in.
pub fn anon_list() -> Outcome {
    const NEXT: usize = offset_of!(abi::AnonVmaChain, anon_next);
    const PREV: usize = offset_of!(abi::AnonVmaChain, anon_prev);
    let victim = victim()?;
    let vma = victim.vma(victim.touched()?)?;
    let chain = read(vma, offset_of!(abi::Vma, chain_first));
    if chain == 0 {
        return Err("the VMA has no anon_vma");
    }
    let (anon, next, prev) =
        (read(chain, offset_of!(abi::AnonVmaChain, anon_vma)), read(chain, NEXT), read(chain, PREV));
    if prev == 0 {
        write(anon, offset_of!(abi::AnonVma, chains), next);
    } else {
        write(prev, NEXT, next);
    }
    if next != 0 {
        write(next, PREV, prev);
    }
    Ok(())
}

/// A process more, published beside the living one.
fn another() -> Outcome<Victim> {
    let shape = space::shape_of(victim()?.id);
    let id = space::mm_alloc(shape).map_err(|_| "no memory for an address space")?;
    space::set_owner(id, 3);
    Ok(Victim { id })
}

/// After a fork the parent may still write to a page that the child has, too.
pub fn cow_writable() -> Outcome {
    let (parent, child) = (victim()?, another()?);
    let va = parent.touched()?;
    dup_mmap(&parent.lock(), &child.lock()).map_err(|_| "fork failed")?;
    parent.edit(va, |entry| entry | WRITE)
}

/// A process that reads a page of another one's, which it has no right to.
pub fn foreign_frame() -> Outcome {
    let (owner, thief) = (victim()?, another()?);
    let (from, to) = (owner.touched()?, thief.map(0, 2)?);
    // The table is there, and all counts are right.
    thief.touch(to)?;
    let entry = owner.entry(from)?;
    thief.edit(to + PAGE_SIZE, |_| entry & !WRITE)?;
    owner.edit(from, |entry| entry & !WRITE)?;
    add(thief.mm(), offset_of!(abi::Mm, rss), 1);
    let page = page(owner.frame(from)?)?;
    page.set_mapcount(page.mapcount() + 1);
    page.set_refcount(page.refcount() + 1);
    Ok(())
}

/// A page of two processes that went to another frame.
fn migrated() -> Outcome<(Victim, u64, Pfn)> {
    let (parent, child) = (victim()?, another()?);
    let va = parent.touched()?;
    dup_mmap(&parent.lock(), &child.lock()).map_err(|_| "fork failed")?;
    let from = parent.frame(va)?;
    let to = Spaces.alloc_pages(Gfp::HIGHUSER_MOVABLE, Order::ZERO, None).ok_or("no frame to move to")?;
    let old = page(from)?;
    mm_core::refcount::get(old.references());
    old.lock();
    let moved = migrate_page(&Spaces, from, to);
    old.unlock();
    moved.map_err(|_| "the page is held")?;
    put_page(&Spaces, from);
    if child.frame(va)? == to { Ok((child, va, to)) } else { Err("the page did not move") }
}

/// A page that moved, and came back to one of the two that had it.
pub fn migration_lost() -> Outcome {
    let (child, va, _) = migrated()?;
    child.edit(va, |_| 0)
}

/// A page that moved, and whose new frame counts an entry too few.
pub fn migration_mapcount() -> Outcome {
    let (_, _, to) = migrated()?;
    let page = page(to)?;
    page.set_mapcount(page.mapcount() - 1);
    Ok(())
}

/// A move that was begun and never ended: whoever touches the page waits for ever.
pub fn migration_left() -> Outcome {
    let victim = victim()?;
    let pfn = victim.frame(victim.touched()?)?;
    mm_core::refcount::get(page(pfn)?.references());
    match try_to_migrate(&Spaces, pfn, 1) {
        Unmapped::Yes => Ok(()),
        Unmapped::Pinned => Err("the page is held"),
    }
}
