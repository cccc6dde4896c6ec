//! fork: a copy of an address space whose pages are shared until one side writes (Linux: kernel/fork.c, `dup_mmap`;
//! mm/memory.c, `copy_page_range`).

use mm_core::{Event, PAGE_SHIFT};
use mm_pgtable::{Entry, PteFlags, TableMem};

use crate::gather::Gather;
use crate::id::Id;
use crate::mm::RssKind;
use crate::pte::{self, Pte, Run};
use crate::{Errno, Kernel, Mm, Space, VmFlags, Vma, anon, page, swap, zap};

/// Entries that are copied between two takings of the page-table locks, and kept on the stack.
const BATCH: usize = 32;

/// Gives `child`, which is empty and has tables and shape already, what `parent` has. Both are locked for writing.
///
/// # Errors
/// `ENOMEM`; the child is empty again.
pub fn dup_mmap<K: Kernel>(parent: &Space<'_, K>, child: &Space<'_, K>) -> Result<(), Errno> {
    let (from, to) = (parent.mm, child.mm);
    parent.k.emit(Event::DupMmap { vmas: from.map_count().into() });
    to.set_program(from.start_data(), from.end_data(), from.start_brk());
    to.set_brk(from.brk());
    to.set_code(from.code().0, from.code().1);
    to.set_def_flags(from.def_flags() - VmFlags::LOCKED_MASK);
    // Translations of the parent that allowed writing.
    let mut gather = Gather::new(from);
    let mut result = Ok(());
    for (id, _) in from.vmas(parent.k) {
        result = dup_vma(parent, child, id, &mut gather);
        if result.is_err() {
            break;
        }
    }
    gather.finish(parent.k, from);
    parent.k.emit(Event::DupMmapRet { ok: result.is_ok() });
    if result.is_err() {
        child.unmap_range(0, to.task_size())?;
    }
    result
}

fn dup_vma<K: Kernel>(
    parent: &Space<'_, K>,
    child: &Space<'_, K>,
    id: Id<Vma>,
    gather: &mut Gather,
) -> Result<(), Errno> {
    let vma = parent.vma(id);
    let flags = vma.flags();
    if flags.contains(VmFlags::DONTCOPY) {
        return Ok(());
    }
    vma.start_write(parent.k, parent.mm);
    let charged = parent.charge(flags, vma.pages())?;
    insert_copy(parent, child, id).inspect_err(|_| child.k.vm_unacct_memory(charged))?;
    child.mm.account(flags, (vma.end() - vma.start()).cast_signed() >> PAGE_SHIFT);
    // Pages of shared mappings are found again by faults, a device's frames are not (Linux: `vma_needs_copy`).
    if !flags.contains(VmFlags::WIPEONFORK) && (vma.anon_vma().is_some() || flags.contains(VmFlags::PFNMAP)) {
        copy_page_range(parent.k, (parent.mm, child.mm), vma, gather)?;
    }
    Ok(())
}

/// Gives the child a VMA like the parent's, without pages.
fn insert_copy<K: Kernel>(parent: &Space<'_, K>, child: &Space<'_, K>, id: Id<Vma>) -> Result<(), Errno> {
    let vma = parent.vma(id);
    let flags = vma.flags();
    child.mm.tree.reserve(child.k, 1)?;
    let new =
        child.new_vma((vma.start(), vma.end()), vma.pgoff(), flags - VmFlags::LOCKED_MASK, vma.mapping())?;
    // Linux: `vma_dup_policy`.
    child.vma(new).set_policy(vma.policy());
    if !flags.contains(VmFlags::WIPEONFORK)
        && let Err(error) = anon::fork(child.k, new, id)
    {
        child.free(new);
        return Err(error);
    }
    child.insert(new);
    Ok(())
}

/// Linux: `copy_page_range`.
fn copy_page_range<K: Kernel>(
    k: &K,
    (from, to): (&Mm, &Mm),
    vma: &Vma,
    gather: &mut Gather,
) -> Result<(), Errno> {
    k.emit(Event::CopyPageRange { start: vma.start(), end: vma.end(), cow: vma.flags().is_cow() });
    let mut va = vma.start();
    while va < vma.end() {
        let mut step = || copy_batch(k, (from, to), vma, va, gather);
        // Whoever unmaps pages of a file finds them in the parent or in both, never on the way.
        let next = match if vma.mapping().is_some() { k.rmap_lock(step) } else { step() } {
            // Nothing of the batch arrived.
            Err(Errno::Enomem) if k.wait_for_memory() => continue,
            next => next?,
        };
        if next == va {
            // The page there is being moved.
            k.relax();
        }
        va = next;
    }
    Ok(())
}

