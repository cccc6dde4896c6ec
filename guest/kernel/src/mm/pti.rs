//! Tables for ring 3 with page-table isolation (Linux: arch/x86/mm/pti.c, `pti_init`, `pti_clone_entry_text`).
//!
//! Invariants:
//! I1  the upper half of every user table has the entries of one tree, which maps the entry area and nothing else, for ring 0;
//! I2  its lower half has the entries of the kernel's table of the same address space: whoever writes the one writes the other.

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::PageFlags;
use mm_core::{MemMap, PAGE_SIZE, PFN_NONE, Page, Pfn, PhysMem, VirtAddr};
use mm_pgtable::{LeafSize, PageTable, Prot, TABLE_ENTRIES, TableMem};
use mm_vma::Mm;

use super::layout::{levels, percpu_area};
use super::memmap::Vmemmap;
use super::paging::{self, Tables, entry_address};
use super::phys::DirectMap;
use crate::arch::{pti, trap};
use crate::{cmdline, introspect, pr_info, topology};

/// Root of the tree whose upper half every user table has.
static TEMPLATE: AtomicU64 = AtomicU64::new(0);

/// Pages of a CPU's area that ring 3's tables have: GDT, TSS and entry stack; IST stacks.
const AREA_PAGES: [u64; 9] = [1, 8, 9, 11, 12, 14, 15, 17, 18];

unsafe extern "C" {
    static __entry_text_start: u8;
    static __entry_text_end: u8;
}

/// Isolates if the command line asks for it (Linux: `pti=on`, `nopti`). Slabs can be had; no other CPU runs.
pub fn init() {
    let asked = cmdline::value("pti", |value| value == "on") == Some(true) && !cmdline::flag("nopti");
    if !asked {
        return;
    }
    let table = PageTable::new(&mut Tables, levels()).expect("no memory for the entry area's tables");
    let (text, end) = (&raw const __entry_text_start as u64, &raw const __entry_text_end as u64);
    let idt = trap::idt_pages();
    let read_only = Prot { global: false, ..Prot::KERNEL_RO };
    map(table, text..end, Prot { exec: true, ..read_only });
    map(table, idt.clone(), read_only);
    let nr_cpus = u32::try_from(topology::CPUS.lock().count).unwrap_or(0);
    for cpu in 0..nr_cpus {
        for page in AREA_PAGES {
            let va = percpu_area(cpu).as_u64() + page * PAGE_SIZE;
            map(table, va..va + PAGE_SIZE, Prot { write: true, ..read_only });
        }
    }
    introspect::add_extra_table(table.root);
    introspect::publish_entry_area(table.root, text..end, idt);
    TEMPLATE.store(table.root.as_u64(), Ordering::Release);
    pti::enable(nr_cpus);
    pr_info!("pti: ring 3 has tables of its own, with {} KiB of entry code", (end - text) / 1024);
}

/// Maps what the kernel has there.
fn map(table: PageTable, range: core::ops::Range<u64>, prot: Prot) {
    for va in range.step_by(4096).map(VirtAddr::new) {
        let found = paging::kernel().translate(&Tables, va).expect("the kernel maps its entry area");
        let mapped = table.map(&mut Tables, va, found.phys, PAGE_SIZE, prot, LeafSize::Size4K);
        mapped.expect("no memory for the entry area's tables");
    }
}

fn page(table: Pfn) -> Option<&'static Page> {
    static MAP: Vmemmap = Vmemmap;
    MAP.page(table)
}

/// The user's table that goes with a kernel's, if there is one.
fn user_of(table: Pfn) -> Option<Pfn> {
    page(table).filter(|page| page.has(PageFlags::PGD_PAIR)).map(|page| Pfn::new(page.private()))
}

/// An entry of a table was written (Linux: `pti_set_user_pgtbl`).
pub fn mirror(table: Pfn, index: usize, value: u64) {
    if index < TABLE_ENTRIES / 2
        && let Some(user) = user_of(table)
    {
        DirectMap.write_u64(entry_address(user, index), value);
    }
}

/// The tree whose upper half every user table has; only with isolation.
pub fn template() -> PageTable {
    PageTable { root: Pfn::new(TEMPLATE.load(Ordering::Acquire)), levels: levels() }
}

/// Gives an address space its second top-level table, if isolation is on. False without memory.
pub fn alloc_user_table(mm: &Mm, kernel: PageTable) -> bool {
    mm.set_user_root(PFN_NONE);
    if !pti::enabled() {
        return true;
    }
    let (Some(user), Some(page)) = (Tables.alloc_table(), page(kernel.root)) else { return false };
    PageTable { root: user, levels: levels() }.share_upper_half(&Tables, template());
    page.set_private(user.as_u64());
    page.insert(PageFlags::PGD_PAIR);
    mm.set_user_root(user.as_u64());
    true
}

/// Takes it away again; nothing is mapped, and no CPU uses it.
pub fn free_user_table(mm: &Mm) {
    let kernel = mm.page_table().root;
    let Some(user) = user_of(kernel) else { return };
    if let Some(page) = page(kernel) {
        page.remove(PageFlags::PGD_PAIR);
        page.set_private(0);
    }
    mm.set_user_root(PFN_NONE);
    // What it had of the kernel's half is the template's; a table goes back all zero.
    DirectMap.fill_table(user, TABLE_ENTRIES / 2, TABLE_ENTRIES / 2, 0, 0);
    Tables.free_table(user);
}
