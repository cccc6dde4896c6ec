//! What must be true of an address space between calls.

use mm_core::{PAGE_SHIFT, PAGE_SIZE, VirtAddr};
use mm_pgtable::{PteFlags, TableMem};

use crate::id::Id;
use crate::page::{self, Owner};
use crate::pte::{self, Pte};
use crate::{Arena, Kernel, Mm, RssKind, VmFlags, Vma, anon, zap};

/// What is broken, and where: an address, or 0 for the address space as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The invariant.
    pub what: &'static str,
    /// Where.
    pub at: u64,
}

/// Checks M1 to M8 for one address space; nobody changes it meanwhile.
///
/// # Errors
/// The first thing that is broken.
pub fn audit<K: Kernel>(k: &K, id: Id<Mm>) -> Result<(), Broken> {
    let mm: &Mm = k.at(id);
    check_vmas(k, id, mm)?;
    check_entries(k, mm)
}

fn check(holds: bool, what: &'static str, at: u64) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { what, at }) }
}

fn check_vmas<K: Kernel>(k: &K, id: Id<Mm>, mm: &Mm) -> Result<(), Broken> {
    let (mut in_tree, mut agree) = (0_u32, true);
    let mut next = mm.first();
    let tree = mm.tree.audit(k, |start, end, vma| {
        let at = next.map(|next| Arena::<Vma>::at(k, next));
        agree &= vma.is_some() && vma == next && at.is_some_and(|at| (at.start(), at.end()) == (start, end));
        next = at.and_then(Vma::next);
        in_tree += 1;
    });
    tree.map_err(|what| Broken { what, at: 0 })?;
    check(agree && next.is_none(), "M1: list and tree agree", 0)?;
    check(in_tree == mm.map_count(), "M1: map_count", 0)?;
    let (mut before, mut total, mut locked, mut data, mut exec, mut stack) = (0, 0, 0, 0, 0, 0);
    let mut below = None;
    for (vma_id, vma) in mm.vmas(k) {
        let (start, end, flags) = (vma.start(), vma.end(), vma.flags());
        check(before <= start && start < end && end <= mm.task_size(), "M1: order of VMAs", start)?;
        check((start | end) & (PAGE_SIZE - 1) == 0, "M1: whole pages", start)?;
        check(vma.mm.load() == Some(id), "M1: VMAs of this address space", start)?;
        let policy = (vma.policy().mode(), vma.policy().nodes().bits());
        check(policy == vma.policy_parts(), "M8: the policy of a VMA", start)?;
        check(vma.prev() == below, "M1: links to the VMA below", start)?;
        (before, below) = (end, Some(vma_id));
        let pages = vma.pages();
        total += pages;
        if flags.contains(VmFlags::LOCKED) {
            locked += pages;
        }
        if flags.is_exec() {
            exec += pages;
        } else if flags.contains(VmFlags::GROWSDOWN) {
            stack += pages;
        } else if flags.is_data() {
            data += pages;
        }
        if let Some(own) = vma.anon_vma() {
            check(anon::is_linked(k, vma, own), "A1: a VMA is linked to its AnonVma", start)?;
        }
    }
    check(mm.flushes_pending() == 0, "G1: removals are flushed", 0)?;
    check(total == mm.total_vm(), "M4: total_vm", 0)?;
    check(locked == mm.locked_vm(), "M4: locked_vm", 0)?;
    check((data, exec, stack) == (mm.data_vm(), mm.exec_vm(), mm.stack_vm()), "M4: data, exec, stack", 0)
}

