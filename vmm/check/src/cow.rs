//! Copy on write.
//!
//! C1  `cow.read-only`: a frame that more than one entry maps is writable in no private VMA; and a page of a mapping is writable in no
//!     private VMA however few map it. Whoever writes there gets a copy first. The zero page is writable nowhere.

use memvisor_abi::{Page, vm_flags};
use memvisor_inspect::Entry;

use crate::Rule;
use crate::ledger::{Ledger, finding};
use crate::processes::Processes;

pub(crate) const READ_ONLY: Rule = Rule {
    name: "cow.read-only",
    invariant: "what private VMAs share is read-only in all of them",
    reads: "page tables, Vma lists, descriptors",
    seeded: &["cow-writable"],
    hint: "copy_page_range, do_wp_page: who decides that a page may be reused",
};

/// Runs C1.
pub(crate) fn run(processes: &Processes, ledger: &mut Ledger) {
    for process in &processes.list {
        let mapped = process.with_vmas().filter(|(entry, _)| entry.kind.is_mapping());
        for (entry, vma) in mapped {
            let Some(at) = vma.filter(|at| at.vma.flags & vm_flags::SHARED == 0) else { continue };
            // A device's frames are the business of pfnmap.cow.
            if at.vma.flags & (vm_flags::PFNMAP | vm_flags::IO) != 0 {
                continue;
            }
            ledger.checked(&READ_ONLY, 1);
            if !entry.entry.has(Entry::WRITE) {
                continue;
            }
            let entries = processes.entries_of(entry.pfn);
            let cached = |page: &&Page| page.mapping != 0 && page.mapping & Page::MAPPING_ANON == 0;
            let outside = if processes.uncounted.contains(&entry.pfn) {
                "it is a frame that nobody owns alone".to_owned()
            } else if entries > 1 {
                format!("{entries} entries map the frame")
            } else if let Some(page) = processes.page(entry.pfn).filter(cached) {
                format!("it is the page of mapping {:#x}, not a copy", page.mapping)
            } else {
                continue;
            };
            let what = format!("pid {} {:#x} (pfn {:#x})", process.pid(), entry.va, entry.pfn);
            let what = finding(&READ_ONLY, what, "private and writable", outside);
            ledger.report(&READ_ONLY, what.frame(entry.pfn).address(entry.va));
        }
    }
}