/// Copies some entries from `va` on; where to go on. It stops at a page that is being moved: a copy of its entry would not be found when the
/// move ends, because it is in no table yet.
fn copy_batch<K: Kernel>(
    k: &K,
    (from, to): (&Mm, &Mm),
    vma: &Vma,
    va: u64,
    gather: &mut Gather,
) -> Result<u64, Errno> {
    let cow = vma.flags().is_cow();
    let mut batch = [(0, Entry::EMPTY); BATCH];
    let mut len = 0;
    // What was copied before goes to the child, which gives it up again.
    let mut failed = Ok(());
    let next = k.tables(from, |tables| {
        let Some(run) = pte::next_run(tables, from.page_table(), va, vma.end()) else {
            return vma.end();
        };
        for (index, va) in run.used(tables) {
            if matches!(pte::decode(Entry::new(tables.read(run.table, index))), Pte::Migration(_)) {
                return va;
            }
            // What does not fit is looked at next time.
            let Some(slot) = batch.get_mut(len) else { return va };
            match share_entry(k, tables, run, index, cow) {
                Ok(None) => {}
                Ok(Some((entry, lost))) => {
                    if lost {
                        gather.translation(va);
                    }
                    *slot = (va, entry);
                    len += 1;
                }
                Err(error) => {
                    failed = Err(error);
                    return va;
                }
            }
        }
        run.va + run.count as u64 * mm_core::PAGE_SIZE
    });
    if len == 0 {
        return failed.map(|()| next);
    }
    let copied = batch.iter().take(len);
    let result = k.tables(to, |tables| {
        // All of them come from one table, and so go to one.
        let Some((first, _)) = batch.first().copied() else { return Ok(()) };
        let Some((table, base)) = pte::make(tables, to, first) else { return Err(0) };
        let (mut rss, mut swapents) = ([0; 2], 0);
        for &(va, entry) in copied {
            let index = base + usize::try_from((va - first) / mm_core::PAGE_SIZE).unwrap_or(0);
            tables.write(table, index, entry.as_u64());
            match pte::decode(entry) {
                Pte::Page(pfn) if !k.is_zero_page(pfn) => {
                    if let Some(count) = rss.get_mut(zap::kind_of(k, pfn) as usize) {
                        *count += 1;
                    }
                }
                Pte::Swap(_) => swapents += 1,
                _ => {}
            }
        }
        if swapents != 0 {
            to.add_swapents(swapents);
        }
        for (kind, pages) in [RssKind::Anon, RssKind::File].into_iter().zip(rss) {
            if pages != 0 {
                to.add_rss(kind, pages);
            }
        }
        Ok(())
    });
    if let Err(done) = result {
        // The counts of what did not arrive.
        for &(_, entry) in batch.iter().take(len).skip(done) {
            match pte::decode(entry) {
                Pte::Page(pfn) if !k.is_zero_page(pfn) => {
                    page::remove_rmap(k, pfn);
                    page::put(k, pfn);
                }
                Pte::Swap(entry) => swap::release(k, entry),
                _ => {}
            }
        }
        return Err(Errno::Enomem);
    }
    failed.map(|()| next)
}

/// The child's copy of an entry, with its count, and whether the parent's lost a right (Linux: `copy_present_pte`,
/// `copy_nonpresent_pte`).
fn share_entry<K: Kernel, M: TableMem>(
    k: &K,
    tables: &M,
    run: Run,
    index: usize,
    cow: bool,
) -> Result<Option<(Entry, bool)>, Errno> {
    let seen = Entry::new(tables.read(run.table, index));
    let read_only = |entry: Entry| {
        if cow { Entry::new(entry.as_u64() & !PteFlags::WRITE.bits()) } else { entry }
    };
    let old = match pte::decode(seen) {
        Pte::Empty | Pte::Migration(_) => return Ok(None),
        Pte::Swap(entry) => {
            // As many name the slot as can be counted (Linux: `add_swap_count_continuation`).
            mm_swap::swap_duplicate(k, entry).map_err(|_| Errno::Enomem)?;
            return Ok(Some((seen, false)));
        }
        Pte::Page(_) | Pte::Special(_) => pte::update(tables, run.table, index, read_only),
    };
    let lost = old.is_present() && read_only(old) != old;
    let mut copy = read_only(old);
    if let Pte::Page(pfn) = pte::decode(old)
        && !k.is_zero_page(pfn)
    {
        page::get(k, pfn);
        page::add_rmap(k, pfn);
    }
    if !cow {
        // What the parent wrote is not what the child wrote.
        copy = Entry::new(copy.as_u64() & !PteFlags::DIRTY.bits());
    }
    Ok(Some((Entry::new(copy.as_u64() & !PteFlags::ACCESSED.bits()), lost)))
}