fn check_entries<K: Kernel>(k: &K, mm: &Mm) -> Result<(), Broken> {
    let pt = mm.page_table();
    let (mut rss, mut swapents) = ([0_u64; 2], 0);
    let mut va = 0;
    let end = mm.task_size();
    while let Some(run) = k.tables(mm, |tables| pte::next_run(tables, pt, va, end)) {
        for (index, va) in run.entries() {
            let entry = mm_pgtable::Entry::new(k.tables(mm, |tables| tables.read(run.table, index)));
            let pfn = match pte::decode(entry) {
                Pte::Empty => {
                    check(entry.is_empty(), "M2: an entry means something", va)?;
                    continue;
                }
                Pte::Page(pfn) | Pte::Migration(pfn) | Pte::Special(pfn) => pfn,
                Pte::Swap(entry) => {
                    let vma =
                        mm.find(k, va).map(|id| Arena::<Vma>::at(k, id)).filter(|vma| vma.start() <= va);
                    let private =
                        |vma: &Vma| !vma.flags().contains(VmFlags::SHARED) && vma.anon_vma().is_some();
                    check(vma.is_some_and(private), "M7: a slot is named in a private VMA", va)?;
                    check(mm_swap::swap_count(k, entry) > 0, "W1: a slot counts who names it", va)?;
                    swapents += 1;
                    continue;
                }
            };
            let special = matches!(pte::decode(entry), Pte::Special(_));
            let vma = mm.find(k, va).map(|id| Arena::<Vma>::at(k, id)).filter(|vma| vma.start() <= va);
            let vma = vma.ok_or(Broken { what: "M2: an entry lies in a VMA", at: va })?;
            let flags = vma.flags();
            let writable = entry.has(PteFlags::WRITE);
            check(!entry.is_present() || flags.is_accessible(), "M2: no access, no entry", va)?;
            check(!writable || flags.contains(VmFlags::WRITE), "M2: writable in a writable VMA", va)?;
            let executable = entry.is_present() && !entry.has(PteFlags::NX);
            check(!executable || flags.contains(VmFlags::EXEC), "M2: executable in an executable VMA", va)?;
            check(!special || flags.contains(VmFlags::PFNMAP), "M6: a device's frame in a PFNMAP VMA", va)?;
            if special {
                check(
                    !writable || flags.contains(VmFlags::SHARED),
                    "M3: a device's frame is copied first",
                    va,
                )?;
                continue;
            }
            let copied = k.page(pfn).is_some_and(page::is_anon);
            check(copied || !flags.contains(VmFlags::PFNMAP), "M6: a copy in a PFNMAP VMA", va)?;
            if k.is_zero_page(pfn) {
                check(!writable, "M3: the zero page is read-only", va)?;
                continue;
            }
            if let Some(count) = rss.get_mut(zap::kind_of(k, pfn) as usize) {
                *count += 1;
            }
            let page = k.page(pfn).ok_or(Broken { what: "M2: an entry maps RAM", at: va })?;
            check_owner(k, mm, vma, va, page)?;
            if page::is_anon(page) && writable && matches!(pte::decode(entry), Pte::Page(_)) {
                check(page.mapcount() == 0, "M3: a page that two map is read-only", va)?;
            }
        }
        va = run.va + run.count as u64 * PAGE_SIZE;
    }
    let counted = [mm.rss(RssKind::Anon), mm.rss(RssKind::File)];
    check(rss == counted, "M4: RSS", 0)?;
    check(swapents == mm.swapents(), "M7: swapents", 0)?;
    let mut tables = 1;
    let walked =
        k.tables(mm, |mem| pt.for_each_table(mem, VirtAddr::new(0), mm.task_size(), |_, _| tables += 1));
    check(walked.is_ok() && tables == mm.table_pages(), "M4: page tables", 0)
}

fn check_owner<K: Kernel>(k: &K, _mm: &Mm, vma: &Vma, va: u64, page: &mm_core::Page) -> Result<(), Broken> {
    check(page.index() == vma.index_of(va), "M5: a page is at its index", va)?;
    match page::owner(page) {
        Owner::Anon(anon) => check(anon::is_linked(k, vma, anon), "M5: a page's AnonVma knows the VMA", va),
        Owner::Mapped(mapping) => {
            check(vma.mapping() == Some(mapping), "M5: a page is of the VMA's mapping", va)
        }
        Owner::None => check(false, "M5: a mapped page has an owner", va),
    }?;
    debug_assert!(va >> PAGE_SHIFT << PAGE_SHIFT == va);
    Ok(())
}
